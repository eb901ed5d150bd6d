"""Measures of heat maps: numbers by hand, laws, and other libraries' answers."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import images
from torch import Tensor, nn
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_jaccard_index

from retinue.errors import ArgumentError, ShapeError
from retinue.explain import (
    area,
    average_drop,
    curve,
    deletion_auc,
    energy_in_mask,
    heat_maps,
    insertion_auc,
    iou,
    pointing_game,
    probability,
    sanity_check,
    spearman,
    summarize,
)
from retinue.models import tiny

seeds = st.integers(0, 10_000)


class Weighted(nn.Module):
    """One logit, whose probability is the given weighting of the pixels."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 0] * self.weights).sum((1, 2)).clamp(1e-6, 1 - 1e-6).logit()[:, None]


FOUR = Weighted([[0.3, 0.3], [0.1, 0.1]])  # pixels of an image of ones; 0.1 is left over when they are gone
ONES = torch.ones(1, 1, 2, 2)


# --- deletion and insertion ------------------------------------------------------------------------------------------------------------


def test_the_area_under_five_points_by_hand() -> None:
    assert_close(area(torch.tensor([[0.9, 0.6, 0.3, 0.2, 0.1]])), torch.tensor([0.4]))


def test_a_deletion_by_hand() -> None:
    class Left(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (FOUR.weights * x[:, 0]).sum((1, 2)).add(0.1).logit()[:, None]

    maps = torch.tensor([[[0.9, 0.8], [0.7, 0.6]]])
    assert_close(curve(Left(), ONES, maps, 1, steps=4, fill=0.0), torch.tensor([[0.9, 0.6, 0.3, 0.2, 0.1]]))
    assert_close(deletion_auc(Left(), ONES, maps, 1, steps=4, fill=0.0), torch.tensor([0.4]))
    assert_close(insertion_auc(Left(), ONES, maps, 1, steps=4, fill=0.0), torch.tensor([0.6]))  # 0.1, 0.4, 0.7, 0.8, 0.9
    assert_close(deletion_auc(Left(), ONES, maps, 0, steps=4, fill=0.0), torch.tensor([0.6]))  # the other class has what is left to 1
    assert_close(curve(Left(), ONES, maps, 1, steps=2, fill=0.0), torch.tensor([[0.9, 0.3, 0.1]]))
    assert_close(curve(Left(), ONES, 1 - maps, 1, steps=4, fill=0.0), torch.tensor([[0.9, 0.8, 0.7, 0.4, 0.1]]))


def test_equal_pixels_go_in_reading_order() -> None:
    assert_close(
        curve(FOUR, ONES, torch.zeros(1, 2, 2), 1, steps=4, fill=0.0), torch.tensor([[0.8, 0.5, 0.2, 0.1, 0.0]]), atol=2e-6, rtol=0
    )


@given(seeds, st.sampled_from(["mean", "blur", 0.3]), st.integers(1, 7), st.sampled_from(["deletion", "insertion"]))
def test_a_constant_probability_is_the_area_for_any_order(seed: int, fill: Any, steps: int, kind: Any) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, math.log(3)]]).expand(len(x), 2)

    x = images(3, 2, 5, 6, seed=seed)
    assert_close(area(curve(Constant(), x, x[:, 0], 1, kind, steps=steps, fill=fill)), torch.full((3,), 0.75))


@given(seeds, st.integers(1, 40))
def test_batches_and_other_images_change_nothing(seed: int, batch_size: int) -> None:
    model, x = tiny("bare").train(), images(3, 3, 8, 8, seed=seed)
    maps = images(3, 8, 8, seed=seed + 1)
    whole = curve(model, x, maps, [0, 1, 2], steps=6, fill=0.0)
    assert model.training
    assert_close(curve(model, x, maps, torch.tensor([0, 1, 2]), steps=6, fill=0.0, batch_size=batch_size), whole, rtol=1e-4, atol=1e-6)
    alone = torch.cat([curve(model, x[i : i + 1], maps[i : i + 1], i, steps=6, fill=0.0) for i in range(3)])
    assert_close(alone, whole, rtol=1e-4, atol=1e-6)


def test_a_deletion_ends_where_an_insertion_begins() -> None:
    model, x, maps = tiny("bare"), images(3, 3, 9, 9), images(3, 9, 9, seed=1)
    for fill in ("mean", "blur", 0.5):
        out = curve(model, x, maps, steps=5, fill=fill)  # type: ignore[arg-type]
        back = curve(model, x, maps, kind="insertion", steps=5, fill=fill)  # type: ignore[arg-type]
        assert_close(out[:, 0], back[:, -1])
        assert_close(out[:, -1], back[:, 0])
        assert_close(out[:, 0], model.eval()(x).softmax(1).amax(1))  # the predicted class is explained


def test_fills_are_what_they_are_called() -> None:
    class Value(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].mean((2, 3))

    x = images(4, 1, 16, 16) + torch.arange(4)[:, None, None, None]
    last = {fill: curve(Value(), x, x[:, 0], 1, steps=1, fill=fill)[:, 1].logit() for fill in ("mean", "blur", -0.7)}  # type: ignore[arg-type]
    assert_close(last["mean"], x.mean().expand(4))
    assert_close(last["blur"], x.mean((1, 2, 3)), rtol=0, atol=0.15)  # each image keeps its own mean, up to the border
    assert_close(last[-0.7], torch.full((4,), -0.7))


