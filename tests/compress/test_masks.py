"""Masks: exact counts of the page, ties, nesting, random masks, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import retinue
from retinue.compress.masks import (
    apply_mask,
    check_mask,
    cut_count,
    density,
    full_mask,
    magnitude_mask,
    masked,
    prunable,
    random_mask_like,
    remaining,
)
from retinue.errors import ArgumentError, ShapeError


def line(*values: float) -> nn.Linear:
    layer = nn.Linear(len(values), 1)
    layer.weight.data = torch.tensor([values])
    return layer


def lenet() -> nn.Module:
    return retinue.create_model("mlp", widths=[300, 100], num_classes=10, in_chans=1, input_size=28)


def counts(model: nn.Module, rounds: int, **options: bool) -> list[int]:
    mask = full_mask(model)
    found = [remaining(mask)]
    for _ in range(rounds):
        mask = magnitude_mask(model, mask, 0.2, **options)
        found.append(remaining(mask))
    return found


def test_ten_weights_lose_the_two_smallest_and_then_two_more() -> None:
    model = line(0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9, 1.0)
    once = magnitude_mask(model, full_mask(model), 0.2)
    assert once["weight"].tolist() == [[False] * 2 + [True] * 8]
    assert magnitude_mask(model, once, 0.2)["weight"].tolist() == [[False] * 4 + [True] * 6]


def test_counts_of_lenet() -> None:
    assert sum(p.numel() for p in lenet().parameters()) == 266610
    assert counts(lenet(), 5) == [266200, 212960, 170368, 136294, 109035, 87228]
    assert counts(lenet(), 5, official_threshold=True) == [266200, 212959, 170366, 136291, 109031, 87223]


def test_counts_of_resnet20() -> None:
    model = retinue.create_model("cifar_resnet", depth=20, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 272474
    assert len(prunable(model)) == 22
    assert counts(model, 10) == [270896, 216716, 173372, 138697, 110957, 88765, 71012, 56809, 45447, 36357, 29085]
    assert counts(model, 4, official_threshold=True)[1:] == [216715, 173371, 138695, 110955]


def test_densities_are_powers_of_four_fifths() -> None:
    model, found = lenet(), [1.0]
    mask = full_mask(model)
    for _ in range(20):
        mask = magnitude_mask(model, mask, 0.2)
        found.append(density(mask))
    assert [round(found[n], 4) for n in (1, 5, 10, 15, 20)] == [0.8, 0.3277, 0.1074, 0.0352, 0.0115]


def test_fractions_are_the_decimals_that_were_written() -> None:
    assert (cut_count(0.1, 30), cut_count(0.2, 8), cut_count(0.2, 5)) == (3, 2, 1)


def test_ties_are_broken_by_position() -> None:
    model = line(1.0, 1.0, 1.0, 1.0)
    assert magnitude_mask(model, full_mask(model), 0.5)["weight"].tolist() == [[False, False, True, True]]


def test_scopes() -> None:
    model = nn.Sequential(line(0.1, 0.2, 0.3, 0.4), nn.Linear(1, 2))
    model[1].weight.data = torch.tensor([[5.0], [6.0]])
    everywhere = magnitude_mask(model, full_mask(model), 0.5)
    assert [int(kept.sum()) for kept in everywhere.values()] == [1, 2]
    by_layer = magnitude_mask(model, full_mask(model), 0.5, scope="layer")
    assert [int(kept.sum()) for kept in by_layer.values()] == [2, 1]
    assert [int(k.sum()) for k in magnitude_mask(model, by_layer, 0.9, scope="layer").values()] == [1, 1]  # the last one stays


def test_ignored_weights_count_but_stay() -> None:
    model = nn.Sequential(line(*[10.0] * 6), line(0.1, 0.2, 0.3, 0.4))
    found = magnitude_mask(model, full_mask(model), 0.2, ignore=["1.weight"])
    assert [int(kept.sum()) for kept in found.values()] == [4, 4]  # a fifth of all ten


def test_agrees_with_torch() -> None:
    model = lenet()
    found = magnitude_mask(model, full_mask(model), 0.2)
    layers = [(module, "weight") for module in model.modules() if isinstance(module, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=53240)
    for (module, _), kept in zip(layers, found.values(), strict=True):
        assert torch.equal(module.weight_mask.bool(), kept)


@given(st.integers(0, 1000), st.floats(0.05, 0.6), st.sampled_from(["global", "layer"]))
def test_masks_are_nested(seed: int, fraction: float, scope: str) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Linear(4, 5))
    first = magnitude_mask(model, full_mask(model), fraction, scope=scope)
    second = magnitude_mask(model, first, fraction, scope=scope)
    assert all(bool((first[name] | ~second[name]).all()) for name in first)


def test_random_masks_keep_the_counts() -> None:
    model = lenet()
    mask = magnitude_mask(model, full_mask(model), 0.9)
    layers, whole = random_mask_like(mask, seed=1), random_mask_like(mask, per_layer=False, seed=1)
    assert {n: int(k.sum()) for n, k in layers.items()} == {n: int(k.sum()) for n, k in mask.items()}
    assert remaining(whole) == remaining(mask)
    assert int(whole["head.weight"].sum()) != int(mask["head.weight"].sum())
    assert all(torch.equal(random_mask_like(mask, seed=1)[name], layers[name]) for name in mask)
    assert not torch.equal(layers["head.weight"], random_mask_like(mask, seed=2)["head.weight"])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_removed_weights_stay_zero_with_momentum_and_decay(kind: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    mask = magnitude_mask(model, full_mask(model), 0.5)
    options = {"momentum": 0.9} if kind == "sgd" else {}
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind](model.parameters(), lr=0.1, weight_decay=0.1, **options)
    before = model[0].weight.clone()
    with masked(model, mask):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().sum().backward()
            optimizer.step()
    assert bool((model[0].weight[~mask["0.weight"]] == 0).all())
    assert bool((model[0].weight != before)[mask["0.weight"]].any())
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    assert bool((model[0].weight[~mask["0.weight"]] != 0).any())  # outside the `with` they learn again


@pytest.mark.parametrize("kind", ["momentum from before", "muon"])
def test_removed_weights_stay_zero_where_their_gradient_is_not_all_that_moves_them(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    optimizer = torch.optim.Muon(model.parameters()) if kind == "muon" else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()

    step()
    mask = magnitude_mask(model, full_mask(model), 0.5)
    with masked(model, mask):
        step()
        assert bool((model[0].weight[~mask["0.weight"]] == 0).all())
    step()
    assert bool((model[0].weight[~mask["0.weight"]] != 0).any())


def test_magnitudes_are_ranked_in_double_precision() -> None:
    model = nn.Linear(2, 1).double()
    model.weight.data = torch.tensor([[1 + 1e-12, 1.0]], dtype=torch.float64)
    assert magnitude_mask(model, full_mask(model), 0.5)["weight"].tolist() == [[True, False]]


def test_a_shared_weight_is_listed_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert prunable(model) == ["0.weight"]


def test_what_is_refused() -> None:
    model = line(1.0, 2.0, 3.0)
    full = full_mask(model)
    with pytest.raises(ArgumentError, match=r"`fraction` must lie strictly between 0 and 1, got 20\. .* write fraction=0\.2\."):
        magnitude_mask(model, full, 20)
    with pytest.raises(ArgumentError, match=r"removing 3 of 3 weights that may be pruned would leave none\. Take a smaller `fraction`"):
        magnitude_mask(model, full, 0.9)
    with pytest.raises(ArgumentError, match=r'no `scope` is called "layers"\. Did you mean layer\?'):
        magnitude_mask(model, full, 0.2, scope="layers")
    with pytest.raises(ArgumentError, match=r'no prunable weight is called "wieght"\. Did you mean weight\?'):
        prunable(model, ["wieght"])
    with pytest.raises(ArgumentError, match=r"BatchNorm2d has no weight that could be pruned"):
        prunable(nn.BatchNorm2d(2))
    with pytest.raises(ArgumentError, match=r'no prunable weight of this model is called "0.weight"\. Did you mean weight\?'):
        apply_mask(model, {"0.weight": full["weight"]})
    with pytest.raises(ArgumentError, match=r'mask: the weight "weight" is missing\. Give every prunable weight a mask'):
        check_mask(model, {})
    with pytest.raises(ShapeError, match=r'mask: "weight" has shape \(1, 2\) and its weight has \(1, 3\)\.'):
        apply_mask(model, {"weight": torch.ones(1, 2, dtype=torch.bool)})
    with pytest.raises(ArgumentError, match=r'mask: "weight" has values other than 0 and 1\. Compare with a threshold first'):
        apply_mask(model, {"weight": torch.tensor([[0.5, 1.0, 0.0]])})
    with pytest.raises(ArgumentError, match=r'the weight "weight" is not finite\.'):
        magnitude_mask(line(1.0, float("nan"), 2.0), full, 0.2)
