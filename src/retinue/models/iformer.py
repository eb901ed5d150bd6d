"""iFormer, a transformer whose mixer keeps high frequencies beside the low ones of attention (Si et al. 2022, arXiv 2205.12956)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import image_size, register
from retinue.models.iformer_blocks import Block, InceptionMixer, Stage
from retinue.models.inception_next_blocks import linear_rates, small_layout, truncated_normal_
from retinue.models.network import Network

Ramp = Literal["up", "flat", "down"]
RAMPS = ("up", "flat", "down")


class Variant(NamedTuple):
    """Blocks, channels and heads of each stage; heads of the attention in each block."""

    depths: tuple[int, ...]
    embed_dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    low_heads: tuple[int, ...]


VARIANTS = {  # table 1 of the paper's appendix, and the official code
    "small": Variant((3, 3, 9, 3), (96, 192, 320, 384), (3, 6, 10, 12), (*[1] * 3, *[3] * 3, *[7] * 4, *[9] * 5, *[11] * 3)),
    "base": Variant((4, 6, 14, 6), (96, 192, 384, 512), (3, 6, 12, 16), (*[1] * 4, *[3] * 6, *[8] * 7, *[10] * 7, *[15] * 6)),
    "large": Variant((4, 6, 18, 8), (96, 192, 448, 640), (3, 6, 14, 20), (*[1] * 4, *[3] * 6, *[10] * 9, *[12] * 9, *[19] * 8)),
}
POOLS = (2, 2, 1, 1)
LAYER_SCALE = (None, None, 1e-6, 1e-6)


class InceptionTransformer(Network):
    """A stem of two convolutions, stages of Inception mixers, layer norm, and a linear classifier on the mean over all places.

    Args:
        depths: numbers of blocks of the stages.
        embed_dims: channels of the stages.
        num_heads: heads of the stages; the low paths take some of them.
        low_heads: heads of the low path, one number for each block; 0 or "all" for all blocks.
        pools: of each stage, the side of the cells that the low path averages, 1 or 2.
        layer_scale: of each stage, the initial value of its layer scales, or None for a stage without.
        sides: height and width of the images for which positions are learned; other images interpolate them.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the pooled features dropped in training.
        drop_path_rate: probability with which the branches of the last block are left out; it rises linearly from 0 at the first.
        stem_stride: 4, 2 (the first convolution has stride 1) or 1.
        mlp_ratio: hidden channels of the MLPs for each channel.
        qkv_bias: add a bias to queries, keys and values.
        official: refuse images that the official code cannot take, rather than cut cells off at the border.

    Raises:
        ArgumentError: if an argument cannot be.
    """

    def __init__(
        self,
        depths: Sequence[int],
        embed_dims: Sequence[int],
        num_heads: Sequence[int],
        low_heads: Sequence[int] | int | str,
        pools: Sequence[int],
        layer_scale: Sequence[float | None] = LAYER_SCALE,
        *,
        sides: tuple[int, int] = (224, 224),
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        official: bool = False,
    ) -> None:
        per_stage = {"depths": depths, "embed_dims": embed_dims, "num_heads": num_heads, "pools": pools, "layer_scale": layer_scale}
        _check(per_stage, drop_path_rate, stem_stride)
        total = stem_stride * 2 ** (len(depths) - 1)
        if min(sides) < total:
            raise ArgumentError(
                f"iformer: images of {sides[0]}x{sides[1]} px are smaller than the total stride, {total}. "
                "Enlarge them, or leave out stages."
            )
        low = iter(per_block(low_heads, depths, num_heads))
        first, second = (2 if stem_stride == 4 else 1), (1 if stem_stride == 1 else 2)
        half = embed_dims[0] // 2
        stem = [
            *(nn.Conv2d(in_chans, half, 3, first, 1), nn.BatchNorm2d(half), nn.GELU()),
            *(nn.Conv2d(half, embed_dims[0], 3, second, 1), nn.BatchNorm2d(embed_dims[0])),
        ]
        stages = []
        for i, (dim, rates) in enumerate(zip(embed_dims, linear_rates(drop_path_rate, depths))):
            blocks = [
                Block(
                    dim, InceptionMixer(dim, num_heads[i], next(low), pools[i], qkv_bias, official), mlp_ratio, layer_scale[i], rate
                )
                for rate in rates
            ]  # fmt: skip
            halve = nn.Sequential(nn.Conv2d(embed_dims[i - 1], dim, 3, 2, 1), nn.BatchNorm2d(dim)) if i else nn.Identity()
            height, width = (-(-side // (stem_stride * 2**i)) for side in sides)
            stages.append(Stage(halve, (height, width), dim, blocks))
        super().__init__(
            nn.Sequential(*stem),
            nn.Sequential(*stages),
            LayerNorm2d(embed_dims[-1], eps=1e-6),
            taps=[{"num_chs": dim, "reduction": stem_stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(embed_dims)],
            num_features=embed_dims[-1],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            min_side=total,
        )
        truncated_normal_(self)
        for stage in stages:
            trunc_normal_(stage.pos_embed, std=0.02)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters by depth (used by layer-wise learning rates)."""
        blocks = [(r"^stages\.(\d+)\.(?:downsample|pos_embed)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^tail", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not self.grad_checkpointing or not isinstance(stage, Stage):
            return super()._run(stage, x)
        x = stage.place(super()._run(stage.downsample, x))
        return super()._run(stage.blocks, x).permute(0, 3, 1, 2)


@register(cfg={"first_conv": "stem.0", "crop_pct": 0.9})
def iformer(
    variant: str = "small",
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    *,
    input_size: int | tuple[int, int] | None = None,
    depths: Sequence[int] | None = None,
    embed_dims: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    low_heads: Sequence[int] | int | Literal["all"] | None = None,
    pools: Sequence[int] | None = None,
    layer_scale: Sequence[float | None] | None = None,
    ramp: Ramp = "up",
    stem_stride: Literal[4, 2, 1] | None = None,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    official: bool = False,
) -> InceptionTransformer:
    """Build an iFormer (section 3 and the table of the appendix).

    Images below 128 px get a stem of stride 2, below 64 px the last stage is left out, below 28 px the stem has stride 1. Any size works:
    cells at the border may be cut off, and maps below 4 px are not averaged. Positions are learned for `input_size`.

    Args:
        variant: "small", "base" or "large"; the arguments below change it.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the pooled features dropped in training.
        drop_path_rate: probability with which the branches of the last block are left out in training; it rises linearly from 0 at the
            first. The paper has 0.2 (small), 0.4 (base) and 0.5 (large).
        input_size: side, or height and width, of the images; None is the published network, 224 px.
        depths: numbers of blocks of the stages.
        embed_dims: channels of the stages.
        num_heads: heads of the stages.
        low_heads: heads of the attention, one number for each block; "all" is attention only, 0 is convolution and pooling only.
        pools: of each stage, the side of the cells that are averaged before the attention; None is 2, 2, 1, 1.
        layer_scale: of each stage, the initial value of its layer scales, None for a stage without. None is (None, None, 1e-6, 1e-6).
        ramp: "up" gives the blocks their shares of attention as they are, which grow with depth; "flat" gives all their mean; "down"
            reverses them.
        stem_stride: 4, 2 or 1; None chooses by `input_size`.
        mlp_ratio: hidden channels of the MLPs for each channel.
        qkv_bias: add a bias to queries, keys and values.
        official: refuse images that the official code cannot take.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> model = iformer("small", num_classes=10, input_size=32)
    >>> model.adaptation
    ['stem: stride 4 -> 2', 'stages.3 left out']
    """
    if variant not in VARIANTS:
        raise unknown("iformer", "variant", variant, VARIANTS)
    if ramp not in RAMPS:
        raise unknown("iformer", "`ramp`", ramp, RAMPS)
    sides, named = image_size(input_size), VARIANTS[variant]
    own = depths is embed_dims is num_heads is None
    depths, embed_dims, num_heads = (
        tuple(depths or named.depths),
        tuple(embed_dims or named.embed_dims),
        tuple(num_heads or named.num_heads),
    )
    stride, kept = small_layout(sides, len(depths)) if sides else (4, len(depths))
    notes = [f"stem: stride 4 -> {stride}"] if stride != 4 and stem_stride is None else []
    if own and kept < len(depths):
        notes += [f"stages.{i} left out" for i in range(kept, len(depths))]
        depths, embed_dims, num_heads = depths[:kept], embed_dims[:kept], num_heads[:kept]
    if low_heads is None:
        low_heads = named.low_heads[: sum(depths)] if own else named.low_heads
    if ramp != "up":
        low_heads = ramped(per_block(low_heads, depths, num_heads), per_stage_heads(depths, num_heads), ramp)
    network = InceptionTransformer(
        depths,
        embed_dims,
        num_heads,
        low_heads,
        (*POOLS, *[1] * len(depths))[: len(depths)] if pools is None else pools,
        (*LAYER_SCALE, *[1e-6] * len(depths))[: len(depths)] if layer_scale is None else layer_scale,
        sides=sides or (224, 224),
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        stem_stride=stem_stride or stride,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        official=official,
    )
    network.adaptation = notes
    return network


def per_stage_heads(depths: Sequence[int], num_heads: Sequence[int]) -> list[int]:
    """Repeat each stage's number of heads for its blocks.

    >>> per_stage_heads((1, 2), (3, 6))
    [3, 6, 6]
    """
    return [heads for depth, heads in zip(depths, num_heads) for _ in range(depth)]


def per_block(low_heads: Sequence[int] | int | str, depths: Sequence[int], num_heads: Sequence[int]) -> list[int]:
    """Return the heads of the attention for each block.

    Raises:
        ArgumentError: if there is not one number for each block.

    >>> per_block("all", (1, 2), (3, 6))
    [3, 6, 6]
    """
    heads = per_stage_heads(depths, num_heads)
    if low_heads == "all":
        return heads
    if isinstance(low_heads, int):
        return [low_heads] * len(heads)
    if isinstance(low_heads, str) or len(low_heads) != len(heads):
        told = f'"{low_heads}"' if isinstance(low_heads, str) else f"{len(low_heads)} numbers"
        raise ArgumentError(f'iformer: `low_heads` must be one number for each of the {len(heads)} blocks, 0 or "all", got {told}.')
    return list(low_heads)


def ramped(low_heads: Sequence[int], heads: Sequence[int], ramp: Ramp) -> list[int]:
    """Change how the share of attention runs over the blocks; a block that has both paths on the way keeps both.

    Args:
        low_heads: heads of the attention for each block.
        heads: all heads for each block.
        ramp: "up" changes nothing, "flat" gives every block the mean share, "down" reverses the shares.

    >>> ramped([1, 1, 5], [2, 4, 6], "down"), ramped([1, 1, 5], [2, 4, 6], "flat")
    ([1, 1, 3], [1, 2, 3])
    """
    shares = [low / all_heads for low, all_heads in zip(low_heads, heads)]
    if ramp == "up":
        return list(low_heads)
    shares = shares[::-1] if ramp == "down" else [sum(shares) / len(shares)] * len(shares)
    return [round(share * n) if share in (0, 1) else min(max(round(share * n), 1), n - 1) for share, n in zip(shares, heads)]


def _named(variant: str) -> Callable[..., InceptionTransformer]:
    """Register the network of one variant."""

    def build(
        num_classes: int = 1000, in_chans: int = 3, *, input_size: int | tuple[int, int] | None = None, **options: Any
    ) -> InceptionTransformer:
        return iformer(variant, num_classes, in_chans, input_size=input_size, **options)

    build.__name__ = build.__qualname__ = f"iformer_{variant}"
    build.__doc__ = f"Build iFormer-{variant}; its options are those of `iformer`."
    options = [option for name, option in inspect.signature(iformer).parameters.items() if name != "variant"]
    build.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # so that a misspelt option is noticed by name
    return register(build, cfg={"first_conv": "stem.0", "crop_pct": 0.9, "pool_size": (7, 7)})


iformer_small = _named("small")
iformer_base = _named("base")
iformer_large = _named("large")


def _check(per_stage: Mapping[str, Sequence[Any]], drop_path_rate: float, stem_stride: int) -> None:
    count = len(per_stage["depths"])
    for argument, values in per_stage.items():
        if len(values) != count:
            raise ArgumentError(f"iformer: `{argument}` must have one entry for each of the {count} stages, got {list(values)}.")
    for argument in ("depths", "embed_dims", "num_heads"):
        if not all(isinstance(value, int) and value > 0 for value in per_stage[argument]):
            raise ArgumentError(f"iformer: `{argument}` must be positive numbers, got {list(per_stage[argument])}.")
    if not 0 <= drop_path_rate < 1:
        raise ArgumentError(
            f"iformer: `drop_path_rate` must lie in [0, 1), got {drop_path_rate}. It is the share dropped, not the share kept."
        )
    if stem_stride not in (4, 2, 1):
        raise ArgumentError(f"iformer: `stem_stride` must be 4, 2 or 1, got {stem_stride}.")