def test_the_area_is_that_of_scikit_learn() -> None:
    curves = torch.rand(3, 11)
    theirs = [sklearn.metrics.auc([i / 10 for i in range(11)], row.tolist()) for row in curves]
    assert_close(area(curves), torch.tensor(theirs))


def test_probabilities() -> None:
    logits = torch.tensor([[0.0], [math.log(3)]])
    assert_close(probability(logits, 1), torch.tensor([0.5, 0.75]))
    assert_close(probability(logits[:, 0], 0), torch.tensor([0.5, 0.25]))
    assert_close(probability(torch.cat([torch.zeros(2, 1), logits], 1), 1), torch.tensor([0.5, 0.75]))


# --- masks -----------------------------------------------------------------------------------------------------------------------------

MAP = torch.tensor([[[0.0, 0.2, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.3]]])
MASK = torch.tensor([[[0, 0, 0], [0, 0, 1], [0, 0, 1]]])


def test_pointing_by_hand() -> None:
    assert pointing_game(MAP, MASK, tolerance=0).tolist() == [0]
    assert pointing_game(MAP, MASK, tolerance=1).tolist() == [1]
    assert pointing_game(MAP, MASK.roll(1, 2) * 255, tolerance=0).tolist() == [0]
    assert pointing_game(MAP, MASK.roll(-1, 2).bool(), tolerance=0).tolist() == [1]
    corner = torch.tensor([[[1, 0, 0], [0, 0, 0], [0, 0, 0]]])
    assert pointing_game(MAP, corner, tolerance=1.4).tolist() == [0]  # the diagonal is sqrt(2)
    assert pointing_game(MAP, corner, tolerance=1.42).tolist() == [1]
    assert pointing_game(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)).tolist() == [0]


def test_the_tolerance_is_15_pixels_at_224_and_scales() -> None:
    maps, masks = torch.zeros(2, 1, 224), torch.zeros(2, 1, 224)
    maps[:, 0, 50] = 1
    masks[0, 0, 65] = masks[1, 0, 66] = 1
    assert pointing_game(maps, masks).tolist() == [1, 0]
    half = torch.zeros(2, 1, 112)
    half[0, 0, 32] = half[1, 0, 33] = 1
    assert pointing_game(maps[..., ::2], half).tolist() == [1, 0]  # 25 to 32 is 7, below 7.5


def test_energy_by_hand() -> None:
    assert energy_in_mask(MAP, MASK).tolist() == [pytest.approx(0.8 / 2)]
    assert energy_in_mask(torch.zeros(1, 3, 3), MASK).tolist() == [0]


