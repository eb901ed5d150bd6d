"""Multiply-adds: by hand, against a count by hooks, and without computing or changing anything."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retinue.models import count_macs, create_model, tiny


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(6, 12),
    st.integers(6, 12),
)
def test_a_convolution_by_hand(groups: int, in_chs: int, out_chs: int, kernel: int, stride: int, height: int, width: int) -> None:
    conv = nn.Conv2d(groups * in_chs, groups * out_chs, kernel, stride, groups=groups)
    places = ((height - kernel) // stride + 1) * ((width - kernel) // stride + 1)
    expected = places * groups * out_chs * in_chs * kernel**2
    assert count_macs(conv, (height, width), in_chans=groups * in_chs) == expected


def test_a_linear_layer_and_what_does_not_count() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 16, 7), nn.Softmax(1))
    assert count_macs(net, 8) == 3 * 16 * 7


def by_hooks(net: nn.Module, size: int) -> int:
    """An independent count: sizes of outputs times sizes of kernels."""
    total = 0

    def add(layer: Any, args: Any, y: Any) -> None:
        nonlocal total
        total += y.numel() * layer.weight[0].numel()

    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    net.eval()(torch.zeros(1, 3, size, size))
    return total


def test_networks_by_an_independent_count() -> None:
    for net in (tiny("ours"), tiny("timm_cnn"), tiny("bare"), create_model("timm:mobilenetv3_small_050", input_size=32)):
        assert count_macs(net, 32) == by_hooks(net, 32)


def test_resnet18_has_its_well_known_number() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    assert count_macs(net, 224) == 1_814_073_344  # 1.8 billion, table 1 of He et al. 2015


def test_attention_counts_both_of_its_products() -> None:
    net = create_model("timm:vit_tiny_patch16_224", input_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    tokens, width = 16 + 1, 32
    embedding = 16 * 3 * 64 * width
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
    assert count_macs(net, 32) == embedding + 2 * block + width * 5


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_the_networks_own(channels: int) -> None:
    net = create_model("small_convnet", widths=[4], in_chans=channels)
    assert count_macs(net, 8) == 64 * 4 * channels * 9 + 4 * 1000
    assert count_macs(nn.Conv2d(channels, 1, 1), 4, in_chans=channels) == 16 * channels


def test_nothing_is_computed_and_nothing_changes() -> None:
    net = tiny("timm_cnn").train()
    net.layer1.eval()  # type: ignore[operator,union-attr]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    count_macs(net, 4096)  # would take minutes and gigabytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    with pytest.raises(RuntimeError):
        count_macs(net, 32, in_chans=5)
    assert [part.training for part in net.modules()] == modes
