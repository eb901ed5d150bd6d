"""InceptionNeXt, a ConvNeXt with a cheap mixer of space and one shortcut a block (Yu et al. 2023, arXiv 2303.16900)."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import image_size, register
from retinue.models.inception_next_blocks import (
    InceptionDWConv2d,
    Layer,
    MetaNeXtBlock,
    MlpHead,
    linear_rates,
    small_layout,
    truncated_normal_,
)
from retinue.models.inception_next_weights import fitted
from retinue.models.network import Network

Mixer = Literal["inception", "dw7", "dw3", "identity"]
MIXERS = ("inception", "dw7", "dw3", "identity")


class Variant(NamedTuple):
    """Numbers of blocks and channels of the stages, length of the band kernels, and share of the channels in each branch."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    band: int = 11
    ratio: float = 1 / 8


VARIANTS = {  # table 2 of the paper; atto is the official code's
    "atto": Variant((2, 2, 6, 2), (40, 80, 160, 320), 9, 1 / 4),
    "tiny": Variant((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
}
MLP_RATIOS = (4, 4, 4, 3)  # of the stages; further ones have that of the last
CFG = {"first_conv": "stem.0", "classifier": "head.fc2"}


class Stage(nn.Sequential):
    """A norm and a convolution that halves the map (nothing in the first stage), then blocks.

    Args:
        downsample: what halves the map.
        blocks: the blocks.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(OrderedDict(downsample=downsample, blocks=nn.Sequential(*blocks)))


class InceptionNeXt(Network):
    """A stem, stages and a head with a hidden layer; its tensors are named as in timm and in the official code.

    Its classifier is `head.fc2`. What enters it has `head_hidden_size` numbers, three times `num_features`.

    Args:
        stem: the first layers.
        stages: the stages.
        num_classes: outputs of the classifier; 0 leaves it out.
        options: those of `Network`.
    """

    def __init__(self, stem: nn.Sequential, stages: nn.Sequential, *, num_classes: int, **options: Any) -> None:
        super().__init__(stem, stages, num_classes=0, **options)
        self.num_classes = num_classes
        self.head: nn.Module = MlpHead(self.num_features, num_classes, self.drop_rate)  # type: ignore[assignment]
        self.head_hidden_size = self.head.num_features

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head.fc2  # type: ignore[return-value]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters by depth (used by layer-wise learning rates)."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not self.grad_checkpointing or not isinstance(stage, Stage):
            return super()._run(stage, x)
        for part in stage:  # both hold layers that are recomputed one by one
            x = super()._run(part, x)
        return x


@register(cfg=CFG)
def inception_next(
    variant: str = "tiny",
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    stem_stride: Literal[4, 2, 1] | None = None,
    token_mixer: Mixer = "inception",
    *,
    input_size: int | tuple[int, int] | None = None,
    depths: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    square_kernel_size: int = 3,
    band_kernel_size: int | None = None,
    branch_ratio: float | None = None,
    ls_init_value: float | None = 1e-6,
) -> InceptionNeXt:
    """Build an InceptionNeXt (section 3.3 and table 2).

    Images below 128 px get a stem of stride 2, below 64 px the last stage is left out, below 28 px the stem has stride 1. Band kernels are
    cut to the taps that can meet the map, which changes no result.

    Args:
        variant: "atto", "tiny", "small" or "base"; the arguments below change it.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the hidden features of the head dropped in training.
        drop_path_rate: probability with which the branch of the last block is left out in training; it rises linearly from 0 at the first.
            The paper has 0.1 (tiny), 0.3 (small) and 0.4 (base).
        stem_stride: 4 or 2, with kernels of that side, or 1, with a kernel of 3x3; None chooses by `input_size`, 4 without it.
        token_mixer: "inception"; or, for comparisons in the same network, a depthwise convolution of all channels, "dw7" or "dw3", or
            "identity".
        input_size: side, or height and width, of the images; None is the published network.
        depths: numbers of blocks of the stages.
        dims: numbers of channels of the stages.
        square_kernel_size: of the Inception mixer.
        band_kernel_size: of the Inception mixer.
        branch_ratio: of the Inception mixer.
        ls_init_value: what gamma of each block begins with; 1e-6 starts too slowly for fewer than about 20 epochs, where 0.01 to 1 is
            better. None leaves gamma out.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> model = inception_next("atto", num_classes=10, input_size=32)
    >>> model.adaptation
    ['stem: stride 4 -> 2', 'stages.3 left out', 'stages.2: band kernel 9 -> 7']
    """
    if variant not in VARIANTS:
        raise unknown("inception_next", "variant", variant, VARIANTS)
    if token_mixer not in MIXERS:
        raise unknown("inception_next", "`token_mixer`", token_mixer, MIXERS)
    sides = image_size(input_size)
    named = VARIANTS[variant]
    depths, dims = tuple(depths or named.depths), tuple(dims or named.dims)
    band = named.band if band_kernel_size is None else band_kernel_size
    ratio = named.ratio if branch_ratio is None else branch_ratio
    _check(depths, dims, drop_path_rate, stem_stride)
    stride, kept = small_layout(sides, len(depths)) if sides else (4, len(depths))
    stride = stem_stride or stride
    notes = [f"stem: stride 4 -> {stride}"] if stride != 4 and stem_stride is None else []
    if depths == named.depths and dims == named.dims:
        notes += [f"stages.{i} left out" for i in range(kept, len(depths))]
        depths, dims = depths[:kept], dims[:kept]
    total = stride * 2 ** (len(depths) - 1)
    if sides and min(sides) < total:
        raise ArgumentError(
            f"inception_next: images of {sides[0]}x{sides[1]} px are smaller than the total stride, {total}. "
            "Enlarge them, or leave out stages: depths=[2, 2], dims=[40, 80]."
        )
    kernel, padding = (3, 1) if stride == 1 else (stride, 0)
    stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], kernel, stride, padding), nn.BatchNorm2d(dims[0]))
    stages = []
    for i, rates in enumerate(linear_rates(drop_path_rate, depths)):
        seen = 2 * (max(sides) // (stride * 2**i)) - 1 if sides and token_mixer == "inception" else band
        if seen < band:
            notes.append(f"stages.{i}: band kernel {band} -> {seen}")
        mixer = _mixer(token_mixer, square_kernel_size, min(band, seen), ratio)
        mlp_ratio = MLP_RATIOS[min(i, len(MLP_RATIOS) - 1)]
        blocks = [MetaNeXtBlock(dims[i], mixer, mlp_ratio=mlp_ratio, ls_init_value=ls_init_value, drop_path=rate) for rate in rates]
        halve = nn.Sequential(nn.BatchNorm2d(dims[i - 1]), nn.Conv2d(dims[i - 1], dims[i], 2, 2)) if i else nn.Identity()
        stages.append(Stage(halve, blocks))
    network = InceptionNeXt(
        stem,
        nn.Sequential(*stages),
        taps=[{"num_chs": dim, "reduction": stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)],
        num_features=dims[-1],
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=total,
    )
    truncated_normal_(network.stem)
    truncated_normal_(network.stages)
    network.adaptation = notes
    return network


def _mixer(kind: Mixer, square: int, band: int, ratio: float) -> Layer:
    """Return what builds a mixer for a number of channels."""
    if kind == "inception":
        return partial(InceptionDWConv2d, square_kernel_size=square, band_kernel_size=band, branch_ratio=ratio)
    if kind == "identity":
        return lambda dim: nn.Identity()
    side = 7 if kind == "dw7" else 3
    return lambda dim: nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim)


def _named(variant: str, side: int = 224, crop: float = 0.875, tag: str = "") -> Callable[..., InceptionNeXt]:
    """Register the network of one variant."""

    def build(
        num_classes: int = 1000, in_chans: int = 3, *, input_size: int | tuple[int, int] | None = None, **options: Any
    ) -> InceptionNeXt:
        return inception_next(variant, num_classes, in_chans, input_size=input_size, **options)

    own = f"inception_next_{variant}"
    build.__name__ = build.__qualname__ = own + tag
    build.__doc__ = f"Build InceptionNeXt-{variant}, published for {side} px; its options are those of `inception_next`."
    options = [option for name, option in inspect.signature(inception_next).parameters.items() if name != "variant"]
    build.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # so that a misspelt option is noticed by name
    cfg = {**CFG, "input_size": (3, side, side), "crop_pct": crop, "pool_size": (side // 32, side // 32)}
    return register(build, cfg=cfg, weights_of=f"{own}.sail_in1k{tag}", convert=fitted)


inception_next_atto = _named("atto")
inception_next_tiny = _named("tiny")
inception_next_small = _named("small")
inception_next_base = _named("base", crop=0.95)
inception_next_base_384 = _named("base", side=384, crop=1.0, tag="_384")


def _check(depths: tuple[int, ...], dims: tuple[int, ...], drop_path_rate: float, stem_stride: Any) -> None:
    if len(depths) != len(dims) or not all(isinstance(number, int) and number > 0 for number in (*depths, *dims)):
        raise ArgumentError(
            f"inception_next: `depths` and `dims` must be positive numbers, one of each for a stage, got {list(depths)} and {list(dims)}."
        )
    if not 0 <= drop_path_rate < 1:
        raise ArgumentError(
            f"inception_next: `drop_path_rate` must lie in [0, 1), got {drop_path_rate}. It is the share dropped, not the share kept."
        )
    if stem_stride not in (None, 4, 2, 1):
        raise ArgumentError(f"inception_next: `stem_stride` must be 4, 2 or 1, got {stem_stride}.")
