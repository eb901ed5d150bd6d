"""iFormer: mixer, block, positions and sizes; the protocol and the weights have files of their own."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import InceptionMixer, InceptionTransformer, count_macs, create_model, iformer
from retinue.models.iformer import VARIANTS, ramped
from retinue.models.iformer_blocks import Block, LowMixer, Stage, resized


def on_meta(name: str = "iformer_small", **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options).eval()


@pytest.mark.parametrize(
    ("variant", "count", "giga_macs", "entries"),
    [("small", 19_866_344, 4.826, 373), ("base", 47_866_216, 9.342, 593), ("large", 86_637_096, 14.004, 707)],
)
def test_parameters_and_multiply_adds_are_those_of_the_page(variant: str, count: int, giga_macs: float, entries: int) -> None:
    model = on_meta(f"iformer_{variant}")
    assert parameters(model) == count
    assert len(model.state_dict()) == entries
    assert round(count_macs(model, 224) / 1e9, 3) == giga_macs


def test_the_names_are_listed() -> None:
    assert retinue.list_models("iformer*") == ["iformer", "iformer_base", "iformer_large", "iformer_small"]


@pytest.mark.parametrize(("side", "count"), [(224, 533_120), (384, 1_566_720)])
def test_parameters_of_the_positions(side: int, count: int) -> None:
    model = on_meta(input_size=side)
    assert sum(stage.pos_embed.numel() for stage in model.stages) == count


def test_parameters_of_the_mixer() -> None:
    mixer = InceptionMixer(96, num_heads=3, low_heads=1, pool=2)
    counts = {name.rsplit(".", 1)[0]: 0 for name, _ in mixer.named_parameters()}
    for name, parameter in mixer.named_parameters():
        counts[name.rsplit(".", 1)[0]] += parameter.numel()
    assert counts == {
        "high_mixer.conv1": 32 * 64,
        "high_mixer.proj1": 64 * 9,
        "high_mixer.proj2": 32 * 64 + 64,
        "low_mixer.qkv": 32 * 96 + 96,
        "conv_fuse": 160 * 9,
        "proj": 160 * 96 + 96,
    }
    assert sum(counts.values()) == 24_800


def test_the_share_of_attention_grows_with_depth() -> None:
    shares = {
        variant: sorted({round(low / heads, 3) for low, heads in zip(VARIANTS[variant].low_heads, heads_of(variant))})
        for variant in VARIANTS
    }
    assert shares["small"] == [0.333, 0.5, 0.7, 0.9, 0.917]
    assert all(len(VARIANTS[variant].low_heads) == sum(VARIANTS[variant].depths) for variant in VARIANTS)
    assert all(dim == 32 * heads for plan in VARIANTS.values() for dim, heads in zip(plan.embed_dims, plan.num_heads))


def heads_of(variant: str) -> list[int]:
    plan = VARIANTS[variant]
    return [heads for depth, heads in zip(plan.depths, plan.num_heads) for _ in range(depth)]


def by_hand(mixer: Any, x: Tensor, pool: int) -> Tensor:
    """The page's method once more, for sides that the pool divides."""
    high, low = x.permute(0, 3, 1, 2).split(mixer.dims, 1)
    u, v = high.chunk(2, 1)
    u = F.gelu(F.conv2d(F.conv2d(u, mixer.high_mixer.conv1.weight), mixer.high_mixer.proj1.weight, padding=1, groups=u.shape[1] * 2))
    v = F.gelu(F.conv2d(F.max_pool2d(v, 3, 1, 1), mixer.high_mixer.proj2.weight, mixer.high_mixer.proj2.bias))
    pooled = F.avg_pool2d(low, pool)
    places = pooled.flatten(2).transpose(1, 2)
    q, k, w = mixer.low_mixer.qkv(places).chunk(3, -1)
    size = low.shape[1] // mixer.low_mixer.heads
    heads = []
    for i in range(mixer.low_mixer.heads):
        part = slice(i * size, (i + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(scores.softmax(-1) @ w[..., part])
    attended = torch.cat(heads, -1).transpose(1, 2).reshape(pooled.shape)
    attended = attended.repeat_interleave(pool, 2).repeat_interleave(pool, 3)
    y = torch.cat([u, v, attended], 1)
    y = y + F.conv2d(y, mixer.conv_fuse.weight, padding=1, groups=y.shape[1])
    return F.conv2d(y, mixer.proj.weight, mixer.proj.bias).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("low", "pool", "sides"), [(1, 2, (8, 6)), (2, 2, (4, 4)), (2, 1, (5, 7))])
@torch.no_grad()
def test_the_mixer_computes_what_the_page_says(low: int, pool: int, sides: tuple[int, int]) -> None:
    mixer, x = InceptionMixer(24, num_heads=3, low_heads=low, pool=pool), images(2, *sides, 24)
    expected = by_hand(mixer, x, pool)
    assert expected.std() > 0.05
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-5)
    strict = InceptionMixer(24, num_heads=3, low_heads=low, pool=pool, official=True)
    strict.load_state_dict(mixer.state_dict())
    assert torch.equal(strict(x), mixer(x))


