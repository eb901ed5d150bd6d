"""The parts of NASNet: genotypes, the thirteen operations, cells, and ScheduledDropPath (Zoph et al. 2018, arXiv 1707.07012)."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import create_conv2d
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown

Maps = Float[Tensor, "batch channels height width"]
Shrunk = Float[Tensor, "batch filters newheight newwidth"]
Block = tuple[int, str, int, str, str]
"""Two input states, each with its operation, and how the results are combined: (state, operation, state, operation, combination).

State 0 is the latest map h_i, state 1 the one before it, h_{i-1}; block b = 0, 1, ... makes state b + 2.
"""
Kind = Literal["normal", "reduce"]

SEPARABLE = {"sep3": 3, "sep5": 5, "sep7": 7}
POOLS = {"avg3": 3, "max3": 3, "max5": 5, "max7": 7}
CHAINS: dict[str, list[tuple[tuple[int, int], int]]] = {  # kernels and dilations of the convolutions one after the other
    "conv1": [((1, 1), 1)],
    "conv3": [((3, 3), 1)],
    "dil3": [((3, 3), 2)],
    "conv1x3_3x1": [((1, 3), 1), ((3, 1), 1)],
    "conv1x7_7x1": [((1, 7), 1), ((7, 1), 1)],
}
OPERATIONS = ("identity", *CHAINS, *POOLS, *SEPARABLE)  # the search space of the paper, section 3.1
COMBINATIONS = ("add", "concat")


@dataclass(frozen=True)
class Genotype:
    """What a search finds: the blocks of a normal and of a reduction cell.

    Args:
        normal: blocks of the cell that keeps the map's size.
        reduce: blocks of the cell that halves it.
        normal_concat: the states that are joined as the cell's output; None joins those that no block uses.
        reduce_concat: the same for the reduction cell.

    Raises:
        ArgumentError: if a block names a state that is not there yet, or an operation or combination that does not exist.

    >>> tiny = Genotype(normal=[(0, "sep3", 1, "identity", "add")], reduce=[(0, "max3", 1, "sep3", "add")])
    >>> tiny.concat("normal")
    (2,)
    """

    normal: Sequence[Block] | Sequence[list[Any]]
    reduce: Sequence[Block] | Sequence[list[Any]]
    normal_concat: Sequence[int] | None = None
    reduce_concat: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for kind in ("normal", "reduce"):
            blocks = tuple(tuple(block) for block in getattr(self, kind))
            if not blocks:
                raise ArgumentError(f"Genotype: `{kind}` has no blocks. Give one at least, as (0, 'sep3', 1, 'identity', 'add').")
            for number, block in enumerate(blocks):
                _check_block(kind, number, block)
            object.__setattr__(self, kind, blocks)
            joined = getattr(self, f"{kind}_concat")
            if joined is not None:
                states = range(len(blocks) + 2)
                if not joined or any(state not in states for state in joined):
                    raise ArgumentError(f"Genotype: `{kind}_concat` must name states from 0 to {states[-1]}, got {list(joined)}.")
                object.__setattr__(self, f"{kind}_concat", tuple(joined))

    def concat(self, kind: Kind) -> tuple[int, ...]:
        """Return the states that are joined as a cell's output."""
        blocks, joined = getattr(self, kind), getattr(self, f"{kind}_concat")
        used = {state for block in blocks for state in (block[0], block[2])}
        return joined or tuple(state for state in range(len(blocks) + 2) if state not in used)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `create_model` and checkpoints take."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return the genotype as JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Read what `to_json` wrote.

        Raises:
            ArgumentError: if it is not the JSON of a genotype.
        """
        try:
            return cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ArgumentError(f"Genotype: this is not the JSON of a genotype: {error}. Write it with Genotype.to_json.") from error


def _check_block(kind: str, number: int, block: tuple[Any, ...]) -> None:
    if len(block) != 5:
        raise ArgumentError(
            f"Genotype: block {number} of `{kind}` must be (state, operation, state, operation, combination), got {list(block)}."
        )
    for state, name in (block[:2], block[2:4]):
        if not isinstance(state, int) or not 0 <= state < number + 2:
            raise ArgumentError(
                f"Genotype: block {number} of `{kind}` takes state {state}, and there are states 0 to {number + 1} by then. "
                "State 0 is the cell's latest input, 1 the one before."
            )
        if name not in OPERATIONS:
            raise unknown("Genotype", "operation", name, OPERATIONS)
    if block[4] not in COMBINATIONS:
        raise unknown("Genotype", "combination", block[4], COMBINATIONS)


NASNET_A = Genotype(  # figure 4 of the paper; the official code joins state 1 and states 3 to 6 though blocks use some of them
    normal=[
        (0, "sep5", 1, "sep3", "add"), (1, "sep5", 1, "sep3", "add"), (0, "avg3", 1, "identity", "add"), (1, "avg3", 1, "avg3", "add"),
        (0, "sep3", 0, "identity", "add"),
    ],
    reduce=[
        (0, "sep5", 1, "sep7", "add"), (0, "max3", 1, "sep7", "add"), (0, "avg3", 1, "sep5", "add"), (3, "identity", 2, "avg3", "add"),
        (2, "sep3", 0, "max3", "add"),
    ],
    normal_concat=(1, 2, 3, 4, 5, 6),
    reduce_concat=(3, 4, 5, 6),
)  # fmt: skip
GENOTYPES = {"nasnet-a": NASNET_A}
DRAWN_ONLY = {  # the paper shows these as pictures only (figures 7 and 8), from which nobody has verified the wiring
    "nasnet-b": "4@1152 has 2.6 M parameters and 3.73 % error on CIFAR-10, 4@1536 has 72.8 % top-1 on ImageNet",
    "nasnet-c": "4@640 has 3.1 M parameters and 3.59 % error on CIFAR-10, 3@960 has 72.5 % top-1 on ImageNet",
}


def genotype_of(value: str | Mapping[str, Any] | Genotype) -> Genotype:
    """Return a genotype given as one, by name, as JSON, or as what `Genotype.to_dict` returned.

    Raises:
        ArgumentError: if there is no such genotype, or it was published as a picture only.
    """
    if isinstance(value, Genotype):
        return value
    if isinstance(value, Mapping):
        return Genotype.from_json(json.dumps(dict(value)))
    if value.lstrip().startswith("{"):
        return Genotype.from_json(value)
    if value in DRAWN_ONLY:
        raise ArgumentError(
            f"nasnet: genotype needed: the four blocks of {value} exist only as a picture in the paper and are not verified "
            f"({DRAWN_ONLY[value]}). Pass genotype=Genotype(normal=[...], reduce=[...]) with the blocks, or take nasnet-a."
        )
    if value not in GENOTYPES:
        raise unknown("nasnet", "genotype", value, [*GENOTYPES, *DRAWN_ONLY])
    return GENOTYPES[value]


@dataclass(frozen=True)
class Norm:
    """What all layers of one network have in common.

    Args:
        eps: of batch norm.
        momentum: weight of the newest batch in its running statistics.
        count_pad: average pools of stride 2 count the padding in their divisor, as in timm; TensorFlow's do not.
    """

    eps: float = 1e-3
    momentum: float = 0.1
    count_pad: bool = False

    def layer(self, channels: int) -> nn.BatchNorm2d:
        """Build a batch norm."""
        return nn.BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)


def unit(in_chs: int, out_chs: int, norm: Norm, kernel: tuple[int, int] = (1, 1), stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Build a convolution without bias and batch norm; padding is TensorFlow's, and the stride is along the kernel's long sides."""
    strides = tuple(stride if side == max(kernel) else 1 for side in kernel)
    conv = create_conv2d(in_chs, out_chs, kernel, stride=strides, padding="same", dilation=dilation, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm.layer(out_chs)))


