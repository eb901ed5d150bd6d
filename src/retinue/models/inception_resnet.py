"""Inception-ResNet-v1 and v2, the networks with residual connections (Szegedy et al. 2016, arXiv 1602.07261, section 3.2)."""

from collections.abc import Sequence
from typing import Literal

from retinue.errors import unknown
from retinue.models.factory import register
from retinue.models.inception_blocks import CFG, Branch, Branches, Inception, Plan, build
from retinue.models.inception_v4 import STEM as STEM_V4
from retinue.models.inception_weights import from_timm

Variant = Literal["released", "paper"]

_STEM: Branch = [(32, 3, "/2"), (32, 3, "V"), (64, 3), "max", (80, 1), (192, 3, "V")]

V1 = Plan(
    stem=[*_STEM, (256, 3, "/2")],  # figure 14
    taps=(2, 5),
    entries=(
        None,
        [[(384, 3, "/2")], [(192, 1), (192, 3), (256, 3, "/2")], ["max"]],  # figure 7 and table 1
        [["max"], [(256, 1), (384, 3, "/2")], [(256, 1), (256, 3, "/2")], [(256, 1), (256, 3), (256, 3, "/2")]],  # figure 12
    ),
    blocks=(
        [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (32, 3), (32, 3)]],  # figure 10
        [[(128, 1)], [(128, 1), (128, (1, 7)), (128, (7, 1))]],  # figure 11
        [[(192, 1)], [(192, 1), (192, (1, 3)), (192, (3, 1))]],  # figure 13
    ),
    depths=(5, 10, 5),  # figure 15
)

_REDUCTION_A: Branches = [[(384, 3, "/2")], [(256, 1), (256, 3), (384, 3, "/2")], ["max"]]  # figure 7 and table 1
_CONVS_B: Branches = [[(256, 1), (384, 3, "/2")], [(256, 1), (288, 3, "/2")], [(256, 1), (288, 3), (320, 3, "/2")]]  # figure 18
_BLOCKS_V2: tuple[Branches, Branches, Branches] = (
    [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]],  # figure 16
    [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]],  # figure 17; U gives 1152 channels, 1154 there is a misprint
    [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]],  # figure 19; U gives 2144 channels, 2048 there is a misprint
)

V2_PAPER = Plan(
    stem=STEM_V4,
    taps=(2, 3),
    entries=(None, _REDUCTION_A, [["max"], *_CONVS_B]),
    blocks=_BLOCKS_V2,
    depths=(5, 10, 5),
)

V2_RELEASED = Plan(  # the official code, which differs from the figures: another stem, twice the blocks, a tail
    stem=[*_STEM, "max"],
    taps=(2, 5),
    entries=(
        [[(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], ["avg", (64, 1)]],
        _REDUCTION_A,
        [*_CONVS_B, ["max"]],
    ),
    blocks=_BLOCKS_V2,
    depths=(10, 20, 9),
    tail=(1536, 1),
)

VARIANTS = {"released": V2_RELEASED, "paper": V2_PAPER}
SCALES = (0.17, 0.10, 0.20)  # of the official code; section 3.3 says 0.1 to 0.3


@register(cfg=CFG)
def inception_resnet_v1(
    num_classes: int = 1000,
    in_chans: int = 3,
    small_input: bool = False,
    width_mult: float = 1.0,
    depths: Sequence[int] | None = None,
    drop_rate: float = 0.2,
    aux: bool = False,
    residual_scale: Sequence[float] = SCALES,
    residual: bool = True,
    *,
    input_size: int | tuple[int, int] | None = None,
    bn_momentum: float = 0.1,
) -> Inception:
    """Build Inception-ResNet-v1, which costs about as much as Inception-v3 (figure 15); no weights of it were published.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        small_input: build for small images, as in `inception_v4`; implied by an `input_size` below 75.
        width_mult: factor on all numbers of filters, which are rounded to multiples of 8.
        depths: numbers of blocks A, B and C; None is (5, 10, 5).
        drop_rate: share of the pooled features dropped in training (the paper keeps 0.8).
        aux: add an auxiliary classifier on the last block B; in training `forward` then returns (logits, auxiliary logits).
        residual_scale: the factor on what the blocks A, B and C add, each in [0, 1]. It keeps very wide networks alive; narrow ones
            start faster with 1.
        residual: False leaves out the shortcuts: the controlled baseline with the same parameters.
        input_size: side, or height and width, of the images; None is 299, or 32 with `small_input`.
        bn_momentum: weight of the newest batch in batch norm's running statistics; 0.0003 in the official code.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> inception_resnet_v1(num_classes=10, input_size=32, width_mult=0.1, depths=(1, 1, 1)).num_features
    176
    """
    return build(
        "inception_resnet_v1",
        V1,
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=input_size,
        small_input=small_input,
        width_mult=width_mult,
        depths=depths,
        drop_rate=drop_rate,
        aux=aux,
        bn_momentum=bn_momentum,
        residual_scale=residual_scale,
        residual=residual,
    )


@register(cfg={**CFG, "crop_pct": 0.8975}, weights_of="inception_resnet_v2", convert=from_timm)
def inception_resnet_v2(
    num_classes: int = 1000,
    in_chans: int = 3,
    small_input: bool = False,
    width_mult: float = 1.0,
    depths: Sequence[int] | None = None,
    drop_rate: float = 0.2,
    aux: bool = False,
    variant: Variant = "released",
    residual_scale: Sequence[float] = SCALES,
    residual: bool = True,
    *,
    input_size: int | tuple[int, int] | None = None,
    bn_momentum: float = 0.1,
) -> Inception:
    """Build Inception-ResNet-v2, which costs about as much as Inception-v4.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        small_input: build for small images, as in `inception_v4`; implied by an `input_size` below 75.
        width_mult: factor on all numbers of filters, which are rounded to multiples of 8.
        depths: numbers of blocks A, B and C; None is (10, 20, 9) of the released network, to which its last block C comes on top, or
            (5, 10, 5) of the paper.
        drop_rate: share of the pooled features dropped in training (the paper keeps 0.8).
        aux: add the auxiliary classifier on the last block B; in training `forward` then returns (logits, auxiliary logits).
        variant: "released" is the official code's network, of which there are published weights; "paper" is that of the figures.
        residual_scale: the factor on what the blocks A, B and C add, each in [0, 1]. It keeps very wide networks alive; narrow ones
            start faster with 1. The last block of the released network always has 1.
        residual: False leaves out the shortcuts: the controlled baseline with the same parameters.
        input_size: side, or height and width, of the images; None is 299, or 32 with `small_input`.
        bn_momentum: weight of the newest batch in batch norm's running statistics; 0.0003 in the official code.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> inception_resnet_v2(num_classes=10, input_size=32, width_mult=0.1, depths=(1, 1, 1), variant="paper").num_features
    216
    """
    if variant not in VARIANTS:
        raise unknown("inception_resnet_v2", "`variant`", variant, VARIANTS)
    return build(
        "inception_resnet_v2",
        VARIANTS[variant],
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=input_size,
        small_input=small_input,
        width_mult=width_mult,
        depths=depths,
        drop_rate=drop_rate,
        aux=aux,
        bn_momentum=bn_momentum,
        residual_scale=residual_scale,
        residual=residual,
    )
