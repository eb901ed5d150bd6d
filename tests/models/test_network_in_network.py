"""The networks on which RotNet is pre-trained: their parameter counts and maps, timm's protocol, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

import retinue
from retinue.errors import ArgumentError
from retinue.models import create_model
from retinue.models.network_in_network import NetworkInNetwork, network_in_network


def parameters(name: str, **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **options).parameters())


@pytest.mark.parametrize(("stages", "turns", "classes"), [(3, 1_004_484, 1_005_642), (4, 1_411_140, 1_412_298), (5, 1_817_796, 1_818_954)])
def test_parameters_of_the_network_in_network(stages: int, turns: int, classes: int) -> None:
    assert parameters("network_in_network", num_classes=4, num_stages=stages) == turns
    assert parameters("network_in_network", num_classes=10, num_stages=stages) == classes


def test_maps_behind_each_block() -> None:
    model = network_in_network()
    assert isinstance(model, NetworkInNetwork)
    maps = [tuple(model.forward_features(torch.zeros(1, 3, 32, 32), f"conv{i}").shape[1:]) for i in (1, 2, 3, 4)]
    assert maps == [(96, 16, 16), (192, 8, 8), (192, 8, 8), (192, 8, 8)]
    assert model.forward_features(torch.zeros(1, 3, 64, 64), "conv2").shape == (1, 192, 16, 16)
    assert network_in_network(pool_block3=True).forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 192, 4, 4)
    assert network_in_network(num_stages=3, pool_block3=True).forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 192, 8, 8)


def test_kernels_are_drawn_by_their_outputs() -> None:
    torch.manual_seed(0)
    model = network_in_network()
    assert model.stem[0][0].conv.weight.std().item() == pytest.approx((2 / (25 * 192)) ** 0.5, rel=0.03)
    assert not any(isinstance(m, nn.Conv2d) and m.bias is not None for m in model.modules())
    assert (model.get_classifier().bias == 0).all()


def test_parameters_and_maps_of_alexnet() -> None:
    assert parameters("alexnet", num_classes=4) == 57_030_724
    model = create_model("alexnet", num_classes=4, hidden=8).eval()
    maps = model.forward_intermediates(torch.zeros(1, 3, 224, 224), intermediates_only=True)  # type: ignore[operator]
    assert [tuple(one.shape[1:]) for one in maps] == [
        (64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13), (256, 13, 13), (256, 6, 6),
    ]  # fmt: skip
    assert [tap["num_chs"] for tap in model.feature_info] == [one.shape[1] for one in maps]  # type: ignore[union-attr]


def test_alexnet_takes_small_images_and_other_sizes_and_classes() -> None:
    model = create_model("alexnet", num_classes=10, in_chans=1, input_size=32, hidden=16).eval()
    assert model.adaptation == ["stem: 11x11 stride 4 -> 5x5 stride 1"]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert model(torch.zeros(2, 1, 40, 48)).shape == (2, 10)
    assert retinue.models.pooled_features(model, torch.zeros(2, 1, 32, 32)).shape == (2, 16)
    model.reset_classifier(3)  # type: ignore[operator]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    model.reset_classifier(0)  # type: ignore[operator]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 16)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`num_stages` must be at least 3, got 2"):
        create_model("network_in_network", num_stages=2)
    with pytest.raises(ArgumentError, match='no block is called "conv5"'):
        network_in_network().forward_features(torch.zeros(1, 3, 32, 32), "conv5")
    with pytest.raises(ArgumentError, match=r"at least 16 px, got 8x8\. Enlarge them"):
        create_model("alexnet", input_size=8)
