"""The parts of Inception-v4 and Inception-ResNet (Szegedy et al. 2016, arXiv 1602.07261, figures 3 to 20), and the network around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import image_size
from retinue.models.layers import Concat, Kernel, conv_norm_act
from retinue.models.network import Network

Unit = tuple[int, Kernel] | tuple[int, Kernel, str]
"""C(filters, kernel) of the figures: a convolution without bias, batch norm, ReLU. The kernel is a side, or height and width.

A third entry "V" stands for valid padding, "/2" for valid padding and stride 2; without it the map keeps its size.
"""

Step = Unit | str | list[Any]
"""A unit; "max", the 3x3 max pool of stride 2 (valid), or "max/1", of stride 1; "avg", the 3x3 average pool of stride 1; "keep", nothing;
or a list of branches, applied to the same map and joined along the channels."""

Branch = Sequence[Step]
"""Steps one after the other."""

Branches = list[Branch]
"""Branches on one map, joined along the channels: what each of the paper's block figures shows."""

LEAST_SIDE = 75  # of an image, so that the valid padding leaves a map
FULL_SIDE = 299
SMALL_SIDE = 32  # what `small_input` builds for where no size is given
TINY_SIDE = 48  # below it the stem gives up its second stride too
CFG = {
    "input_size": (3, FULL_SIDE, FULL_SIDE),
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

    def conv(self, in_chs: int, out_chs: int, kernel: Kernel, stride: int = 1, *, valid: bool = False) -> nn.Module:
        """Build a unit of exactly so many channels; batch norm has eps 1e-3 as in the official code."""
        return conv_norm_act(in_chs, out_chs, kernel, stride, valid=valid, eps=1e-3, momentum=self.bn_momentum)

    def unit(self, in_chs: int, unit: Unit) -> nn.Module:
        """Build one unit, its filters scaled."""
        filters, kernel, *mark = unit
        return self.conv(in_chs, self.width(filters), kernel, 2 if mark == ["/2"] else 1, valid=bool(mark) and not self.small)

    def step(self, in_chs: int, step: Step) -> nn.Module:
        """Build one step."""
        if isinstance(step, list):
            return Concat(self.join(in_chs, step)[0])
        if isinstance(step, tuple):
            return self.unit(in_chs, step)
        if step == "avg":  # the border is left out of the divisor, as in TensorFlow
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        if step == "keep":
            return nn.Identity()
        return nn.MaxPool2d(3, stride=1 if step == "max/1" else 2, padding=1 if self.small else 0)

    def join(self, in_chs: int, branches: Branches) -> tuple[list[nn.Module], int]:
        """Build branches on one map, and count the channels that they have together."""
        chains = []
        for branch in branches:
            steps = [self.step(self.channels(in_chs, branch[:i]), step) for i, step in enumerate(branch)]
            # a step without companions stands for itself, so that its tensors are named as in timm
            chains.append(steps[0] if len(steps) == 1 else nn.Sequential(*steps))
        return chains, self.channels(in_chs, [branches])

    def channels(self, in_chs: int, branch: Branch) -> int:
        """Count the channels behind a branch.

        >>> Units().channels(384, [(64, 1), [[(96, 3)], ["max"], ["avg", (32, 1)]]])
        192
        """
        for step in branch:
            if isinstance(step, list):
                in_chs = sum(self.channels(in_chs, inner) for inner in step)
            elif isinstance(step, tuple):
                in_chs = self.width(step[0])
        return in_chs


class Residual(nn.Module):
    """One block of an Inception-ResNet: ReLU(x + s U(Br(x))) (section 3.2 and figure 20), where U is a 1x1 convolution without activation.

    Neither U nor the sum is normalised: the paper leaves this out to save memory.

    Args:
        branches: Br.
        joined: channels that come out of the branches.
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
        self.act: nn.Module = nn.ReLU(inplace=True) if act else nn.Identity()  # on the fresh sum, never on x

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Compute the block."""
        change = self.up(self.branches(x))
        return self.act(torch.add(x, change, alpha=self.scale) if self.residual else change)

    def extra_repr(self) -> str:
        """Show what the weights do not."""
        return f"scale={self.scale}, residual={self.residual}"


class AuxiliaryHead(nn.Module):
    """The second classifier of the official code, for training only: 5x5 average pool of stride 3, 1x1 and full-map convolution, linear.

    Args:
        in_chs: channels of the map that it looks at.
        sides: height and width of that map; the second convolution covers what the pool leaves of it.
        num_classes: outputs; 0 leaves out the linear layer.
        units: builds the convolutions.
    """

    def __init__(self, in_chs: int, sides: tuple[int, int], num_classes: int, units: Units) -> None:
        super().__init__()
        self.sides = sides
        height, width = (min(5, side) for side in sides)
        left = ((sides[0] - height) // 3 + 1, (sides[1] - width) // 3 + 1)
        self.pool = nn.AvgPool2d((height, width), stride=3)
        self.conv1 = units.conv(in_chs, units.width(128), 1)
        self.conv2 = units.conv(units.width(128), units.width(768), left, valid=True)
        self.num_features = units.width(768)
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def reset(self, num_classes: int) -> None:
        """Put a new linear layer in place of the old one; 0 leaves it out."""
        like = next(self.parameters())
        self.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the auxiliary logits; larger maps than those that it was built for are averaged over.

        Raises:
            ShapeError: if the map is smaller than the one that the head was built for.
        """
        if x.shape[2] < self.sides[0] or x.shape[3] < self.sides[1]:
            raise ShapeError(
                f"the auxiliary head was built for maps of at least {self.sides[0]}x{self.sides[1]}, got {x.shape[2]}x{x.shape[3]}. "
                "Build the network with the `input_size` of your images, or with aux=False."
            )
        return self.fc(self.conv2(self.conv1(self.pool(x))).mean((2, 3)))


class Inception(Network):
    """A network of Inception blocks, with an auxiliary head where it is asked for.

    In training with an auxiliary head, `forward` returns (logits, auxiliary logits), which `retinue.train.Supervised(aux_weight=0.4)`
    adds up; otherwise logits.

    Args:
        stem: the layers before the blocks A.
        stages: the blocks A; reduction A and the blocks B; reduction B and the blocks C.
        tail: what follows the blocks C.
        aux: the auxiliary head, on the map of the last block B.
        options: those of `Network`.
    """

    def __init__(
        self, stem: nn.Sequential, stages: nn.Sequential, tail: nn.Module | None = None, *, aux: AuxiliaryHead | None, **options: Any
    ) -> None:
        super().__init__(stem, stages, tail, **options)
        self.aux = aux

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put new classifiers in place of the old ones, the auxiliary one too.

        Args:
            num_classes: their outputs; 0 leaves them out.
            global_pool: another pooling; None keeps the present one.
        """
        super().reset_classifier(num_classes, global_pool)
        if self.aux is not None:
            self.aux.reset(num_classes)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Throw away the layers behind the last tap asked for, and both heads; arguments as in `Network`."""
        take = super().prune_intermediate_layers(indices if isinstance(indices, int) else list(indices), prune_norm, prune_head)
        if self.num_classes == 0:
            self.aux = None
        return take

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Any:
        """Compute the logits; in training with an auxiliary head, the pair of logits and auxiliary logits."""
        if self.aux is None or not self.training or not self.num_classes:
            return self.forward_head(self.forward_features(x))
        self.check_size(x)
        x = self._run(self.stages[1], self._run(self.stages[0], self.stem(x)))
        aux_logits = self.aux(x)
        return self.forward_head(self.tail(self._run(self.stages[2], x))), aux_logits


@dataclass(frozen=True)
class Plan:
    """A network as the paper's figures draw it.

    Args:
        stem: the layers before the first group; its first unit and its step 3 have stride 2.
        taps: the steps of the stem after which the strides are 2 and 4.
        entries: what stands before the blocks A, B and C (the reductions); None for nothing.
        blocks: the branches of a block A, B and C.
        depths: how many blocks of each.
        up: the blocks are residual: U brings their branches back to the channels of the block's input.
        tail: the unit behind the blocks C; with it, one more block C comes first, which has scale 1 and no ReLU.
    """

    stem: Branch
    taps: tuple[int, int]
    entries: tuple[Branches | None, Branches, Branches]
    blocks: tuple[Branches, Branches, Branches]
    depths: tuple[int, int, int]
    up: bool = True
    tail: Unit | None = None


def build(
    name: str,
    plan: Plan,
    *,
    num_classes: int,
    in_chans: int,
    input_size: int | tuple[int, int] | None,
    small_input: bool,
    width_mult: float,
    depths: Sequence[int] | None,
    drop_rate: float,
    aux: bool,
    bn_momentum: float,
    residual_scale: Sequence[float] = (1.0, 1.0, 1.0),
    residual: bool = True,
) -> Inception:
    """Build the network of a plan; the arguments are those of `inception_v4` and `inception_resnet_v2`.

    Weights start as PyTorch draws them: the paper does not say how.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    sides = image_size(input_size) or ((SMALL_SIDE, SMALL_SIDE) if small_input else (FULL_SIDE, FULL_SIDE))
    depths = plan.depths if depths is None else depths
    _check(name, depths, residual_scale, width_mult, bn_momentum)
    units = Units(small_input or min(sides) < LEAST_SIDE, width_mult, bn_momentum)
    steps, adaptation = small_stem(plan.stem, min(sides)) if units.small else (plan.stem, [])
    stem = nn.Sequential(*(units.step(units.channels(in_chans, steps[:i]), step) for i, step in enumerate(steps)))
    chs = units.channels(in_chans, steps)
    ends = [units.channels(in_chans, steps[: i + 1]) for i in plan.taps]  # channels where the taps are

    def block(chs: int, branches: Branches, **options: Any) -> nn.Module:
        if not plan.up:
            return units.step(chs, branches)
        return Residual(*units.join(chs, branches), chs, residual=residual, **options)

    stages: list[list[nn.Module]] = []
    for entry, branches, depth, scale in zip(plan.entries, plan.blocks, depths, residual_scale):
        stages.append([units.step(chs, entry)] if entry else [])
        chs = units.channels(chs, [entry]) if entry else chs
        for _ in range(depth):
            stages[-1].append(block(chs, branches, scale=scale))
            chs = chs if plan.up else units.channels(chs, [branches])
        ends.append(chs)
    tail = None
    if plan.tail:
        stages[2].append(block(chs, plan.blocks[2], act=False))
        tail = units.unit(chs, plan.tail)
        chs = ends[-1] = units.channels(chs, [plan.tail])
    first = 1 if units.small else 2
    second = first if min(sides) < TINY_SIDE else 2 * first
    strides = (first, second, 2 * second, 4 * second, 8 * second)
    places = [*(f"stem.{i}" for i in plan.taps), "stages.0", "stages.1", "tail" if plan.tail else "stages.2"]
    taps = zip(ends, strides, places)
    height, width = (-(-side // strides[3]) if units.small else _side_of_b(side) for side in sides)
    network = Inception(
        stem,
        nn.Sequential(*(nn.Sequential(*stage) for stage in stages)),
        tail,
        aux=AuxiliaryHead(ends[3], (height, width), num_classes, units) if aux else None,
        taps=[{"num_chs": c, "reduction": r, "module": place} for c, r, place in taps],
        num_features=chs,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=1 if units.small else LEAST_SIDE,
    )
    network.adaptation = adaptation
    return network


def small_stem(stem: Branch, side: int) -> tuple[Branch, list[str]]:
    """Lower the strides of a stem for small images: that of its first unit, and below 48 px that of its step 3 too.

    Args:
        stem: its steps.
        side: the images' shorter side.

    Returns:
        The steps, and what was changed, in words.

    >>> small_stem([(32, 3, "/2"), (32, 3, "V"), (64, 3), "max"], 32)[0]
    [(32, 3), (32, 3, 'V'), (64, 3), 'keep']
    """
    steps = list(stem)
    steps[0] = _unstrided(steps[0])
    notes = ["every layer is padded, so that no map loses its border", "stem.0: stride 2 -> 1"]
    if side < TINY_SIDE:
        removed = steps[3] == "max"
        steps[3] = "keep" if removed else _unstrided(steps[3])
        notes.append("stem.3: stride 2 -> 1" + (" (removed)" if removed else ""))
    return steps, notes


def _unstrided(step: Step) -> Step:
    if isinstance(step, list):
        return [[_unstrided(inner) for inner in branch] for branch in step]
    return step[:2] if isinstance(step, tuple) else "max/1"


def _side_of_b(side: int) -> int:
    """Return the side of the maps of the blocks B where nothing is padded: 299 -> 149 -> 147 -> 73 -> 71 -> 35 -> 17."""
    for loses in ("stride", "border", "stride", "border", "stride", "stride"):
        side = side - 2 if loses == "border" else (side - 3) // 2 + 1
    return side


def _check(name: str, depths: Any, scale: Any, width_mult: float, bn_momentum: float) -> None:
    if not _three(depths) or not all(isinstance(depth, int) and depth > 0 for depth in depths):
        raise ArgumentError(f"{name}: `depths` must be three positive numbers of blocks (A, B, C), got {_told(depths)}.")
    if not _three(scale) or not all(0 <= s <= 1 for s in scale):
        raise ArgumentError(
            f"{name}: `residual_scale` must be three numbers in [0, 1], for the blocks A, B and C, got {_told(scale)}. "
            "The paper advises 0.1 to 0.3 for wide networks; 1 is no scaling."
        )
    if not 0 < width_mult < float("inf"):
        raise ArgumentError(
            f"{name}: `width_mult` must be positive, got {width_mult}. It is a factor on the numbers of filters; 1 is the paper's width."
        )
    if not 0 < bn_momentum <= 1:
        raise ArgumentError(
            f"{name}: `bn_momentum` must lie in (0, 1], got {bn_momentum}. It is the weight of the newest batch, 1 - decay."
        )


def _three(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == 3


def _told(values: Any) -> Any:
    return list(values) if isinstance(values, tuple) else values