def test_iou_by_hand() -> None:
    assert iou(MAP, MASK).tolist() == [pytest.approx(1 / 3)]  # hot: two pixels, one in the mask of two
    assert iou(MAP, MASK, level=0.3).tolist() == [pytest.approx(2 / 3)]
    assert iou(torch.zeros(1, 3, 3), MASK).tolist() == [0]
    ring = torch.tensor([[[0, 1, 0], [1, 0, 0], [0, 0, 0]]])
    assert iou(torch.tensor([[[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]]), ring, box=True).tolist() == [1]
    assert iou(torch.tensor([[[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]]), ring).tolist() == [0.5]


@given(seeds)
def test_the_iou_is_that_of_torchmetrics(seed: int) -> None:
    maps, masks = images(4, 6, 7, seed=seed).abs(), images(4, 6, 7, seed=seed + 1) > 0
    theirs = [binary_jaccard_index((m >= 0.5 * m.max()).int(), mask.int()) for m, mask in zip(maps, masks)]
    assert_close(iou(maps, masks), torch.stack(theirs))


def test_empty_masks_are_skipped_and_counted() -> None:
    maps, masks = MAP.repeat(3, 1, 1), torch.cat([MASK, MASK * 0, MASK])
    for measure, value in ((partial(pointing_game, tolerance=1), 1), (energy_in_mask, 0.4), (iou, 1 / 3)):
        with pytest.warns(UserWarning, match=r": 1 of 3 masks are empty; these items are skipped \(not a number\)\."):
            values = measure(maps, masks)  # type: ignore[operator]
        assert values.isnan().tolist() == [False, True, False]
        assert summarize(values)[0] == pytest.approx(value)
        assert summarize(values)[2:] == (2, 1)


def test_mean_and_standard_error() -> None:
    assert summarize(torch.tensor([1.0, 2.0, 3.0]))[:2] == pytest.approx((2, 1 / math.sqrt(3)))
    assert math.isnan(summarize(torch.tensor([torch.nan])).mean)
    assert math.isnan(summarize(torch.tensor([1.0])).error)


# --- drop ------------------------------------------------------------------------------------------------------------------------------


def test_drop_and_increase_by_hand() -> None:
    # Y = (0.8, 0.5), O = (0.6, 0.7): the second image has a pixel that speaks against
    model = Weighted([[1.0, -1.0]])
    x, maps = torch.tensor([[[[0.8, 0.0]]], [[[0.9, 0.4]]]]), torch.tensor([[[0.75, 1.0]], [[1.0, 0.5]]])
    drop, increase = average_drop(model, x, maps, 1)
    assert_close(drop, torch.tensor([25.0, 0.0]))
    assert increase.tolist() == [0, 100]
    assert summarize(drop).mean == pytest.approx(12.5)
    assert summarize(increase).mean == 50


def test_a_map_of_ones_drops_nothing() -> None:
    drop, increase = average_drop(tiny("bare"), images(3, 3, 8, 8), torch.ones(3, 8, 8))
    assert drop.tolist() == increase.tolist() == [0, 0, 0]


# --- sanity ----------------------------------------------------------------------------------------------------------------------------


@given(seeds)
def test_rank_correlation_is_that_of_scipy_ties_included(seed: int) -> None:
    a, b = images(3, 5, 4, seed=seed).mul(2).round(), images(3, 5, 4, seed=seed + 1).round()
    theirs = [scipy.stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b)]
    assert_close(spearman(a, b), torch.tensor(theirs, dtype=torch.float32))
    assert spearman(torch.zeros(3, 5, 4), b).tolist() == [0, 0, 0]
    assert_close(spearman(a, a * 3 + 1), torch.ones(3))


def test_a_map_that_ignores_the_weights_is_found_out() -> None:
    model, x = tiny("timm_cnn").eval(), images(4, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    edges = sanity_check(model, lambda model, x, classes: x[:, 0].abs(), x, stages=3)
    assert list(edges)[-1] == "conv1"
    assert all(values.tolist() == [1, 1, 1, 1] for values in edges.values())
    found = sanity_check(model, partial(heat_maps, variant="gradient"), x, stages=3)
    assert list(found) == list(edges)
    assert found["conv1"].mean() < 0.7  # the order of the pooled pixels stays, whatever the weights are
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    again = sanity_check(model, partial(heat_maps, variant="gradient"), x, stages=3)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_network_is_lost_from_the_top_down() -> None:
    model, seen = tiny("timm_vit").eval(), []

    def spy(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        seen.append({name: value.clone() for name, value in model.named_parameters()})
        return x[:, 0]

    stages = sanity_check(model, spy, images(2, 3, 32, 32), stages=4)
    names = list(seen[0])
    changed = [{name for name in names if not torch.equal(now[name], seen[0][name])} for now in seen]
    assert len(stages) == 4
    assert all(before < after for before, after in pairwise(changed))
    assert "head.weight" in changed[1]
    assert not any(name.startswith("blocks.0") for name in changed[1])
    assert {"cls_token", "pos_embed"} <= changed[4]  # these have no layer of their own, and are shuffled
    assert torch.equal(seen[4]["pos_embed"].flatten().sort().values, seen[0]["pos_embed"].flatten().sort().values)


# --- refused ---------------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused() -> None:
    model, x = tiny("bare"), images(2, 3, 8, 8)
    maps = x[:, 0]
    with pytest.raises(ArgumentError, match=r"deletion: `steps` must be at least 1, got 0\. 50 is usual\."):
        deletion_auc(model, x, maps, steps=0)
    with pytest.raises(ArgumentError, match=r'curve: no `fill` is called "meen"\. Did you mean mean\? Or give a number\.'):
        insertion_auc(model, x, maps, fill="meen")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'curve: no kind is called "delete"\. Did you mean deletion\?'):
        curve(model, x, maps, kind="delete")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"deletion: `target` must lie in 0 to 9, as the network has 10 classes, got 10\."):
        deletion_auc(model, x, maps, 10)
    with pytest.raises(ArgumentError, match=r"average_drop: `target` must be one class, or one for each of 2 images, got shape \(3,\)\."):
        average_drop(model, x, maps, [1, 2, 3])
    with pytest.raises(
        ShapeError, match=r"deletion: `maps` must be of shape \(2, 8, 8\), one for each image and of its size, got \(2, 4, 4\)\."
    ):
        deletion_auc(model, x, maps[:, ::2, ::2])
    with pytest.raises(ShapeError, match=r"average_drop: `maps` must be of shape \(2, 8, 8\)"):
        average_drop(model, x, maps[:1])
    for measure, name in ((pointing_game, "pointing_game"), (energy_in_mask, "energy_in_mask"), (iou, "iou")):
        with pytest.raises(
            ShapeError, match=rf"{name}: `masks` must be of shape \(2, 8, 8\), one for each image and of its size, got \(1, 8, 8\)"
        ):
            measure(maps, maps[:1])  # type: ignore[operator]
    with pytest.raises(ArgumentError, match=r"iou: `level` must lie in \(0, 1\], got 0\."):
        iou(maps, maps, level=0)
    with pytest.raises(ArgumentError, match=r"sanity_check: `stages` must be at least 1, got 0\."):
        sanity_check(model, heat_maps, x, stages=0)
