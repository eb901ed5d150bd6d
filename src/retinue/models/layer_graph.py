"""A feed-forward convolutional network as a graph of its layers, which can be edited.

The network's code is followed once with real images (torch.fx beside a run), so that questions about sizes are answered as for these
images. A leaf is one call of a layer of torch; an identity is no leaf.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jaxtyping
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models._features_fx import get_notrace_functions
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from retinue.errors import ArgumentError
from retinue.models.modes import evaluating
from retinue.models.rewrites import SUMS

CONVS, LINEAR = (nn.Conv2d,), nn.Linear
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
KINDS: tuple[tuple[tuple[type, ...], int], ...] = (  # the paper's numbers of types; kin of a type share its number, 9 (L2Norm) is no layer
    (CONVS, 1),
    ((nn.MaxPool2d, nn.AdaptiveMaxPool2d), 2),
    ((nn.LogSoftmax,), 7),
    ((nn.Softmax,), 10),
    (NORMS, 4),
    ((LINEAR,), 5),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout), 6),
    ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), 8),
)
PRODUCTS_OF_MAPS = (
    torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, operator.matmul, F.scaled_dot_product_attention, "matmul", "bmm", "__matmul__",
)  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """A layer of the network, once for each call.

    Attributes:
        name: its path in the network.
        module: the layer.
        kind: the paper's number of its type; 0 is any other.
        pointwise: it is a linear layer over the channels of a map, which is a 1x1 convolution.
        strided: it thins out the map.
        branch: it stands on a way that joins another in a sum, product or concatenation, so the size of its map must stay.
        resizes: its map has another size than what it reads.
        skip: layers before it and behind it in its residual block; (0, 0) outside.
    """

    name: str
    module: nn.Module
    kind: int
    pointwise: bool = False
    strided: bool = False
    branch: bool = False
    resizes: bool = False
    skip: tuple[int, int] = (0, 0)

    @property
    def makes_channels(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return self.kind in (1, 5)

    @property
    def outputs(self) -> int:
        """Number of its channels or features, as the network was built."""
        return int(getattr(self.module, "out_channels", 0) or getattr(self.module, "out_features", 0))

    @property
    def follows(self) -> bool:
        """Whether it has as many channels as it reads, by being grouped."""
        module = self.module
        return isinstance(module, CONVS) and module.groups > 1 and module.in_channels == module.out_channels

    @property
    def fixed(self) -> bool:
        """Whether the paper changes none of its numbers: strided convolutions, linear layers, and everything without numbers to change."""
        return self.kind != 1 or self.strided


@dataclass
class LayerGraph:
    """A network that was followed.

    Attributes:
        root: the network.
        graph: what it computes; each node's `meta["value"]` has the shape of its result, on the meta device.
        leaves: its layers, in the order of the calls.
        index: the leaf of each node that calls one.
        images: what was shown.
        classes: outputs of its classifier.
        bound: layers that stay, because they make a concatenation as wide as the other side of a sum; see `Widths.bound`.
    """

    root: nn.Module
    graph: fx.Graph
    leaves: list[Leaf]
    index: dict[fx.Node, int]
    images: Tensor
    classes: int
    bound: set[int] = field(default_factory=set)

    def descriptions(self, skips: bool = False) -> Float[Tensor, "layers numbers"]:
        """Describe each layer by type, kernel, stride, outputs and padding, and with `skips` by its place in a residual block too."""
        rows = []
        for leaf in self.leaves:
            module: Any = leaf.module
            k, s = (1, 1) if leaf.pointwise else (_side(getattr(module, "kernel_size", 0)), _side(getattr(module, "stride", 0)))
            p = getattr(module, "padding", 0)
            width = leaf.outputs or getattr(module, "num_features", 0) or getattr(module, "num_channels", 0)
            rows.append([leaf.kind, k, s, width, k // 2 if p == "same" else 0 if isinstance(p, str) else _side(p)])
            rows[-1] += list(leaf.skip) if skips else []
        return torch.tensor(rows, dtype=torch.float32)

    def kept_always(self) -> list[bool]:
        """Tell of each layer whether it stays whatever a policy says: the first, the last, and what changes resolution or has no type."""
        ends = (0, len(self.leaves) - 1)
        return [i in ends or leaf.kind in (0, 5, 8) or leaf.strided or (leaf.branch and leaf.resizes) for i, leaf in enumerate(self.leaves)]


def trace(model: nn.Module, images: Float[Tensor, "batch channels height width"]) -> LayerGraph:
    """Follow a feed-forward convolutional network.

    Args:
        model: ends in a linear layer; it is not changed.
        images: at least two that it takes.

    Raises:
        ArgumentError: by name, if it works on tokens or with attention, uses a layer's weights twice, has a layer whose size cannot be
            changed, ends in no linear layer, has no convolution, or torch.fx cannot follow its code.
    """
    tracer = _Tracer(images)
    checked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # to a check of shapes, an image that is followed is no tensor
    try:
        with evaluating(model), torch.no_grad():
            graph = tracer.trace(model)
    except ArgumentError:
        raise
    except Exception as error:  # any: it is the network's own code that fails
        reason = " ".join(str(error).split())[:160]
        part = tracer.culprit or "the network"
        raise ArgumentError(
            f"n2n: the code of {part} ({tracer.culprit_kind or type(model).__name__}) cannot be followed by torch.fx: {reason}. "
            "Write it without conversions of tensors to numbers."
        ) from None
    finally:
        jaxtyping.config.update("jaxtyping_disable", checked)
    graph.eliminate_dead_code(lambda node: needed(node, model))
    for node in graph.nodes:
        node.type = None
        node.meta["value"] = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, node.meta.get("value"))
    graph._tracer_cls = fx.Tracer  # copies make one without arguments
    return _leaves(model, graph, images)


def needed(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node does something although nobody reads its result."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    in_place = (name.endswith("_") and not name.endswith("__")) or name in ("setitem", "iadd", "isub", "imul", "itruediv")
    return node.op in ("placeholder", "output") or in_place or bool(node.kwargs.get("inplace"))


class _Tracer(fx.Tracer):
    """Follows code and computes it at the same time."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.images, self.culprit, self.culprit_kind = images, "", ""
        self.computing = False
        self.path: list[str] = []
        self.seen: set[int] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*CONVS, LINEAR, *NORMS)) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        return super().create_args_for_root(lambda module, images: root_fn(module, images), is_module)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.computing:
            return forward(*args, **kwargs)
        if type(m) is nn.Identity:
            return args[0]
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            self._check(m, name, args)
        self.path.append(f"{name} ({type(m).__name__})")
        try:
            return super().call_module(m, forward, args, kwargs)
        except ArgumentError:
            raise
        except Exception:
            if not self.culprit:  # the innermost is the first to see it
                self.culprit, self.culprit_kind = name, type(m).__name__
            raise
        finally:
            self.path.pop()

    def _check(self, m: nn.Module, name: str, args: tuple[Any, ...]) -> None:
        here = f"{name} ({type(m).__name__})"
        x = args[0].node.meta["value"] if args and isinstance(args[0], fx.Proxy) else None
        if isinstance(x, Tensor) and x.ndim == 3:
            raise ArgumentError(
                f"n2n: {here} works on tokens, and layers are removed and shrunk in convolutional networks only. For transformers and "
                "mixers use retinue.compress.lottery_ticket."
            )
        own = list(m.parameters(recurse=False))
        known = isinstance(m, (*CONVS, LINEAR, *NORMS, nn.PReLU))
        if (own or list(m.parameters())) and not known:
            raise ArgumentError(f"n2n: {here} has weights whose size cannot be changed. Build the network of Conv2d, Linear and norms.")
        if isinstance(m, nn.LayerNorm) and len(m.normalized_shape) != 1:
            raise ArgumentError(f"n2n: {here} has weights for each place of the map. Use one for each channel.")
        if hasattr(m, "parametrizations") or hasattr(m, "weight_orig"):
            raise ArgumentError(f"n2n: the weight of {here} is computed of others (pruning, weight norm). Make that permanent first.")
        if own and id(m) in self.seen:
            raise ArgumentError(f"n2n: {here} is called twice with the same weights. Only feed-forward networks can be edited.")
        self.seen.add(id(m))

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Proxy:
        if kind in ("call_function", "call_method") and target in PRODUCTS_OF_MAPS:
            place = self.path[-1] if self.path else "the network"
            raise ArgumentError(
                f"n2n: {place} multiplies two maps as attention does, and layers are removed and shrunk in convolutional networks only. "
                "Use retinue.compress.lottery_ticket."
            )
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **options)
        self.computing = True
        try:
            proxy.node.meta["value"] = self._compute(proxy.node)
        finally:
            self.computing = False
        return proxy

    def _compute(self, node: fx.Node) -> Any:
        here: Any = fx.node.map_arg(node.args, lambda n: n.meta["value"])
        named: Any = fx.node.map_arg(node.kwargs, lambda n: n.meta["value"])
        if node.op == "placeholder":
            return self.images
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*here, **named)
        if node.op == "call_method":
            return getattr(here[0], str(node.target))(*here[1:], **named)
        return node.target(*here, **named) if node.op == "call_function" else None  # type: ignore[operator]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = obj.node.meta["value"]
        if isinstance(value, Tensor):
            raise TypeError("it decides by the values of an image")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        parts: Any = obj
        return iter([parts[i] for i in range(len(obj.node.meta["value"]))])


