"""The ResNets of SimCLRv2: wider by a factor, and with selective kernels (Chen et al. 2020, arXiv 2006.10029; Li et al. 2019, 1903.06586).

Layers and their order are those of the official code, which differs from timm's `skresnet`: both halves of a selective kernel are 3x3
without dilation, and every stage begins with a projection.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.factory import image_size, register
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network

DEPTHS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
}  # fmt: skip
BOTTLENECKS = 50  # from this depth on
SMALL_SIDE = 32  # up to it the stem neither strides nor pools
SK_RATIO = 0.0625  # section 3: the paper's networks with selective kernels
LEAST_ATTENTION = 32  # channels between the two layers of the attention
CUT_OFF = 0.87962566103423978  # deviation of a standard normal that is cut off at two deviations


class SamePool(nn.Module):
    """Max or average over windows with TensorFlow's "SAME" padding: what is missing is added below and on the right, and not counted.

    Args:
        kernel: side of the windows.
        stride: their step.
        average: take the mean instead of the maximum.
    """

    def __init__(self, kernel: int, stride: int, average: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.average = kernel, stride, average

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels newheight newwidth"]:
        """Pool."""
        missing = [max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel_size - side) for side in x.shape[-2:]]
        (up, down), (left, right) = ((some // 2, some - some // 2) for some in missing)
        if not self.average:
            return F.max_pool2d(F.pad(x, (left, right, up, down), value=-torch.inf), self.kernel_size, self.stride)
        sums = F.avg_pool2d(F.pad(x, (left, right, up, down)), self.kernel_size, self.stride, divisor_override=1)
        ones = torch.ones_like(x[:1, :1])
        return sums / F.avg_pool2d(F.pad(ones, (left, right, up, down)), self.kernel_size, self.stride, divisor_override=1)


class ShortcutPool(nn.Module):
    """Average 2x2 pixels before the projection of a shortcut (ResNet-D).

    At stride 1, as `SamePool`. At stride 2 one row and one column of zeros are added below and on the right, which count; they are felt at
    odd sides alone.

    Args:
        stride: of the block.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.same = SamePool(2, 1, average=True)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels newheight newwidth"]:
        """Pool."""
        return self.same(x) if self.stride == 1 else F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, self.stride)


