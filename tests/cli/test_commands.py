"""The commands, one after the other, as a person with a folder of images gives them; and what each answers to a wrong word."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import retinue
from retinue.cli import COMMANDS, main
from retinue.cli.recipes import resolve
from retinue.data import Data
from retinue.errors import ArgumentError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders: digits 0 to 3 as small files."""
    root = tmp_path_factory.mktemp("photos")
    data: Data = retinue.data.open("digits")
    counts: dict[int, int] = {}
    for i, label in enumerate(data.train.labels.tolist()):
        counts[label] = counts.get(label, 0) + 1
        if label < 4 and counts[label] <= 25:
            (root / f"digit-{label}").mkdir(exist_ok=True)
            Image.fromarray(data.train.images([i])[0, 0].numpy()).save(root / f"digit-{label}" / f"{i:04}.png")
    return root


@pytest.fixture(scope="module")
def run_dir(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    words = (
        f"train --data {photos} --model small_convnet --model.widths [8,8,16,16] --epochs 6 --lr 0.01 --batch-size 16 --run-dir {folder}"
    )
    assert main([*words.split(), "--progress", "false", "--views", "crop(1)"]) == 0
    return folder


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ")
    return text


def test_training_leaves_everything_in_one_folder(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    assert {
        "best",
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.csv",
        "recipe.yaml",
        "report.html",
        "test.json",
        "timing.csv",
    } <= names
    assert json.loads((run_dir / "test.json").read_text())["top1"] > 0.5
    assert retinue.load(run_dir).classes == [f"digit-{i}" for i in range(4)]


def test_the_same_command_again_reads_the_run_back(run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "metrics.csv").read_bytes()
    words = (
        f"train --data {photos} --model small_convnet --model.widths [8,8,16,16] --epochs 6 --lr 0.01 --batch-size 16 --run-dir {run_dir}"
    )
    assert "test: top1" in answer(capsys, *words.split(), "--progress", "false", "--views", "crop(1)")
    assert (run_dir / "metrics.csv").read_bytes() == before


def test_a_runs_recipe_runs_again_elsewhere(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", str(run_dir / "recipe.yaml"), "fit.epochs", "1", "--run-dir", str(tmp_path / "again"), "--progress", "false"]
    assert "report: " in answer(capsys, *words)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["fit"]["epochs"] == 1


def test_changes_of_a_recipe_may_stand_behind_an_option(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run",
        str(run_dir / "recipe.yaml"),
        "--progress=false",
        "fit.epochs",
        "1",
        "--run-dir",
        str(tmp_path / "again"),
        "fit.seed",
        "5",
    ]
    assert "report: " in answer(capsys, *words)
    told = json.loads((tmp_path / "again" / "config.json").read_text())["fit"]
    assert (told["epochs"], told["seed"]) == (1, 5)


def test_evaluate_gives_the_numbers_of_the_training(run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = json.loads(answer(capsys, "evaluate", str(run_dir), "--json"))
    assert numbers["top1"] == json.loads((run_dir / "test.json").read_text())["top1"]
    everything = json.loads(answer(capsys, "evaluate", str(run_dir), "--data", str(photos), "--json"))
    assert everything["images"] == 100
    assert answer(capsys, "evaluate", str(run_dir), "--split", "val").startswith("8 images: top1 ")


def test_evaluate_measures_corrupted_images_too(run_dir: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(answer(capsys, "evaluate", str(run_dir), "--corruptions", "--json"))
    assert told["corruptions"]["clean"]["top1"] == told["top1"]
    assert {"gaussian_noise", "mean"} <= set(told["corruptions"])
    lines = answer(capsys, "evaluate", str(run_dir), "--corruptions").splitlines()
    assert len(lines) == len(told["corruptions"])
    assert lines[-1].startswith("mean: top1 ")


def test_evaluate_matches_classes_by_name(run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("digit-3", "digit-1"):
        (tmp_path / name).symlink_to(photos / name)
    numbers = json.loads(answer(capsys, "evaluate", str(run_dir), "--data", str(tmp_path), "--json"))
    assert numbers["images"] == 50
    assert numbers["top1"] > 0.5
    (tmp_path / "zebra").symlink_to(photos / "digit-0")
    text = refusal(capsys, "evaluate", str(run_dir), "--data", str(tmp_path))
    assert "has classes that" in text
    assert "was not trained on: zebra. It knows digit-0, digit-1" in text


def test_predict_names_files_classes_and_probabilities(
    run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(io.StringIO(answer(capsys, "predict", str(run_dir), str(photos / "digit-2"), "--top", "2"))))
    assert len(rows) == 25
    assert sum(row["class_1"] == "digit-2" for row in rows) > 12
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)
    answer(capsys, "predict", str(run_dir), f"{photos}/digit-1/*.png", "--format", "json", "--out", str(tmp_path / "x.json"))
    answers = json.loads((tmp_path / "x.json").read_text())
    assert len(answers) == 25
    assert sum(answers[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    model, first = retinue.load(run_dir), answers[0]
    x: Any = model
    with torch.inference_mode():
        shares = model(x.preprocessing.normalize(x.preprocessing.read(first["image"])[None])).softmax(-1)
    assert first["probabilities"][0] == pytest.approx(float(shares.max()), abs=1e-5)


def test_predict_lists_files_that_cannot_be_read(run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no image")
    good = next((photos / "digit-0").iterdir())
    text = refusal(capsys, "predict", str(run_dir), str(good), str(tmp_path / "text.png"))
    assert "1 of 2 images cannot be used" in text
    assert "text.png: not an image" in text
    assert len(answer(capsys, "predict", str(run_dir), str(good), str(tmp_path / "text.png"), "--on-bad", "skip").splitlines()) == 2
    assert "there is no file or folder" in refusal(capsys, "predict", str(run_dir), str(tmp_path / "nothing.png"))
    assert 'no format is called "xml". There is csv, json.' in refusal(capsys, "predict", str(run_dir), str(good), "--format", "xml")
    assert "`top` must be at least 1" in refusal(capsys, "predict", str(run_dir), str(good), "--top", "0")


def test_explain_writes_a_picture_for_each_image(run_dir: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in sorted((photos / "digit-0").iterdir())[:3]]
    out = answer(capsys, "explain", str(run_dir), *files, "--out", str(tmp_path / "why"), "--target", "digit-0")
    pictures = [Path(line) for line in out.split()]
    assert len(pictures) == 4
    assert all(Image.open(picture).size[0] > 100 for picture in pictures)
    assert 'no class is called "digit-9". Did you mean' in refusal(capsys, "explain", str(run_dir), files[0], "--target", "digit-9")
    assert 'no method is called "gradcamm". Did you mean gradcam' in refusal(
        capsys, "explain", str(run_dir), files[0], "--method", "gradcamm"
    )


def test_report_of_one_run_and_of_several(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "report: " in answer(capsys, "report", str(run_dir), "--out", str(tmp_path / "one.html"))
    assert "report: " in answer(capsys, "report", str(run_dir), str(run_dir), "--out", str(tmp_path / "two.html"))
    for name in ("one", "two"):
        assert 10_000 < (tmp_path / f"{name}.html").stat().st_size < 5_000_000
    assert "is no run: it has no config.json" in refusal(capsys, "report", str(tmp_path))


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "safetensors"])
def test_export_writes_each_format(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], unchecked: None, kind: str) -> None:
    out = tmp_path / f"model.{kind}"
    assert str(out) in answer(capsys, "export", str(run_dir), "--format", kind, "--out", str(out))
    assert out.stat().st_size > 1000


def test_export_refuses_unknown_formats(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'no format is called "onxx". Did you mean onnx?' in refusal(capsys, "export", str(run_dir), "--format", "onxx")


def test_training_refuses_what_cannot_be(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "--data", str(photos), "--run-dir", str(tmp_path / "run"), "--progress", "false"]
    assert 'no network is called "incepton_v4". Did you mean inception_v4' in refusal(capsys, *base, "--model", "incepton_v4")
    assert "there is no option --epoch. Did you mean --epochs" in refusal(capsys, *base, "--epoch", "3")
    assert "`epochs` must be float or null, got many" in refusal(capsys, *base, "--epochs", "many").replace("None", "null")
    assert 'no option is called "widhts". Did you mean widths' in refusal(
        capsys, *base, "--model", "small_convnet", "--model.widhts", "[4]"
    )
    assert 'retinue.train has no class or function "Supervized". Did you mean Supervised' in refusal(
        capsys, *base, "--objective", "Supervized"
    )
    assert 'no view is called "flop"' in refusal(capsys, *base, "--model", "small_convnet", "--views", "flop")
    assert not (tmp_path / "run").exists()


def test_a_procedure_prints_and_keeps_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = "procedure.steps=4 procedure.rewind_step=1 procedure.levels=2 procedure.control_levels=[2] procedure.points=2"
    words = ["run", "lottery-ticket", *changes.replace("=", " ").split(), "--run_dir", str(tmp_path)]
    text = answer(capsys, *words)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert "density: [1, 0.8, 0.64]" in text
    assert f"stability: 2 (pruning_l2 {kept['stability']['2']['pruning_l2']:.4g}  " in text
    assert f"results: {tmp_path / 'result.json'}" in text
    assert answer(capsys, *words) == text  # read back, not trained again
    other = refusal(capsys, *words, "procedure.seed", "1")
    assert f"{tmp_path} holds what was found with other settings (seed: 1). Take another --run_dir" in other
    assert "could not be written: Not a directory" in refusal(capsys, *words[:-1], str(tmp_path / "result.json" / "below"))


def test_claims_and_systems_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "inception-v4" in answer(capsys, "claims", "--folder", str(tmp_path))
    assert "Inception-ResNet" in answer(capsys, "show", "inception-v4")
    assert "wide-and-deep" in answer(capsys, "systems")


def test_a_claim_is_refused_by_name(capsys: pytest.CaptureFixture[str], unchecked: None) -> None:
    assert 'no system is called "inception-v5". Did you mean inception-v4' in refusal(capsys, "claim", "inception-v5")
    assert 'no budget is called "smokey". Did you mean smoke?' in refusal(capsys, "claim", "inception-v4", "--budget", "smokey")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"usage: retinue {command}" in answer(capsys, command, "--help")


def test_a_recipe_does_not_take_a_module_for_a_function() -> None:
    with pytest.raises(ArgumentError, match=r'retinue\.engine has no class or function "loop"\.'):
        resolve("retinue.engine.loop")