@torch.no_grad()
def test_channels_flow_as_the_page_says_and_without_fusion_are_only_joined() -> None:
    mixer, x = InceptionMixer(96, num_heads=3, low_heads=1, pool=2), images(1, 8, 8, 96)
    high, low = x.permute(0, 3, 1, 2).split([64, 32], 1)
    paths = torch.cat([*mixer.high_mixer(high), mixer.low_mixer(low)], 1)  # type: ignore[misc]
    assert [path.shape[1] for path in (*mixer.high_mixer(high), mixer.low_mixer(low))] == [64, 64, 32]  # type: ignore[misc]
    nn.init.zeros_(mixer.conv_fuse.weight)
    nn.init.zeros_(mixer.proj.weight)
    nn.init.zeros_(mixer.proj.bias)
    mixer.proj.weight[:, :96, 0, 0] = torch.eye(96)
    torch.testing.assert_close(mixer(x).permute(0, 3, 1, 2), paths[:, :96], rtol=0, atol=1e-6)


@torch.no_grad()
def test_with_equal_keys_the_low_path_is_the_mean_of_the_values() -> None:
    low, x = LowMixer(12, heads=3, pool=2), images(2, 12, 6, 6)
    low.qkv.weight[12:24] = 0
    low.qkv.bias[12:24] = 0
    values = F.linear(x.mean((2, 3)), low.qkv.weight[24:], low.qkv.bias[24:])
    torch.testing.assert_close(low(x), values[:, :, None, None].expand(2, 12, 6, 6), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_low_path_is_constant_on_cells_and_knows_no_order_of_them() -> None:
    low, x = LowMixer(12, heads=3, pool=2), images(1, 12, 6, 8)
    out = low(x)
    assert torch.equal(out, out[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3))
    turned = x.roll((2, 4), (2, 3))  # by whole cells
    torch.testing.assert_close(low(turned), out.roll((2, 4), (2, 3)), rtol=0, atol=1e-6)
    moved = x.clone()
    moved[..., :2, :2] = moved[..., :2, :2].flip((2, 3))  # within a cell
    torch.testing.assert_close(low(moved), out, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_changed_pixel_changes_its_cell_by_a_quarter() -> None:
    low = LowMixer(4, heads=1, pool=2)
    nn.init.zeros_(low.qkv.weight)
    nn.init.zeros_(low.qkv.bias)
    low.qkv.weight[8:] = torch.eye(4)  # values are the averages, queries and keys are zero: the mean of 9 cells
    x = images(1, 4, 6, 6)
    other = x.clone()
    other[0, 2, 3, 5] += 0.36
    difference = low(other) - low(x)
    torch.testing.assert_close(difference[0, 2], torch.full((6, 6), 0.36 / 4 / 9), rtol=0, atol=1e-6)
    assert not difference[0, [0, 1, 3]].abs().max() > 1e-7


@given(height=st.integers(4, 9), width=st.integers(4, 9))
@settings(max_examples=15)
@torch.no_grad()
def test_cells_at_the_border_average_what_they_have(height: int, width: int) -> None:
    low, x = LowMixer(4, heads=1, pool=2), images(1, 4, height, width)
    nn.init.zeros_(low.qkv.weight)
    low.qkv.weight[8:] = torch.eye(4)
    low.qkv.weight[:8] = 8 * torch.eye(4).repeat(2, 1)
    nn.init.zeros_(low.qkv.bias)
    out = low(x)
    assert out.shape == x.shape
    cells = [[x[..., i : i + 2, j : j + 2].mean((2, 3)) for j in range(0, width, 2)] for i in range(0, height, 2)]
    means = torch.stack([torch.stack(row, -1) for row in cells], -2).flatten(2)[0]
    expected = ((64 * means.T @ means / 2).softmax(-1) @ means.T).T.reshape(4, len(cells), -1)
    for i in range(height):
        torch.testing.assert_close(out[0, :, i], expected[:, i // 2].repeat_interleave(2, -1)[:, :width], rtol=1e-3, atol=1e-4)


def test_maps_of_two_and_three_pixels_are_not_averaged() -> None:
    pooled, plain = LowMixer(8, heads=2, pool=2), LowMixer(8, heads=2, pool=1)
    plain.load_state_dict(pooled.state_dict())
    for sides in ((2, 2), (3, 5)):
        x = images(1, 8, *sides)
        assert torch.equal(pooled(x), plain(x))
    assert not torch.equal(pooled(images(1, 8, 4, 4)), plain(images(1, 8, 4, 4)))


@torch.no_grad()
def test_the_block_adds_both_branches_scaled() -> None:
    mixer = InceptionMixer(12, 3, 1)
    block, x = Block(12, mixer, mlp_ratio=4, layer_scale=0.5, drop_path=0.0), images(2, 4, 5, 12)
    nn.init.normal_(block.layer_scale_1)  # type: ignore[arg-type]

    def normed(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    middle = x + block.layer_scale_1 * mixer(normed(x))
    assert block.mlp.fc1.weight.shape == (48, 12)
    hidden = F.gelu(F.linear(normed(middle), block.mlp.fc1.weight, block.mlp.fc1.bias))
    torch.testing.assert_close(block(x), middle + 0.5 * F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, None])
@torch.no_grad()
def test_stochastic_depth_drops_whole_branches_and_enlarges_the_others(scale: float | None) -> None:
    block, x = Block(6, nn.Identity(), 1, scale, drop_path=0.75), images(64, 3, 3, 6)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    full = block.eval()(x) - x
    change = block.train()(x) - x
    kept = change.flatten(1).abs().amax(1) > 0
    assert 4 < kept.sum() < 28  # 64 draws of 1/4: 16, deviation 3.5
    torch.testing.assert_close(change[kept], 4 * full[kept], rtol=1e-4, atol=1e-5)


def test_layer_scale_is_in_the_last_two_stages_only() -> None:
    model = on_meta()
    assert [stage.blocks[0].layer_scale_1 is not None for stage in model.stages] == [False, False, True, True]
    small: Any = iformer(depths=[1, 1, 1], embed_dims=[8, 8, 8], num_heads=[2, 2, 2], low_heads=[1, 1, 1])
    assert (small.stages[2].blocks[0].layer_scale_2 == torch.tensor(1e-6)).all()


def test_rates_of_stochastic_depth_rise_over_all_blocks() -> None:
    model = on_meta(drop_path_rate=0.2)
    rates = [0.0 if block.drop_path is None else block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 18).tolist(), abs=1e-7)


@torch.no_grad()
def test_positions_are_added_as_they_are_or_interpolated() -> None:
    stage = Stage(nn.Identity(), (7, 7), 8, [])
    nn.init.normal_(stage.pos_embed)
    x = images(2, 8, 7, 7)
    assert torch.equal(stage(x), x + stage.pos_embed.permute(0, 3, 1, 2))
    assert resized(stage.pos_embed, 7, 7) is stage.pos_embed
    larger = F.interpolate(stage.pos_embed.permute(0, 3, 1, 2), size=(8, 10), mode="bilinear", align_corners=False)
    x = images(2, 8, 8, 10)
    torch.testing.assert_close(stage(x), x + larger, rtol=0, atol=1e-6)
    ramp = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 4, 4, 1)
    assert resized(ramp, 4, 8)[0, 0, :, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


def test_maps_and_positions_of_other_sizes() -> None:
    model = on_meta()
    for side, sides in ((224, [56, 28, 14, 7]), (256, [64, 32, 16, 8])):
        maps = model.forward_intermediates(torch.empty(1, 3, side, side, device="meta"), intermediates_only=True)
        assert [m.shape[2] for m in maps] == sides
    assert model(torch.empty(2, 3, 100, 180, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize(
    ("size", "adaptation", "sides"),
    [
        (224, [], [56, 28, 14, 7]),
        (64, ["stem: stride 4 -> 2"], [32, 16, 8, 4]),
        (32, ["stem: stride 4 -> 2", "stages.3 left out"], [16, 8, 4]),
        (28, ["stem: stride 4 -> 2", "stages.3 left out"], [14, 7, 4]),
        (16, ["stem: stride 4 -> 1", "stages.3 left out"], [16, 8, 4]),
    ],
)
def test_small_images_are_adapted_to_and_said_so(size: int, adaptation: list[str], sides: list[int]) -> None:
    model = on_meta(input_size=size, in_chans=1, num_classes=7)
    assert model.adaptation == adaptation
    x = torch.empty(2, 1, size, size, device="meta")
    assert [m.shape[2] for m in model.forward_intermediates(x, intermediates_only=True)] == sides
    assert [-(-size // tap["reduction"]) for tap in model.feature_info] == sides
    assert [stage.pos_embed.shape[1] for stage in model.stages] == sides
    assert model(x).shape == (2, 7)


def test_oblong_images_of_28_pixels_run() -> None:
    model = create_model("iformer_small", input_size=(28, 44), num_classes=3).eval()
    assert model(images(2, 3, 28, 44)).shape == (2, 3)
    assert [tuple(stage.pos_embed.shape[1:3]) for stage in model.stages] == [(14, 22), (7, 11), (4, 6)]


def test_the_recommended_network_for_32_pixels() -> None:
    plan: dict[str, Any] = {"depths": [2, 2, 2], "embed_dims": [64, 128, 192], "num_heads": [2, 4, 6], "pools": [2, 1, 1]}
    model = on_meta("iformer", input_size=32, num_classes=10, low_heads=[1, 1, 2, 2, 5, 5], layer_scale=[None] * 3, **plan)
    assert model.stem[0].stride == (1, 1)
    assert model.stem[3].stride == (2, 2)
    assert 1_000_000 < parameters(model) < 2_000_000
    dims = [block.attn.dims for stage in model.stages for block in stage.blocks]
    assert dims == [[32, 32], [32, 32], [64, 64], [64, 64], [32, 160], [32, 160]]


def test_one_path_alone() -> None:
    plan: dict[str, Any] = {"depths": [1, 2], "embed_dims": [8, 16], "num_heads": [2, 4], "num_classes": 3, "input_size": 32}
    for low_heads, missing in (("all", "high_mixer"), (0, "low_mixer")):
        model: Any = iformer(low_heads=low_heads, **plan).eval()
        assert all(getattr(block.attn, missing) is None for stage in model.stages for block in stage.blocks)
        assert model.stages[0].blocks[0].attn.conv_fuse.weight.shape[0] == {"all": 8, 0: 16}[low_heads]
        assert model(images(2, 3, 32, 32)).shape == (2, 3)


def test_the_ramp_can_be_flat_or_reversed() -> None:
    assert ramped([1, 1, 2, 2, 5, 5], [2, 2, 4, 4, 6, 6], "down") == [1, 1, 2, 2, 3, 3]
    assert ramped([1, 3, 7, 11], [3, 6, 10, 12], "down") == [2, 4, 5, 4]
    assert ramped([0, 2, 6], [2, 4, 6], "down") == [2, 2, 0]
    for ramp in ("flat", "down"):
        model = on_meta(ramp=ramp)
        shares = [block.attn.dims[1] / sum(block.attn.dims) for stage in model.stages for block in stage.blocks]
        assert max(shares) - min(shares) < 0.2 if ramp == "flat" else shares[0] > shares[-1]
    assert parameters(on_meta(ramp="up")) == 19_866_344


def test_weights_begin_with_a_deviation_of_a_fiftieth_and_biases_with_zero() -> None:
    model: Any = create_model("iformer_small", depths=[1, 1, 1, 1], low_heads=[1, 3, 7, 11])
    assert abs(model.stages[0].pos_embed.std().item() - 0.02) < 0.001
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is None or not module.bias.any(), name
            assert module.weight.numel() < 10_000 or abs(module.weight.std().item() - 0.02) < 0.001, name


def test_a_small_network_learns() -> None:
    plan: dict[str, Any] = {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [2, 4], "low_heads": [1, 3], "layer_scale": [None, None]}
    model = create_model("iformer", num_classes=2, in_chans=1, input_size=16, **plan)
    x, labels = images(16, 1, 16, 16), torch.arange(16) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "tiny"}, r'iformer: no variant is called "tiny"\. There is base, large, small\.'),
        ({"ramp": "sideways"}, r'iformer: no `ramp` is called "sideways"\. There is down, flat, up\.'),
        ({"embed_dims": [96, 192, 320, 385]}, r"`num_heads` must divide the 385 channels, got 12\."),
        ({"num_heads": [3, 6, 0, 12]}, r"`num_heads` must be positive numbers, got \[3, 6, 0, 12\]\."),
        ({"low_heads": 4}, r'`low_heads` must lie in 0\.\.3, the number of heads, or be "all", got 4\.'),
        ({"low_heads": [-1] * 18}, r"`low_heads` must lie in 0\.\.3, .* got -1\."),
        ({"low_heads": [1, 3, 7, 11]}, r'`low_heads` must be one number for each of the 18 blocks, 0 or "all", got 4 numbers\.'),
        ({"low_heads": "none"}, r'`low_heads` must be one number for each of the 18 blocks, 0 or "all", got "none"\.'),
        ({"embed_dims": [99, 192, 320, 384], "low_heads": 2}, r"the high path's 33 channels cannot be halved\. Take an even number"),
        ({"pools": [2, 2]}, r"`pools` must have one entry for each of the 4 stages, got \[2, 2\]\."),
        ({"pools": [3, 2, 1, 1]}, r"`pool` must be 1 or 2, got 3\."),
        ({"layer_scale": [None]}, r"`layer_scale` must have one entry for each of the 4 stages, got \[None\]\."),
        ({"depths": [1, 1, 1]}, r"`embed_dims` must have one entry for each of the 3 stages, got \[96, 192, 320, 384\]\."),
        ({"drop_path_rate": -0.1}, r"`drop_path_rate` must lie in \[0, 1\), got -0\.1\. It is the share dropped"),
        ({"drop_rate": 1.0}, r"`drop_rate` must lie in \[0, 1\), got 1\.0"),
        ({"stem_stride": 8}, r"`stem_stride` must be 4, 2 or 1, got 8\."),
        (
            {"input_size": (12, 64), "stem_stride": 4},
            r"images of 12x64 px are smaller than the total stride, 16\. Enlarge them, or leave out",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said), torch.device("meta"):
        iformer(**options)


def test_maps_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"a map of 1x6 px has nothing to average over cells of side pool=2\. Take larger images, or pool=1\."
    ):
        InceptionMixer(12, 3, 1, pool=2)(images(1, 1, 6, 12))
    with pytest.raises(
        ShapeError, match=r"pool=2 does not divide a map of 7x8 px, which the official code cannot take\. .* multiples of 16"
    ):
        InceptionMixer(12, 3, 1, pool=2, official=True)(images(1, 7, 8, 12))
    strict = on_meta(official=True)
    with pytest.raises(ShapeError, match=r"pool=2 does not divide a map of 25x25 px"):
        strict(torch.empty(1, 3, 200, 200, device="meta"))
    with pytest.raises(ShapeError, match=r"at least 32x32 px, got 64x20"):
        strict(torch.empty(1, 3, 64, 20, device="meta"))


def test_the_class_takes_its_parts_by_hand() -> None:
    model = InceptionTransformer([1, 1], [8, 16], [2, 2], [1, 1], [2, 1], [None, 1e-6], sides=(32, 32), num_classes=4).eval()
    assert model(images(1, 3, 32, 32)).shape == (1, 4)
    assert [tap["reduction"] for tap in model.feature_info] == [4, 8]
