"""Convolution, sum and activation as one call of oneDNN, with the weight laid out beforehand: the "torch" backend on CPUs."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from retinue.models.rewrites import SUMS, activation, calls, layer, only_reader, plain, put

KEPT = 2  # layouts of a weight that are kept: for full batches, and for the last one
FUSED: dict[str | None, tuple[str, list[float], Any]] = {  # oneDNN's name and numbers of each activation, and torch's function
    None: ("none", [], lambda x: x),
    "relu": ("relu", [], F.relu),
    "relu6": ("hardtanh", [0.0, 6.0], F.relu6),
    "silu": ("swish", [], F.silu),
    "hardswish": ("hardswish", [], F.hardswish),
}


class FusedConv(nn.Module):
    """act(conv(x) + other), for maps with the channels last.

    oneDNN picks the layout of a weight for the shape of the images, so it is made when a shape first comes. Where oneDNN cannot compute it
    (another device or type of number, or a gradient is wanted), torch's own functions do.

    Args:
        conv: the convolution.
        act: the name of the activation, or None; where something is added, only "relu" or None.
    """

    def __init__(self, conv: nn.Conv2d, act: str | None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride: list[int] = list(conv.stride)
        self.padding: list[int] = list(conv.padding)  # type: ignore[arg-type]
        self.dilation: list[int] = list(conv.dilation)
        self.groups, self.act = conv.groups, act
        self._packed: dict[torch.Size, Tensor] = {}

    def forward(
        self, x: Float[Tensor, "batch channels height width"], other: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "batch filters newheight newwidth"]:
        """Compute the map.

        Args:
            x: the map that the convolution reads.
            other: what is added before the activation.
        """
        name, numbers, function = FUSED[self.act]
        if not self._can_pack(x) or (other is not None and other.shape != self._shape(x)):
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return function(y if other is None else y + other)
        x = x.contiguous(memory_format=torch.channels_last)
        settings = (self._pack(x.shape), self.bias, self.padding, self.stride, self.dilation, self.groups)
        if other is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *settings, name, numbers, "")
        other = other.contiguous(memory_format=torch.channels_last)
        unary = None if self.act is None else name
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *settings, "add", 1.0, unary, numbers, "")

    def extra_repr(self) -> str:
        """Show what the weights do not."""
        return f"{tuple(self.weight.shape)}, stride={tuple(self.stride)}, act={self.act}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": {}}  # oneDNN's layouts can be neither copied nor stored

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._packed.clear()
        super()._load_from_state_dict(*args)

    def _can_pack(self, x: Tensor) -> bool:
        on_cpu = x.device.type == self.weight.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        gradient = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return bool(on_cpu and not traced and not gradient and x.numel() > 0 and torch.backends.mkldnn.enabled and works())

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        window = zip(x.shape[2:], self.weight.shape[2:], self.padding, self.stride, self.dilation)
        return (x.shape[0], self.weight.shape[0], *((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, p, s, d in window))

    def _pack(self, shape: torch.Size) -> Tensor:
        packed = self._packed.get(shape)
        if packed is None:
            while len(self._packed) >= KEPT:
                self._packed.pop(next(iter(self._packed)))
            packed = _packed(self.weight, self.padding, self.stride, self.dilation, self.groups, shape)
            self._packed[shape] = packed
        return packed


@functools.cache
def works() -> bool:
    """Try whether this build of torch has oneDNN with the calls that are needed: they are torch's own, and may change."""
    x = torch.linspace(-1, 1, 18, dtype=torch.float32).reshape(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    weight = torch.tensor([[1.0, 2.0], [3.0, -4.0]], dtype=torch.float32).reshape(2, 2, 1, 1)
    settings = (torch.ones(2, dtype=torch.float32), [0, 0], [1, 1], [1, 1], 1)
    try:
        packed = _packed(weight, *settings[1:], x.shape)
        alone = torch.ops.mkldnn._convolution_pointwise(x, packed, *settings, "none", [], "")
        added = torch.ops.mkldnn._convolution_pointwise.binary(x, x, packed, *settings, "add", 1.0, "relu", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    y = F.conv2d(x, weight, settings[0])
    return torch.allclose(alone, y, atol=1e-5) and torch.allclose(added, F.relu(y + x), atol=1e-5)


def use_onednn(net: fx.GraphModule) -> int:
    """Put `FusedConv` in place of a traced network's convolutions, and of the sums and activations behind them; return how many."""
    place = {node: i for i, node in enumerate(net.graph.nodes)}
    count = 0
    for node in list(net.graph.nodes):
        conv = layer(net, node)
        if not plain(conv, (nn.Conv2d,)) or isinstance(conv.padding, str) or conv.padding_mode != "zeros" or len(node.args) != 1:
            continue
        chain, added = [node], []
        after = only_reader(node)
        if after is not None and calls(after, SUMS) and len(after.args) == 2 and not after.kwargs:
            added = [
                term for term in after.args if isinstance(term, fx.Node) and place[term] < place[node]
            ]  # there when the convolution runs
            if added:
                chain.append(after)
                after = only_reader(after)
        act = activation(net, after)
        if added and act != "relu":  # behind a sum, torch offers no other
            act = None
        if after is not None and act is not None:
            chain.append(after)
        put(net, node, FusedConv(conv, act))
        if len(chain) > 1:
            chain[-1].replace_all_uses_with(node)
        for absorbed in reversed(chain[1:]):
            net.graph.erase_node(absorbed)
        node.args = (*node.args, *added)
        count += 1
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return count


def _packed(weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, shape: torch.Size) -> Tensor:
    blocked = weight.detach().contiguous(memory_format=torch.channels_last).to_mkldnn()
    return torch._C._nn.mkldnn_reorder_conv2d_weight(blocked, padding, stride, dilation, groups, list(shape))  # type: ignore[call-arg]
