"""`explain_files` and the command: which methods go with what, the pictures that are written, and the report that takes them in."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import retinue
from retinue.errors import ArgumentError
from retinue.explain import PrototypeLoss
from retinue.explain.files import METHODS, explain_files, method_for
from retinue.report import report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explained")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    data = retinue.data.open("digits", train_images=40, test_images=20)
    paths = [folder / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(data.test.images([i])[0, 0].numpy()).save(path)
    return paths


def trained(folder: Path, prototypes: bool) -> Path:
    data = retinue.data.open("digits", train_images=40, test_images=20)
    model = retinue.create_model("prototype_dl" if prototypes else "mlp", num_classes=10, in_chans=1, input_size=8)
    objective: Any = PrototypeLoss() if prototypes else retinue.train.Supervised()
    retinue.fit(model, objective, data, max_steps=2, batch_size=16, run_dir=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return trained(folder / "plain", False)


@pytest.fixture(scope="module")
def alike(folder: Path) -> Path:
    return trained(folder / "alike", True)


def test_a_network_with_prototypes_is_explained_by_them(alike: Path, files: list[Path]) -> None:
    model = retinue.load(alike)
    assert method_for(model) == "prototypes"
    written = explain_files(model, files, alike / "explain" / "prototypes")
    assert [path.name for path in written] == ["0000-0.png", "0001-1.png", "all.png"]
    assert all(Image.open(path).width > 200 for path in written)


@pytest.mark.parametrize("encoding", ["direct", "cppn", "gradient"])
def test_fooling_images_need_no_files_and_a_search_goes_on(plain: Path, encoding: str) -> None:
    model = retinue.load(plain)
    assert method_for(model) == "gradcam"
    out = plain / "explain" / f"fool-{encoding}"
    for generations in (2, 4):
        written = explain_files(model, [], out, method=f"fool-{encoding}", generations=generations, target="3")
    assert [path.name for path in written] == ["history.png", "all.png"]
    with pytest.raises(retinue.errors.CheckpointError, match="is at generation 4 already"):
        explain_files(model, [], out, method=f"fool-{encoding}", generations=2, target="3")


def test_the_report_takes_the_pictures_in(alike: Path, files: list[Path]) -> None:
    explain_files(retinue.load(alike), files, alike / "explain" / "prototypes")
    (alike / "explain" / "torn").mkdir()
    (alike / "explain" / "torn" / "all.png").write_bytes(b"no picture")
    page = report(alike).read_text(encoding="utf-8")
    assert page.count('class="explanation"') == 1
    assert "the class for which each speaks" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcamm"}, 'no method is called "gradcamm"'),
        ({"method": "prototypes"}, r"has no prototypes\. Train a network that has: retinue run prototype-dl\."),
        ({"method": "fool-cppn"}, '"fool-cppn" makes its own images, got 2 files. Leave them out'),
        ({"paths": []}, '"gradcam" explains images, and there are none. Name files or folders'),
        ({"generations": 3}, '`generations` does not go with the method "gradcam", only with fool-direct'),
        ({"method": "prototypes", "layer": "fc"}, '`layer` does not go with the method "prototypes"'),
        ({"target": "eleven"}, 'no class is called "eleven"'),
    ],
)
def test_what_does_not_go_together_is_refused(plain: Path, files: list[Path], tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        explain_files(retinue.load(plain), arguments.pop("paths", files), tmp_path, **arguments)


def test_every_method_is_told_in_the_report() -> None:
    from retinue.report.words import EXPLAINED

    assert set(METHODS) == set(EXPLAINED)
