"""The law as a fit, the attack, and the curve of a probe."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import retinue
from retinue.audit.adversarial import OnPixels, attacked, fgsm
from retinue.audit.learning_curve import learning_curve, part_of, small_network
from retinue.audit.scaling import ScalingRecord, fit_scaling
from retinue.errors import ArgumentError
from retinue.models import tiny
from retinue.models.tiny import KINDS

LAW = [ScalingRecord(n, 3 * k * n ** (-1 / d), d, k) for n in (100, 500) for d in (5.0, 12.0) for k in (0.1, 0.4)]


def test_records_of_the_law_give_its_coefficients() -> None:
    fit = fit_scaling(LAW)
    assert fit.sharpness == pytest.approx(1)
    assert fit.rate == pytest.approx(1)
    assert math.exp(fit.intercept) == pytest.approx(3)
    assert fit.r2 == pytest.approx(1)
    assert fit.predict(2000, 8.0, 0.2).loss == pytest.approx(3 * 0.2 * 2000 ** (-1 / 8))


def test_one_data_set_has_no_coefficient_of_sharpness() -> None:
    fit = fit_scaling([(n, 8 * n ** (-2 / 4), 4.0, 0.1) for n in (100, 200, 400)])
    assert fit.sharpness is None
    assert fit.rate == pytest.approx(2)
    assert fit.predict(10_000, 4.0).loss == pytest.approx(0.08)


def test_fit_and_interval_are_those_of_linear_regression() -> None:
    random = np.random.default_rng(0)
    sizes, d = [50, 100, 200, 400, 800], 6.0
    losses = [2 * n ** (-1 / d) * math.exp(random.normal(0, 0.1)) for n in sizes]
    fit = fit_scaling([(n, loss, d, 1.0) for n, loss in zip(sizes, losses)])
    x, y = -np.log(sizes) / d, np.log(losses)
    line = scipy.stats.linregress(x, y)
    assert fit.rate == pytest.approx(line.slope)
    assert fit.r2 == pytest.approx(line.rvalue**2)
    at = -math.log(1600) / d
    spread = math.sqrt(np.square(y - line.intercept - line.slope * x).sum() / 3)
    reach = scipy.stats.t.ppf(0.975, 3) * spread * math.sqrt(1 + 1 / 5 + (at - x.mean()) ** 2 / np.square(x - x.mean()).sum())
    found = fit.predict(1600, d)
    assert math.log(found.high) == pytest.approx(line.intercept + line.slope * at + reach)
    assert math.log(found.low) == pytest.approx(line.intercept + line.slope * at - reach)


def test_two_records_promise_nothing() -> None:
    found = fit_scaling([(100, 1.0, 5.0, 1.0), (200, 0.5, 5.0, 1.0)]).predict(400, 5.0)
    assert found == (pytest.approx(0.25), 0.0, math.inf)


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([(100, 1.0, 5.0, 1.0)], r"at least 2 records are needed, got 1\. Train on different numbers of images"),
        ([(100, 1.0, 5.0, 1.0), (100, 0.9, 5.0, 1.0)], r"`records` all have the same log\(N\) / d, so nothing is told"),
        ([(100, 1.0, 5.0, 1.0), (200, 0.9, 5.0, 2.0)], r"2 records do not determine 3 coefficients\. Give more, with other N, d and K_F"),
        ([(100, 0.0, 5.0, 1.0), (200, 0.9, 5.0, 2.0)], r"`loss` must be positive and finite, got 0\.0\. Its logarithm is taken"),
        ([(100, 1.0, math.nan, 1.0), (200, 0.9, 5.0, 2.0)], r"`dimension` must be positive and finite, got nan"),
    ],
)
def test_what_the_fit_refuses(records: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        fit_scaling(records)
    with pytest.raises(ArgumentError, match=r"predict: `images` must be positive"):
        fit_scaling(LAW).predict(0, 5.0)


def linear() -> nn.Module:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def test_the_attack_on_a_linear_classifier_by_hand() -> None:
    x = torch.full((1, 1, 2, 2), 100.0)
    # the loss of class 0 rises against w_0 - w_1 = (1, -2, 0, 0)
    assert fgsm(linear(), x, torch.tensor([0]), 2.0).flatten().tolist() == [98, 102, 100, 100]
    assert fgsm(linear(), x, torch.tensor([1]), 2.0).flatten().tolist() == [102, 98, 100, 100]


def test_pixels_stay_in_their_range() -> None:
    x = torch.tensor([[[[0.0, 255.0], [7.0, 255.0]]]])
    assert fgsm(linear(), x, torch.tensor([0]), 8.0).flatten().tolist() == [0, 255, 7, 255]
    assert fgsm(linear(), x / 255, torch.tensor([1]), 0.5, clip=(0, 1)).flatten().tolist() == pytest.approx([0.5, 0.5, 7 / 255, 1])


@given(st.sampled_from(KINDS), st.sampled_from([0.0, 1.0, 2.0, 8.0]))
@settings(max_examples=6)
def test_no_pixel_moves_further_than_eps_and_nothing_of_the_model_changes(kind: Any, eps: float) -> None:
    torch.manual_seed(0)
    model, x, y = tiny(kind).train(), torch.rand(3, 3, 32, 32) * 255, torch.tensor([0, 1, 2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = fgsm(model, x, y, eps)
    assert float((moved - x).abs().max()) <= eps + 2e-5  # float32 near 255
    assert eps > 0 or torch.equal(moved, x)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.allclose(fgsm(model, x[:1], y[:1], eps), moved[:1])  # a row does not depend on the others


def test_half_the_contrast_doubles_the_harm_of_the_same_eps() -> None:
    """Two classes at a distance: the border lies 1 / (2 K_F) away, so at half the contrast half the eps suffices."""
    base = torch.tensor([[[[100.0]]], [[[140.0]]]])

    def misled(images: Tensor, eps: float) -> bool:
        middle = float(images.mean())
        layer = nn.Linear(1, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            layer.bias.copy_(torch.tensor([middle, -middle]))
        model = nn.Sequential(nn.Flatten(), layer)
        return int(model(fgsm(model, images, torch.tensor([0, 1]), eps)).argmax(1)[0]) == 1

    assert [misled(base, eps) for eps in (11.0, 21.0)] == [False, True]
    assert [misled(base / 2, eps) for eps in (9.0, 11.0)] == [False, True]


def test_what_the_attack_refuses() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ArgumentError, match=r"`eps` must be 0 or more, got -1\. On the scale of \[0, 255\] the paper has 2"):
        fgsm(linear(), x, torch.tensor([0]), -1)
    with pytest.raises(ArgumentError, match=r"`x` has pixels from -3 to -3, outside of `clip` \(0\.0, 255\.0\)"):
        fgsm(linear(), x - 3, torch.tensor([0]), 1)


def test_a_classifier_is_measured_as_evaluate_does_and_under_attack() -> None:
    data = retinue.data.open("digits", train_images=400)
    torch.manual_seed(0)
    run = retinue.fit(small_network(10, 1), retinue.train.Supervised(), data, epochs=8, lr=0.01, progress=False)
    table = attacked(run.model, data.test, (2.0, 40.0), batch_size=100)
    assert list(table) == [0.0, 2.0, 40.0]
    plain = retinue.evaluate(run.model, data.test)
    assert table[0.0]["top1"] == pytest.approx(plain["top1"])
    assert table[0.0]["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert table[0.0]["loss"] < table[2.0]["loss"] < table[40.0]["loss"]
    assert table[40.0]["top1"] < table[0.0]["top1"]
    with pytest.raises(ArgumentError, match=r"attacked: the split is empty"):
        attacked(run.model, data.test.subset([]))


def test_pixels_reach_the_network_as_the_loader_gives_them() -> None:
    data = retinue.data.open("digits")
    network = OnPixels(nn.Flatten(), data.preprocessing)
    batch = next(iter(data.test.loader(5).batches()))
    assert torch.allclose(network(data.test.images(range(5)).float()), batch.images.flatten(1), atol=1e-5)


def test_larger_parts_hold_the_smaller_ones() -> None:
    data = retinue.data.open("digits")
    small, large = part_of(data, 100), part_of(data, 300)
    assert set(small.train.positions.tolist()) < set(large.train.positions.tolist())
    assert small.train.labels.bincount().tolist() == [10] * 10
    assert len(small.val) == 0
    assert len(small.test) == len(data.test)


def test_the_curve_falls_resumes_and_leaves_the_network_alone(tmp_path: Path) -> None:
    data = retinue.data.open("digits")
    torch.manual_seed(0)
    model = small_network(10, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = learning_curve(model, data, sizes=[400, 100], epochs=6, lr=5e-3, run_dir=tmp_path, progress=False)
    assert list(table) == ["100 images", "400 images", "fit"]
    assert table["400 images"]["loss"] < table["100 images"]["loss"]
    assert table["400 images"]["attacked"] <= table["400 images"]["top1"]
    assert table["fit"]["exponent"] == pytest.approx(-table["fit"]["rate"] / table["400 images"]["dimension"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = learning_curve(model, data, sizes=[100, 400], epochs=0.001, run_dir=tmp_path, progress=False)  # read back, not trained
    assert again == table


def test_what_the_curve_refuses() -> None:
    data = retinue.data.open("digits")
    with pytest.raises(ArgumentError, match=r"`sizes` must lie between 2 and the 1295 training images that there are, got \[2000\]"):
        learning_curve(small_network(10, 1), data, sizes=[2000])
    lonely = retinue.data.open("digits", test_fraction=0.0)
    with pytest.raises(ArgumentError, match=r"digits has 10 classes and 0 test images\. Give labelled images with both"):
        learning_curve(small_network(10, 1), lonely)