class Separable(nn.Module):
    """A depthwise-separable convolution applied twice: depthwise, pointwise, batch norm; ReLU; and again, where the stride is 1.

    The ReLU in front is the cell's, which needs it for several operations.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        kernel: side of the depthwise kernel.
        stride: of the first convolution.
        norm: of the batch norms.
    """

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.dw1 = create_conv2d(in_chs, in_chs, kernel, stride=stride, padding="same", groups=in_chs, bias=False)
        self.pw1 = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn1 = norm.layer(out_chs)
        self.dw2 = create_conv2d(out_chs, out_chs, kernel, padding="same", groups=out_chs, bias=False)
        self.pw2 = nn.Conv2d(out_chs, out_chs, 1, bias=False)
        self.bn2 = norm.layer(out_chs)

    def forward(self, x: Maps) -> Shrunk:
        """Compute the operation on a map that has been through ReLU."""
        x = self.bn1(self.pw1(self.dw1(x))).relu_()
        return self.bn2(self.pw2(self.dw2(x)))


class Chain(nn.Sequential):
    """Convolutions with batch norm, with ReLU between them; the ReLU in front is the cell's."""

    def forward(self, x: Maps) -> Shrunk:
        """Compute the operation on a map that has been through ReLU."""
        for i, layer in enumerate(self):
            x = layer(x.relu_() if i else x)
        return x


