"""What a report gathers from a run's folder: the numbers of the engine, real mistakes, and a word on what is missing."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report.cases import Page
from torch import Tensor, nn

import retinue
from retinue.data import Batch, Data
from retinue.engine import Objective
from retinue.errors import ArgumentError, CheckpointError, DataError
from retinue.report import collect, pictures, report
from retinue.report.collect import read_timing
from retinue.report.pictures import confident_mistakes, shown
from retinue.train import Supervised

FIT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 5e-3, "log_every": 5, "progress": False, "loggers": ("csv",)}


class Reconstruct(Objective):
    """Learns no classes: the logits are to be the corner of the image."""

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (model(batch.images) - batch.images.flatten(1)[:, :10]).square().mean()}


def digits() -> Data:
    return retinue.data.open("digits", train_images=200, test_images=80)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return retinue.create_model("small_convnet", widths=[8, 8, 16, 16], num_classes=10, in_chans=1, input_size=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("runs") / "digits"
    retinue.fit(network(), Supervised(), digits(), run_dir=folder, **FIT)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(trained, tmp_path / "digits")


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_the_numbers_are_those_of_the_engine(trained: Path) -> None:
    found = collect(trained)
    held = found.held_out
    assert held is not None
    model, test = retinue.load(trained), retinue.data.open("digits", train_images=200, test_images=80).test
    assert {"top1": held.top1, "top5": held.top5, "ece": held.ece, "loss": held.loss} == retinue.evaluate(model, test)
    assert held.images == held.confusion.sum() == sum(b.count for b in held.bins) == sum(c.support for c in held.classes) == 80
    assert held.top1 == pytest.approx(held.confusion.trace() / 80, abs=1e-7)
    assert held.ece == pytest.approx(sum(b.count * abs(b.accuracy - b.confidence) for b in held.bins if b.count) / 80, abs=1e-9)
    assert [c.name for c in held.classes] == [str(i) for i in range(10)]
    assert found.notes == []


def test_the_folder_is_told_in_full(trained: Path) -> None:
    found = collect(trained)
    assert found.name == "digits"
    assert found.settings == json.loads((trained / "config.json").read_text())
    assert found.environment == json.loads((trained / "environment.json").read_text())
    assert found.epochs == 2
    assert {name for row in found.history for name in row} >= {"train/loss", "val/loss", "val/top1", "lr"}
    best = max((row for row in found.history if "val/top1" in row), key=lambda row: row["val/top1"])
    assert (found.best_step, found.best_epoch) == (best["step"], best["epoch"])
    assert found.images_per_second is not None
    assert found.images_per_second > 0
    assert found.macs is not None
    assert found.macs > 1000


def test_mistakes_are_mistakes_the_surest_first(trained: Path) -> None:
    found = collect(trained)
    assert found.held_out is not None
    assert len(found.mistakes) == min(24, found.held_out.wrong) > 0
    assert all(mistake.label != mistake.predicted for mistake in found.mistakes)
    assert all(mistake.confidence >= mistake.label_confidence for mistake in found.mistakes)
    sure = [mistake.confidence for mistake in found.mistakes]
    assert sure == sorted(sure, reverse=True)
    assert len(collect(trained, most_mistakes=2).mistakes) == 2


def test_a_mistake_shows_its_own_image(trained: Path) -> None:
    first = collect(trained).mistakes[0]
    test = digits().test
    index = next(i for i in range(len(test)) if test.name(i) == first.name)
    assert test.classes[int(test.labels[index])] == first.label
    expected = np.asarray(shown(test.images([index])[0]))
    assert pixels(first.picture).shape == (160, 160, 3)
    assert np.abs(pixels(first.picture).astype(int) - expected).mean() < 8  # WebP loses a little
    assert first.overlay is not None
    assert pixels(first.overlay).shape == (160, 160, 3)
    assert np.abs(pixels(first.overlay).astype(int) - expected).mean() > 20  # 40 % of it is colour


def test_the_heat_map_explains_the_class_that_was_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    class Spy:
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def __call__(self, images: Tensor, target: Tensor) -> Tensor:
            asked.append(target)
            assert torch.equal(self.model(images).argmax(-1), target)
            return torch.zeros(len(images), *images.shape[-2:])

    monkeypatch.setattr(pictures, "GradCAM", Spy)
    found = collect(trained, most_mistakes=20)
    assert torch.cat(asked).tolist() == [int(mistake.predicted) for mistake in found.mistakes]


def test_small_images_grow_by_whole_factors_and_large_ones_shrink() -> None:
    tiny = torch.tensor([[[0, 255], [128, 64]]], dtype=torch.uint8)
    grown = np.asarray(shown(tiny))
    assert grown.shape == (160, 160, 3)
    assert (grown[:80, 80:] == 255).all()
    assert (grown[80:, :80] == 128).all()
    assert shown(torch.zeros(3, 300, 600, dtype=torch.uint8)).size == (224, 112)
    assert shown(torch.zeros(3, 180, 200, dtype=torch.uint8)).size == (200, 180)


def test_a_network_without_maps_gives_pictures_without_heat_maps() -> None:
    torch.manual_seed(0)
    test = digits().test
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    found, trouble = confident_mistakes(flat, test, torch.randn(80, 10), test.labels, most=3)
    assert [mistake.overlay for mistake in found] == [None] * 3
    assert "GradCAM" in trouble


def test_no_mistakes_give_no_pictures() -> None:
    test = digits().test
    assert confident_mistakes(network(), test, nn.functional.one_hot(test.labels, 10).float(), test.labels, most=3) == ([], "")


def test_data_that_has_gone_is_said_and_the_rest_stays(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["opened_with"]["source"] = "/nowhere/pictures"
    (run / "config.json").write_text(json.dumps(config))
    found = collect(run)
    assert found.held_out is None
    assert found.mistakes == []
    assert len(found.notes) == 1
    assert found.notes[0].startswith("Nothing was measured on test images, and there are no pictures: ")
    assert "/nowhere/pictures" in found.notes[0]
    assert found.history
    words = Page(report(run).read_text(encoding="utf-8")).words
    assert "/nowhere/pictures" in words
    assert "validation" in words


def test_data_can_be_given(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["data"]["opened_with"] = None
    (run / "config.json").write_text(json.dumps(config))
    assert collect(run).held_out is None
    held = collect(run, data=digits()).held_out
    assert held is not None
    assert held.images == 80
    named = collect(run, data="digits").held_out
    assert named is not None
    assert named.images > 80


def test_given_data_that_does_not_fit_is_refused(trained: Path) -> None:
    with pytest.raises(ArgumentError, match="the model was trained on images of 8x8 px"):
        collect(trained, data=retinue.data.open("digits", input_size=16))
    with pytest.raises(DataError):
        collect(trained, data="/nowhere/pictures")


def test_a_training_without_labels_is_not_measured_on_them(tmp_path: Path) -> None:
    retinue.fit(network(), Reconstruct(), digits(), run_dir=tmp_path / "self", **FIT)
    found = collect(tmp_path / "self")
    assert found.notes == ["This training did not learn the classes, so its model was not measured on test images."]
    found_page = Page(report(tmp_path / "self").read_text(encoding="utf-8"))
    assert found_page.ids == ["curves", "throughput", "settings", "environment"]
    assert "with the objective Reconstruct." in found_page.words


def test_a_network_that_cannot_be_rebuilt_is_said(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    retinue.fit(own, Supervised(), digits(), run_dir=tmp_path / "own", **FIT)
    found = collect(tmp_path / "own")
    assert found.held_out is None
    assert found.notes[0].startswith("The model could not be loaded, so nothing was measured on test images: ")
    assert found.best_step is not None


def test_a_damaged_model_is_said(run: Path) -> None:
    for path in run.rglob("model.safetensors"):
        path.write_bytes(b"torn")
    assert collect(run).notes[0].startswith("The model could not be loaded")


def test_torn_rows_of_the_timing_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timing.csv"
    assert read_timing(path) == []
    path.write_text("step,seconds,images_per_second\n5,0.5,100.00\n10,0.510,0.5,98.00\n15,0.4,120.00\n20,0.")
    assert read_timing(path) == [(5, 0.5, 100.0), (15, 0.4, 120.0)]


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_damaged_configuration_is_named(run: Path, content: str) -> None:
    (run / "config.json").write_text(content)
    with pytest.raises(DataError, match=r"report: .*config\.json .*Is it damaged\?"):
        collect(run)


def test_the_report_stands_in_the_runs_folder_whole(run: Path) -> None:
    path = report(run)
    assert path == run / "report.html"
    found = Page(path.read_text(encoding="utf-8"))
    assert len(found.ids) == 8
    assert len(found.all("img")) >= 2
    assert path.stat().st_size < 1_000_000
    assert not list(run.glob(".writing-*"))
    again = path.read_bytes()
    assert report(str(run)).read_bytes() == again


def test_several_runs_share_a_page_beside_their_folders(run: Path) -> None:
    other = run.parent / "other"
    retinue.fit(network(seed=1), Supervised(label_smoothing=0.1), digits(), run_dir=other, **FIT)
    path = report([run, other])
    assert path == run.parent / "report.html"
    words = Page(path.read_text(encoding="utf-8")).words
    assert "2 runs" in words
    assert "objective.label_smoothing 0.0 0.1" in words
    assert report([run], out=run.parent / "deep" / "one.html").read_bytes() == report(run).read_bytes()


def test_no_run_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"there is no run to report on\. Give at least one run folder"):
        report([])
    with pytest.raises(ArgumentError, match=r"is no run: it has no config\.json"):
        report(tmp_path)


def test_a_place_that_cannot_be_written_is_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        report(run, out=run / "best")
