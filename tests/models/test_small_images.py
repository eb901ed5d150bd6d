"""Networks for large images, adapted to small ones: which strides are lowered, that nothing is computed, and what cannot be adapted."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import images
from timm.layers import BlurPool2d, create_conv2d
from torch import Tensor, nn

from retinue.models.small_images import (
    LEAST_SIDE,
    CannotAdaptError,
    Step,
    _keep_borders,
    _set_stride,
    _watch,
    adapt_strides,
    is_channels_last,
    last_sides,
)


class Chain(nn.Module):
    """Layers one after the other, with the metadata of a timm network made for 64 px."""

    def __init__(self, *layers: nn.Module, own: int = 64, reductions: tuple[int, ...] = (2, 4, 8, 16, 32)) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.default_cfg = {"input_size": (3, own, own)}
        self.feature_info = [{"num_chs": 4, "reduction": reduction, "module": ""} for reduction in reductions]
        self.num_features = 4

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers(x)


def conv(in_chs: int = 4, kernel: int = 3, stride: int = 2, padding: int | str = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(in_chs, 4, kernel, stride=stride, padding=padding, **options)


def five(**options: Any) -> Chain:
    return Chain(conv(3), nn.MaxPool2d(3, 2, 1), conv(), nn.BatchNorm2d(4), conv(), conv(), **options)


def test_the_first_strides_go_until_the_last_map_is_four_by_four() -> None:
    net = five()
    assert adapt_strides(net, 3, (64, 64)) == ["layers.0: stride 2 -> 1"], "2x2 becomes 4x4"
    assert net.forward_features(images(1, 3, 64, 64)).shape[2:] == (4, 4)
    assert [tap["reduction"] for tap in net.feature_info] == [1, 2, 4, 8, 16]

    net = five()
    assert adapt_strides(net, 3, (32, 32)) == ["layers.0: stride 2 -> 1", "layers.1: stride 2 -> 1 (removed)"]
    assert net.forward_features(images(1, 3, 32, 32)).shape[2:] == (4, 4)
    assert [tap["reduction"] for tap in net.feature_info] == [1, 1, 2, 4, 8]


def test_images_that_are_large_enough_change_nothing() -> None:
    net = five()
    before = repr(net)
    assert adapt_strides(net, 3, (128, 97)) == []
    assert repr(net) == before
    assert [tap["reduction"] for tap in net.feature_info] == [2, 4, 8, 16, 32]


def test_a_stride_of_four_is_halved_as_often_as_needed() -> None:
    for size, stride in ((16, 2), (8, 1)):
        net = Chain(conv(3, kernel=4, stride=4, padding=0), conv(), reductions=(4, 8))
        assert adapt_strides(net, 3, (size, size)) == [f"layers.0: stride 4 -> {stride}"]
        assert net.forward_features(images(1, 3, size, size)).shape[2:] == (4, 4)
        assert [tap["reduction"] for tap in net.feature_info] == [stride, 2 * stride]


def test_oblong_images_are_judged_by_their_shorter_side() -> None:
    net = five()
    notes = adapt_strides(net, 3, (32, 64))
    assert len(notes) == 2
    assert net.forward_features(images(1, 3, 32, 64)).shape[2:] == (4, 8)


def test_weights_keep_their_shapes_and_values_and_modes_and_statistics_stay() -> None:
    net = five()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.layers[0].eval()
    adapt_strides(net, 3, (32, 32))
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) and tensor.device.type == "cpu" for name, tensor in net.state_dict().items())
    assert [layer.training for layer in net.layers] == [False, True, True, True, True, True]
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in net.parameters())


class SideBySide(nn.Module):
    """Two branches that shrink the same map, as in a residual block or an Inception reduction."""

    def __init__(self, functional: bool = False, padding: int = 1) -> None:
        super().__init__()
        self.a, self.b, self.functional = conv(padding=padding), nn.MaxPool2d(3, 2, padding), functional

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + (nn.functional.max_pool2d(x, 3, 2) if self.functional else self.b(x))


def test_layers_side_by_side_are_lowered_together() -> None:
    net = Chain(SideBySide(), SideBySide(), conv(), conv(), conv())
    net.layers[0].a = conv(3)
    net.layers[0].b = nn.Sequential(conv(3, kernel=1, padding=0))
    notes = adapt_strides(net, 3, (32, 32))
    assert notes == [
        "layers.0.a: stride 2 -> 1",
        "layers.0.b.0: stride 2 -> 1",
        "layers.1.a: stride 2 -> 1",
        "layers.1.b: stride 2 -> 1 (removed)",
    ]
    assert net.forward_features(images(1, 3, 32, 32)).shape[2:] == (4, 4)


def test_layers_without_padding_keep_their_borders_in_small_maps() -> None:
    net = Chain(conv(3, padding=0), conv(stride=1, padding=0), nn.MaxPool2d(3, 2), conv(padding=0), reductions=(2, 4, 8))
    notes = adapt_strides(net, 3, (16, 16))
    assert notes == ["layers.0, layers.1, layers.2, layers.3: padded, so that the map keeps its border", "layers.0: stride 2 -> 1"]
    assert net.forward_features(images(1, 3, 16, 16)).shape[2:] == (4, 4)


def test_borders_are_left_where_something_beside_them_is_no_layer() -> None:
    net = Chain(conv(3, padding=0), SideBySide(functional=True, padding=0), reductions=(2, 4))
    assert adapt_strides(net, 3, (12, 12)) == ["layers.0: padded, so that the map keeps its border", "layers.0: stride 2 -> 1"]
    assert net.layers[1].a.padding == (0, 0)
    assert net.forward_features(images(1, 3, 12, 12)).shape[2:] == (5, 5)


def test_a_layer_whose_padding_is_a_module_of_its_own_is_not_padded_twice() -> None:
    net = Chain(nn.ZeroPad2d(1), conv(3, padding=0), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), conv(), own=32, reductions=(2, 4, 8))
    assert adapt_strides(net, 3, (8, 8)) == ["layers.1: stride 2 -> 1", "layers.3: stride 2 -> 1"]
    assert net.forward_features(images(1, 3, 8, 8)).shape[2:] == (4, 4)


@given(
    st.sampled_from([1, 2, 3, 4, 5, 7]),
    st.sampled_from([2, 3, 4]),
    st.integers(1, 2),
    st.integers(8, 33),
    st.sampled_from(["conv", "same", "max", "avg", "blur"]),
    st.integers(1, 2),
)
def test_a_lowered_stride_divides_any_map_by_itself(kernel: int, before: int, after: int, side: int, kind: str, dilation: int) -> None:
    layer: Any
    if kind == "conv":
        layer = conv(kernel=kernel, stride=before, padding=(kernel - 1) // 2, dilation=dilation)
    elif kind == "same":
        layer = create_conv2d(4, 4, kernel, stride=before, padding="same")
    elif kind == "blur":
        before, layer = 2, BlurPool2d(4, filt_size=3, stride=2)
    else:
        kernel = max(kernel, 2)
        layer = (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(kernel, before, (kernel - 1) // 2)
        after = 1
    _set_stride(Step("x", layer, 8, 4, False), after)
    sides = layer(images(1, 4, side, side)).shape[2:]
    span = dilation * (kernel - 1) + 1 if kind == "conv" else kernel
    if kind == "blur" or span % 2 or after == 1:
        assert sides == (-(-side // after),) * 2
    else:
        assert abs(sides[0] - side / after) <= 1


def test_last_sides_of_maps_tokens_and_lists() -> None:
    net = five()
    assert last_sides(net, 3, (96, 64)) == ((3, 2), "")
    net.forward_features = lambda x: x.flatten(2).transpose(1, 2)  # type: ignore[method-assign]
    assert last_sides(net, 3, (10, 10)) == ((10, 10), "")
    net.num_prefix_tokens = 2  # type: ignore[assignment]
    net.forward_features = lambda x: torch.cat([x.flatten(2).transpose(1, 2)] + 2 * [x[:, :, 0, :1].transpose(1, 2)], dim=1)  # type: ignore[method-assign]
    assert last_sides(net, 3, (10, 10)) == ((10, 10), "")
    net.forward_features = lambda x: [x, (x, x[..., ::2, ::4])]  # type: ignore[assignment,method-assign,return-value]
    assert last_sides(net, 3, (12, 12)) == ((6, 3), "")
    net.forward_features = lambda x: x.repeat(1, 2, 1, 1)[:, :4].permute(0, 2, 3, 1)  # type: ignore[method-assign]
    assert last_sides(net, 3, (7, 9)) == ((7, 9), ""), "channels last"
    net.forward_features = lambda x: x.flatten(1)  # type: ignore[method-assign]
    assert last_sides(net, 3, (7, 9)) == ((0, 0), "it ends in no map of features")


def test_a_network_that_does_not_run_says_why_and_is_left_as_it_was() -> None:
    net = Chain(conv(3), conv(5))
    sides, trouble = last_sides(net, 3, (32, 32))
    assert sides == (0, 0)
    assert trouble
    assert "\n" not in trouble
    assert net.training
    assert next(net.parameters()).device.type == "cpu"


def test_is_channels_last() -> None:
    assert is_channels_last(torch.empty(2, 7, 7, 4), 4)
    assert not is_channels_last(torch.empty(2, 4, 7, 7), 4)
    assert not is_channels_last(torch.empty(2, 4, 4, 4), 4), "where both fit, channels come first"
    assert not is_channels_last(torch.empty(2, 3, 7, 7), None)


def test_steps_are_watched_in_the_order_of_computation() -> None:
    steps = _watch(five(), 3, (64, 64))
    assert [(step.name, step.before, step.after, step.factor) for step in steps] == [
        ("layers.0", 64, 32, 2),
        ("layers.1", 32, 16, 2),
        ("layers.2", 16, 8, 2),
        ("layers.4", 8, 4, 2),
        ("layers.5", 4, 2, 2),
    ]
    assert Step("x", None, 35, 33, False).factor == 1, "only loses its border"
    assert Step("x", None, 147, 73, False).factor == 2
    assert _keep_borders(five(), 3, (64, 64), steps) == []


def test_what_cannot_be_adapted_says_why() -> None:
    class Deaf(Chain):
        def forward_features(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(self.layers(x), 16)

    with pytest.raises(CannotAdaptError, match=r"^its last map would be 2x2, and less than 4x4 is too coarse$"):
        adapt_strides(Deaf(conv(3)), 3, (32, 32))

    class Fixed(Chain):
        def forward_features(self, x: Tensor) -> Tensor:
            return self.layers(x) + torch.zeros(1, 4, 7, 7, device=x.device)

    with pytest.raises(CannotAdaptError, match=r"^its layers do not fit together \(.*7.*\)$"):
        adapt_strides(Fixed(conv(3)), 3, (32, 32))
    assert LEAST_SIDE == 4
