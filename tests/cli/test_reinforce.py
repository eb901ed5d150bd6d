"""`retinue reinforce`: build, inspect and train, one after the other, and what each refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

import retinue
from retinue.cli import reinforce
from retinue.cli.parser import Parser
from retinue.errors import ArgumentError, CheckpointError, DataError


def call(*words: Any) -> None:
    parser = Parser("reinforce", "store teachers' answers")
    reinforce.arguments(parser)
    options = parser.read([str(word) for word in words])
    assert options is not None
    reinforce.run(options)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    data = retinue.data.open("digits", train_images=60, test_images=30)
    model = retinue.create_model("small_convnet", widths=[8, 8], num_classes=10, in_chans=1, input_size=(8, 8))
    retinue.fit(model, retinue.engine.Supervised(), data, max_steps=3, run_dir=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def store(teacher: Path) -> Path:
    folder = teacher.parent / "store"
    call("build", folder, "--teachers", f"[{teacher}]", "--recipe", "crop(1), mixup", "--num-samples", 3, "--topk", 2)
    return folder


def test_build_takes_the_data_of_the_first_teacher(store: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("build", store, "--teachers", f"[{teacher}]", "--recipe", "crop(1), mixup", "--num-samples", 3, "--topk", 2)
    size = sum(path.stat().st_size for path in store.iterdir() if path.suffix in (".json", ".safetensors"))
    said = capsys.readouterr().out
    assert said == (
        f"{store}: 60 images, 3 augmentations of each, 2 of 10 classes kept; {size / 1e6:.2f} MB, {size / 60:.0f} bytes an image\n"
    )


def test_inspect_tells_and_draws_the_records_of_an_image(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("inspect", store, "--image", 7)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "augmentation: crop(1), mixup()"
    assert lines[2].startswith(f"teacher: {store.parent / 'teacher'}, weights ")
    assert [line.split(":")[0] for line in lines[3:6]] == ["record 0", "record 1", "record 2"]
    assert lines[6] == f"picture: {store / 'image-7.png'}"
    assert (store / "image-7.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ArgumentError, match=r"reinforce inspect: `image` must lie between 0 and 59, got 60"):
        call("inspect", store, "--image", 60)


def test_train_reports_on_labels_and_on_corrupted_images(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", store, "--model", "mlp", "--model.widths", "[8]", "--max-steps", 4, "--progress", "false", "--run-dir", tmp_path)
    call(*words, "--corruptions")
    said = capsys.readouterr().out
    assert said.startswith("test: top1 0.")
    assert "corrupted, jpeg: top1 " in said
    assert f"report: {tmp_path / 'report.html'}" in said
    table = json.loads((tmp_path / "corruptions.json").read_text())
    assert {"clean", "fog", "mean"} <= set(table)
    assert json.loads((tmp_path / "test.json").read_text()) == table["clean"] == retinue.evaluate(retinue.load(tmp_path), _test(store))
    assert json.loads((tmp_path / "config.json").read_text())["objective"]["p"] == 0.99


def _test(store: Path) -> Any:
    from retinue.distill.reinforcement_store import ReinforcementStore, reopen_data

    return reopen_data(ReinforcementStore(store)).test


def test_what_cannot_be_is_refused(store: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r'retinue reinforce: no action is called "inspct"\. Did you mean inspect'):
        call("inspct", store)
    with pytest.raises(ArgumentError, match=r"--teachers must be given: folders of runs, such as --teachers \[runs/a,runs/b\]"):
        call("build", tmp_path)
    with pytest.raises(ArgumentError, match=r"--data must be given, as the first teacher is no run"):
        call("build", tmp_path, "--teachers", "[mlp]")
    with pytest.raises(CheckpointError, match=r"nowhere holds no reinforcement store"):
        call("train", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"was built for another number of images"):
        call("train", store, "--data", "digits")
