"""The blocks of Inception-v4 and Inception-ResNet (Szegedy et al. 2016, arXiv 1602.07261, figures 3 to 19), and the network around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.factory import image_size
from retinue.models.layers import Concat, Kernel, conv_norm_act
from retinue.models.network import Network

Spec = tuple[int, Kernel] | tuple[int, Kernel, str]
"""A unit as in the figures: filters, kernel (a side, or height and width), and "V" for valid padding, "/2" for stride 2 (always valid)."""

LEAST_SIDE = 75  # smallest image that the valid padding leaves a map of
FULL_SIDE = 299
CFG = {
    "input_size": (3, 299, 299),
    "pool_size": (8, 8),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "first_conv": "stem.0.conv",
    "classifier": "head.fc",
}


@dataclass(frozen=True)
class Units:
    """What all units of one network have in common.

    Args:
        small: pad every layer, for small images.
        width_mult: factor on every number of filters, which is then rounded to a multiple of 8.
        bn_momentum: weight of the newest batch in the running statistics (the official training has 0.0003).
    """

    small: bool = False
    width_mult: float = 1.0
    bn_momentum: float = 0.1

    def width(self, filters: int) -> int:
        """Scale a number of filters.

        >>> Units(width_mult=0.25).width(224), Units(width_mult=0.01).width(224)
        (56, 8)
        """
        return max(8, int(filters * self.width_mult / 8 + 0.5) * 8)

    def unit(self, in_chs: int, spec: Spec, *, stride: int | None = None) -> nn.Module:
        """Build one unit C(filters, kernel): convolution without bias, batch norm with eps 1e-3, ReLU.

        Args:
            in_chs: channels of its input.
            spec: the unit; filters are scaled.
            stride: replaces the stride of the spec (small images keep their size in the stem).
        """
        filters, kernel, *mark = spec
        step = 2 if mark == ["/2"] else 1
        return conv_norm_act(
            in_chs,
            self.width(filters),
            kernel,
            stride=step if stride is None else stride,
            valid=bool(mark) and not self.small,
            eps=1e-3,
            momentum=self.bn_momentum,
        )

    def chain(self, in_chs: int, specs: Sequence[Spec]) -> nn.Module:
        """Build units one after the other; a single one stands for itself, so that its tensors are named as in timm."""
        units = []
        for spec in specs:
            units.append(self.unit(in_chs, spec))
            in_chs = self.width(spec[0])
        return units[0] if len(units) == 1 else nn.Sequential(*units)

    def branches(self, in_chs: int, *branches: Sequence[Spec]) -> list[nn.Module]:
        """Build one chain for each branch."""
        return [self.chain(in_chs, branch) for branch in branches]

    def total(self, *filters: int) -> int:
        """Add up scaled numbers of filters: the channels of a concatenation."""
        return sum(self.width(f) for f in filters)

    def max_pool(self, stride: int = 2) -> nn.Module:
        """Build the 3x3 max pool of the reductions."""
        return nn.MaxPool2d(3, stride=stride, padding=1 if self.small else 0)

    def pooled(self, in_chs: int, filters: int) -> nn.Module:
        """Build the branch with a 3x3 average pool (the border is left out of the divisor) and a 1x1 unit."""
        return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), self.unit(in_chs, (filters, 1)))


class Residual(nn.Module):
    """One block of an Inception-ResNet: ReLU(x + s U(Br(x))) (section 3.2 and figure 20), where U is a 1x1 convolution without activation.

    Args:
        branches: Br, joined along the channels.
        joined: channels that the branches give together.
        channels: channels of the block's input and output.
        scale: s, a constant; 0.1 to 0.3 keep very wide networks from dying (section 3.3).
        residual: False leaves out the shortcut and the scale: ReLU(U(Br(x))), the controlled baseline.
        act: end with ReLU; the last block of the released Inception-ResNet-v2 does not.
    """

    def __init__(
        self, branches: Sequence[nn.Module], joined: int, channels: int, *, scale: float = 1.0, residual: bool = True, act: bool = True
    ) -> None:
        super().__init__()
        self.branches = Concat(branches)
        self.up = nn.Conv2d(joined, channels, 1)
        self.scale, self.residual = scale, residual
        self.act: nn.Module = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Compute the block."""
        change = self.up(self.branches(x))
        return self.act(x + change * self.scale if self.residual else change)

    def extra_repr(self) -> str:
        """Show what the weights do not."""
        return f"scale={self.scale}, residual={self.residual}"


class AuxiliaryHead(nn.Module):
    """The second classifier of the official code, used in training only: 5x5 average pool of stride 3, 1x1 and full-map convolution, linear.

    Args:
        in_chs: channels of the map that it looks at.
        sides: height and width of that map; the second convolution covers what the pool leaves of it.
        num_classes: outputs.
        units: builds the convolutions.
    """

    def __init__(self, in_chs: int, sides: tuple[int, int], num_classes: int, units: Units) -> None:
        super().__init__()
        pool = tuple(min(5, side) for side in sides)
        left = tuple((side - p) // 3 + 1 for side, p in zip(sides, pool))
        self.pool = nn.AvgPool2d(pool, stride=3)
        self.conv1 = units.unit(in_chs, (128, 1))
        self.conv2 = conv_norm_act(units.width(128), units.width(768), left, valid=True, eps=1e-3, momentum=units.bn_momentum)
        self.fc = nn.Linear(units.width(768), num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the auxiliary logits."""
        return self.fc(self.conv2(self.conv1(self.pool(x))).mean((2, 3)))


class Inception(Network):
    """A network of Inception blocks, with the auxiliary head where it is asked for.

    In training with `aux`, `forward` returns (logits, auxiliary logits), which `retinue.train.Supervised(aux_weight=0.4)` adds up; otherwise logits.

    Args:
        stem: the layers before the A blocks.
        stages: the A blocks; reduction A and the B blocks; reduction B and the C blocks.
        tail: what follows the C blocks.
        units: how the units were built.
        sides: height and width of the images that the network is built for.
        aux: make the auxiliary head.
        options: `taps`, `num_features`, `num_classes`, `in_chans`, `drop_rate`, `adaptation`.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        stages: nn.Sequential,
        tail: nn.Module | None = None,
        *,
        units: Units,
        sides: tuple[int, int],
        aux: bool,
        **options: Any,
    ) -> None:
        adaptation = options.pop("adaptation")
        super().__init__(stem, stages, tail, min_side=1 if units.small else LEAST_SIDE, **options)
        self.adaptation = adaptation
        self.units = units
        self.aux: AuxiliaryHead | None = None
        if aux:
            tap = self.feature_info[3]
            shrink = tap["reduction"]
            mid = sides if units.small else tuple(_valid_sides(side)[3] for side in sides)
            mid = tuple(-(-side // shrink) for side in sides) if units.small else mid
            self.aux = AuxiliaryHead(tap["num_chs"], mid, self.num_classes, units)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Any:
        """Compute the logits; in training with an auxiliary head, the pair of logits and auxiliary logits."""
        if self.aux is None or not self.training:
            return super().forward(x)
        features, maps = self.forward_intermediates(x, indices=[3])
        return self.forward_head(features), self.aux(maps[0])
