"""Inception-v4, the network without residual connections (Szegedy et al. 2016, arXiv 1602.07261, section 3.1)."""

from collections.abc import Sequence

from retinue.models.factory import register
from retinue.models.inception_blocks import CFG, Branch, Branches, Inception, Plan, build
from retinue.models.inception_weights import from_timm

STEM: Branch = [  # figure 3; Inception-ResNet-v2 of the paper begins with it too
    (32, 3, "/2"),
    (32, 3, "V"),
    (64, 3),
    [["max"], [(96, 3, "/2")]],
    [[(64, 1), (96, 3, "V")], [(64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, "V")]],
    [[(192, 3, "/2")], ["max"]],
]
A: Branches = [[(96, 1)], [(64, 1), (96, 3)], [(64, 1), (96, 3), (96, 3)], ["avg", (96, 1)]]  # figure 4
REDUCTION_A: Branches = [[(384, 3, "/2")], [(192, 1), (224, 3), (256, 3, "/2")], ["max"]]  # figure 7 and table 1
B: Branches = [  # figure 5
    [(384, 1)],
    [(192, 1), (224, (1, 7)), (256, (7, 1))],
    [(192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))],
    ["avg", (128, 1)],
]
REDUCTION_B: Branches = [[(192, 1), (192, 3, "/2")], [(256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, "/2")], ["max"]]  # figure 8
FORK: Branches = [[(256, (1, 3))], [(256, (3, 1))]]
C: Branches = [[(256, 1)], [(384, 1), FORK], [(384, 1), (448, (3, 1)), (512, (1, 3)), FORK], ["avg", (256, 1)]]  # figure 6

PLAN = Plan(STEM, taps=(2, 3), entries=(None, REDUCTION_A, REDUCTION_B), blocks=(A, B, C), depths=(4, 7, 3), up=False)  # figure 9


@register(cfg=CFG, weights_of="inception_v4", convert=from_timm)
def inception_v4(
    num_classes: int = 1000,
    in_chans: int = 3,
    small_input: bool = False,
    width_mult: float = 1.0,
    depths: Sequence[int] | None = None,
    drop_rate: float = 0.2,
    aux: bool = False,
    *,
    input_size: int | tuple[int, int] | None = None,
    bn_momentum: float = 0.1,
) -> Inception:
    """Build Inception-v4: four blocks A at 35 px, seven B at 17 px and three C at 8 px for images of 299 px (figure 9).

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        small_input: build for small images: every layer padded, the first stride lowered, below 48 px the second one too. Implied by an
            `input_size` below 75, which the paper's valid padding cannot take.
        width_mult: factor on all numbers of filters, which are rounded to multiples of 8.
        depths: numbers of blocks A, B and C; None is (4, 7, 3).
        drop_rate: share of the pooled features dropped in training (the paper keeps 0.8).
        aux: add the auxiliary classifier on the last block B; in training `forward` then returns (logits, auxiliary logits).
        input_size: side, or height and width, of the images; None is 299, or 32 with `small_input`.
        bn_momentum: weight of the newest batch in batch norm's running statistics; 0.0003 in the official code.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> model = inception_v4(num_classes=10, in_chans=1, input_size=32, width_mult=0.1, depths=(1, 1, 1))
    >>> model.num_features, [tap["reduction"] for tap in model.feature_info]
    (144, [1, 1, 2, 4, 8])
    """
    return build(
        "inception_v4",
        PLAN,
        num_classes=num_classes,
        in_chans=in_chans,
        input_size=input_size,
        small_input=small_input,
        width_mult=width_mult,
        depths=depths,
        drop_rate=drop_rate,
        aux=aux,
        bn_momentum=bn_momentum,
    )
