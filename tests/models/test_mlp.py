"""The stack of linear layers: its count, its output by hand, the protocol, and what it refuses."""

from typing import Any

import pytest
import torch
from support import images, parameters
from torch import nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models import create_model, feature_size, mlp, pooled_features


def test_lenet_300_100() -> None:
    net = mlp()
    assert parameters(net) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10 == 266_610
    assert net(images(2, 1, 28, 28)).shape == (2, 10)


def test_the_output_by_hand() -> None:
    net = mlp([2], num_classes=1, input_size=(1, 2))
    hidden = net.layers[0][0]  # type: ignore[index]
    hidden.weight.data = torch.tensor([[1.0, -1.0], [0.0, 2.0]])  # type: ignore[union-attr]
    hidden.bias.data = torch.tensor([0.5, 1.0])  # type: ignore[union-attr]
    net.head.weight.data = torch.tensor([[10.0, 1.0]])  # type: ignore[union-attr]
    net.head.bias.data = torch.tensor([0.25])  # type: ignore[union-attr]
    x = torch.tensor([[[[1.0, 3.0]]], [[[3.0, 1.0]]]])
    assert net.forward_features(x).tolist() == [[0, 7], [2.5, 3]]  # relu(1 - 3 + .5) and relu(6 + 1); relu(3 - 1 + .5) and relu(2 + 1)
    assert net(x).tolist() == [[7.25], [28.25]]


def test_the_protocol() -> None:
    net: Any = create_model("mlp", num_classes=4, in_chans=3, input_size=(6, 5), widths=[8, 7]).eval()
    x = images(3, 3, 6, 5)
    assert torch.equal(net.forward_head(net.forward_features(x)), net(x))
    assert torch.equal(net.forward_head(net.forward_features(x), pre_logits=True), net.forward_features(x))
    assert pooled_features(net, x).shape == (3, 7)
    assert feature_size(net) == 7
    assert isinstance(net.get_classifier(), nn.Linear)
    net.double().reset_classifier(2)
    assert net.get_classifier().weight.dtype == torch.float64
    assert net(x.double()).shape == (3, 2)
    net.reset_classifier(0)
    assert net(x.double()).shape == (3, 7)
    assert net.num_classes == 0
    assert create_model("mlp", num_classes=0)(images(1, 1, 28, 28).repeat(1, 3, 1, 1)).shape == (1, 100)  # create_model's own in_chans is 3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"^mlp: images must be of shape \(1, 28, 28\), got \(1, 32, 32\)\. Build it with this `input_size`\.$"
    ):
        mlp()(images(1, 1, 32, 32))
    for widths in ([], [3, 0]):
        with pytest.raises(
            ArgumentError, match=rf"^mlp: `widths` must be positive numbers of units, got \[{', '.join(map(str, widths))}\]\.$"
        ):
            mlp(widths)
