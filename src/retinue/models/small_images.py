"""Small images in networks that were made for large ones: the first strides are lowered until the last map is at least 4x4.

Kernels keep their shape, so published weights still load. Everything is found by watching one pass of an image of the network's own size,
in which nothing is computed; so it holds for any family of networks, and where it does not, it says so.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

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


def adapt_strides(model: Any, in_chans: int, size: tuple[int, int]) -> list[str]:
    """Lower the first strides of a network in place until its last map is at least 4x4 at this size of image.

    Layers side by side that shrink the same map are lowered together. Pools that would keep the map's size become the identity.

    Args:
        model: the network; its `default_cfg` names the size that it was made for.
        in_chans: channels of the images.
        size: height and width of the images.

    Returns:
        What was changed, in words; empty where nothing had to be.

    Raises:
        CannotAdaptError: if the last map stays too small or the network does not run at this size.
    """
    sides, trouble = last_sides(model, in_chans, size)
    if min(sides) >= LEAST_SIDE:
        return []
    own = model.default_cfg["input_size"][-2:]
    steps = _watch(model, in_chans, own)
    notes = _keep_borders(steps)
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
            trouble or f"its last map would be {sides[0]}x{sides[1]}, and less than {LEAST_SIDE}x{LEAST_SIDE} is too coarse"
        )
    _correct_reductions(model, cuts)
    return notes


def last_sides(model: Any, in_chans: int, size: tuple[int, int]) -> tuple[tuple[int, int], str]:
    """Find height and width of the last map for this size of image, without computing anything.

    Returns:
        The sides (a sequence of tokens counts as a square; 0 where the network does not run) and what went wrong.
    """
    try:
        with _pretending(model):
            images = torch.empty(2, in_chans, *size, device=next(model.parameters()).device)
            x: Any = model.forward_features(images) if hasattr(model, "forward_features") else model(images)
            if hasattr(model, "forward_head"):
                model.forward_head(x)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError) as error:
        return (0, 0), " ".join(str(error).split())[:200] or type(error).__name__
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


@contextlib.contextmanager
def _pretending(model: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode on tensors that have shapes and no values; its modes are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


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


def _keep_borders(steps: list[Step]) -> list[str]:
    """Pad the layers that lose their border for want of padding: a small map cannot afford it."""
    padded = []
    for step in steps:
        kernel, stride, padding = (_both(getattr(step.layer, key, 0)) for key in ("kernel_size", "stride", "padding"))
        loses = step.after == (step.before - kernel[-1]) // stride[-1] + 1 and step.after < -(-step.before // stride[-1])
        if loses and padding == (0, 0) and not step.padded and kernel > stride:
            step.layer.padding = tuple((k - 1) // 2 for k in kernel)
            padded.append(step.name)
    return [f"{', '.join(padded)}: padded, so that the map keeps its border"] if padded else []


def _set_stride(step: Step, stride: int) -> None:
    layer = step.layer
    kernel = _both(getattr(layer, "kernel_size", 1))
    layer.stride = (stride, stride)
    if isinstance(layer, POOLS):
        if stride == 1 and not step.padded:
            layer.kernel_size, layer.padding = (1, 1), (0, 0)
    elif isinstance(layer, BlurPool2d):
        layer.stride = stride
    elif not type(layer).__name__.endswith("Same") and not getattr(layer, "same_pad", False):  # those pad while they run
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, _both(layer.dilation))]
        if stride == 1 and any(span % 2 == 0 for span in spans):
            layer.padding = "same"  # an even kernel needs one more pixel on one side
        else:
            layer.padding = tuple(-(-max(0, span - stride) // 2) for span in spans)


def _fate(layer: nn.Module) -> str:
    return " (removed)" if isinstance(layer, POOLS) and _both(layer.kernel_size) == (1, 1) else ""


def _both(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _correct_reductions(model: nn.Module, cuts: list[tuple[float, int]]) -> None:
    """Divide the strides that `feature_info` states by what was taken away before each tap."""
    info = getattr(model, "feature_info", [])
    for tap in info if isinstance(info, list) else info.info:
        behind = [cut for stride, cut in cuts if stride < tap["reduction"] * 1.42]  # nets without padding reach 299 / 35 = 8.5 at stride 8
        tap["reduction"] = tap["reduction"] // math.prod(behind) or 1