class SelectiveKernel(nn.Module):
    """Two 3x3 convolutions of one map, weighed channel by channel by what the map as a whole shows.

    Args:
        channels: f, of the result.
        stride: of the convolutions.
        ratio: channels inside the attention for each of `channels`; 32 at least.
    """

    def __init__(self, channels: int, stride: int, ratio: float) -> None:
        super().__init__()
        inner = max(int(channels * ratio), LEAST_ATTENTION)
        self.convs = conv_norm_act(channels, 2 * channels, 3, stride)
        self.squeeze = conv_norm_act(channels, inner, 1)
        self.select = nn.Conv2d(inner, 2 * channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels newheight newwidth"]:
        """Compute both halves, and their weighted sum."""
        halves = self.convs(x).unflatten(1, (2, -1))
        shares = self.select(self.squeeze(halves.sum(1).mean((2, 3), keepdim=True))).unflatten(1, (2, -1)).softmax(1)
        return (halves * shares).sum(1)


class Block(nn.Module):
    """A residual block: convolutions, then the sum with the shortcut and ReLU; the last batch norm begins with a factor of zero.

    Args:
        in_chs: channels of the input.
        filters: f; a bottleneck ends in 4 f.
        stride: of the 3x3 convolution, the first of two.
        bottleneck: 1x1, 3x3, 1x1 instead of 3x3, 3x3.
        projects: a projection on the shortcut.
        sk_ratio: of the selective kernel in place of the 3x3 convolution; 0 has none.
    """

    def __init__(self, in_chs: int, filters: int, stride: int, *, bottleneck: bool, projects: bool, sk_ratio: float) -> None:
        super().__init__()
        out_chs = filters * (4 if bottleneck else 1)
        middle = SelectiveKernel(filters, stride, sk_ratio) if sk_ratio else conv_norm_act(filters, filters, 3, stride)
        convs: list[Any] = [conv_norm_act(in_chs, filters, 1), middle, conv_norm_act(filters, out_chs, 1, act=False)]
        if not bottleneck:
            convs = [conv_norm_act(in_chs, filters, 3, stride), conv_norm_act(filters, filters, 3, act=False)]
        nn.init.zeros_(convs[-1].bn.weight)
        self.convs = nn.Sequential(*convs)
        self.shortcut: nn.Module = nn.Identity()
        if projects and sk_ratio:
            self.shortcut = nn.Sequential(ShortcutPool(stride), conv_norm_act(in_chs, out_chs, 1, act=False))
        elif projects:
            self.shortcut = conv_norm_act(in_chs, out_chs, 1, stride, act=False)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Compute the block."""
        return (self.convs(x) + self.shortcut(x)).relu_()


@register(cfg={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
def simclr_resnet(
    depth: int = 50,
    width_multiplier: int = 1,
    sk_ratio: float = 0.0,
    small_stem: bool = False,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
) -> Network:
    """Build a ResNet of SimCLRv2; without selective kernels a plain one, of which every stage begins with a projection.

    Args:
        depth: 18, 34, 50, 101, 152 or 200; below 50 without bottlenecks.
        width_multiplier: factor on all channels; the paper has 1, 2 and 3.
        sk_ratio: of selective kernels, with a deep stem and averaging shortcuts; the paper has 0.0625. 0 has none of the three.
        small_stem: a 3x3 convolution without stride or pooling. Implied by an `input_size` of at most 32.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side, or height and width, of the images.
        drop_rate: share of the pooled features dropped in training.

    Raises:
        ArgumentError: if there is no such depth, or an option cannot be.
    """
    if depth not in DEPTHS:
        raise ArgumentError(f"simclr_resnet: `depth` must be one of {', '.join(map(str, DEPTHS))}, got {depth}.")
    if not isinstance(width_multiplier, int) or isinstance(width_multiplier, bool) or width_multiplier < 1:
        raise ArgumentError(
            f"simclr_resnet: `width_multiplier` must be 1 or a larger whole number, got {width_multiplier!r}. It is 1 to 3."
        )
    if not 0 <= sk_ratio <= 1:
        raise ArgumentError(f"simclr_resnet: `sk_ratio` must lie in [0, 1], got {sk_ratio}. The paper has {SK_RATIO}.")
    if sk_ratio and depth < BOTTLENECKS:
        raise ArgumentError(
            f"simclr_resnet: selective kernels stand in bottlenecks, which depth {depth} has none of, got sk_ratio={sk_ratio}. "
            "Take depth=50 or more, or sk_ratio=0."
        )
    sides = image_size(input_size)
    small = small_stem or (sides is not None and min(sides) <= SMALL_SIDE)
    base = 64 * width_multiplier
    stem, reductions = _stem(in_chans, base, deep=sk_ratio > 0, small=small)
    taps = [{"num_chs": base, "reduction": reductions[0], "module": f"stem.{len(stem) - (1 if small else 2)}"}]
    chs, stages = base, []
    for i, count in enumerate(DEPTHS[depth]):
        filters, blocks = base * 2**i, []
        for j in range(count):
            stride = 2 if i and not j else 1
            blocks.append(Block(chs, filters, stride, bottleneck=depth >= BOTTLENECKS, projects=not j, sk_ratio=sk_ratio))
            chs = filters * (4 if depth >= BOTTLENECKS else 1)
        stages.append(nn.Sequential(*blocks))
        taps.append({"num_chs": chs, "reduction": reductions[1] * 2**i, "module": f"stages.{i}"})
    network = Network(
        nn.Sequential(*stem), nn.Sequential(*stages), taps=taps, num_features=chs, num_classes=num_classes, in_chans=in_chans,
        drop_rate=drop_rate,
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # official code: variance 1 / fan-in, of a normal cut off at two deviations
            deviation = (module.in_channels * module.kernel_size[0] * module.kernel_size[1]) ** -0.5 / CUT_OFF
            nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if num_classes:
        nn.init.normal_(network.head.fc.weight, std=0.01)  # official code
        nn.init.zeros_(network.head.fc.bias)
    if small:
        network.adaptation = ["stem: 3x3 without stride or pooling"]
    return network


def _stem(in_chans: int, base: int, deep: bool, small: bool) -> tuple[list[nn.Module], tuple[int, int]]:
    """Build the layers before the stages, and say by how much the map has shrunk before the pooling and after it."""
    if small:
        return [conv_norm_act(in_chans, base, 3)], (1, 1)
    convs: list[nn.Module] = [conv_norm_act(in_chans, base, 7, 2)]
    if deep:
        convs = [conv_norm_act(in_chans, base // 2, 3, 2), conv_norm_act(base // 2, base // 2, 3), conv_norm_act(base // 2, base, 3)]
    return [*convs, SamePool(3, 2)], (2, 4)
