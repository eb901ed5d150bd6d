"""`edited_network`: a convolutional network from which layers are left out and whose layers are shrunk (N2N, arXiv 1709.06030)."""

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import create_model, image_size, register
from retinue.models.layer_graph import CONVS, LINEAR, NORMS, LayerGraph, Leaf, needed, trace
from retinue.models.layer_widths import Widths
from retinue.models.probe import trial_images
from retinue.models.protocol import adapt, config
from retinue.models.rewrites import PRODUCTS

FIELDS = 5  # type, kernel, stride, outputs, padding
FEWEST = 10  # channels that shrinking leaves, where there were as many
IN_PLACE: dict[Any, Any] = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, torch.relu_: torch.relu}
LINEAR_INPUTS = (10, 50_000)  # what a linear layer may read


@dataclass
class Edited:
    """What the actions of a policy make of a network.

    Attributes:
        model: the smaller network with new weights, in training mode; None where the actions leave no network that runs.
        invalid: why it is no candidate; "" if it is one.
        parameters: its number of parameters; 0 where there is no network.
    """

    model: nn.Module | None
    invalid: str = ""
    parameters: int = 0


class ImpossibleError(Exception):
    """The actions leave no network; the text says why."""


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": None, "classifier": None})
def edited_network(
    teacher: str = "small_convnet",
    teacher_args: Mapping[str, Any] | None = None,
    keep: Sequence[bool] | None = None,
    factors: Sequence[Sequence[float]] | None = None,
    width: float = 1.0,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build another network by name, then leave out and shrink some of its layers.

    Args:
        teacher: name of any feed-forward convolutional network.
        teacher_args: its options.
        keep: for each of its layers whether it stays; None keeps all.
        factors: for each layer five factors, as in `edit`; None shrinks nothing.
        width: factor for all widths, as in `edit`.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if the network cannot be edited, the actions have another number than it has layers, or they leave no network.
    """
    shape: dict[str, Any] = {"num_classes": max(num_classes, 1), "in_chans": in_chans, "input_size": image_size(input_size)}
    network = create_model(teacher, **{**(teacher_args or {}), **shape})
    made = edit(follow(network, input_size=shape["input_size"]), keep, factors, width)
    if made.model is None:
        raise ArgumentError(f"edited_network: these actions leave no network: {made.invalid}.")
    if num_classes == 0:
        made.model.reset_classifier(0)  # type: ignore[operator]
    return made.model


def follow(
    model: nn.Module, images: Float[Tensor, "batch channels height width"] | None = None, *, input_size: tuple[int, int] | None = None
) -> LayerGraph:
    """Trace a network with images that it takes; see `layer_graph.trace` for what is refused.

    Args:
        model: any feed-forward convolutional network.
        images: such as it takes, or None for trial images.
        input_size: their height and width, where none are given.
    """
    if images is None:
        was = model.training
        images = trial_images(model.eval(), input_size, where="n2n", batch=2)
        model.train(was)
    elif images.ndim != 4:
        raise ShapeError(f"n2n: `example_input` must be a batch of images [batch, channels, height, width], got {tuple(images.shape)}.")
    layers = trace(model, images[:1].expand(2, -1, -1, -1).clone())
    layers.bound = Widths(layers, [True] * len(layers.leaves)).bound()
    return layers


def edit(
    layers: LayerGraph,
    keep: Sequence[bool] | None = None,
    factors: Sequence[Sequence[float]] | Float[Tensor, "layers 5"] | None = None,
    width: float = 1.0,
) -> Edited:
    """Build the network that is left of a traced one, with new weights drawn by torch's own initialisation.

    What has to stay stays whatever the actions say: `LayerGraph.kept_always` in removal; in shrinking strided convolutions, linear layers,
    pools, and all but the widths where ways join. New values are k = max(int(k f), 1), s likewise, n = max(int(n f), 10) (never more than
    before) and p = int(p f).

    Args:
        layers: the network.
        keep: for each layer whether it stays. Layers behind a removed one are fitted to the channels that arrive; a convolution whose norm
            is removed gets a bias.
        factors: for each layer those of type (never changed), kernel, stride, outputs and padding, in (0, 1].
        width: factor for the outputs of all layers but the classifier, those that stay in shrinking included, down to a single channel.

    Raises:
        ArgumentError: if the actions have another number than there are layers, or a factor is not in (0, 1].
    """
    count = len(layers.leaves)
    kept = [True] * count if keep is None else [bool(one) for one in keep]
    scale = [[1.0] * FIELDS] * count if factors is None else [[float(f) for f in row] for row in factors]
    if len(kept) != count:
        raise ArgumentError(f"edited_network: `keep` needs one action for each of the {count} layers, got {len(kept)}.")
    if len(scale) != count or any(len(row) != FIELDS for row in scale):
        got = f"{len(scale)} x {len(scale[0]) if scale else 0}"
        raise ArgumentError(f"edited_network: `factors` needs {FIELDS} numbers for each of the {count} layers, got {got}.")
    if not all(0 < f <= 1 for row in (*scale, [width]) for f in row):
        raise ArgumentError("edited_network: factors must lie in (0, 1]. 1 leaves a number as it is.")
    kept = [one or always for one, always in zip(kept, layers.kept_always(), strict=True)]
    try:
        module, alone = _Builder(layers, kept, scale, width).build()
        model: Any = adapt(module, input_size=(int(layers.images.shape[2]), int(layers.images.shape[3])))
    except ImpossibleError as reason:
        return Edited(None, str(reason))
    model.adaptation = list(getattr(layers.root, "adaptation", []))
    if not all(kept):
        model.adaptation.append(f"{kept.count(False)} of {count} layers are removed")
    if factors is not None or width < 1:
        model.adaptation.append("its layers are shrunk")
    if alone:
        model.adaptation.append(f"{alone} convolutions have lost their norm and have a bias instead")
    made = config(layers.root)
    if made is not None:
        own = made["arguments"]
        common = {name: own.pop(name) for name in ("num_classes", "in_chans", "input_size")}
        model.retinue_config = {"name": "edited_network", "arguments": {
            **common, "teacher": made["name"], "teacher_args": own, "keep": None if all(kept) else kept,
            "factors": None if factors is None else scale, "width": width,
        }}  # fmt: skip
    return Edited(model, "", sum(p.numel() for p in model.parameters()))


class _Builder:
    """Walks through a network with an image, and makes each kept layer anew for the channels that arrive."""

    def __init__(self, layers: LayerGraph, keep: list[bool], factors: list[list[float]], width: float) -> None:
        self.layers, self.keep, self.factors, self.width = layers, keep, factors, width
        self.widths = Widths(layers, keep)
        self.parts: dict[str, Any] = {}
        self.alone = 0

    def build(self) -> tuple[fx.GraphModule, int]:
        graph, value = fx.Graph(), dict[fx.Node, Any]()
        same: dict[fx.Node, fx.Node] = {}
        with torch.no_grad():
            for node in self.layers.graph.nodes:
                i = self.layers.index.get(node)
                if i is not None and not self.keep[i]:
                    source = node.all_input_nodes[0]
                    same[node], value[node] = same[source], value[source]
                    continue
                copied = graph.node_copy(node, lambda n: same[n])
                copied.meta = {}
                same[node] = copied
                _out_of_place(copied, node)
                try:
                    value[node] = self._compute(node, copied, i, value)
                except ImpossibleError:
                    raise
                except Exception as error:  # any: sizes that do not fit fail in each layer's own way
                    what = self.layers.leaves[i].name if i is not None else str(getattr(node.target, "__name__", node.target))
                    raise ImpossibleError(f"{what} cannot take what arrives: {' '.join(str(error).split())[:160]}") from None
        out: Any = value[next(node for node in self.layers.graph.nodes if node.op == "output").args[0]]
        if tuple(out.shape) != (2, self.layers.classes):
            raise ImpossibleError(f"it gives outputs of shape {tuple(out.shape)[1:]} for {self.layers.classes} classes")
        graph.eliminate_dead_code(lambda node: node.op != "call_module" and needed(node, self.layers.root))
        graph.lint()
        graph._tracer_cls = fx.Tracer
        used = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
        module = fx.GraphModule({name: part for name, part in self.parts.items() if name in used}, graph, "EditedNetwork")
        return module.requires_grad_(True).train(), self.alone

    def _compute(self, node: fx.Node, copied: fx.Node, leaf: int | None, value: dict[fx.Node, Any]) -> Any:
        args: Any = fx.node.map_arg(node.args, lambda n: value[n])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: value[n])
        if node.op == "placeholder":
            return torch.zeros(self.layers.images.shape, dtype=self.layers.images.dtype)
        if node.op == "get_attr":
            self.parts[str(node.target)] = self._tensor(node)
            return self.parts[str(node.target)]
        if node.op == "call_method":
            return getattr(args[0], str(copied.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return copied.target(*args, **kwargs)  # type: ignore[operator]
        if leaf is None:
            return None
        which = self.layers.leaves[leaf]
        name, number = which.name, 2
        while name in self.parts:  # a layer without weights that is called again
            name, number = f"{which.name}_{number}", number + 1
        layer = self._layer(node, leaf, which, value[node.all_input_nodes[0]])
        self.parts[name], copied.target = layer, name
        result = layer.eval()(*args, **kwargs)
        if result.ndim == 4 and 0 in result.shape:
            raise ImpossibleError(f"the map is gone after {name}")
        return result

    def _size(self, width: int) -> int:
        """Return the number of channels of a width after shrinking."""
        n, leader = self.widths.base(width), self.widths.leader(width)
        if leader is None:
            return n
        leaf = self.layers.leaves[leader]
        if self.width < 1:
            return max(_scaled(n, self.width), 1)
        return n if leaf.fixed else max(_scaled(n, self.factors[leader][3]), min(n, FEWEST))

    def _layer(self, node: fx.Node, index: int, leaf: Leaf, x: Tensor) -> nn.Module:
        if isinstance(leaf.module, CONVS):
            found: Any = self.widths.of[node]
            return self._conv(node, index, leaf.module, x.shape[1], x.shape[1] if leaf.follows else self._size(found.parts[0]))
        if isinstance(leaf.module, LINEAR):
            inputs, before = x.shape[-1], leaf.module.in_features
            least, most = min(LINEAR_INPUTS[0], before), max(LINEAR_INPUTS[1], before)
            if self.width == 1 and not leaf.pointwise and not least <= inputs <= most:
                raise ImpossibleError(f"{leaf.name} would read {inputs} numbers, and may read {least} to {most}")
            found = self.widths.of[node]
            out = self._size(found.parts[0])
            return _anew(leaf.module, {"weight": (out, inputs), "bias": (out,)}, in_features=inputs, out_features=out)
        if isinstance(leaf.module, (*NORMS, nn.PReLU)):
            # a norm over channels that lie last has them last in the network that it comes from too
            shown, found = node.all_input_nodes[0].meta["value"], self.widths.of[node]
            length = getattr(leaf.module, "normalized_shape", shown.shape[1:2])[0]
            dim = next((d for d in (found.dim if found else 1, 1, -1) if shown.shape[d] == length), 1)
            return _norm(leaf.module, x.shape[dim])
        made: Any = copy.deepcopy(leaf.module)
        if node.users and hasattr(made, "inplace"):
            made.inplace = False  # without the layer before it, it would change what others read
        return made

    def _conv(self, node: fx.Node, index: int, conv: nn.Conv2d, inputs: int, outputs: int) -> nn.Module:
        leaf, (_, fk, fs, _, fp) = self.layers.leaves[index], self.factors[index]
        groups = inputs if leaf.follows and conv.groups == conv.in_channels else math.gcd(conv.groups, inputs, outputs)
        kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
        if not leaf.fixed and not leaf.branch:
            kernel = tuple(max(_scaled(k, fk), 1) for k in kernel)
            stride = tuple(max(_scaled(s, fs), 1) for s in stride)
            padding = padding if isinstance(padding, str) else tuple(_scaled(p, fp) for p in padding)
        shapes: dict[str, tuple[int, ...]] = {"weight": (outputs, inputs // groups, *kernel), "bias": (outputs,)}
        changes = {
            "in_channels": inputs, "out_channels": outputs, "groups": groups, "kernel_size": kernel, "stride": stride, "padding": padding,
        }  # fmt: skip
        if isinstance(padding, tuple):
            changes["_reversed_padding_repeated_twice"] = tuple(p for p in reversed(padding) for _ in range(2))
        readers = [self.layers.index[reader] for reader in node.users if reader in self.layers.index]
        lost = conv.bias is None and any(isinstance(self.layers.leaves[i].module, NORMS) and not self.keep[i] for i in readers)
        self.alone += lost
        return _anew(conv, shapes, add=("bias",) if lost else (), **changes)

    def _tensor(self, node: fx.Node) -> Tensor:
        """Make a tensor that the network holds outside its layers: a factor begins at 1, a shift at 0, what is no weight stays."""
        held: Tensor = _attribute(self.layers.root, str(node.target))
        found = self.widths.of[node]
        shape = list(held.shape)
        if found is not None:
            shape[found.dim] = self._size(found.parts[0])
        if isinstance(held, nn.Parameter):
            return nn.Parameter(torch.full(shape, float(_multiplies(node)), dtype=held.dtype))
        if shape != list(held.shape) and found is not None:
            held = held.index_select(found.dim, torch.arange(shape[found.dim], device=held.device) % held.shape[found.dim])
        return held.detach().clone().to(torch.empty(0).device)


def _out_of_place(copied: fx.Node, node: fx.Node) -> None:
    """Let an operation in place make a new tensor: without the layer before it, it would change what others read."""
    if not node.users:
        return  # it is there for nothing but the change
    if copied.kwargs.get("inplace"):
        copied.kwargs = {**copied.kwargs, "inplace": False}
    if copied.op == "call_function" and copied.target in IN_PLACE:
        copied.target = IN_PLACE[copied.target]
    name = str(copied.target)
    if copied.op == "call_method" and name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name[:-1]):
        copied.target = name[:-1]


def _scaled(value: int, factor: float) -> int:
    return int(round(value * factor, 3))  # 10 * 0.9 in float32 is a little less than 9


def _anew(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]], add: Sequence[str] = (), **changes: Any) -> nn.Module:
    """Copy a layer with tensors of other shapes, drawn anew; its other tensors must have one entry a channel."""
    made: Any = copy.deepcopy(layer, {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())})
    for name, change in changes.items():
        setattr(made, name, change)
    width = next(iter(shapes.values()))[0]
    for kind in (made._parameters, made._buffers):
        for name, tensor in list(kind.items()):
            if tensor is None and name not in add:
                continue
            shape = shapes.get(name, tensor.shape if tensor is not None and tensor.ndim == 0 else None)
            if shape is None:
                shape = (width, *tensor.shape[1:])
            dtype = made.weight.dtype if tensor is None else tensor.dtype
            fresh = torch.zeros(shape, dtype=dtype) if kind is made._buffers else torch.ones(shape, dtype=dtype)
            kind[name] = fresh if kind is made._buffers else nn.Parameter(fresh)
    if hasattr(made, "reset_parameters"):
        made.reset_parameters()
    return made


def _norm(norm: nn.Module, channels: int) -> nn.Module:
    shapes = {"weight": (channels,)}
    if isinstance(norm, nn.LayerNorm):
        return _anew(norm, shapes, normalized_shape=(channels,))
    if isinstance(norm, nn.GroupNorm):
        return _anew(norm, shapes, num_channels=channels, num_groups=math.gcd(norm.num_groups, channels))
    if isinstance(norm, nn.PReLU):
        count = 1 if norm.num_parameters == 1 else channels
        return _anew(norm, {"weight": (count,)}, num_parameters=count)
    return _anew(norm, shapes, num_features=channels)


def _multiplies(node: fx.Node) -> bool:
    """Whether a tensor, or a view of it, is a factor."""
    reader = next(iter(node.users), None)
    while reader is not None and reader.target in ("view", "reshape", "unsqueeze", "to", torch.reshape):
        reader = next(iter(reader.users), None)
    return reader is not None and reader.target in PRODUCTS


def _attribute(root: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(root.get_submodule(parent), name)
