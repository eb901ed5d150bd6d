"""Small images in networks that were made for large ones: the first strides are lowered until the last map is at least 4x4.

Kernels keep their shape, so published weights still load. Everything is found by watching one pass of an image of the network's own size
on the meta device, where nothing is computed; so it holds for any family of networks, and where it does not, it says so.
"""

import math
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn

LEAST_SIDE = 4  # of the last map
POOLS = (nn.MaxPool2d, nn.AvgPool2d)


class CannotAdaptError(Exception):
    """The network cannot be changed so that it takes such images; the text says why."""


class Step(NamedTuple):
    """A layer that makes maps smaller: its name, the sides before and after it, and whether a layer before it did its padding."""

    name: str
    layer: Any
    before: int
    after: int
    padded: bool

    @property
    def factor(self) -> int:
        """By how much the map shrinks; 1 for a layer that only loses its border."""
        return max(1, round(self.before / self.after))


def adapt_strides(model: Any, in_chans: int, size: tuple[int, int], own: tuple[int, int] | None = None) -> list[str]:
    """Lower the first strides of a network in place until its last map is at least 4x4 at this size of image.

    Layers side by side that shrink the same map are lowered together. Pools that would keep the map's size become the identity.

    Args:
        model: the network.
        in_chans: channels of the images.
        size: height and width of the images.
        own: the size that the network was built for; None is the one that its `default_cfg` names.

    Returns:
        What was changed, in words; empty where nothing had to be.

    Raises:
        CannotAdaptError: if the last map stays too small or the network does not run at this size.
    """
    sides, trouble = last_sides(model, in_chans, size)
    if min(sides) >= LEAST_SIDE:
        return []
    own = own or model.default_cfg["input_size"][-2:]
    steps = _watch(model, in_chans, own)
    notes = _keep_borders(model, in_chans, own, steps)
    cuts: list[tuple[float, int]] = []  # (stride of the whole network behind the lowered layers, by how much they were lowered)
    for side in dict.fromkeys(step.after for step in steps if step.factor > 1):  # in the order of computation
        twins = [step for step in steps if step.after == side and step.factor > 1]
        stride = factor = twins[0].factor
        while stride > 1 and min(sides) < LEAST_SIDE:
            stride //= 2
            for step in twins:
                _set_stride(step, max(1, stride * step.factor // factor))
            sides, trouble = last_sides(model, in_chans, size)
        if stride < factor:
            notes += [f"{step.name}: stride {step.factor} -> {stride}{_fate(step.layer)}" for step in twins]
            cuts.append((own[0] / side, factor // max(1, stride)))
    if min(sides) < LEAST_SIDE:
        raise CannotAdaptError(
            f"its layers do not fit together ({trouble})"
            if trouble
            else f"its last map would be {sides[0]}x{sides[1]}, and less than {LEAST_SIDE}x{LEAST_SIDE} is too coarse"
        )
    _correct_reductions(model, cuts)
    return notes


class _Pass(nn.Module):
    """Features and head of a network in one call; returns the features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        model: Any = self.model
        x = model.forward_features(images) if hasattr(model, "forward_features") else model(images)
        if hasattr(model, "forward_head"):
            model.forward_head(x)
        return x


def last_sides(model: Any, in_chans: int, size: tuple[int, int]) -> tuple[tuple[int, int], str]:
    """Find height and width of the last map for this size of image, without computing anything; the network is left as it was.

    Returns:
        The sides (a sequence of tokens counts as a square; 0 where the network does not run) and what went wrong.
    """
    whole = _Pass(model)
    shapes = {name: tensor.detach().to("meta") for name, tensor in chain(whole.named_parameters(), whole.named_buffers())}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            x: Any = torch.func.functional_call(whole, shapes, torch.empty(2, in_chans, *size, device="meta"))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError) as error:
        return (0, 0), " ".join(str(error).split())[:200] or type(error).__name__
    finally:
        for module, mode in modes:
            module.training = mode
    while isinstance(x, (list, tuple)):
        x = x[-1]
    if x.ndim == 3:
        side = math.isqrt(x.shape[1] - getattr(model, "num_prefix_tokens", 0))
        return (side, side), ""
    if x.ndim != 4:
        return (0, 0), "it ends in no map of features"
    last = is_channels_last(x, getattr(model, "num_features", None))
    return (x.shape[1], x.shape[2]) if last else (x.shape[2], x.shape[3]), ""


def is_channels_last(x: Tensor, num_features: Any) -> bool:
    """Tell whether a 4-D map is laid out as batch, height, width, channels, as in timm's Swin."""
    return x.shape[1] != num_features and x.shape[3] == num_features


def _watch(model: nn.Module, in_chans: int, size: tuple[int, int]) -> list[Step]:
    """List the layers that make maps smaller when an image of this size passes, in the order of computation."""
    steps: list[Step] = []
    padding_outputs: set[int] = set()
    alive: list[Tensor] = []  # keeps ids unique while we look

    def look(name: str, layer: nn.Module, x: Any, y: Any) -> None:
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim == y.ndim == 4):
            return
        alive.append(y)
        if isinstance(layer, (nn.ConstantPad2d, nn.ZeroPad2d)):
            padding_outputs.add(id(y))
        elif isinstance(layer, (nn.Conv2d, *POOLS, BlurPool2d)) and 1 < y.shape[-1] < x.shape[-1]:
            steps.append(Step(name, layer, x.shape[-1], y.shape[-1], id(x) in padding_outputs))

    hooks = [
        layer.register_forward_hook(lambda layer, args, y, name=name: look(name, layer, args[0] if args else None, y))
        for name, layer in model.named_modules()
        if not list(layer.children()) or isinstance(layer, BlurPool2d)
    ]
    try:
        last_sides(model, in_chans, size)
    finally:
        for hook in hooks:
            hook.remove()
    return steps


def _keep_borders(model: nn.Module, in_chans: int, own: tuple[int, int], steps: list[Step]) -> list[str]:
    """Pad the layers that lose their border for want of padding: a small map cannot afford it.

    Layers side by side are padded together, and only where the network still runs: what stands beside them may be no layer.
    """
    padded = []
    for _, together in groupby(steps, key=lambda step: (step.before, step.after)):
        losing = [step for step in together if _loses_border(step)]
        before = [step.layer.padding for step in losing]
        for step in losing:
            step.layer.padding = tuple((k - 1) // 2 for k in _both(step.layer.kernel_size))
        if losing and min(last_sides(model, in_chans, own)[0]) == 0:
            for step, padding in zip(losing, before):
                step.layer.padding = padding
            losing = []
        padded += [step.name for step in losing]
    return [f"{', '.join(padded)}: padded, so that the map keeps its border"] if padded else []


def _loses_border(step: Step) -> bool:
    kernel, stride, padding = (_both(getattr(step.layer, key, 0)) for key in ("kernel_size", "stride", "padding"))
    loses = step.after == (step.before - kernel[-1]) // stride[-1] + 1 and step.after < -(-step.before // stride[-1])
    return loses and padding == (0, 0) and not step.padded and kernel > stride


def _set_stride(step: Step, stride: int) -> None:
    layer = step.layer
    kernel = _both(getattr(layer, "kernel_size", 1))
    layer.stride = (stride, stride)
    if isinstance(layer, POOLS):
        if stride == 1 and not step.padded:
            layer.kernel_size, layer.padding = (1, 1), (0, 0)
    elif isinstance(layer, BlurPool2d):
        layer.stride = stride
    elif not (step.padded or type(layer).__name__.endswith("Same") or getattr(layer, "same_pad", False)):  # others pad for or in these
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, _both(layer.dilation))]
        if stride == 1 and any(span % 2 == 0 for span in spans):
            layer.padding = "same"  # an even kernel needs one more pixel on one side
        else:
            layer.padding = tuple(-(-max(0, span - stride) // 2) for span in spans)


def _fate(layer: nn.Module) -> str:
    return " (removed)" if isinstance(layer, POOLS) and _both(layer.kernel_size) == (1, 1) else ""


def _both(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)


def _correct_reductions(model: nn.Module, cuts: list[tuple[float, int]]) -> None:
    """Divide the strides that `feature_info` states by what was taken away before each tap."""
    info = getattr(model, "feature_info", [])
    for tap in info if isinstance(info, list) else info.info:
        behind = [cut for stride, cut in cuts if stride < tap["reduction"] * 1.42]  # nets without padding reach 299 / 35 = 8.5 at stride 8
        tap["reduction"] = tap["reduction"] // math.prod(behind) or 1
