"""`retinue audit DATA`: the words that are printed, the two files, models and comparing."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import retinue
from retinue.audit.learning_curve import part_of
from retinue.cli import audit
from retinue.cli.parser import Parser
from retinue.errors import ArgumentError, DataError

QUICK = ["--curve-images", "0", "--n-bootstrap", "10"]


def command(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = Parser("audit", "audit a data set")
    audit.arguments(parser)
    options = parser.read(list(words))
    assert options is not None
    audit.run(options)
    return capsys.readouterr().out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    data = retinue.data.open("digits")
    for i, label in enumerate(data.train.labels.tolist()):
        if label < 2:
            place = tmp_path / "photos" / f"digit-{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.train.images([i])[0, 0].numpy()).save(place / f"{i:04}.png")
    (place / "broken.png").write_bytes(b"nothing")
    return tmp_path / "photos"


def test_a_folder_with_a_broken_file_is_audited(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = command(capsys, str(photos), "--out", str(tmp_path / "out"), *QUICK)
    assert "Broken files [to mend]: 1 file cannot be read, 259 can. Mend or delete them" in text
    assert "dimension of the images: mle " in text
    assert "label sharpness: " in text
    assert "Mend this first: broken files." in text
    assert f"page: {tmp_path / 'out' / 'audit.html'}" in text
    values = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert values["broken"][0][0].endswith("broken.png")
    assert values["verdicts"][0]["level"] == "mend"
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "broken.png" in page
    assert "<h1>" in page


def test_options_of_the_data_reach_it_and_the_folder_is_named_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command(capsys, "digits", "--train-images", "100", "--channels", "3", "--resolution", "4", "--k", "5", *QUICK)
    values = json.loads(Path("audits/digits/audit.json").read_text())
    assert values["convention"] == {
        "size": [4, 4], "channels": 3, "range": [0, 255], "scaled": "each image to a maximum of 255", "k": 5, "correction": "k-2",
    }  # fmt: skip
    assert sum(one["train"] for one in values["classes"]) == 100


def test_runs_give_representations_an_attack_and_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = retinue.data.open("digits")
    names = []
    for images in (100, 400):
        torch.manual_seed(0)
        model = retinue.create_model("small_convnet", widths=[8, 16], num_classes=10, in_chans=1, input_size=8)
        names.append(str(tmp_path / f"run-{images}"))
        retinue.fit(
            model, retinue.train.Supervised(), part_of(data, images), epochs=4, lr=0.01, batch_size=20, run_dir=names[-1], progress=False
        )  # fmt: skip
    text = command(capsys, "digits", "--model", *names, "--out", str(tmp_path), "--n-bootstrap", "10")
    assert "dimension of the representations: mle " in text
    assert "Moving every pixel by 2 of 255 against the model" in text
    values: dict[str, Any] = json.loads((tmp_path / "audit.json").read_text())
    assert values["curve"]["by"] == "your runs"
    assert [row["images"] for row in values["curve"]["rows"]] == [100, 400]
    assert list(values["attack"]) == ["0", "1", "2", "4", "8"]


def test_other_audits_stand_beside_or_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(capsys, "digits", "--out", str(tmp_path / "a"), *QUICK)
    other = str(tmp_path / "a" / "audit.json")
    text = command(capsys, "digits", "--train-images", "300", "--out", str(tmp_path / "b"), "--compare", other, *QUICK)
    assert "digits (1): training images 300  dimension (MLE) " in text
    assert "digits (2): training images 1295  " in text
    assert 'id="beside"' in (tmp_path / "b" / "audit.html").read_text()
    with pytest.raises(ArgumentError, match=r"digits \(1\) was measured at channels 3 and digits \(2\) at 1"):
        command(capsys, "digits", "--channels", "3", "--out", str(tmp_path / "c"), "--compare", other, *QUICK)
    assert not (tmp_path / "c").exists()


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r'no data set is called "digit"'):
        command(capsys, "digit", *QUICK)
    with pytest.raises(ArgumentError, match=r"there is no option --resolutoin\. Did you mean --resolution"):
        command(capsys, "digits", "--resolutoin", "3")
    with pytest.raises(DataError, match=r"nothing\.json cannot be read: No such file or directory\. Give the audit\.json of another"):
        command(capsys, "digits", "--compare", str(tmp_path / "nothing.json"))
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(DataError, match=r"torn\.json is no JSON"):
        command(capsys, "digits", "--compare", str(tmp_path / "torn.json"))
    with pytest.raises(ArgumentError, match=r'no network is called "small_convnte"\. Did you mean small_convnet'):
        command(capsys, "digits", "--model", "small_convnte", *QUICK)


def test_published_weights_see_images_as_they_were_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, opened = retinue.create_model, retinue.data.open
    asked, seen = [], []

    def without_weights(name: str, **options: Any) -> Any:
        asked.append(options.pop("pretrained", False))
        return built(name, **options)

    @functools.wraps(opened)  # the options of the command are read off its signature
    def watched(*places: Any, **options: Any) -> Any:
        seen.append(opened(*places, **options))
        return seen[-1]

    monkeypatch.setattr(retinue, "create_model", without_weights)
    monkeypatch.setattr(retinue.data, "open", watched)
    text = command(
        capsys, "digits", "--model", "timm:test_vit", "--input-size", "32", "--train-images", "60", "--out", str(tmp_path), *QUICK
    )
    assert "dimension of the representations: mle " in text
    assert True in asked
    network = built("timm:test_vit")
    assert seen[0].preprocessing.mean == tuple(network.pretrained_cfg["mean"])
    assert seen[0].preprocessing.channels == 3