class Pool(nn.Module):
    """A pool with TensorFlow's padding, which is not counted in an average; 1x1 convolution and batch norm where the width changes.

    Args:
        name: "avg3", "max3", "max5" or "max7".
        in_chs: channels of the input.
        out_chs: channels of the output.
        stride: 1 or 2.
        norm: of the batch norm; its `count_pad` is for average pools of stride 2.
    """

    def __init__(self, name: str, in_chs: int, out_chs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.kernel, self.stride, self.average = POOLS[name], stride, name.startswith("avg")
        self.divisor = self.kernel**2 if norm.count_pad and stride > 1 else None
        self.project = None if in_chs == out_chs else unit(in_chs, out_chs, norm)

    def forward(self, x: Maps) -> Shrunk:
        """Compute the operation."""
        x = tensorflow_pool(x, self.kernel, self.stride, self.average, self.divisor)
        return x if self.project is None else self.project(x)

    def extra_repr(self) -> str:
        """Show what the weights do not."""
        return f"{'average' if self.average else 'max'} of {self.kernel}x{self.kernel}, stride {self.stride}"


class FactorizedReduction(nn.Module):
    """Halves a map: one 1x1 convolution on every second pixel, one on those between them, joined; one batch norm over both.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output, an even number.
        norm: of the batch norm.

    Raises:
        ArgumentError: if the number is odd.
    """

    def __init__(self, in_chs: int, out_chs: int, norm: Norm) -> None:
        super().__init__()
        if out_chs % 2:
            raise ArgumentError(
                f"nasnet: a factorised reduction needs an even number of filters, got {out_chs}: half of them go to each part. "
                "Take `F` as a multiple of 8: the first stem cell, which has F / 4, leaves an input unused in this genotype."
            )
        self.conv1 = nn.Conv2d(in_chs, out_chs // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(in_chs, out_chs // 2, 1, bias=False)
        self.norm = norm.layer(out_chs)

    def forward(self, x: Maps) -> Shrunk:
        """Compute the halved map."""
        return self.norm(torch.cat([self.conv1(x[:, :, ::2, ::2]), self.conv2(even(x)[:, :, 1::2, 1::2])], 1))


def tensorflow_pool(x: Tensor, kernel: int, stride: int, average: bool, divisor: int | None) -> Tensor:
    """Pool with TensorFlow's padding: on an even side one pixel more at the end, where the window that `ceil_mode` adds hangs over."""
    padding = [(kernel - stride + (stride - 1) * (side % 2)) // 2 for side in x.shape[2:]]
    if average:
        return F.avg_pool2d(x, kernel, stride, padding, True, False, divisor)
    return F.max_pool2d(x, kernel, stride, padding, ceil_mode=True)


def even(x: Tensor) -> Tensor:
    """Put zeros beyond the last row and column of a map with odd sides."""
    height, width = x.shape[2] % 2, x.shape[3] % 2
    return F.pad(x, (0, width, 0, height)) if height + width > 0 else x


for _name in ("tensorflow_pool", "even"):  # they look at shapes: a call each to torch.fx, and so is written for TorchScript too
    torch.fx.wrap(_name)


def operation(name: str, in_chs: int, out_chs: int, stride: int, norm: Norm) -> tuple[nn.Module, bool]:
    """Build one of `OPERATIONS`.

    Returns:
        The layer, and whether it takes the map after ReLU.
    """
    if name in SEPARABLE:
        return Separable(in_chs, out_chs, SEPARABLE[name], stride, norm), True
    if name in POOLS:
        return Pool(name, in_chs, out_chs, stride, norm), False
    if name in CHAINS:
        widths = [in_chs] + [out_chs] * len(CHAINS[name])
        long = len(CHAINS[name]) > 1  # a pair of thin kernels: each has the stride along its long side
        units = [
            unit(widths[i], out_chs, norm, kernel, stride if long or not i else 1, dilation)
            for i, (kernel, dilation) in enumerate(CHAINS[name])
        ]
        return Chain(*units), True
    if stride == 1 and in_chs == out_chs:
        return nn.Identity(), False
    return unit(in_chs, out_chs, norm, stride=stride), True


def keep_probability(keep: float, cell: int, cells: int, progress: Any = 1.0) -> Any:
    """Return the probability with which ScheduledDropPath keeps a branch: 1 - progress (cell + 1) / cells (1 - keep).

    Args:
        keep: the probability in the last cell at the end of the training.
        cell: place of the cell, from 0.
        cells: number of cells.
        progress: share of the training that is done, in [0, 1]; a number or a tensor.

    >>> round(keep_probability(0.6, cell=9, cells=20, progress=0.5), 12)
    0.9
    """
    return 1 - progress * ((cell + 1) / cells * (1 - keep))


def drop_branch(x: Float[Tensor, "batch ..."], keep: Float[Tensor, ""]) -> Float[Tensor, "batch ..."]:
    """Leave a branch out for some images: each row stays with probability `keep`, divided by it, and is zero otherwise."""
    mask = torch.rand((len(x),) + (1,) * (x.ndim - 1), device=x.device) < keep
    return x * (mask / keep).to(x.dtype)


class ScheduledDropPath(nn.Module):
    """Drops branches of any network more and more often as training goes on and as the branch lies deeper (appendix A).

    It counts batches, so one that resumes goes on where it stopped. In the paper a constant rate did not help; the schedule did.

    Args:
        keep: probability with which a branch of the last cell is kept at the end, in (0, 1].
        cells: number of cells.
        steps: batches until the end; None drops at the last rates from the beginning.

    Raises:
        ArgumentError: if `keep` or `steps` cannot be.

    >>> drop = ScheduledDropPath(keep=0.6, cells=20, steps=100)
    >>> drop(torch.ones(2, 1), cell=19).tolist()  # nothing is dropped at the beginning
    [[1.0], [1.0]]
    """

    step: Tensor

    def __init__(self, keep: float, cells: int, steps: int | None = None) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ArgumentError(f"nasnet: `drop_path_keep` must lie in (0, 1], got {keep}. It is the share kept; 1 drops nothing.")
        if steps is not None and not steps > 0:
            raise ArgumentError(f"nasnet: `drop_path_steps` must be positive, got {steps}. It is the number of batches of the training.")
        self.keep, self.cells, self.steps = keep, cells, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def probability(self, cell: int) -> Float[Tensor, ""]:
        """Return the probability with which a branch of a cell is kept now.

        Raises:
            ArgumentError: if there is no such cell.
        """
        if not 0 <= cell < self.cells:
            raise ArgumentError(f"ScheduledDropPath: `cell` must lie between 0 and {self.cells - 1}, got {cell}. Cells count from 0.")
        progress = torch.ones((), device=self.step.device) if self.steps is None else (self.step / self.steps).clamp(max=1)
        return keep_probability(self.keep, cell, self.cells, progress)

    def advance(self) -> None:
        """Count a batch."""
        self.step.add_(1)

    def forward(self, x: Float[Tensor, "batch ..."], cell: int) -> Float[Tensor, "batch ..."]:
        """Drop a branch for some images; outside training nothing is dropped."""
        return drop_branch(x, self.probability(cell)) if self.training else x

    def extra_repr(self) -> str:
        """Show what the weights do not."""
        return f"keep={self.keep}, cells={self.cells}, steps={self.steps}"


class Cell(nn.Module):
    """A cell: both inputs are projected to F channels, the blocks combine states, some of the states are joined, then ReLU.

    Every use of a cell's output begins with ReLU, so that it is done here, once. So is the ReLU of a state which several operations take,
    and a pool which two blocks ask for.

    Args:
        genotype: whose cell.
        kind: "normal" or "reduce".
        cur_chs: channels of h_i.
        prev_chs: channels of h_{i-1}; None: there is none yet, and h_i before its ReLU takes its place, unprojected.
        filters: F.
        shrink_prev: h_{i-1} is twice as large as h_i.
        norm: of all layers.
        skipped: the next cell takes h_{i-1} of this one as its own.
    """

    def __init__(
        self, genotype: Genotype, kind: Kind, cur_chs: int, prev_chs: int | None, filters: int, shrink_prev: bool, norm: Norm, skipped: bool
    ) -> None:
        super().__init__()
        self.skipped, self.stride = skipped, 2 if kind == "reduce" else 1
        self.cur = unit(cur_chs, filters, norm)
        self.prev: nn.Module = nn.Identity()
        if prev_chs is not None:
            self.prev = FactorizedReduction(prev_chs, filters, norm) if shrink_prev else unit(prev_chs, filters, norm)
        widths = [filters, cur_chs if prev_chs is None else filters]
        self.edges: list[tuple[int, int, bool, bool]] = []  # state, number of the layer, takes it after ReLU, may be dropped
        self.combined: list[bool] = []  # by concatenation
        self.ops, self.joins = nn.ModuleList(), nn.ModuleDict()
        same: dict[tuple[int, str], int] = {}
        for number, (left, left_op, right, right_op, combination) in enumerate(getattr(genotype, kind)):
            for state, name in ((left, left_op), (right, right_op)):
                layer, rectified = operation(name, widths[state], filters, self.stride if state < 2 else 1, norm)
                place = len(self.ops)
                if next(layer.parameters(), None) is None:  # the same pool of the same state is computed once
                    place = same.setdefault((state, name), place)
                self.ops.append(layer)
                self.edges.append((state, place, rectified, name != "identity"))
            self.combined.append(combination == "concat")
            if combination == "concat":  # our rule: the paper does not say how the channels are restored
                self.joins[str(number)] = unit(2 * filters, filters, norm)
            widths.append(filters)
        self.joined = genotype.concat(kind)
        self.match = nn.ModuleDict()  # inputs that are joined, brought to the size and width of the rest
        for state in self.joined:
            if state < 2 and self.stride == 2:
                self.match[str(state)] = FactorizedReduction(widths[state], filters, norm)
            elif widths[state] != filters:
                self.match[str(state)] = unit(widths[state], filters, norm)
        self.out_chs = filters * len(self.joined)

    def forward(self, cur: Maps, prev: Float[Tensor, "..."], keep: Float[Tensor, ""] | None = None) -> Shrunk:
        """Compute the cell.

        Args:
            cur: h_i after ReLU.
            prev: h_{i-1} after ReLU; in the first cell h_i before it.
            keep: probability with which a branch is kept; None drops none.
        """
        states = [self.cur(cur), self.prev(prev)]
        rectified: dict[int, Tensor] = {}
        results: dict[int, Tensor] = {}
        for block, by_concat in enumerate(self.combined):
            pair = []
            for state, place, takes_relu, droppable in self.edges[2 * block : 2 * block + 2]:
                if place not in results:
                    if takes_relu and state not in rectified:
                        rectified[state] = F.relu(states[state])
                    results[place] = self.ops[place](rectified[state] if takes_relu else states[state])
                pair.append(results[place] if keep is None or not droppable else drop_branch(results[place], keep))
            if by_concat:
                states.append(self.joins[str(block)](F.relu(torch.cat(pair, 1))))
            else:
                states.append(pair[0] + pair[1])
        parts = [self.match[str(i)](states[i]) if str(i) in self.match else states[i] for i in self.joined]
        return torch.cat(parts, 1).relu_()
