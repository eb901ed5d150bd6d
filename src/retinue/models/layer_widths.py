"""Which widths of a network belong together, and how large each is when layers are left out.

Residual sums and gates tie widths (both sides have as many channels), concatenations put them side by side, and norms, activations, pools
and depthwise convolutions pass them on. What reads a tensor in a way that is not understood keeps its width as it was.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from retinue.models.layer_graph import CONVS, LayerGraph
from retinue.models.rewrites import SUMS

JOINS = (torch.cat, torch.concat, torch.concatenate)
TURNS = (torch.permute, torch.transpose, "permute", "transpose")


@dataclass(frozen=True)
class Channels:
    """Where a tensor's channels come from.

    Attributes:
        parts: numbers of widths, side by side.
        dim: the dimension that holds them.
        spread: numbers of each channel, where a map was flattened.
    """

    parts: tuple[int, ...]
    dim: int
    spread: int = 1


class Widths:
    """The widths of a network of which some layers are left out: which belong together, and how large each is.

    Args:
        layers: the network.
        keep: for each layer, whether it is there.
    """

    def __init__(self, layers: LayerGraph, keep: list[bool]) -> None:
        self.layers = layers
        self.parent: list[int] = []
        self.size: list[int] = []
        self.maker: list[int | None] = []  # the leaf whose outputs they are
        self.frozen: set[int] = set()
        self.ties: list[tuple[bool, int, int]] = []  # whether by a sum, and both sides
        self.before: dict[fx.Node, int] = {}
        self.of: dict[fx.Node, Channels | None] = {}
        for node in layers.graph.nodes:
            i = layers.index.get(node)
            self.before[node] = 0 if i is None or not keep[i] else 1 << i
            for source in node.all_input_nodes:
                self.before[node] |= self.before[source]
            self.of[node] = self._channels(node, i, i is None or keep[i])
        self.stay = {self.root(width) for width in self.frozen}
        self.first: dict[int, tuple[int, int]] = {}
        for _, a, b in sorted(self.ties, key=lambda tie: not tie[0]):  # sums first, else in their order
            self.first.setdefault(self.root(a), (a, b))

    def leader(self, width: int) -> int | None:
        """Return the leaf by which a width is decided, or None where it stays as it is.

        Of a sum of a block and its input that is the layer that makes the input; of two ways the later layer that may change.
        """
        root = self.root(width)
        if root in self.stay:
            return None
        a, b = (self.maker[side] for side in self.first.get(root, (width, width)))
        if a is None and b is None:
            makers = [maker for w, maker in enumerate(self.maker) if maker is not None and self.root(w) == root]
            return min(makers, default=None)
        if a is None or b is None or a == b:
            return b if a is None else a
        leaves, made = self.layers.leaves, self._made()
        if made[b] >> a & 1 or made[a] >> b & 1:
            return min(a, b)
        free = [leaf for leaf in (a, b) if not leaves[leaf].fixed]
        return max(free or (a, b))

    def base(self, width: int) -> int:
        """Return how many channels a width has before any shrinking: those of its leader."""
        leader = self.leader(width)
        if leader is not None:
            return self.layers.leaves[leader].outputs
        root = self.root(width)
        held = sorted((w for w in self.frozen if self.root(w) == root), key=lambda w: (self.maker[w] is not None, w))
        return self.size[held[0] if held else root]

    def bound(self) -> set[int]:
        """Find the layers that make one width of a concatenation for a sum: without them its sides could not be made alike."""
        nodes = {i: node for node, i in self.layers.index.items()}
        makers = {self.maker[side] for by_sum, *sides in self.ties if by_sum for side in sides}
        read = {i: self.of[nodes[i].all_input_nodes[0]] for i in makers if i is not None}
        return {i for i, found in read.items() if found is not None and len(found.parts) > 1}

    def root(self, width: int) -> int:
        """Return the number that all widths tied to this one share."""
        while self.parent[width] != width:
            width = self.parent[width]
        return width

    def _made(self) -> dict[int, int]:
        return {i: self.before[node] for node, i in self.layers.index.items()}

    def _new(self, size: int, maker: int | None = None, frozen: bool = False) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.maker.append(maker)
        if frozen:
            self.frozen.add(len(self.parent) - 1)
        return len(self.parent) - 1

    def _held(self, value: Any, *sources: Channels) -> Channels | None:
        """Freeze what an operation reads that is not understood; what it makes has a width that stays."""
        for source in sources:
            self.frozen.update(source.parts)
        if not isinstance(value, Tensor) or value.ndim == 0 or value.numel() == 1:
            return None
        dim = min(1, value.ndim - 1)
        return Channels((self._new(value.shape[dim], frozen=True),), dim)

    def _channels(self, node: fx.Node, leaf: int | None, kept: bool) -> Channels | None:
        value = node.meta["value"]
        sources = [found for n in node.all_input_nodes if (found := self.of[n]) is not None]
        if node.op == "placeholder":
            return Channels((self._new(value.shape[1], frozen=True),), 1)
        if node.op == "get_attr":
            large = [d for d in range(value.ndim) if value.shape[d] > 1]
            return Channels((self._new(value.shape[large[0]]),), large[0]) if len(large) == 1 else self._held(value)
        if node.op == "output":
            return self._held(None, *sources)
        if leaf is not None:
            if not kept:
                return self.of[node.all_input_nodes[0]]
            which = self.layers.leaves[leaf]
            if which.makes_channels and not which.follows:
                return Channels((self._new(which.outputs, leaf),), 1 if isinstance(which.module, CONVS) else value.ndim - 1)
            return self._through(node, node.all_input_nodes[0], sources[0]) if sources else self._held(value)
        if node.target in JOINS:
            return self._joined(node, sources)
        if not sources:
            return self._held(value)
        if node.target in TURNS:
            return self._turned(node, sources)
        tensors = [n for n in node.all_input_nodes if self.of[n] is not None]
        return self._through(node, tensors[0], sources[0]) if len(sources) == 1 else self._tied(node, tensors)

    def _through(self, node: fx.Node, source: fx.Node, read: Channels) -> Channels | None:
        x, y, dim = source.meta["value"], node.meta["value"], read.dim
        if not isinstance(y, Tensor):
            return self._held(None, read) if any(isinstance(v, Tensor) for v in tree_leaves(y)) else None
        same = [d for d in range(y.ndim) if y.shape[d] == x.shape[dim]]
        if y.ndim == x.ndim and dim in same:
            return read
        if y.ndim == x.ndim and y.shape[dim] == 1:
            return None  # summed up over the channels: any number of them will do
        if y.ndim == 2 and x.ndim == 4 and dim == 1 and y.shape[1] == x[0].numel():
            return Channels(read.parts, 1, read.spread * x[0, 0].numel())
        lost = y.ndim < x.ndim
        if same and y.ndim != x.ndim and (lost or sum(side > 1 for side in y.shape) == sum(side > 1 for side in x.shape)):
            return Channels(read.parts, dim if dim in same else same[-1], read.spread)
        return self._held(y, read)

    def _joined(self, node: fx.Node, sources: list[Channels]) -> Channels | None:
        tensors: Any = node.args[0] if node.args else node.kwargs["tensors"]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        value = node.meta["value"]
        read = [self.of[n] for n in tensors] if isinstance(tensors, list | tuple) else [None]
        found = [one for one in read if one is not None]
        if len(found) < len(read) or not isinstance(dim, int) or any(one.dim != dim % value.ndim or one.spread != 1 for one in found):
            return self._held(value, *sources)
        return Channels(tuple(part for one in found for part in one.parts), dim % value.ndim)

    def _turned(self, node: fx.Node, sources: list[Channels]) -> Channels | None:
        read, value = sources[0], node.meta["value"]
        order: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
        if not isinstance(order, list | tuple) or not all(isinstance(d, int) for d in order) or len(sources) > 1:
            return self._held(value, *sources)
        order = [d % value.ndim for d in order]
        if len(order) != (2 if "transpose" in str(node.target) else value.ndim):
            return self._held(value, *sources)
        if "transpose" in str(node.target):
            swapped = list(range(value.ndim))
            swapped[order[0]], swapped[order[1]] = order[1], order[0]
            order = swapped
        return Channels(read.parts, order.index(read.dim), read.spread)

    def _tied(self, node: fx.Node, tensors: list[fx.Node]) -> Channels | None:
        value = node.meta["value"]
        sides = [(n.meta["value"], found) for n in tensors if (found := self.of[n]) is not None]
        wide = [(x, found) for x, found in sides if x.shape[found.dim] > 1]
        if not isinstance(value, Tensor) or not wide:
            return self._held(value, *(found for _, found in sides))
        (x, first), *others = wide
        place = first.dim - x.ndim
        for y, found in others:
            sizes = [[self.size[part] for part in one.parts] for one in (first, found)]
            # a single width may differ, because a layer before it was left out: it is made alike
            alike = sizes[0] == sizes[1] or len(sizes[0]) == len(sizes[1]) == 1
            if found.dim - y.ndim != place or found.spread != first.spread or not alike:
                return self._held(value, *(found for _, found in sides))
        for _, found in others:
            for a, b in zip(first.parts, found.parts, strict=True):
                self.ties.append((node.target in SUMS, a, b))
                self.parent[self.root(b)] = self.root(a)
        return Channels(first.parts, place + value.ndim, first.spread)
