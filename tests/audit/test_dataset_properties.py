"""Intrinsic dimension and label sharpness: the page's numbers, scikit-learn's neighbours, the laws, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

import retinue
from retinue.audit.dataset_properties import (
    contradictions,
    intrinsic_dimension,
    label_sharpness,
    pixels,
    representation_dimension,
    scaled,
)
from retinue.data import from_arrays
from retinue.errors import ArgumentError, DataError
from retinue.models import tiny
from retinue.models.tiny import KINDS

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0], [12.0]])
FOUR = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [6.0, 9.0]])


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.from_numpy(bunch.data) / 16, torch.from_numpy(bunch.target)


def cube(dimension: int, points: int = 4000) -> Tensor:
    """A cube of known dimension, mapped linearly into 64 dimensions."""
    generator = torch.Generator().manual_seed(dimension)
    inside = torch.rand(points, dimension, generator=generator, dtype=torch.float64)
    return inside @ torch.randn(dimension, 64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "correction", "value"),
    [(3, "k-2", 0.6066986515), (3, "k-1", 1.2133973029), (4, "k-2", 0.6741725682), (4, "k-1", 1.0112588522)],
)
def test_the_likelihood_of_five_points_on_a_line(k: int, correction: Any, value: float) -> None:
    found = intrinsic_dimension(LINE, k=k, correction=correction)
    assert found.value == pytest.approx(value, abs=1e-10)
    assert (found.ci, found.n_used, found.n_duplicates) == (None, 5, 0)


def test_two_neighbours_of_five_points_on_a_line_by_hand() -> None:
    # T1 and T2: (1, 3), (1, 2), (2, 3), (4, 5), (5, 9); mu sorted 1.25, 1.5, 1.8, 2, 3, the last dropped; F = 1/5 ... 4/5
    x, y = np.log([1.25, 1.5, 1.8, 2.0]), -np.log([0.8, 0.6, 0.4, 0.2])
    assert intrinsic_dimension(LINE, "twonn").value == pytest.approx(float(x @ y / (x @ x)), rel=1e-12)


def test_the_dimension_of_the_digits() -> None:
    x, _ = digits()
    assert intrinsic_dimension(x).value == pytest.approx(6.48456, abs=1e-5)
    assert intrinsic_dimension(x, correction="k-1").value == pytest.approx(6.84482, abs=1e-5)
    assert intrinsic_dimension(x, "twonn").value == pytest.approx(9.16820, abs=1e-5)


def test_the_sharpness_of_the_digits() -> None:
    x, y = digits()
    found = label_sharpness(x, y, max_samples=None)
    assert found.value == pytest.approx(16 / math.sqrt(356), rel=1e-12)
    assert found.value == pytest.approx(0.84800, abs=1e-5)
    assert found.mean_ratio == pytest.approx(0.32823, abs=1e-5)
    a, b = found.pair
    assert y[a] != y[b]
    assert float((x[a] - x[b]).norm()) == pytest.approx(1 / found.value, rel=1e-12)


def test_the_sharpness_of_four_points() -> None:
    found = label_sharpness(FOUR, torch.tensor([0, 1, 0, 1]))
    assert found.value == 1.0
    assert found.mean_ratio == pytest.approx(0.3731125, abs=1e-7)
    assert found.pair == (2, 3)


@pytest.mark.parametrize(
    ("dimension", "minus_two", "minus_one", "two"),
    [(1, 0.95, 1.00, 1.02), (2, 1.86, 1.97, 1.96), (5, 4.29, 4.52, 4.80), (10, 7.72, 8.15, 8.65), (20, 13.1, 13.8, 15.2)],
)
def test_a_cube_of_known_dimension(dimension: int, minus_two: float, minus_one: float, two: float) -> None:
    x = cube(dimension)
    assert intrinsic_dimension(x).value == pytest.approx(minus_two, rel=0.04)
    assert intrinsic_dimension(x, correction="k-1").value == pytest.approx(minus_one, rel=0.04)
    assert intrinsic_dimension(x, "twonn").value == pytest.approx(two, rel=0.06)  # two neighbours scatter more


def test_a_high_dimension_is_estimated_too_low() -> None:
    assert intrinsic_dimension(cube(20), correction="k-1").value < 16


def test_the_numbers_are_those_of_scikit_learns_neighbours() -> None:
    x = np.random.default_rng(0).normal(size=(300, 7))
    k = 9
    distances = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, 1:]
    sums = np.log(distances[:, -1:] / distances[:, :-1]).sum(1)
    assert intrinsic_dimension(torch.from_numpy(x), k=k).value == pytest.approx((k - 2) / sums.mean(), rel=1e-10)
    mu = np.sort(np.log(distances[:, 1] / distances[:, 0]))[:-1]
    heights = -np.log(1 - np.arange(1, 300) / 300)
    line = np.linalg.lstsq(mu[:, None], heights, rcond=None)[0]
    assert intrinsic_dimension(torch.from_numpy(x), "twonn").value == pytest.approx(float(line[0]), rel=1e-10)


def test_sampled_anchors_have_neighbours_among_all() -> None:
    x = cube(3, points=1500)
    whole, few = intrinsic_dimension(x), intrinsic_dimension(x, max_samples=400, seed=3)
    assert few.n_used == 400
    assert few.value == pytest.approx(whole.value, rel=0.08)  # among 400 alone it would be lower as well, but for another reason
    assert few == intrinsic_dimension(x, max_samples=400, seed=3)
    assert few != intrinsic_dimension(x, max_samples=400, seed=4)


@pytest.mark.parametrize("method", ["mle", "twonn"])
def test_the_interval_holds_the_estimate_and_shrinks_with_more_points(method: Any) -> None:
    x = cube(4, points=2000)
    widths = []
    for count in (200, 2000):
        found = intrinsic_dimension(x[:count], method, n_bootstrap=100)
        assert found.ci is not None
        low, high = found.ci
        assert low <= found.value <= high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


@given(st.floats(0.01, 1000), st.floats(-1000, 1000), st.integers(0, 1000))
@settings(max_examples=15)
def test_dimension_does_not_change_with_units_origin_direction_and_order(factor: float, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    moved = (x @ turned * factor + shift)[torch.randperm(60, generator=generator)]
    for method in ("mle", "twonn"):
        assert intrinsic_dimension(moved, method, k=6).value == pytest.approx(intrinsic_dimension(x, method, k=6).value, rel=1e-6)


@given(st.floats(0.01, 1000), st.integers(0, 1000))
@settings(max_examples=15)
def test_sharpness_scales_with_one_over_contrast_and_takes_any_names(factor: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(40) % 2
    found, louder, renamed = label_sharpness(x, y), label_sharpness(x * factor, y), label_sharpness(x, 1 - y)
    assert louder.value == pytest.approx(found.value / factor, rel=1e-9)
    assert louder.mean_ratio == pytest.approx(found.mean_ratio / factor, rel=1e-9)
    assert renamed == found


def test_a_copy_with_the_same_label_changes_neither() -> None:
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 2
    more, labels = torch.cat([x, x[7:8], x[7:8]]), torch.cat([y, y[7:8], y[7:8]])
    again = intrinsic_dimension(more, k=5)
    assert again.n_duplicates == 2
    assert again.value == intrinsic_dimension(x, k=5).value
    assert label_sharpness(more, labels)[0] == pytest.approx(label_sharpness(x, y)[0], rel=1e-12)


def test_zeros_of_both_signs_are_the_same_image() -> None:
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [2.0, 3.0], [5.0, 1.0], [7.0, 7.0]])
    assert intrinsic_dimension(x, k=3).n_duplicates == 1


def test_sharpness_counts_pairs_that_differ_in_label_and_not_those_that_agree() -> None:
    # the nearest pair of all agrees: the official code's numerator would give 10
    x, y = torch.tensor([[0.0], [0.1], [5.0], [9.0]]), torch.tensor([0, 0, 1, 2])
    assert label_sharpness(x, y).value == pytest.approx(1 / 4)


def test_sharpness_sees_all_pairs_of_its_draw_and_names_positions_in_the_whole() -> None:
    x, y = torch.randn(400, 6, dtype=torch.float64), torch.arange(400) % 3
    found = label_sharpness(x, y, max_samples=100, seed=5)
    a, b = found.pair
    assert y[a] != y[b]
    assert float((x[a] - x[b]).norm()) == pytest.approx(1 / found.value, rel=1e-12)
    assert found.value <= label_sharpness(x, y, max_samples=None).value
    assert found == label_sharpness(x, y, max_samples=100, seed=5)


def test_sharpness_is_exact_where_images_are_nearly_the_same() -> None:
    x = torch.rand(700, 50, dtype=torch.float64) * 255 + 1e6
    x[650] = x[3]
    x[650, 0] += 1e-6
    y = torch.arange(700) % 2
    y[650] = 1 - y[3]
    found = label_sharpness(x, y, max_samples=None)
    assert found.pair == (3, 650)
    assert found.value == pytest.approx(1 / float((x[3] - x[650]).norm()), rel=1e-12)


def test_a_nearest_neighbour_classifier_is_misled_within_half_the_distance() -> None:
    x, y = digits()
    found = label_sharpness(x, y, max_samples=None)
    a, b = found.pair
    middle = x[a] + (x[b] - x[a]) * (0.5 + 1e-9)  # just behind the middle, the nearest training image is b, or one that is nearer still
    nearest = int((x - middle).norm(dim=1).argmin())
    step = float((middle - x[a]).norm())
    assert step <= 1 / (2 * found.value) * (1 + 1e-6)
    assert y[nearest] != y[a]


def test_images_are_scaled_one_by_one_to_a_maximum_of_255() -> None:
    images = torch.tensor([[[[51, 102]]], [[[0, 0]]], [[[255, 1]]]], dtype=torch.uint8)
    assert scaled(images).flatten(1).tolist() == [[127.5, 255.0], [0.0, 0.0], [255.0, 1.0]]


def test_a_data_set_is_measured_on_its_scaled_training_images() -> None:
    data = retinue.data.open("digits")
    rows = pixels(data)
    assert rows.shape == (len(data.train), 64)
    assert rows.amax(1).unique().tolist() == [255.0]
    assert intrinsic_dimension(data) == intrinsic_dimension(rows)
    assert label_sharpness(data, max_samples=None) == label_sharpness(rows, data.train.labels, max_samples=None)
    few = label_sharpness(data.train, max_samples=300, seed=2)
    assert data.train.labels[few.pair[0]] != data.train.labels[few.pair[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_representations_of_any_backbone_leave_no_trace(kind: Any) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=120)
    model: nn.Module = tiny(kind).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer = next(name for name, _ in model.named_children())
    for where in (None, layer):
        found = representation_dimension(model, where, data, max_images=60)
        assert found.n_used + found.n_duplicates == 60
        assert 0 < found.value < 100
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_representation_is_what_the_layer_gives_in_evaluation_mode() -> None:
    images = torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Dropout(0.5))
    with torch.no_grad():
        expected = intrinsic_dimension(model[1](images.flatten(1)), "twonn")
    found = representation_dimension(model, "2", images, batch_size=32)  # behind the dropout, which is off
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    with pytest.raises(ArgumentError, match=r'no layer is called "9"'):
        representation_dimension(model, "9", images)


class Pairs(nn.Module):
    """Gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_layers_without_a_tensor_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r'the layer "0" gives a tuple, not a tensor\. Take a whole stage or block\.'):
        representation_dimension(nn.Sequential(Pairs()), "0", torch.zeros(4, 1, 2, 2))


