"""The stack of 3x3 convolutions: its count, its output by a loop over its weights, its taps, and what it refuses."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import images, parameters

from retinue.errors import ArgumentError
from retinue.models import small_convnet


def test_the_default_is_the_laptop_network_of_the_claims() -> None:
    net = small_convnet()
    chain = [3, 24, 24, 48, 48, 96, 96]
    assert parameters(net) == sum(a * b * 9 + 2 * b for a, b in pairwise(chain)) + 96 * 10 + 10 == 162_994
    assert [net.get_submodule(name).stride for name, _ in net.named_modules() if name.endswith(".conv")] == [(1, 1), (2, 2)] * 3
    assert net.forward_features(images(1, 3, 16, 16)).shape == (1, 96, 2, 2)


def test_the_output_by_a_loop_over_the_weights() -> None:
    net = small_convnet([4, 6, 5], num_classes=3, in_chans=1).eval()
    x = y = images(2, 1, 9, 9)
    weights = [tensor for name, tensor in net.state_dict().items() if name.endswith("conv.weight")]
    for i, weight in enumerate(weights):
        y = (F.conv2d(y, weight, stride=1 + i % 2, padding=1) / (1 + 1e-5) ** 0.5).relu()  # the norms have not seen anything yet
    y = F.linear(y.mean((2, 3)), net.head.fc.weight, net.head.fc.bias)
    torch.testing.assert_close(net(x), y, rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=7), st.integers(1, 20))
def test_taps_state_channels_and_strides_for_any_widths_and_size(widths: list[int], side: int) -> None:
    net = small_convnet(widths).eval()
    maps = net.forward_intermediates(images(1, 3, side, side), intermediates_only=True)
    strided = len(widths) // 2
    assert [tap["reduction"] for tap in net.feature_info] == [2**i for i in range(strided + 1)]
    for tap, one in zip(net.feature_info, maps, strict=True):
        assert one.shape == (1, tap["num_chs"], -(-side // tap["reduction"]), -(-side // tap["reduction"]))
    assert torch.equal(maps[-1], net.forward_features(images(1, 3, side, side)))


def test_wrong_widths_are_refused() -> None:
    for widths in ([], [8, 0]):
        with pytest.raises(
            ArgumentError, match=rf"^small_convnet: `widths` must be positive numbers of channels, got \[{', '.join(map(str, widths))}\]\.$"
        ):
            small_convnet(widths)
