"""Pattern-producing networks: small graphs that paint an image, pixel by pixel, from each pixel's place (Stanley 2007).

As Nguyen, Yosinski and Clune 2015 (arXiv 1412.1897) use them: no recurrence, the outputs are nodes with an activation like any other,
and children differ from their parents by mutation alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from retinue.errors import ArgumentError, unknown
from retinue.explain.fooling_encodings import Shape, check_shape, hls_to_rgb, mutated, stepped

Array = NDArray[np.float64]
Coords = Literal["raw", "unit"]
COORDS = ("raw", "unit")
INPUTS = ("x", "y", "distance", "bias")
ACTIVATIONS = ("sine", "sigmoid", "gaussian", "linear")
REACH = 10.0  # weights lie in [-10, 10]
# chances of a mutation, as in the official parameter files
NEW_TYPE, ADD_EDGE, DELETE_EDGE, SPLIT_EDGE, DELETE_NODE = 0.1, 0.5, 0.3, 0.5, 0.2


def activate(kind: str, p: Array) -> Array:
    """Apply the activation of a node to its weighted sum; all lie in [-1, 1].

    Args:
        kind: "sine" sin(p), "sigmoid" 2 / (1 + e^-p) - 1, "gaussian" e^(-p^2), or "linear" p / 3 within [-1, 1].
        p: the sums.
    """
    if kind == "sine":
        return np.sin(p)
    if kind == "sigmoid":
        return np.tanh(p / 2)  # the same, without an exponential that could overflow
    return np.exp(-p * p) if kind == "gaussian" else np.clip(p, -3, 3) / 3


class CPPN:
    """A graph without cycles from four inputs (column, row, distance to the centre, 1) to one output (grey) or three (colour).

    Three outputs are hue, lightness and saturation. Nodes are numbered: 0 to 3 are the inputs, then come the outputs, then hidden nodes.

    Args:
        outputs: their number.
        kinds: activation of each output and hidden node, by its number.
        edges: gene in [0, 1] of each edge (source, target); its weight is 20 gene - 10.

    Raises:
        ArgumentError: if there is a cycle, an edge from an output, to an input or to a node that does not exist, or an unknown activation.

    >>> constant = CPPN(1, {4: "sine"}, {(3, 4): 0.55})  # the bias alone, with weight 1
    >>> constant.render(2).round(3).tolist()
    [[[0.841, 0.841], [0.841, 0.841]]]
    """

    def __init__(self, outputs: int, kinds: Mapping[int, str], edges: Mapping[tuple[int, int], float]) -> None:
        self.outputs, self.kinds, self.edges = outputs, dict(kinds), dict(edges)
        ends = range(len(INPUTS), len(INPUTS) + outputs)
        if outputs not in (1, 3) or not set(ends) <= set(self.kinds):
            raise ArgumentError(f"CPPN: `outputs` must be 1 or 3 and each needs an activation, got {outputs} and {self.kinds}.")
        for kind in self.kinds.values():
            if kind not in ACTIVATIONS:
                raise unknown("CPPN", "activation", kind, ACTIVATIONS)
        for source, target in self.edges:
            if source in ends or not (source < len(INPUTS) or source in self.kinds) or target not in self.kinds:
                raise ArgumentError(
                    f"CPPN: there can be no edge from {source} to {target}. Edges go from inputs (0 to 3) and hidden nodes to outputs "
                    f"({ends[0]} to {ends[-1]}) and hidden nodes."
                )
        self.order = self._order()

    @classmethod
    def random(cls, rng: np.random.Generator, outputs: int = 1) -> "CPPN":
        """Draw a graph without hidden nodes, every input joined to every output.

        Args:
            rng: source of randomness.
            outputs: 1 for grey, 3 for colour.
        """
        ends = range(len(INPUTS), len(INPUTS) + outputs)
        kinds = {node: ACTIVATIONS[rng.integers(len(ACTIVATIONS))] for node in ends}
        return cls(outputs, kinds, {(source, target): float(rng.random()) for source in range(len(INPUTS)) for target in ends})

    def mutate(self, rng: np.random.Generator, rate: float = 0.1, eta: float = 15.0) -> "CPPN":
        """Return a changed copy: perhaps an edge more, one less, one split by a new node, a hidden node less; then weights and activations.

        Args:
            rng: source of randomness.
            rate: share of the weights that change.
            eta: of the polynomial mutation, as in `fooling_encodings.polynomial_delta`.
        """
        kinds, edges = dict(self.kinds), dict(self.edges)
        ends = range(len(INPUTS), len(INPUTS) + self.outputs)

        def pick(things: list[Any]) -> Any:
            return things[rng.integers(len(things))]

        if rng.random() < ADD_EDGE:
            sources = [*range(len(INPUTS)), *(node for node in kinds if node not in ends)]
            source = pick(sources)
            barred = _ancestors(edges, source) | {source}
            free = [node for node in kinds if node not in barred and (source, node) not in edges]
            if free:
                edges[source, pick(free)] = float(rng.random())
        if rng.random() < DELETE_EDGE and edges:
            del edges[pick(list(edges))]
        if rng.random() < SPLIT_EDGE and edges:
            source, target = pick(list(edges))
            middle = max(max(kinds), len(INPUTS) - 1) + 1
            weight = edges.pop((source, target))
            kinds[middle] = pick(list(ACTIVATIONS))
            edges[source, middle] = edges[middle, target] = weight
        hidden = [node for node in kinds if node not in ends]
        if rng.random() < DELETE_NODE and hidden:
            gone = pick(hidden)
            del kinds[gone]
            edges = {ends_: weight for ends_, weight in edges.items() if gone not in ends_}
        genes = mutated(np.array(list(edges.values())), rng, rate, eta)
        edges = dict(zip(edges, genes.tolist()))
        for node in kinds:
            if rng.random() < NEW_TYPE:
                kinds[node] = pick(list(ACTIVATIONS))
        return CPPN(self.outputs, kinds, edges)

    def render(self, size: int | tuple[int, int], coords: Coords = "raw") -> Float[np.ndarray, "outputs height width"]:
        """Compute |output| at each pixel, in [0, 1].

        Args:
            size: side of the image, or height and width.
            coords: "raw" feeds the indices of column and row as they are, as the official code does; "unit" scales them to [-1, 1]. The
                distance to the centre is of scaled ones in both; of a single column or row the coordinate is 0.

        Raises:
            ArgumentError: if there are no such coordinates.
        """
        if coords not in COORDS:
            raise unknown("CPPN", "`coords`", coords, COORDS)
        height, width = (size, size) if isinstance(size, int) else size
        values = dict(enumerate(_inputs(height, width, coords)))
        entering: dict[int, list[tuple[int, float]]] = {node: [] for node in self.kinds}
        for (source, target), gene in self.edges.items():
            entering[target].append((source, 2 * REACH * gene - REACH))
        for node in self.order:
            total = np.zeros((height, width))
            for source, weight in entering[node]:
                total += weight * values[source]
            values[node] = activate(self.kinds[node], total)
        return np.abs(np.stack([values[len(INPUTS) + i] for i in range(self.outputs)]))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values from which `from_dict` makes the same graph."""
        return {
            "outputs": self.outputs,
            "nodes": [[node, kind] for node, kind in self.kinds.items()],
            "edges": [[source, target, gene] for (source, target), gene in self.edges.items()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CPPN":
        """Build it from what `to_dict` returned; the errors are those of `CPPN`."""
        edges = {(int(source), int(target)): float(gene) for source, target, gene in values["edges"]}
        return cls(int(values["outputs"]), {int(node): str(kind) for node, kind in values["nodes"]}, edges)

    def _order(self) -> list[int]:
        """List outputs and hidden nodes so that each stands behind all that it is computed from."""
        waiting: dict[int, set[int]] = {node: set() for node in self.kinds}
        for source, target in self.edges:
            if source in waiting:
                waiting[target].add(source)
        order: list[int] = []
        while waiting:
            ready = [node for node, sources in waiting.items() if sources.isdisjoint(waiting)]
            if not ready:
                raise ArgumentError(
                    f"CPPN: the graph has a cycle among the nodes {sorted(waiting)}. Every node must be computed from earlier ones."
                )
            order += ready
            for node in ready:
                del waiting[node]
        return order


@dataclass(frozen=True)
class CPPNEncoding:
    """A graph that paints the image: images with patterns.

    Attributes:
        image_shape: channels (1 or 3), height and width. In colour the outputs are hue (over the whole circle), lightness, saturation.
        coords: "raw" or "unit", as in `CPPN.render`.
        mutation_rate: probability with which a weight changes.
        eta_mutation: of `fooling_encodings.polynomial_delta`.

    Raises:
        ArgumentError: if the rate is no probability, or the shape is that of no image.
    """

    image_shape: Shape
    coords: Coords = "raw"
    mutation_rate: float = 0.1
    eta_mutation: float = 15.0

    def __post_init__(self) -> None:
        check_shape(self.image_shape)
        if self.coords not in COORDS:
            raise unknown("fool", "`coords`", self.coords, COORDS)
        if not 0 <= self.mutation_rate <= 1:
            raise ArgumentError(f"fool: `mutation_rate` must lie in [0, 1], got {self.mutation_rate}. It is a probability.")

    def random(self, count: int, rng: np.random.Generator) -> list[CPPN]:
        """Draw graphs without hidden nodes."""
        return [CPPN.random(rng, self.image_shape[0]) for _ in range(count)]

    def children(self, pairs: Sequence[tuple[CPPN, CPPN]], rng: np.random.Generator, generation: int) -> list[CPPN]:
        """Mutate both parents, in random order; there is no crossover in effect."""
        ordered = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
        return [parent.mutate(rng, self.mutation_rate, self.eta_mutation) for pair in ordered for parent in pair]

    def render(self, genomes: Sequence[CPPN]) -> Float[Tensor, "count channels height width"]:
        """Let the graphs paint."""
        images = np.stack([graph.render(self.image_shape[1:], self.coords) for graph in genomes])
        return stepped(hls_to_rgb(images) if self.image_shape[0] == 3 else images)

    def pack(self, genomes: Sequence[CPPN]) -> tuple[dict[str, Tensor], Any]:
        """Return the graphs as JSON values."""
        return {}, [graph.to_dict() for graph in genomes]

    def unpack(self, tensors: Mapping[str, Tensor], values: Any) -> list[CPPN]:
        """Return the graphs."""
        return [CPPN.from_dict(one) for one in values]


@cache
def _inputs(height: int, width: int, coords: Coords) -> tuple[Array, ...]:
    """Compute column, row, distance to the centre and 1 of every pixel."""
    rows, columns = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in (height, width))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    distance = np.sqrt(x * x + y * y)
    if coords == "raw":
        y, x = (axis.astype(np.float64) for axis in np.indices((height, width)))
    return x, y, distance, np.ones((height, width))


def _ancestors(edges: Mapping[tuple[int, int], float], node: int) -> set[int]:
    """Collect all nodes from which a path leads to a node."""
    found: set[int] = set()
    waiting = [node]
    while waiting:
        target = waiting.pop()
        new = {source for source, end in edges if end == target} - found
        found |= new
        waiting += new
    return found