def test_contradictions_pair_the_first_with_the_others() -> None:
    x = torch.tensor([[1.0], [2.0], [1.0], [1.0], [2.0]])
    assert contradictions(x, torch.tensor([0, 1, 0, 1, 1])) == [(0, 3)]


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"method": "mla"}, ArgumentError, r'no `method` is called "mla"\. Did you mean mle'),
        ({"correction": "k"}, ArgumentError, r'no `correction` is called "k"'),
        ({"k": 2}, ArgumentError, r'`k` must be at least 3 with correction="k-2", got 2\. The paper has 20\.'),
        ({"k": 1, "correction": "k-1"}, ArgumentError, r'`k` must be at least 2 with correction="k-1", got 1'),
        ({"k": 5}, ArgumentError, r"`k` must be smaller than the number of distinct points, 5, got 5\. Take fewer neighbours"),
        ({"max_samples": 1}, ArgumentError, r"`n_bootstrap` must be 0 or more and `max_samples` at least 2, got 0 and 1"),
        ({"x": LINE[:2], "k": 3}, DataError, r"there are 2 distinct points, and at least 3 are needed\. Give more images"),
        ({"x": LINE[[0, 0, 1, 1, 0]], "method": "twonn"}, DataError, r"there are 2 distinct points"),
        ({"x": torch.tensor([[0.0], [math.nan], [math.inf]])}, DataError, r"2 of 3 points have values .* the first is number 1"),
    ],
)  # fmt: skip
def test_what_the_dimension_refuses(arguments: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        intrinsic_dimension(**{"x": LINE, **arguments})


def test_what_sharpness_refuses() -> None:
    with pytest.raises(DataError, match=r"all images have one class, so no two labels differ\. Give images of two classes at least"):
        label_sharpness(FOUR, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ArgumentError, match=r"there must be one label for each of 4 images, got 2"):
        label_sharpness(FOUR, torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match=r"there must be one label for each of 4 images, got 0"):
        label_sharpness(FOUR)
    with pytest.raises(DataError, match=r"NaN or infinite"):
        label_sharpness(FOUR * math.nan, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ArgumentError, match=r"at least one image must be drawn, got 0"):
        label_sharpness(FOUR, torch.tensor([0, 1, 0, 1]), max_samples=0)
    twice = torch.cat([FOUR, FOUR[:1], FOUR[:1]])
    with pytest.raises(
        DataError, match=r"the same image has two labels, so that the labels are infinitely sharp: images 0 and 4, 0 and 5\. Correct"
    ):
        label_sharpness(twice, torch.tensor([0, 1, 0, 1, 1, 2]))
    many = torch.zeros(40, 3)
    with pytest.raises(DataError, match=r"images 0 and 1, .* and 10 more pairs\. Correct or remove them"):
        label_sharpness(many, torch.arange(40) % 2)


def test_no_images_are_refused() -> None:
    data = from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(DataError, match=r"there are no images"):
        pixels(data.test)
    with pytest.raises(DataError, match=r"there are 0 distinct points"):
        representation_dimension(nn.Sequential(nn.Identity()), "0", torch.zeros(0, 1, 2, 2))
