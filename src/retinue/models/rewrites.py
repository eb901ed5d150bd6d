"""Rewrites of a traced network that leave its outputs as they are, for evaluation.

- `fold_norms`: a batch norm in evaluation is a scale and a shift per channel, which the convolution or linear layer before it takes over;
- `fold_scales`: so is a constant that scales a convolution's result, as the residual scale of Inception-ResNet does;
- `pool_later`: an average pool of stride 1 and a 1x1 convolution commute; where the convolution makes fewer channels, it goes first;
- `merge_siblings`: 1x1 convolutions that read the same map and end with the same activation become one, whose result is split.

Each changes the graph, leaves recompiling to the caller, and returns how many layers it has touched.
"""

import collections
import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, Conv2dSame)  # exactly these: a subclass may do anything with its weight
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ACTIVATIONS: dict[str, tuple[Any, ...]] = {  # each as a module's class, as functions, and as methods' names
    "relu": (nn.ReLU, F.relu, torch.relu, "relu", "relu_"),
    "relu6": (nn.ReLU6, F.relu6),
    "silu": (nn.SiLU, F.silu),
    "hardswish": (nn.Hardswish, F.hardswish),
}
PRODUCTS = (operator.mul, torch.mul, "mul")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


def layer(net: fx.GraphModule, node: Any) -> Any:
    """Return the module that a node calls, or None."""
    return net.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def plain(module: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether a module is exactly of one of these classes and nothing is hooked to it (pruning and weight norm do so)."""
    return type(module) in kinds and not module._forward_hooks and not module._forward_pre_hooks


def put(net: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Make a node call another module, without touching other nodes that call the old one."""
    if sum(other.op == "call_module" and other.target == node.target for other in net.graph.nodes) > 1:
        node.target = f"{node.target}_{node.name}"
    net.add_submodule(str(node.target), module.eval())


def replace(net: fx.GraphModule, node: fx.Node, by: Any) -> None:
    """Let everyone who reads a node read another, and remove the first."""
    node.replace_all_uses_with(by)
    net.graph.erase_node(node)


def calls(node: fx.Node | None, functions: tuple[Any, ...]) -> bool:
    """Tell whether a node calls one of these functions, or methods of these names."""
    return node is not None and node.op in ("call_function", "call_method") and node.target in functions


def only_reader(node: fx.Node) -> fx.Node | None:
    """Return the one node that reads another, or None where there are more or fewer."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def activation(net: fx.GraphModule, node: fx.Node | None) -> str | None:
    """Name the activation that a node computes, one of `ACTIVATIONS`, or None."""
    module = layer(net, node)
    for name, forms in ACTIVATIONS.items():
        if calls(node, forms) or plain(module, forms[:1]):
            return name
    return None


def drop_identities(net: fx.GraphModule) -> None:
    """Take out the layers that do nothing in evaluation."""
    for node in list(net.graph.nodes):
        idle = calls(node, (F.dropout,)) and not node.kwargs.get("training", True)
        if (idle or plain(layer(net, node), IDENTITIES)) and node.args:
            replace(net, node, node.args[0])


def fold_norms(net: fx.GraphModule) -> int:
    """(W x + b - mean) gamma / sqrt(var + eps) + beta, as one layer."""
    count = 0
    for node in list(net.graph.nodes):
        norm, inner = layer(net, node), _input(node)
        if not plain(norm, NORMS) or norm.running_var is None or inner is None or not _folds(net, inner):
            continue
        act = getattr(norm, "act", None) or nn.Identity()
        if not isinstance(getattr(norm, "drop", None) or nn.Identity(), IDENTITIES):
            continue
        gamma = 1.0 if norm.weight is None else norm.weight.double()
        beta = 0.0 if norm.bias is None else norm.bias.double()
        factor = (norm.running_var.double() + norm.eps).rsqrt() * gamma
        put(net, inner, _affine(layer(net, inner), factor, beta - norm.running_mean.double() * factor))
        if isinstance(act, nn.Identity):
            replace(net, node, inner)
        else:
            put(net, node, act)
        count += 1
    return count


def fold_scales(net: fx.GraphModule) -> int:
    """s (W x + b), and the same written as torch.add(y, W x + b, alpha=s)."""
    count = 0
    for node in list(net.graph.nodes):
        scaled_sum = calls(node, SUMS) and "alpha" in node.kwargs
        if not (scaled_sum or calls(node, PRODUCTS)) or len(node.args) != 2:
            continue
        inner, scale = (node.args[1], node.kwargs["alpha"]) if scaled_sum else node.args
        inner, scale = (inner, scale) if isinstance(inner, fx.Node) else (scale, inner)
        if not isinstance(scale, (int, float)) or not _folds(net, inner):
            continue
        put(net, inner, _affine(layer(net, inner), torch.tensor(float(scale), dtype=torch.float64), None))
        if scaled_sum:
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "alpha"}
        else:
            replace(net, node, inner)
        count += 1
    return count


def pool_later(net: fx.GraphModule) -> int:
    """A mean over places and a map of channels commute, the bias too: the mean of a constant is that constant."""
    count = 0
    for conv in list(net.graph.nodes):
        pool = _input(conv)
        source = _input(pool) if pool is not None and only_reader(pool) is conv else None
        if pool is not None and source is not None and _commute(layer(net, pool), layer(net, conv)) and not _changed_in_place(net, source):
            conv.replace_all_uses_with(pool)
            conv.args, pool.args = (source,), (conv,)
            conv.append(pool)
            count += 1
    return count


def merge_siblings(net: fx.GraphModule) -> int:
    """[W1; W2] x holds W1 x and W2 x."""
    count = 0
    for source in list(net.graph.nodes):
        groups = collections.defaultdict(list)
        readers = [] if _changed_in_place(net, source) else list(source.users)
        for conv in readers:
            module = layer(net, conv)
            if _is_1x1(module):
                act = only_reader(conv)
                kind = activation(net, act)
                groups[module.stride, kind].append((conv, act if act is not None and kind else conv))
        for group in groups.values():
            if len(group) > 1:
                _merge(net, group)
                count += len(group)
    return count


def _merge(net: fx.GraphModule, group: list[tuple[fx.Node, fx.Node]]) -> None:
    """Put one convolution in place of several; each pair is a convolution and the node whose result the others read."""
    first, last = group[0]
    convs = [layer(net, conv) for conv, _ in group]
    merged = copy.deepcopy(convs[0])
    merged.out_channels = sum(conv.out_channels for conv in convs)
    merged.weight = _constant(torch.cat([conv.weight for conv in convs]))
    if any(conv.bias is not None for conv in convs):
        merged.bias = _constant(torch.cat([conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias for conv in convs]))
    name = f"{first.name}_merged"
    net.add_submodule(name, merged)
    with net.graph.inserting_before(min(conv for conv, _ in group)):
        one = net.graph.call_module(name, first.args)
        end = one if last is first else net.graph.create_node(last.op, last.target, (one, *last.args[1:]), dict(last.kwargs))
        split = net.graph.call_function(torch.split, (end, [conv.out_channels for conv in convs], 1))
        parts = [net.graph.call_function(operator.getitem, (split, i)) for i in range(len(convs))]
    for part, (conv, node) in zip(parts, group):
        replace(net, node, part)
        if node is not conv:
            net.graph.erase_node(conv)


def _affine(module: Any, factor: Tensor, shift: Tensor | None) -> nn.Module:
    """Copy a layer with its results multiplied by `factor` and moved by `shift`, per channel or for all; computed in float64."""
    new = copy.deepcopy(module)
    weight = module.weight
    new.weight = _constant((weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype))
    if module.bias is not None:
        shift = module.bias.double() * factor + (0.0 if shift is None else shift)
    new.bias = None if shift is None else _constant(shift.to(weight.dtype))
    return new


def _commute(pool: Any, conv: Any) -> bool:
    """Tell whether a convolution may go before an average pool, and makes less work there."""
    if not plain(pool, (nn.AvgPool2d,)) or not _is_1x1(conv) or conv.stride != (1, 1) or conv.out_channels >= conv.in_channels:
        return False
    whole = pool.padding in (0, (0, 0)) or not pool.count_include_pad  # each window is divided by the number of its pixels
    return whole and pool.divisor_override is None and pool.stride in (1, (1, 1))


def _input(node: fx.Node) -> fx.Node | None:
    """Return the only argument of a node."""
    only = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)
    return node.args[0] if only else None  # type: ignore[return-value]


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


def _folds(net: fx.GraphModule, node: Any) -> bool:
    """Tell whether a node is a layer whose result has one reader and whose weight may be changed."""
    return plain(layer(net, node), FOLDABLE) and only_reader(node) is not None


def _is_1x1(module: Any) -> bool:
    unpadded = plain(module, (nn.Conv2d,)) and module.padding in ((0, 0), "valid", "same")
    return unpadded and module.kernel_size == (1, 1) and module.groups == 1


def _changed_in_place(net: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether one of a node's readers writes into what it reads, so that the order of readers matters."""
    for user in node.users:
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        inplace = getattr(layer(net, user), "inplace", False) or user.kwargs.get("inplace", False)
        method = user.op == "call_method" and name.endswith("_") and not name.endswith("__")
        if inplace or method or (user.op == "call_function" and name.startswith("i") and hasattr(operator, f"__{name}__")):
            return True
    return False