def _leaves(model: nn.Module, graph: fx.Graph, images: Tensor) -> LayerGraph:
    calls = [node for node in graph.nodes if node.op == "call_module"]
    index = {node: i for i, node in enumerate(calls)}
    branch, skip = _branches(graph, index)
    leaves = []
    for i, node in enumerate(calls):
        module: Any = model.get_submodule(str(node.target))
        x, y = node.all_input_nodes[0].meta["value"], node.meta["value"]
        kind = next((number for kinds, number in KINDS if isinstance(module, kinds)), 0)
        if kind == 0 and (type(module).__module__ == "torch.nn.modules.activation"):
            kind = 3
        pointwise = kind == 5 and x.ndim == 4
        strided = kind == 1 and _side(module.stride) != 1
        resizes = x.ndim == y.ndim == 4 and x.shape[2:] != y.shape[2:]
        kind = 1 if pointwise else kind
        leaves.append(Leaf(str(node.target), module, kind, pointwise, strided, bool(branch >> i & 1), resizes, skip.get(i, (0, 0))))
    out = next(node for node in graph.nodes if node.op == "output").args[0]
    value = out.meta["value"] if isinstance(out, fx.Node) else None
    network = type(model).__name__
    if not isinstance(value, Tensor) or value.ndim != 2:
        raise ArgumentError(f"n2n: {network} must return logits, one row an image, as one tensor.")
    if not any(isinstance(leaf.module, CONVS) for leaf in leaves):
        raise ArgumentError(f"n2n: {network} has no convolution to remove or shrink. Use retinue.compress.lottery_ticket.")
    last = next((leaf for leaf in reversed(leaves) if leaf.makes_channels), None)
    if last is None or last.kind != 5:
        told = "no layer" if last is None else f"{last.name} ({type(last.module).__name__})"
        raise ArgumentError(
            f"n2n: {network} ends in {told}, and its classifier must be a linear layer. Give it one: reset_classifier(classes)."
        )
    return LayerGraph(model, graph, leaves, index, images, value.shape[1])


def _branches(graph: fx.Graph, index: dict[fx.Node, int]) -> tuple[int, dict[int, tuple[int, int]]]:
    """Find the layers that stand on one of several ways that join, as bits, and the place of each in its residual block."""
    before: dict[fx.Node, int] = {}
    branch, skip = 0, dict[int, tuple[int, int]]()
    for node in graph.nodes:
        before[node] = 1 << index[node] if node in index else 0
        for source in node.all_input_nodes:
            before[node] |= before[source]
        ways = [before[n] for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor) and before[n]]
        if node in index or len(ways) < 2:
            continue
        own, common = 0, -1
        for way in ways:
            own, common = own | way, common & way
        own &= ~common
        branch |= own
        if node.target in SUMS:
            block = [i for i in range(own.bit_length()) if own >> i & 1 and i not in skip]
            skip.update({i: (j, len(block) - j - 1) for j, i in enumerate(block)})
    return branch, skip


def _side(value: Any) -> int:
    """Return a number that may be given for both sides of a map; the larger where they differ."""
    return max(value) if isinstance(value, list | tuple) else int(value or 0)
