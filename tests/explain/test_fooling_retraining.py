"""The defence by retraining, resumable stage by stage, and the pictures of what was found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Data, from_arrays
from retinue.errors import ArgumentError
from retinue.explain import fooling_retraining
from retinue.explain.fooling import FoolingResult
from retinue.explain.fooling_pictures import gallery, history, nearest_real, percent
from retinue.explain.fooling_retraining import retrain_with_fooling, summary, with_fooling_class

FIT: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 3e-3, "loggers": ("csv",)}
SETTINGS: dict[str, Any] = {"rounds": 1, "generations": 4, "population": 10, "fit_args": FIT, "progress": False}


def data() -> Data:
    return retinue.data.open("digits", train_images=120, test_images=50)


def network() -> nn.Module:
    torch.manual_seed(0)
    return retinue.create_model("small_convnet", widths=[8, 16], num_classes=10, in_chans=1, input_size=8)


def test_fooling_images_become_a_class_as_large_as_the_others() -> None:
    before = data()
    images = torch.rand(5, 1, 8, 8)
    after = with_fooling_class(before, images)
    assert after.classes == [*before.classes, "fooling"]
    assert (after.train.labels == 10).sum() == 12  # 120 / 10, of 5 images
    pixels = after.train.images()[after.train.labels == 10]
    assert torch.equal(pixels[:5], (images * 255).round().byte())
    assert torch.equal(pixels[5:10], pixels[:5])
    for part in ("val", "test"):
        assert torch.equal(getattr(after, part).images(), getattr(before, part).images())
        assert torch.equal(getattr(after, part).labels, getattr(before, part).labels)
    real = after.train.labels < 10
    assert torch.equal(after.train.images()[real], before.train.images())
    assert (after.preprocessing.mean, after.preprocessing.std) == (before.preprocessing.mean, before.preprocessing.std)
    assert len(with_fooling_class(before, torch.rand(30, 1, 8, 8)).train) == 150  # none is left out


def test_each_round_trains_with_all_fooling_images_so_far() -> None:
    seen: list[tuple[int, int, torch.Tensor]] = []

    def trainer(model: Any, shown: Data, folder: Path | None) -> nn.Module:
        seen.append((model.num_classes, len(shown.train), model.stem[0].conv.weight.detach().clone()))
        assert folder is None
        return model

    numbers = retrain_with_fooling(network(), data(), **{**SETTINGS, "rounds": 2, "per_round": 20}, trainer=trainer)
    # 2 searches of 10 images a round, which are more than the 12 of an even class
    assert [(outputs, count) for outputs, count, _ in seen] == [(10, 120), (11, 140), (11, 160)]
    assert torch.equal(seen[0][2], seen[2][2])  # every round starts from the same weights
    assert list(numbers) == ["round 0", "round 1", "round 2"]
    for values in numbers.values():
        assert list(values) == ["top1", "median", "least", "random", "generations"]
        assert values["random"] <= values["median"]


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrain_with_fooling(network(), data(), **SETTINGS, run_dir=tmp_path / "whole")
    honest, calls = fooling_retraining.fool, []

    def dies(*arguments: Any, **options: Any) -> FoolingResult:
        calls.append(options["run_dir"])
        found = honest(*arguments, **options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(fooling_retraining, "fool", dies)
    with pytest.raises(KeyboardInterrupt):
        retrain_with_fooling(network(), data(), **SETTINGS, run_dir=tmp_path / "cut")
    assert retrain_with_fooling(network(), data(), **SETTINGS, run_dir=tmp_path / "cut") == whole
    assert [folder.name for folder in calls] == ["round 0, search 0", "round 1, search 0", "round 1, search 0"]
    assert retinue.load(tmp_path / "whole" / "round 1").num_classes == 11
    assert retrain_with_fooling(network(), data(), **SETTINGS) == whole  # and the folder changes nothing


def result(confidence: list[float]) -> FoolingResult:
    p = torch.tensor(confidence, dtype=torch.float64)
    rows = torch.stack([p / 2, p, p])
    images = torch.rand(len(confidence), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return FoolingResult(images, p, p.logit(), rows, list(range(len(confidence))), [], {})


def test_a_search_in_numbers() -> None:
    found = summary(result([0.999, 0.995, 0.5]))
    assert found == {"median": 0.995, "least": 0.5, "random": 0.4975, "generations": 1.0}
    assert summary(result([0.9, 0.8]))["generations"] == -1


def test_the_gallery_names_classes_and_confidence() -> None:
    found = result([0.5, 0.99987, 1.0])
    figure = gallery(found, ["cat", "dog", "eel"])
    assert [axis.texts[0].get_text() for axis in figure.axes] == ["cat: 50.0 %", "dog: 99.987 %", "eel: > 99.9999 %"]
    drawn = figure.axes[1].get_images()[0].get_array()
    assert_close(torch.from_numpy(np.asarray(drawn))[..., 0], (found.images[1, 0] * 255).round().byte())
    wide = gallery(found, beside=found.images).axes[0].get_images()[0].get_array()
    assert wide is not None
    assert wide.shape[1] > 16
    assert [percent(p) for p in (0.0, 0.99, 0.9991)] == ["0.0 %", "99.0 %", "99.910 %"]


def test_the_history_runs_to_the_last_generation() -> None:
    figure = history({"pixels": result([0.9, 0.99, 0.999]), "graphs": result([0.5, 0.6, 0.7])})
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["pixels", "graphs"]
    assert_close(np.asarray(lines[0].get_ydata()), np.array([1 - 0.99 / 2, 0.01, 0.01]), rtol=1e-9, atol=0)
    assert len(history(result([0.9])).axes[0].get_lines()) == 1


def test_the_nearest_real_image_is_of_the_same_class() -> None:
    split = data().train
    found = result([0.9] * 10)
    found.images[3] = split.images()[split.labels == 3][0].float() / 255
    near, distance = nearest_real(found, split)
    assert distance[3] == 0
    real = split.images().float() / 255
    for one in range(10):
        apart = [(row - found.images[one]).norm() for row, label in zip(real, split.labels) if label == one]
        assert_close(distance[one], torch.stack(apart).min())
        assert_close((near[one] - found.images[one]).norm(), distance[one])


def test_what_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`rounds` and `per_round` must be at least 1, got 0 and None"):
        retrain_with_fooling(network(), data(), rounds=0)
    alone = from_arrays(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), [0, 1] * 4, val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(ArgumentError, match=r"no image to test\. Open the data with a larger test_fraction"):
        retrain_with_fooling(network(), alone)
    with pytest.raises(ArgumentError, match=r"there is no fooling image\. Take FoolingResult\.images"):
        with_fooling_class(data(), torch.zeros(0, 1, 8, 8))
    with pytest.raises(ArgumentError, match=r'the data have a class "fooling" already'):
        with_fooling_class(with_fooling_class(data(), torch.rand(5, 1, 8, 8)), torch.rand(5, 1, 8, 8))
    with pytest.raises(ArgumentError, match=r"there are 2 names and a class 2\. Give a name for each class"):
        gallery(result([0.5, 0.6, 0.7]), ["a", "b"])
    with pytest.raises(ArgumentError, match=r"there is no result to draw"):
        history({})
    with pytest.raises(ArgumentError, match=r"the split has no image of class 1\. Take the training images"):
        nearest_real(result([0.5, 0.6]), data().train.subset((data().train.labels == 0).nonzero()[:, 0]))
