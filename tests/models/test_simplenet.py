"""SimpleNet: lists, sizes, maps, dropout and small images; the protocol and the weights have a file of their own."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters, reductions
from timm.layers import ConvNormAct
from torch import nn

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import count_macs, create_model
from retinue.models.simplenet import PRESETS, simplenet

NAMES = sorted([*(f"simplenet_{preset}" for preset in PRESETS), "simplenet_imagenet_small_05", "simplenet_imagenet_small_075"])


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(f"simplenet_{name}", **options).eval()


def dropped(model: nn.Module) -> list[float]:
    """List the rates of all dropout layers, in the order of computation."""
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout | nn.Dropout2d)]


def test_the_names_are_listed() -> None:
    assert retinue.list_models("simplenet_*") == NAMES


@pytest.mark.parametrize(
    ("name", "ten", "hundred", "macs", "padded"),
    [
        ("cifar_310k", 312_362, 318_212, 55.79, 57.67),
        ("cifar_460k", 385_790, 394_880, 73.19, 74.85),
        ("cifar_5m", 5_498_378, 5_521_508, 652.15, 705.37),
    ],
)
def test_parameters_and_multiply_adds_of_the_cifar_nets(name: str, ten: int, hundred: int, macs: float, padded: float) -> None:
    model = on_meta(name, num_classes=10)
    assert parameters(model) == ten
    assert parameters(on_meta(name, num_classes=100)) == hundred
    assert round(count_macs(model, 32) / 1e6, 2) == macs
    assert round(count_macs(on_meta(name, num_classes=10, pad_1x1=1), 32) / 1e6, 2) == padded
    assert model.default_cfg["input_size"] == (3, 32, 32)


def test_the_main_net_costs_exactly_what_the_paper_says() -> None:
    assert count_macs(on_meta("cifar_5m", num_classes=10), 32) == 652_151_296
    assert count_macs(on_meta("cifar_5m", num_classes=10, pad_1x1=1), 32) == 705_366_528


@pytest.mark.parametrize(
    ("name", "count", "plain", "padded"),
    [
        ("imagenet_5m", 5_752_808, (1.342, 1.689), (1.456, 1.802)),
        ("imagenet_9m", 9_508_968, (2.774, 3.555), (2.952, 3.732)),
        ("imagenet_small_05", 1_506_792, (0.341, 0.428), (0.369, 0.456)),
        ("imagenet_small_075", 3_287_272, (0.759, 0.954), (0.823, 1.018)),
    ],
)
def test_parameters_and_multiply_adds_of_the_imagenet_nets(
    name: str, count: int, plain: tuple[float, float], padded: tuple[float, float]
) -> None:
    for pad, expected in enumerate((plain, padded)):
        models = [on_meta(name, stride_mode=mode, pad_1x1=pad) for mode in (1, 2)]
        assert [parameters(model) for model in models] == [count, count]
        assert tuple(round(count_macs(model, 224) / 1e9, 3) for model in models) == expected
    assert on_meta(name).default_cfg["input_size"] == (3, 224, 224)


def test_widths_can_be_scaled_and_images_can_be_grey() -> None:
    assert parameters(on_meta("cifar_5m", num_classes=10, scale=0.25)) == 347_018
    assert parameters(on_meta("cifar_310k", num_classes=10, in_chans=1)) == 311_210
    assert parameters(on_meta("imagenet_small_05", scale=0.75)) == 3_287_272
    widths = [m.out_channels for m in on_meta("cifar_310k", scale=1.1).modules() if isinstance(m, nn.Conv2d)]
    assert widths[:2] == [70, 35]  # 70.4 and 35.2


def test_thirteen_convolutions_two_of_them_1x1_and_a_linear_layer() -> None:
    for preset in PRESETS:
        model = on_meta(preset)
        kernels = [m.kernel_size[0] for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert (len(kernels), kernels.count(1)) == (13, 2)
        assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
        assert all(m.momentum == 0.05 and m.eps == 1e-5 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "side", "options", "last"),
    [
        ("cifar_5m", 32, {}, 2),
        ("cifar_5m", 32, {"pad_1x1": 1}, 4),
        ("cifar_5m_extra_pool", 32, {}, 1),
        ("imagenet_5m", 224, {"stride_mode": 1}, 7),
        ("imagenet_5m", 224, {"stride_mode": 2}, 7),
        ("imagenet_5m", 224, {"stride_mode": 1, "pad_1x1": 1}, 11),
        ("imagenet_5m", 224, {"stride_mode": 2, "pad_1x1": 1}, 11),
    ],
)
def test_last_maps_are_those_of_the_page(name: str, side: int, options: dict[str, Any], last: int) -> None:
    model = on_meta(name, **options)
    assert model.forward_features(torch.empty(1, 3, side, side, device="meta")).shape == (1, 256, last, last)


@pytest.mark.parametrize(("mode", "strided"), [(0, []), (1, [0, 1, 2]), (2, [0, 1, 3]), (3, [0, 1, 4]), (4, [0, 2, 4])])
def test_stride_modes(mode: int, strided: list[int]) -> None:
    model = on_meta("imagenet_9m", stride_mode=mode)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [i for i, conv in enumerate(convolutions) if conv.stride == (2, 2)] == strided
    sizes = [m.shape[2] for m in model.forward_intermediates(torch.empty(1, 3, 64, 64, device="meta"), intermediates_only=True)]
    assert sizes == [64 // stride for stride in reductions(model)]
    assert reductions(model) == ([1, 2, 4] if mode == 0 else [2, 4, 8, 16, 32])


def test_taps_stand_before_each_pool_and_at_the_end() -> None:
    model = on_meta("cifar_5m")
    assert reductions(model) == [1, 2, 4, 8, 16]
    assert [tap["num_chs"] for tap in model.feature_info] == [128, 256, 256, 256, 256]
    short = simplenet(layers="8 p 16 12k", num_classes=3)
    assert [tap["module"] for tap in short.feature_info] == ["stem.0", "stages.0"]
    assert [tap["num_chs"] for tap in short.feature_info] == [8, 12]
    assert [tap["module"] for tap in simplenet(layers="8").feature_info] == ["stem.0"]


def test_a_unit_is_convolution_norm_and_relu() -> None:
    model = simplenet(layers="4 6k", num_classes=3).eval()
    x = images(2, 3, 5, 5)
    for unit, padding in ((model.stem[0], 1), (model.stages[0][0], 0)):
        nn.init.normal_(unit.bn.running_mean)
        nn.init.uniform_(unit.bn.running_var, 0.5, 2.0)
        nn.init.normal_(unit.bn.weight)
        y = nn.functional.conv2d(x, unit.conv.weight, unit.conv.bias, padding=padding)
        mean, var, weight, bias = (
            getattr(unit.bn, key)[:, None, None].detach() for key in ("running_mean", "running_var", "weight", "bias")
        )
        expected = torch.relu((y - mean) / (var + 1e-5).sqrt() * weight + bias)
        torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-5)
        x = expected
    torch.testing.assert_close(model(images(2, 3, 5, 5)), model.head.fc(x.amax((2, 3))), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_global_maximum_does_not_see_other_places() -> None:
    model = simplenet("cifar_310k", num_classes=10).eval()
    last = model.forward_features(images(2, 3, 32, 32))
    logits = model.forward_head(last)
    values, places = last.flatten(2).max(2)
    other = (places[0, 5] + 1) % 4
    changed = last.clone()
    changed[0, 5].view(-1)[other] += (values[0, 5] - changed[0, 5].view(-1)[other]) * 0.9
    assert torch.equal(model.forward_head(changed), logits)
    changed[0, 5].view(-1)[other] += 1 + values[0, 5]
    assert not torch.equal(model.forward_head(changed)[0], logits[0])
    averaged = simplenet("cifar_310k", num_classes=10, global_pool="avg").eval()
    torch.testing.assert_close(averaged.forward_head(last), averaged.head.fc(last.mean((2, 3))))


def test_convolutions_begin_uniform_with_gain_root_two() -> None:
    model = simplenet("cifar_310k")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] ** 2
            bound = math.sqrt(2) * math.sqrt(6 / (area * (module.in_channels + module.out_channels)))
            assert 0.99 * bound < module.weight.abs().max() <= bound


@torch.no_grad()
def test_without_dropout_evaluation_and_published_rates_agree() -> None:
    model, plain = simplenet("cifar_310k").eval(), simplenet("cifar_310k", drop_rates=0.0).eval()
    plain.load_state_dict(model.state_dict())
    x = images(2, 3, 32, 32)
    assert torch.equal(model(x), plain(x))
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    plain.train()
    assert torch.equal(plain(x), plain(x))


def test_dropout_is_behind_pools_and_the_layers_that_have_none_behind_them() -> None:
    assert dropped(on_meta("cifar_310k")) == [0.2] * 14  # 13 convolutions, of which four have a pool behind them; 4 pools; the end
    assert dropped(on_meta("imagenet_5m")) == [0.0] * 3  # two pools, the end
    model = on_meta("cifar_310k", drop_rates={0: 0.1, 4: 0.3, 3: 0.25, 16: 0.4, 17: 0.5})
    assert dropped(model) == [0.1, 0.25, 0.3, 0.0, 0.0, 0.0, 0.4, 0.5]
    assert dropped(on_meta("imagenet_5m", drop_rates={15: 0.5})) == [0.0, 0.0, 0.5]
    assert dropped(on_meta("imagenet_5m", drop_rates={"15": 0.5}, drop_rate=0.1)) == [0.0, 0.0, 0.1]  # keys as a checkpoint writes them


def test_dropout_before_the_relu_is_dropout_behind_it() -> None:
    unit: Any = simplenet(layers="6 4", drop_rates=0.5).stem[0]
    bare: Any = simplenet(layers="6 4", drop_rates=0.0).stem[0]
    bare.load_state_dict(unit.state_dict())
    x = images(4, 3, 8, 8)
    torch.manual_seed(1)
    ours = unit(x)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, nn.functional.dropout(bare(x), 0.5), rtol=0, atol=1e-6)


def test_elements_or_whole_maps_are_dropped() -> None:
    x = torch.ones(8, 3, 16, 16)
    for kind in ("element", "channel"):
        model: Any = simplenet(layers="32 p 32", drop_rates=0.5, drop=kind)
        pool = model.stages[0][0].train()
        kept = (pool(torch.ones(8, 32, 16, 16)) != 0).float().mean((2, 3))
        assert ((kept == 0) | (kept == 1)).all() == (kind == "channel")
        assert 0.3 < kept.mean() < 0.7
        assert model(x).shape == (8, 10)


@pytest.mark.parametrize(
    ("name", "size", "adaptation", "sides"),
    [
        ("cifar_5m", 32, [], [32, 16, 8, 4, 2]),
        ("cifar_310k", 28, [], [28, 14, 7, 3, 1]),
        ("cifar_310k", 16, [], [16, 8, 4, 2, 1]),
        ("cifar_310k", 8, ["layers.15: pool left out"], [8, 4, 2, 1]),
        ("cifar_310k", 5, ["layers.15: pool left out", "layers.11: pool left out"], [5, 2, 1]),
        ("cifar_310k", 64, ["stem: stride 1 -> 2"], [32, 16, 8, 4, 2]),
        ("cifar_5m_extra_pool", 28, ["layers.16: pool left out"], [28, 14, 7, 3, 1]),
        ("imagenet_5m", 224, [], [112, 56, 28, 14, 7]),
        ("imagenet_5m", 64, [], [32, 16, 8, 4, 2]),
        ("imagenet_5m", 32, ["stride_mode 2 -> 0"], [32, 16, 8]),
        ("imagenet_small_05", 28, ["stride_mode 2 -> 0"], [28, 14, 7]),
    ],
)
def test_small_and_large_images_are_adapted_to_and_said_so(name: str, size: int, adaptation: list[str], sides: list[int]) -> None:
    model = on_meta(name, input_size=size, in_chans=1, num_classes=7)
    assert model.adaptation == adaptation
    x = torch.empty(2, 1, size, size, device="meta")
    assert [m.shape[2] for m in model.forward_intermediates(x, intermediates_only=True)] == sides
    assert [size // reduction for reduction in reductions(model)] == sides
    assert model(x).shape == (2, 7)


def test_of_oblong_images_the_short_side_counts() -> None:
    assert on_meta("cifar_310k", input_size=[8, 100]).adaptation == ["layers.15: pool left out"]
    assert on_meta("imagenet_5m", input_size=[224, 48]).adaptation == ["stride_mode 2 -> 0"]


def test_what_the_user_says_is_not_adapted() -> None:
    assert on_meta("imagenet_5m", input_size=32, stride_mode=1).adaptation == []
    assert reductions(on_meta("cifar_310k", input_size=64, stride_mode=0))[0] == 1
    assert simplenet(layers="8 p 8", input_size=64).adaptation == []


def test_the_dropout_of_a_pool_that_is_left_out_stays() -> None:
    model = on_meta("cifar_310k", input_size=8, drop_rates={14: 0.1, 15: 0.3, 17: 0.5})
    assert dropped(model) == [0.0, 0.0, 0.0, 0.3, 0.5]


@given(
    layers=st.lists(st.sampled_from(["4", "6", "4k", "6k", "p"]), min_size=1, max_size=8),
    mode=st.integers(0, 4),
    pad=st.integers(0, 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
@settings(max_examples=40)
def test_the_least_side_is_exact_and_maps_have_the_stated_channels(layers: list[str], mode: int, pad: Any, height: int, width: int) -> None:
    with torch.device("meta"):
        model: Any = simplenet(layers=" ".join(["5", *layers]), stride_mode=mode, pad_1x1=pad).eval()
    x = torch.empty(1, 3, height, width, device="meta")
    try:
        maps = model.forward_intermediates(x, intermediates_only=True)
    except ShapeError:
        assert min(height, width) < model.min_side
        with pytest.raises(RuntimeError):
            model.stages(model.stem(x))
        return
    assert min(height, width) >= model.min_side
    assert [m.shape[1] for m in maps] == [tap["num_chs"] for tap in model.feature_info]
    assert model(x).shape == (1, 10)


def test_a_small_network_learns() -> None:
    model = simplenet(layers="16 16 p 32 32k p 16", num_classes=2, in_chans=1, input_size=16, drop_rates=0.0)
    x, labels = images(16, 1, 16, 16), torch.arange(16) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_its_units_are_timms() -> None:
    assert sum(isinstance(module, ConvNormAct) for module in on_meta("cifar_5m").modules()) == 13


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "cifar_31k"}, r'simplenet: no preset is called "cifar_31k"\. Did you mean cifar_310k'),
        ({"drop": "map"}, r'simplenet: no `drop` is called "map"\. There is channel, element\.'),
        ({"global_pool": "mean"}, r'simplenet: no `global_pool` is called "mean"\. Did you mean max\?'),
        ({"pad_1x1": 2}, r"simplenet: `pad_1x1` must be 0 or 1, got 2\. Present releases have 0\."),
        (
            {"layers": "64 32 q"},
            r'`layers` has the item "q", which is none\. Write widths such as 64, 64k for a 1x1 kernel, p for a pool\.',
        ),
        ({"layers": "p 64"}, r'`layers` must begin with a convolution, got "p 64"\. Put the pools behind it\.'),
        ({"layers": ""}, r'`layers` must begin with a convolution, got ""'),
        (
            {"layers": "8 p 8 p 8", "input_size": 3},
            r"images of 3 px are too small for `layers`, whose pools and strides halve the map 2 times\. Leave pools out\.",
        ),
        ({"preset": "imagenet_5m", "stride_mode": 5}, r"`stride_mode` must be 0, 1, 2, 3 or 4, got 5\. The modes are for large images\."),
        ({"preset": "imagenet_5m", "stride_mode": -1}, r"`stride_mode` must be 0, 1, 2, 3 or 4, got -1"),
        ({"stride_mode": 1}, r'`stride_mode` must be 0 for "cifar_5m", got 1'),
        ({"scale": 0}, r"`scale` must be positive, got 0\. It is a factor on all widths\."),
        ({"scale": -0.5}, r"`scale` must be positive, got -0\.5"),
        ({"scale": 0.005}, r'the width "64" times `scale` 0\.005 is rounded to 0\. Every layer needs a channel\.'),
        ({"layers": "64 0"}, r'the width "0" times `scale` 1\.0 is rounded to 0'),
        (
            {"drop_rates": {18: 0.1}},
            r"`drop_rates` has the key 18\. Keys count the layers, pools too, from 0 to 16; 17 is the global pool\.",
        ),
        ({"drop_rates": {"first": 0.1}}, r"`drop_rates` has the key 'first'\. Keys count the layers"),
        ({"drop_rates": {-1: 0.1}}, r"`drop_rates` has the key -1\."),
        ({"drop_rates": {0: 1.0}}, r"`drop_rates` must lie in \[0, 1\), got 1\.0\. It is the share dropped, not the share kept\."),
        ({"drop_rates": -0.2}, r"`drop_rates` must lie in \[0, 1\), got -0\.2"),
        ({"drop_rate": 1.5}, r"`drop_rate` must lie in \[0, 1\), got 1\.5"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        create_model("simplenet", **options)


def test_images_that_are_too_small_are_refused_with_the_way_out() -> None:
    with pytest.raises(
        ShapeError, match=r"needs images of at least 16x16 px, got 32x15\. Build it for small images: create_model\(\.\.\., input_size=15\)"
    ):
        simplenet("cifar_310k")(images(1, 3, 32, 15))
    with pytest.raises(ArgumentError, match=r'simplenet_cifar_5m: no option is called "drop_rat"\. Did you mean drop_rate, drop_rates'):
        create_model("simplenet_cifar_5m", drop_rat=0.1)
