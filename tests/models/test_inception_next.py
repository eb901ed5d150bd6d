"""InceptionNeXt: mixer, block, head and sizes; the protocol and the weights have files of their own."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import InceptionDWConv2d, MetaNeXtBlock, count_macs, create_model, inception_next
from retinue.models.inception_next_blocks import MlpHead, linear_rates, small_layout

SIZES = {"atto": 4_156_520, "tiny": 28_055_680, "small": 49_374_016, "base": 86_672_136, "base_384": 86_672_136}


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options).eval()


@pytest.mark.parametrize(
    ("variant", "side", "giga_macs"),
    [("atto", 224, 0.503), ("tiny", 224, 4.189), ("small", 224, 8.356), ("base", 224, 14.841), ("base_384", 384, 43.603)],
)
def test_parameters_and_multiply_adds_are_those_of_the_page(variant: str, side: int, giga_macs: float) -> None:
    model = on_meta(f"inception_next_{variant}")
    assert parameters(model) == SIZES[variant]
    assert round(count_macs(model, side) / 1e9, 3) == giga_macs
    assert model.default_cfg["input_size"] == (3, side, side)


def test_the_names_are_listed() -> None:
    assert retinue.list_models("inception_next_*") == sorted(f"inception_next_{variant}" for variant in SIZES)


def test_parameters_of_the_mixer() -> None:
    mixer = InceptionDWConv2d(96)
    assert parameters(mixer) == 12 * 9 + 12 + 2 * (12 * 11 + 12) == 408
    dense = create_model("inception_next_tiny", token_mixer="dw7", depths=[1], dims=[96]).stages[0].blocks[0].token_mixer
    assert parameters(dense) == 96 * 49 + 96 == 4800


def test_multiply_adds_of_the_mixer() -> None:
    for layer, each in ((InceptionDWConv2d(96), 12 * 31), (nn.Conv2d(96, 96, 7, padding=3, groups=96), 4704)):
        assert count_macs(layer, (5, 7), in_chans=96) == each * 5 * 7


@pytest.mark.parametrize(("variant", "groups"), [("tiny", [12, 24, 48, 96]), ("atto", [10, 20, 40, 80])])
def test_widths_of_the_branches(variant: str, groups: list[int]) -> None:
    model = on_meta(f"inception_next_{variant}")
    assert [stage.blocks[0].token_mixer.groups[1] for stage in model.stages] == groups
    kernels = {tuple(stage.blocks[-1].token_mixer.dwconv_w.kernel_size) for stage in model.stages}
    assert kernels == {(1, 9 if variant == "atto" else 11)}


def test_the_first_channels_pass_unchanged() -> None:
    x = images(2, 96, 9, 8)
    assert torch.equal(InceptionDWConv2d(96)(x)[:, :60], x[:, :60])


def changed_places(channel: int) -> list[tuple[int, int, int]]:
    """Change one pixel of one channel, at row 14 and column 15, and list where the result changes."""
    mixer, x = InceptionDWConv2d(96), images(1, 96, 30, 32)
    other = x.clone()
    other[0, channel, 14, 15] += 1
    with torch.no_grad():
        places = (mixer(x) != mixer(other)).nonzero()[:, 1:].tolist()
    return [tuple(place) for place in places]


def test_a_pixel_reaches_what_its_branch_covers() -> None:
    assert changed_places(0) == [(0, 14, 15)]
    assert changed_places(60) == [(60, row, column) for row in (13, 14, 15) for column in (14, 15, 16)]
    assert changed_places(72) == [(72, 14, column) for column in range(10, 21)]
    assert changed_places(84) == [(84, row, 15) for row in range(9, 20)]


def test_a_band_is_a_correlation_with_zeros_outside() -> None:
    mixer = InceptionDWConv2d(8, band_kernel_size=3)
    with torch.no_grad():
        mixer.dwconv_w.weight.copy_(torch.tensor([[[[1.0, 10.0, 100.0]]]]))
        mixer.dwconv_w.bias.fill_(0.5)
    x = torch.zeros(1, 8, 1, 4)
    x[0, 6, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert mixer(x)[0, 6, 0].tolist() == [210.5, 321.5, 432.5, 43.5]


def test_a_group_is_rounded_down() -> None:
    assert InceptionDWConv2d(20, branch_ratio=1 / 8).groups == [14, 2, 2, 2]
    assert InceptionDWConv2d(9, branch_ratio=1 / 3).groups == [0, 3, 3, 3]
    assert InceptionDWConv2d(9, branch_ratio=1 / 3)(images(1, 9, 4, 4)).shape == (1, 9, 4, 4)


def test_a_block_without_gamma_or_with_zeros_there() -> None:
    x = images(2, 24, 6, 5)
    block = MetaNeXtBlock(24).train()
    nn.init.zeros_(block.gamma)
    assert torch.equal(block(x), x)
    plain = MetaNeXtBlock(24, ls_init_value=None).eval()
    assert plain.gamma is None
    expected = x + plain.mlp(plain.norm(plain.token_mixer(x)))
    assert torch.equal(plain(x), expected)


def test_a_fresh_block_is_almost_the_identity() -> None:
    block, x = create_model("inception_next_tiny", depths=[1], dims=[96]).stages[0].blocks[0], images(2, 96, 8, 8)
    difference = (block(x) - x).abs().max()
    assert 0 < difference < 1e-5


def test_the_block_has_one_shortcut_and_gelu_between_two_pointwise_layers() -> None:
    block, x = MetaNeXtBlock(24, mlp_ratio=3).eval(), images(2, 24, 6, 5)
    nn.init.normal_(block.gamma)
    w1, b1, w2, b2 = (p.detach() for p in block.mlp.parameters())
    hidden = torch.einsum("oi,bihw->bohw", w1[:, :, 0, 0], block.token_mixer(x) / math.sqrt(1 + 1e-5)) + b1[:, None, None]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    change = torch.einsum("oi,bihw->bohw", w2[:, :, 0, 0], hidden) + b2[:, None, None]
    assert w1.shape == (72, 24, 1, 1)
    torch.testing.assert_close(block(x), x + block.gamma[:, None, None] * change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.5, None])
def test_stochastic_depth_drops_whole_branches_and_enlarges_the_others(value: float | None) -> None:
    block, x = (
        MetaNeXtBlock(8, lambda dim: nn.Identity(), lambda dim: nn.Identity(), ls_init_value=value, drop_path=0.75),
        images(64, 8, 3, 3),
    )
    with torch.no_grad():
        full = block.eval()(x) - x
        change = block.train()(x) - x
    kept = change.flatten(1).abs().amax(1) > 0
    assert 4 < kept.sum() < 28  # 64 draws of 1/4: 16, deviation 3.5
    torch.testing.assert_close(change[kept], 4 * full[kept], rtol=1e-4, atol=1e-5)


def test_gradients_flow_into_gamma_through_stochastic_depth() -> None:
    block, x = MetaNeXtBlock(8, ls_init_value=1.0, drop_path=0.5), images(16, 8, 3, 3)
    block.train()(x).sum().backward()
    assert block.gamma is not None
    assert block.gamma.grad is not None
    assert block.gamma.grad.abs().min() > 0


def test_rates_of_stochastic_depth_rise_over_all_blocks() -> None:
    model: Any = inception_next("atto", drop_path_rate=0.22)
    rates = [0.0 if block.drop_path is None else block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.22, 12).tolist(), abs=1e-7)
    assert linear_rates(0.5, (1,)) == [[0.0]]


def test_the_head_normalises_behind_the_activation() -> None:
    head, x = MlpHead(4, 3).eval(), images(2, 4, 3, 5)
    nn.init.normal_(head.fc1.weight)
    nn.init.normal_(head.norm.weight)
    nn.init.normal_(head.norm.bias)
    y = x.mean((2, 3)) @ head.fc1.weight.T + head.fc1.bias
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-6).sqrt() * head.norm.weight + head.norm.bias
    torch.testing.assert_close(head(x, pre_logits=True), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(head(x), y @ head.fc2.weight.T + head.fc2.bias, rtol=0, atol=1e-5)


def test_the_mlp_ratio_is_three_in_the_fourth_stage_and_the_head() -> None:
    model = on_meta("inception_next_tiny")
    assert [stage.blocks[0].mlp.fc1.out_channels / stage.blocks[0].mlp.fc1.in_channels for stage in model.stages] == [4, 4, 4, 3]
    assert model.head.fc1.out_features == 3 * 768 == model.head_hidden_size
    assert isinstance(model.tail, nn.Identity)


def test_weights_begin_with_a_deviation_of_a_fiftieth_and_biases_with_zero() -> None:
    model = inception_next("atto")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            assert not module.bias.any(), name
            if module.weight.numel() > 10_000:
                assert abs(module.weight.std().item() - 0.02) < 0.001, name
    gammas = [tensor for name, tensor in model.state_dict().items() if name.endswith("gamma")]
    assert len(gammas) == 12
    assert all((gamma == torch.tensor(1e-6)).all() for gamma in gammas)


@pytest.mark.parametrize(
    ("size", "sides"), [((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]), ((96, 160), [(24, 40), (12, 20), (6, 10), (3, 5)])]
)
def test_maps_shrink_as_the_page_says(size: tuple[int, int], sides: list[tuple[int, int]]) -> None:
    model = on_meta("inception_next_atto")
    maps = model.forward_intermediates(torch.empty(1, 3, *size, device="meta"), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == sides


@pytest.mark.parametrize(
    ("size", "adaptation", "sides"),
    [
        (224, [], [56, 28, 14, 7]),
        (128, ["stages.3: band kernel 9 -> 7"], [32, 16, 8, 4]),
        (64, ["stem: stride 4 -> 2", "stages.3: band kernel 9 -> 7"], [32, 16, 8, 4]),
        (48, ["stem: stride 4 -> 2", "stages.3 left out"], [24, 12, 6]),
        (32, ["stem: stride 4 -> 2", "stages.3 left out", "stages.2: band kernel 9 -> 7"], [16, 8, 4]),
        (28, ["stem: stride 4 -> 2", "stages.3 left out", "stages.2: band kernel 9 -> 5"], [14, 7, 3]),
        (16, ["stem: stride 4 -> 1", "stages.3 left out", "stages.2: band kernel 9 -> 7"], [16, 8, 4]),
    ],
)
def test_small_images_are_adapted_to_and_said_so(size: int, adaptation: list[str], sides: list[int]) -> None:
    model = on_meta("inception_next_atto", input_size=size, in_chans=1, num_classes=7)
    assert model.adaptation == adaptation
    x = torch.empty(2, 1, size, size, device="meta")
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [m.shape[2] for m in maps] == sides
    assert [size // tap["reduction"] for tap in model.feature_info] == sides
    assert model(x).shape == (2, 7)


def test_the_network_for_32_pixels_is_the_recommended_one() -> None:
    model = on_meta("inception_next_atto", input_size=32, num_classes=10)
    assert [len(stage.blocks) for stage in model.stages] == [2, 2, 6]
    assert model.stem[0].weight.shape == (40, 3, 2, 2)
    same = on_meta(
        "inception_next", input_size=32, num_classes=10, depths=[2, 2, 6], dims=[40, 80, 160], band_kernel_size=9, branch_ratio=0.25
    )
    assert parameters(same) == parameters(model)
    assert parameters(on_meta("inception_next", stem_stride=1, depths=[1], dims=[8])) - parameters(
        on_meta("inception_next", stem_stride=2, depths=[1], dims=[8])
    ) == 8 * 3 * (9 - 4)


@given(height=st.integers(1, 5), width=st.integers(1, 5))
@settings(max_examples=15)
def test_taps_beyond_the_map_change_nothing(height: int, width: int) -> None:
    long, side = InceptionDWConv2d(8, band_kernel_size=11), max(height, width)
    short = InceptionDWConv2d(8, band_kernel_size=2 * side - 1)
    outer = 6 - side
    with torch.no_grad():
        short.load_state_dict(
            {
                **long.state_dict(),
                "dwconv_w.weight": long.dwconv_w.weight[..., outer : 11 - outer],
                "dwconv_h.weight": long.dwconv_h.weight[:, :, outer : 11 - outer],
            }
        )
    x = images(2, 8, height, width)
    torch.testing.assert_close(short(x), long(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mixer", "kind"), [("dw7", (7, 7)), ("dw3", (3, 3)), ("identity", None)])
def test_the_mixer_can_be_another_in_the_same_network(mixer: str, kind: tuple[int, int] | None) -> None:
    model: Any = create_model("inception_next_atto", input_size=32, num_classes=5, token_mixer=mixer).eval()
    assert model.adaptation == ["stem: stride 4 -> 2", "stages.3 left out"]
    mixers = [block.token_mixer for stage in model.stages for block in stage.blocks]
    assert all((m.kernel_size == kind and m.groups == m.in_channels) if kind else isinstance(m, nn.Identity) for m in mixers)
    usual, same = (
        [name for name in network.state_dict() if "token_mixer" not in name]
        for network in (on_meta("inception_next_atto", input_size=32), model)
    )
    assert usual == same
    assert model(images(2, 3, 32, 32)).shape == (2, 5)


def test_the_mixer_fits_into_timms_convnext() -> None:
    import timm

    model: Any = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_classes=3)
    for stage in model.stages:
        for block in stage.blocks:
            block.conv_dw = InceptionDWConv2d(block.conv_dw.in_channels)
    assert model(images(2, 3, 64, 64)).shape == (2, 3)


def test_a_small_network_learns() -> None:
    torch.manual_seed(0)
    model = create_model("inception_next", num_classes=2, in_chans=1, input_size=16, depths=[1, 1], dims=[16, 16], ls_init_value=1.0)
    x: Tensor = images(16, 1, 16, 16)
    labels = torch.arange(16) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "huge"}, r'inception_next: no variant is called "huge"\. There is atto, base, small, tiny\.'),
        ({"token_mixer": "dw5"}, r'no `token_mixer` is called "dw5"\. Did you mean dw7, dw3'),
        (
            {"branch_ratio": 0.5},
            r"`branch_ratio` must lie in \(0, 1/3\], got 0\.5\. It is the share of the channels in each of three groups",
        ),
        ({"branch_ratio": 0.0}, r"`branch_ratio` must lie in \(0, 1/3\], got 0\.0"),
        ({"branch_ratio": 0.01}, r"`branch_ratio` 0\.01 of 96 channels leaves none for a group\. Take at least 1/96\."),
        ({"band_kernel_size": 10}, r"`band_kernel_size` must be odd and positive, got 10\. An even kernel would move the map\."),
        ({"square_kernel_size": 2}, r"`square_kernel_size` must be odd and positive, got 2"),
        (
            {"depths": [1, 1]},
            r"`depths` and `dims` must be positive numbers, one of each for a stage, got \[1, 1\] and \[96, 192, 384, 768\]\.",
        ),
        ({"dims": [8, 0, 8, 8]}, r"must be positive numbers, one of each for a stage, got \[3, 3, 9, 3\] and \[8, 0, 8, 8\]\."),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1\.0\. It is the share dropped"),
        ({"drop_rate": -0.1}, r"`drop_rate` must lie in \[0, 1\), got -0\.1"),
        ({"stem_stride": 3}, r"`stem_stride` must be 4, 2 or 1, got 3\."),
        (
            {"input_size": (64, 8), "stem_stride": 4},
            r"images of 64x8 px are smaller than the total stride, 16\. Enlarge them, or leave out stages",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said), torch.device("meta"):
        inception_next(**options)


def test_a_misspelt_option_is_named() -> None:
    with pytest.raises(ArgumentError, match=r'inception_next_tiny: no option is called "token_mix"\. Did you mean token_mixer\?'):
        create_model("inception_next_tiny", token_mix="dw7")


def test_images_below_the_total_stride_are_refused_with_both_sides() -> None:
    model = on_meta("inception_next_atto")
    with pytest.raises(
        ShapeError, match=r"at least 32x32 px, got 40x31\. Build it for small images: create_model\(\.\.\., input_size=31\)"
    ):
        model(torch.empty(1, 3, 40, 31, device="meta"))


def test_layout_of_small_images() -> None:
    assert small_layout((224, 96), 4) == (2, 4)
    assert small_layout((40, 40), 2) == (2, 2)
