"""Which channels of a network belong to which of its parts.

A trial image is sent through the network once for each part, with everything that this part computes made NaN. A layer whose inputs are
NaN everywhere mixes the parts: such a network cannot be put together from narrower ones.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retinue.errors import ArgumentError

LAYERS = (nn.Conv2d, nn.Linear)
PER_CHANNEL = (nn.modules.batchnorm._BatchNorm,)
OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)
NORMS = (*PER_CHANNEL, *OVER_CHANNELS)


@dataclass
class Place:
    """What the probe finds of a layer or norm.

    Attributes:
        owners: of each channel of its input, the part that it belongs to; None where the input is the image's.
        fixed_out: whether all parts share its outputs, as of a classifier.
    """

    owners: list[int] | None
    fixed_out: bool = False

    @property
    def order(self) -> list[int] | None:
        """Where each input channel lies among the channels of the parts, one part behind the other."""
        if self.owners is None:
            return None
        seen: dict[int, int] = {}
        each = len(self.owners) // len(set(self.owners))
        order = []
        for owner in self.owners:
            order.append(owner * each + seen.get(owner, 0))
            seen[owner] = seen.get(owner, 0) + 1
        return order


def channel_dim(module: nn.Module, x: Tensor) -> int:
    """Return which dimension of a layer's input or output holds channels."""
    if isinstance(module, nn.Linear):
        return -1
    if isinstance(module, nn.LayerNorm):
        return 1 if "2d" in type(module).__name__ else -1  # timm's LayerNorm2d has the channels in front
    return 1


def probe(network: nn.Module, parts: int, sizes: tuple[int, int, int]) -> dict[str, Place]:
    """Find which part each input channel of each layer and norm belongs to.

    Nothing is computed by the layers: only the shapes of what they return are taken, so the network may lie on the meta device.

    Args:
        network: with timm's protocol; its classifier's outputs are shared by all parts.
        parts: into how many equal parts widths are divided.
        sizes: channels, height and width of the images.

    Returns:
        A place for each layer and norm that runs, by name.

    Raises:
        ArgumentError: naming the layer that mixes the parts, or that cannot be divided.
    """
    classifier = network.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear | nn.Conv2d):
        raise ArgumentError(f"convert: the network has no classifier ({type(classifier).__name__}). Build it with num_classes.")
    last = next(name for name, module in network.named_modules() if module is classifier)
    for name, module in network.named_modules():
        if isinstance(module, LAYERS):
            divisible(name, module, parts, name == last)
    runs: list[dict[str, Tensor]] = []
    with torch.device("cpu"), torch.no_grad():  # also where networks are built on meta: marks have to be read
        marked = skeleton(network).eval()
        named = {name: module for name, module in marked.named_modules() if isinstance(module, (*LAYERS, *NORMS))}
        for part in range(parts):
            seen: dict[str, Tensor] = {}
            for name, module in named.items():
                mark = partial(_mark, module, name=name, part=part, parts=parts, seen=seen, last=name == last)
                module.forward = mark  # type: ignore[method-assign]
            marked(torch.ones(2, *sizes))
            runs.append(seen)
    return {name: _place(name, named[name], [run[name] for run in runs], parts, name == last) for name in runs[0]}


def skeleton(network: nn.Module) -> nn.Module:
    """Copy a network whose layers and norms lie on the meta device, and all other tensors on the CPU.

    Args:
        network: on any device; what it has on meta is filled with ones.
    """
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, (*LAYERS, *NORMS)):
            module.to("meta")
            continue
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    value = torch.ones_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()
                    tensors[key] = nn.Parameter(value, requires_grad=False) if tensors is module._parameters else value  # type: ignore[assignment]
    return copied


def divisible(name: str, layer: nn.Module, parts: int, last: bool) -> None:
    """Refuse a layer whose outputs or groups cannot be divided."""
    outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else int(layer.out_features)  # type: ignore[arg-type]
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    what = f"{groups} groups" if groups > 1 and groups % parts else f"{outputs} outputs" if not last and outputs % parts else ""
    if what:
        raise ArgumentError(
            f"convert: the {what} of `{name}` cannot be divided into {parts} equal parts. Choose widths and groups that can, or another "
            "`member_frac`."
        )


def _mark(
    module: nn.Module, x: Tensor, *args: Any, name: str, part: int, parts: int, seen: dict[str, Tensor], last: bool, **options: Any
) -> Tensor:
    """Stand in for a layer's or norm's forward pass: note which channels are NaN, and make those NaN that the part computes."""
    nan = x.isnan()
    dim = channel_dim(module, x) % x.ndim
    each = nan.transpose(0, dim).flatten(1)
    whole = each.all(1)
    if bool((whole != each.any(1)).any()):
        raise _mixes(name, module)
    if name in seen and not torch.equal(seen[name], whole):
        raise ArgumentError(f"convert: `{name}` is called several times, with other channels each time. Give each call a layer of its own.")
    seen[name] = whole
    if isinstance(module, NORMS):  # also of norms over channels, where NaN would reach the other parts through mean and variance
        return torch.where(nan, torch.nan, torch.ones_like(x))
    y = torch.ones_like(type(module).forward(module, x.to("meta"), *args, **options), device="cpu")
    if last:
        return y
    dim = channel_dim(module, y) % y.ndim
    width = y.shape[dim] // parts
    y.narrow(dim, part * width, width).fill_(torch.nan)
    return y


def _place(name: str, module: nn.Module, marks: list[Tensor], parts: int, last: bool) -> Place:
    table = torch.stack(marks)
    if not bool(table.any()):
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            raise ArgumentError(f"convert: `{name}` works in groups on the image, whose channels all members see. Take another stem.")
        return Place(None, last)
    owners = table.int().argmax(0)
    each = table.shape[1] // parts
    if bool((table.sum(0) != 1).any()) or any(int((owners == part).sum()) != each for part in range(parts)):
        raise _mixes(name, module)
    if isinstance(module, nn.Conv2d) and module.groups > 1 and owners.tolist() != sorted(owners.tolist()):
        raise ArgumentError(f"convert: the groups of `{name}` reach over several parts of its inputs, which are not in order.")
    return Place(owners.tolist(), last)


def _mixes(name: str, module: nn.Module) -> ArgumentError:
    return ArgumentError(
        f"convert: what enters `{name}` ({type(module).__name__}) mixes channels of several parts, or tokens (attention, class tokens, "
        "gates that split channels, norms that are not torch's), so narrow networks cannot be put together to this one. Take a network of "
        "convolutions, linear layers and norms."
    )


def grid(layer: nn.Module, place: Place, parts: int) -> tuple[int, int]:
    """Return in how many parts the outputs and the inputs of a layer's weight come."""
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return 1 if place.fixed_out else parts, 1 if place.owners is None or grouped else parts
