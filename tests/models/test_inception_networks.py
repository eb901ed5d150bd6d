"""Inception-v4 and Inception-ResNet: sizes and laws of the networks; the protocol and the weights have files of their own."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import parameters
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import count_macs, inception_resnet_v1, inception_resnet_v2, inception_v4
from retinue.models.inception_blocks import Inception, Residual, Units
from retinue.models.inception_resnet import V1, V2_PAPER

TINY: dict[str, Any] = {"num_classes": 5, "width_mult": 0.1, "depths": (1, 1, 1)}
NAMES = ("inception_v4", "inception_resnet_v1", "inception_resnet_v2")


def on_meta(build: Any, **options: Any) -> Inception:
    with torch.device("meta"):
        return build(**options).eval()


@pytest.mark.parametrize(
    ("build", "options", "count", "giga_macs"),
    [
        (inception_v4, {}, 42_679_816, 12.254),
        (inception_resnet_v1, {}, 22_756_328, 6.206),
        (inception_resnet_v2, {}, 55_843_464, 13.156),
        (inception_resnet_v2, {"variant": "paper"}, 32_433_928, 9.258),
        (inception_resnet_v2, {"variant": "paper", "depths": (10, 20, 10)}, 55_284_488, 14.142),
    ],
)
def test_parameters_and_multiply_adds_are_those_of_the_page(build: Any, options: dict[str, Any], count: int, giga_macs: float) -> None:
    model = on_meta(build, **options)
    assert parameters(model) == count
    assert round(count_macs(model, 299) / 1e9, 3) == giga_macs


# The tables of the paper once more, in the notation of its figures, counted without building anything.
# "C64 1x7" is a unit, ";" ends a branch, "{" and "}" hold two units applied to the same map, "pool" keeps the channels.
V4 = [
    (1, "C32 3 C32 3 C64 3"),
    (1, "pool ; C96 3"),
    (1, "C64 1 C96 3 ; C64 1 C64 1x7 C64 7x1 C96 3"),
    (1, "C192 3 ; pool"),
    (4, "C96 1 ; C64 1 C96 3 ; C64 1 C96 3 C96 3 ; pool C96 1"),
    (1, "C384 3 ; C192 1 C224 3 C256 3 ; pool"),
    (7, "C384 1 ; C192 1 C224 1x7 C256 7x1 ; C192 1 C192 7x1 C224 1x7 C224 7x1 C256 1x7 ; pool C128 1"),
    (1, "C192 1 C192 3 ; C256 1 C256 1x7 C320 7x1 C320 3 ; pool"),
    (3, "C256 1 ; C384 1 { C256 1x3 C256 3x1 } ; C384 1 C448 3x1 C512 1x3 { C256 1x3 C256 3x1 } ; pool C256 1"),
]


def by_hand(table: list[tuple[int, str]], classes: int, factor: float) -> int:
    total, channels = 0, 3
    for repeats, row in table:
        for _ in range(repeats):
            joined = 0
            for branch in row.split(";"):
                chs, forked = channels, 0
                fork = False
                for word in re.findall(r"pool|[{}]|C\d+ \S+", branch):
                    if word in "{}":
                        fork = word == "{"
                        chs = chs if fork else forked
                    elif word != "pool":
                        filters, kernel = word[1:].split()
                        out = max(8, round(int(filters) * factor / 8 + 1e-9) * 8)
                        height, _, width = kernel.partition("x")
                        total += chs * out * int(height) * int(width or height) + 2 * out  # the kernel, and batch norm's scale and shift
                        if fork:
                            forked += out
                        else:
                            chs = out
                joined += chs
            channels = joined
    return total + channels * classes + classes


@pytest.mark.parametrize(("width_mult", "depths"), [(1.0, (4, 7, 3)), (0.25, (4, 7, 3)), (0.5, (1, 2, 1)), (2.0, (1, 1, 1))])
def test_a_narrower_network_has_the_parameters_counted_by_hand(width_mult: float, depths: tuple[int, int, int]) -> None:
    table = [(dict(zip((4, 7, 3), depths)).get(repeats, 1), row) for repeats, row in V4]
    model = on_meta(inception_v4, num_classes=1000, width_mult=width_mult, depths=depths)
    assert parameters(model) == by_hand(table, 1000, width_mult)


def test_widths_are_rounded_to_multiples_of_eight() -> None:
    model = on_meta(inception_resnet_v2, width_mult=0.3, depths=(2, 1, 1))
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 8 == 0 for conv in convs)
    assert convs[0].out_channels == 8  # 32 * 0.3 = 9.6


def test_maps_of_inception_v4_shrink_as_the_paper_says() -> None:
    model = on_meta(inception_v4)
    sides: list[tuple[int, int]] = []
    for layer in [*model.stem, model.stages[0], *(model.stages[i][0] for i in (1, 2))]:
        layer.register_forward_hook(lambda _, args, y: sides.append((y.shape[1], y.shape[2])))
    with torch.no_grad():
        features = model.forward_features(torch.empty(2, 3, 299, 299, device="meta"))
        logits = model.forward_head(features)
    assert sides == [(32, 149), (32, 147), (64, 147), (160, 73), (192, 71), (384, 35), (384, 35), (1024, 17), (1536, 8)]
    assert features.shape == (2, 1536, 8, 8)
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize(
    ("build", "options", "taps"),
    [
        (inception_v4, {}, [(64, 147), (160, 73), (384, 35), (1024, 17), (1536, 8)]),
        (inception_resnet_v1, {}, [(64, 147), (192, 71), (256, 35), (896, 17), (1792, 8)]),
        (inception_resnet_v2, {}, [(64, 147), (192, 71), (320, 35), (1088, 17), (1536, 8)]),
        (inception_resnet_v2, {"variant": "paper"}, [(64, 147), (160, 73), (384, 35), (1152, 17), (2144, 8)]),
    ],
)
def test_taps_have_the_shapes_of_the_page(build: Any, options: dict[str, Any], taps: list[tuple[int, int]]) -> None:
    model = on_meta(build, depths=(1, 1, 1), **options)
    with torch.no_grad():
        _, maps = model.forward_intermediates(torch.empty(1, 3, 299, 299, device="meta"))
    assert [(m.shape[1], m.shape[2]) for m in maps] == taps
    assert [(info["num_chs"], info["reduction"]) for info in model.feature_info] == [(c, 2**i) for i, (c, _) in enumerate(taps, start=1)]


@pytest.mark.parametrize(
    ("build", "options", "red_a", "red_b"),
    [
        (inception_v4, {}, 384 + 384 + 256, 1024 + 192 + 320),
        (inception_resnet_v1, {}, 256 + 384 + 256, 896 + 384 + 256 + 256),
        (inception_resnet_v2, {"variant": "paper"}, 384 + 384 + 384, 1152 + 384 + 288 + 320),
        (inception_resnet_v2, {}, 320 + 384 + 384, 1088 + 384 + 288 + 320),
    ],
)
def test_reductions_join_what_they_kept_and_what_they_computed(build: Any, options: dict[str, Any], red_a: int, red_b: int) -> None:
    model = on_meta(build, depths=(1, 1, 1), **options)
    entering = {i: model.stages[i][1].branches if hasattr(model.stages[i][1], "branches") else model.stages[i][1] for i in (1, 2)}
    assert [next(m for m in entering[i].modules() if isinstance(m, nn.Conv2d)).in_channels for i in (1, 2)] == [red_a, red_b]


def test_variants_of_inception_resnet_differ_as_they_should() -> None:
    assert V1.depths == V2_PAPER.depths == (5, 10, 5)
    released = on_meta(inception_resnet_v2, num_classes=10)
    assert [len(stage) for stage in released.stages] == [1 + 10, 1 + 20, 1 + 9 + 1]
    scales = [[block.scale for block in stage if isinstance(block, Residual)] for stage in released.stages]
    assert scales == [[0.17] * 10, [0.10] * 20, [0.20] * 9 + [1.0]]
    assert isinstance(released.stages[2][-1].act, nn.Identity)
    assert all(isinstance(block.act, nn.ReLU) for block in list(released.stages[2])[1:-1])


def test_the_long_kernels_are_the_right_way_round() -> None:
    block = on_meta(inception_v4).stages[1][1]
    assert [unit.conv.kernel_size for unit in block.branch1] == [(1, 1), (1, 7), (7, 1)]
    assert [unit.conv.kernel_size for unit in block.branch2] == [(1, 1), (7, 1), (1, 7), (7, 1), (1, 7)]


def test_units_are_normalised_and_the_restoring_convolution_is_not() -> None:
    block = on_meta(inception_resnet_v2).stages[1][1]
    unit = block.branches.branch0
    assert unit.conv.bias is None
    assert unit.bn.eps == 1e-3
    assert block.up.bias is not None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in (block.up, block.act))


def test_the_average_pool_leaves_the_border_out_of_its_divisor() -> None:
    pool = Units().step(1, "avg")
    assert torch.equal(pool(torch.full((1, 1, 4, 4), 3.0)), torch.full((1, 1, 4, 4), 3.0))


def stack_of_a(scale: float, residual: bool = True) -> nn.Sequential:
    model = inception_resnet_v2(variant="paper", width_mult=0.1, depths=(3, 1, 1), residual_scale=(scale, 1.0, 1.0), residual=residual)
    for name, tensor in model.named_buffers():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return model.stages[0].eval()


def test_a_scale_of_zero_makes_blocks_the_identity_bit_for_bit() -> None:
    stack = stack_of_a(0.0)
    x = torch.rand(2, stack[0].up.out_channels, 9, 9) * 10
    assert torch.equal(stack(x), x)
    assert not torch.equal(stack_of_a(0.1)(x), x)


@settings(max_examples=5)
@given(st.floats(0, 1))
def test_a_restoring_convolution_of_zeros_makes_blocks_the_identity_at_any_scale(scale: float) -> None:
    stack = stack_of_a(scale)
    for block in stack:
        nn.init.zeros_(block.up.weight)
        nn.init.zeros_(block.up.bias)
    x = torch.rand(1, stack[0].up.out_channels, 5, 5)
    assert torch.equal(stack(x), x)


def test_a_block_is_its_formula() -> None:
    block = stack_of_a(0.25)[0]
    x = torch.randn(2, block.up.out_channels, 7, 7)
    branches = block.branches
    joined = torch.cat([branches.branch0(x), branches.branch1(x), branches.branch2(x)], 1)
    u = torch.einsum("oc,bchw->bohw", block.up.weight[:, :, 0, 0], joined) + block.up.bias[:, None, None]
    torch.testing.assert_close(block(x), torch.relu(x + 0.25 * u), rtol=0, atol=1e-5)  # float32, some hundred terms
    block.residual = False
    torch.testing.assert_close(block(x), torch.relu(u), rtol=0, atol=1e-5)


def test_the_baseline_without_shortcuts_has_the_same_tensors() -> None:
    torch.manual_seed(3)
    residual = inception_resnet_v1(**TINY, residual=True)
    torch.manual_seed(3)
    plain = inception_resnet_v1(**TINY, residual=False)
    assert all(torch.equal(a, b) for a, b in zip(residual.state_dict().values(), plain.state_dict().values(), strict=True))
    assert not any(block.residual for block in plain.modules() if isinstance(block, Residual))
    images = torch.randn(2, 3, 80, 80)
    assert not torch.allclose(residual.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "maps"), [(28, [28, 28, 14, 7, 4]), (32, [32, 32, 16, 8, 4]), (64, [64, 32, 16, 8, 4])])
def test_small_images_reach_the_blocks_at_the_sizes_of_the_page(name: str, side: int, maps: list[int]) -> None:
    model: Any = retinue.create_model(name, in_chans=1, input_size=side, **TINY).eval()
    _, taps = model.forward_intermediates(torch.randn(1, 1, side, side))
    assert [tap.shape[-1] for tap in taps] == maps
    assert [info["reduction"] for info in model.feature_info] == ([1, 1, 2, 4, 8] if side < 48 else [1, 2, 4, 8, 16])
    assert model.adaptation[:2] == ["every layer is padded, so that no map loses its border", "stem.0: stride 2 -> 1"]
    second = {"inception_v4": ["stem.3: stride 2 -> 1"]}.get(name, ["stem.3: stride 2 -> 1 (removed)"])
    assert model.adaptation[2:] == (second if side < 48 else [])


def test_small_input_means_32_px_where_no_size_is_given() -> None:
    asked = inception_v4(small_input=True, **TINY)
    implied = inception_v4(input_size=32, **TINY)
    assert str(asked) == str(implied)
    assert str(inception_v4(input_size=75, **TINY)) == str(inception_v4(**TINY)) != str(implied)
    assert inception_v4(input_size=75, **TINY).adaptation == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "side"), [(None, 75), ((16, 40), None), (1, 1)])
def test_every_size_that_is_promised_runs_and_learns(name: str, size: Any, side: int | None) -> None:
    model: Any = retinue.create_model(name, input_size=size, **TINY)
    images = torch.randn(4, 3, *((side, side) if side else size))
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@settings(max_examples=8)
@given(st.integers(75, 400), st.integers(75, 400))
def test_the_auxiliary_head_covers_the_map_that_it_was_built_for(height: int, width: int) -> None:
    model = on_meta(inception_resnet_v1, aux=True, input_size=(height, width), **TINY)
    _, (tap,) = model.forward_intermediates(torch.empty(1, 3, height, width, device="meta"), indices=[3])
    assert model.aux is not None
    assert model.aux.sides == tuple(tap.shape[2:])
    assert model.aux.conv2(model.aux.conv1(model.aux.pool(tap))).shape[2:] == (1, 1)


def test_the_auxiliary_head_of_the_paper_size_is_that_of_the_official_code() -> None:
    model = on_meta(inception_v4, aux=True)
    assert model.aux is not None
    assert model.aux.conv1.conv.weight.shape == (128, 1024, 1, 1)
    assert model.aux.conv2.conv.weight.shape == (768, 128, 5, 5)
    assert model.aux.fc.weight.shape == (1000, 768)
    assert parameters(model) - parameters(model.aux) == 42_679_816


@pytest.mark.parametrize("name", NAMES)
def test_the_auxiliary_head_speaks_in_training_only(name: str) -> None:
    model: Any = retinue.create_model(name, input_size=32, aux=True, drop_rate=0.0, **TINY)
    images = torch.randn(4, 3, 32, 32)
    logits, aux_logits = model(images)
    assert logits.shape == aux_logits.shape == (4, 5)
    _, (tap,) = model.forward_intermediates(images, indices=[3])
    torch.testing.assert_close(aux_logits, model.aux(tap))
    torch.testing.assert_close(logits, model.forward_head(model.forward_features(images)))
    (logits.sum() + aux_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(images).shape == (4, 5)
    model.train().reset_classifier(7)
    assert [out.shape for out in model(images)] == [(4, 7), (4, 7)]
    model.reset_classifier(0)
    assert model(images).shape == (4, model.num_features)


def test_dropout_takes_the_share_that_the_paper_does_not_keep() -> None:
    model = inception_v4(input_size=32, **TINY)
    assert model.head.drop.p == 0.2
    ones = torch.ones(1, model.num_features, 4, 4)
    dropped = (model.forward_head(ones.repeat(200, 1, 1, 1), pre_logits=True) == 0).float().mean()
    assert 0.19 < dropped < 0.21  # of 28,800 draws: 4 standard errors


def test_batch_norms_momentum_is_an_option() -> None:
    model = on_meta(inception_v4, aux=True, bn_momentum=0.0003, **TINY)
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.0003}


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_half_precision_change_little(name: str) -> None:
    model = retinue.create_model(name, input_size=32, **TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    logits = logits_of(model, images)
    last = images.contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(logits_of(model, last), logits, rtol=0, atol=1e-5)  # sums in another order
    features: Any = model.forward_features(last)  # type: ignore[operator]
    assert features.is_contiguous(memory_format=torch.channels_last)
    half = logits_of(model.to(torch.bfloat16), last.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), logits, rtol=0, atol=0.05)  # 8 bits of mantissa through some 30 layers


REFUSED = [
    ({"depths": (4, 0, 3)}, r"inception_resnet_v2: `depths` must be three positive numbers of blocks \(A, B, C\), got \[4, 0, 3\]\."),
    ({"depths": (4, 7)}, r"`depths` must be three positive numbers of blocks \(A, B, C\), got \[4, 7\]\."),
    (
        {"residual_scale": (0.1, 1.2, 0.1)},
        r"`residual_scale` must be three numbers in \[0, 1\], for the blocks A, B and C, got \[0.1, 1.2, 0.1\]",
    ),
    ({"residual_scale": (0.1, -0.1, 0.1)}, r"got \[0.1, -0.1, 0.1\]\. The paper advises 0.1 to 0.3 for wide networks; 1 is no scaling\."),
    ({"residual_scale": (0.1, 0.1)}, r"`residual_scale` must be three numbers in \[0, 1\].*got \[0.1, 0.1\]"),
    ({"residual_scale": (float("nan"), 0.1, 0.1)}, r"`residual_scale` must be three numbers.*got \[nan, 0.1, 0.1\]"),
    ({"residual_scale": 0.1}, r"`residual_scale` must be three numbers in \[0, 1\].*got 0.1"),
    ({"depths": 3}, r"`depths` must be three positive numbers of blocks \(A, B, C\), got 3\."),
    ({"variant": "papr"}, r'inception_resnet_v2: no `variant` is called "papr"\. Did you mean paper\?'),
    ({"width_mult": 0}, r"`width_mult` must be positive, got 0\. It is a factor on the numbers of filters; 1 is the paper's width\."),
    ({"bn_momentum": 0.0}, r"`bn_momentum` must lie in \(0, 1\], got 0\.0\. It is the weight of the newest batch, 1 - decay\."),
    ({"drop_rate": 1.0}, r"`drop_rate` must lie in \[0, 1\), got 1\.0\. It is the share of features dropped, not the share kept\."),
    ({"input_size": 0}, r"`input_size` must be a positive side or a pair \(height, width\), got 0\."),
    ({"widht_mult": 1}, r'inception_resnet_v2: no option is called "widht_mult"\. Did you mean width_mult'),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        retinue.create_model("inception_resnet_v2", **options)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_the_valid_padding_cannot_take_are_refused_with_both_numbers(name: str) -> None:
    model = retinue.create_model(name, **TINY).eval()
    with pytest.raises(ShapeError, match=r"needs images of at least 75x75 px, got 74x90\. Build it for small images: .*input_size=74\)"):
        model(torch.zeros(1, 3, 74, 90))
    assert model(torch.zeros(1, 3, 75, 75)).shape == (1, 5)


def test_images_of_other_channels_or_too_small_for_the_auxiliary_head_are_refused() -> None:
    model = inception_v4(aux=True, in_chans=1, **TINY)
    with pytest.raises(ShapeError, match=r"takes 1 channels, got 3\. Build it with in_chans=3"):
        model(torch.zeros(2, 3, 80, 80))
    with pytest.raises(
        ShapeError, match=r"auxiliary head was built for maps of at least 17x17, got 3x3\. Build the network with the `input_size`"
    ):
        model(torch.zeros(2, 1, 80, 80))
