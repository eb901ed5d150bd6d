"""A plain stack of 3x3 convolutions, the laptop network of many claims (rotnet's page: 24-24-48-48-96-96)."""

from collections.abc import Sequence

from torch import nn

from retinue.errors import ArgumentError
from retinue.models.factory import register
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": "stem.0.conv"})
def small_convnet(
    widths: Sequence[int] = (24, 24, 48, 48, 96, 96),
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
) -> Network:
    """Build a stack of 3x3 convolutions (batch norm, ReLU), every second one with stride 2, then global average and a linear layer.

    Args:
        widths: channels of each layer.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: there for the common signature; every size works.
        drop_rate: share of the pooled features dropped in training.
    """
    if not widths or any(width < 1 for width in widths):
        raise ArgumentError(f"small_convnet: `widths` must be positive numbers of channels, got {list(widths)}.")
    chain = [in_chans, *widths]
    layers = [conv_norm_act(a, b, 3, stride=1 + i % 2) for i, (a, b) in enumerate(zip(chain, widths))]
    # a tap before each layer of stride 2, and one at the end
    ends = [i for i in range(len(layers)) if i % 2 == 0 or i == len(layers) - 1]
    taps = [{"num_chs": widths[i], "reduction": 2 ** ((i + 1) // 2), "module": f"stages.{i - 1}" if i else "stem.0"} for i in ends]
    return Network(
        nn.Sequential(layers[0]),
        nn.Sequential(*layers[1:]),
        taps=taps,
        num_features=widths[-1],
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
    )
