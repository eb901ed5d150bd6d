"""Where in a network a map can be taken: any layer's output laid out as one, and the last layer that has one, found by watching a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retinue.engine.modes import evaluating
from retinue.errors import ShapeError

PREFIXES = (0, 1, 2, 5)  # tokens before the patches: none, class, class and distillation, class and four registers


def as_map(
    output: Tensor, size: tuple[int, int], prefix_tokens: int | None = None, channels_last: bool = False
) -> Float[Tensor, "batch channels mapheight mapwidth"] | None:
    """Lay out what a layer gave as a map, or return None where it has no spatial extent.

    Maps may have the channels first or last (the layout in which height and width go with the image's is taken); tokens (batch, tokens,
    channels) become a grid in the image's proportions, and those that stand for no place are left out.

    Args:
        output: of one layer.
        size: height and width of the image.
        prefix_tokens: tokens before the patches, where the network says so; otherwise the usual numbers are tried.
        channels_last: which layout to take where both would do.

    >>> as_map(torch.zeros(2, 50, 8), (28, 28)).shape  # a class token and 7x7 patches
    torch.Size([2, 8, 7, 7])
    >>> as_map(torch.zeros(2, 10), (28, 28)) is None
    True
    """
    if output.ndim == 4:
        first, last = _fits(output.shape[2:4], size), _fits(output.shape[1:3], size)
        if last and (channels_last or not first):
            return output.permute(0, 3, 1, 2)
        return output if first else None
    if output.ndim == 3:
        prefixes = PREFIXES if prefix_tokens is None else (prefix_tokens, *PREFIXES)
        grids = [(prefix, grid) for prefix in prefixes if (grid := _grid(output.shape[1] - prefix, size)) is not None]
        if grids:  # the one of the best proportions; of equals, the first
            prefix, grid = min(grids, key=lambda one: abs(one[1][0] * size[1] - one[1][1] * size[0]))
            return output[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return None


def layout(model: nn.Module) -> dict[str, Any]:
    """Return what a network says of its own layers' layout: the last two arguments of `as_map`."""
    said = [part.num_prefix_tokens for part in model.modules() if hasattr(part, "num_prefix_tokens")]
    last = any("NHWC" in str(getattr(part, "output_fmt", "")) for part in model.modules())
    return {"prefix_tokens": said[0] if said else None, "channels_last": last}


def last_map(model: nn.Module, images: Float[Tensor, "batch channels height width"]) -> str:
    """Find the last layer with a map of which the output depends place by place.

    In a transformer that reads its class token alone, the patches behind the last attention change nothing; the layer is then the one
    of the same width before it, which is the input of that attention.

    Args:
        model: any network.
        images: a trial; two copies of the first are run.

    Returns:
        The layer's name in `model.named_modules()`.

    Raises:
        ShapeError: if no layer has a map, as in a multi-layer perceptron.
    """
    size, hints = (images.shape[-2], images.shape[-1]), layout(model)
    outputs: dict[str, Tensor] = {}

    def look(name: str, output: Any) -> None:
        outputs.pop(name, None)  # a layer that runs twice counts where it runs last
        if isinstance(output, Tensor) and output.is_floating_point() and len(output) == 2 and as_map(output, size, **hints) is not None:
            outputs[name] = output

    hooks = [part.register_forward_hook(lambda part, args, y, name=name: look(name, y)) for name, part in model.named_modules() if name]
    try:
        with evaluating(model), recording(), frozen(model):
            # two images: what depends on the parameters alone, such as a bias of attention, has no batch of two
            trial = images[:1].detach().repeat(2, 1, 1, 1).requires_grad_()
            given = [y for y in tree_leaves(model(trial.clone())) if isinstance(y, Tensor) and y.requires_grad]
            dense = [y.shape[1] for y in given if y.ndim == 4]  # a map of logits explains nothing
            found = {name: y for name, y in outputs.items() if as_map(y, size, **hints).shape[1] not in dense}  # type: ignore[union-attr]
            # any mixture of the outputs will do, but a plain sum: that of probabilities does not move
            mixed = [(y * torch.linspace(1, 2, y.numel(), device=y.device, dtype=y.dtype).view_as(y)).sum() for y in given]
            moving = {name: y for name, y in found.items() if y.requires_grad}
            slopes = torch.autograd.grad(sum(mixed), list(moving.values()), allow_unused=True) if mixed and moving else ()  # type: ignore[arg-type]
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ShapeError(
            f"GradCAM: no layer of {type(model).__name__} gives a map with height and width. "
            'Take variant="gradient", which needs the image alone, or name a layer.'
        )
    last = next(reversed(found))
    like = (found[last].ndim, as_map(found[last], size, **hints).shape[1])  # type: ignore[union-attr]
    for (name, y), slope in reversed(list(zip(moving.items(), slopes))):
        place = None if slope is None else as_map(slope, size, **hints)
        if place is not None and (y.ndim, place.shape[1]) == like and bool((place != 0).any()):
            return name
    return last


@contextmanager
def recording() -> Iterator[None]:
    """Record gradients whatever the caller has switched off: `no_grad` and `inference_mode` alike."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient, so that nothing is kept for theirs; on leaving, each has the flag that it had."""
    flagged = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in flagged:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in flagged:
            parameter.requires_grad_(True)


def _fits(sides: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Tell whether height and width are those of a map of the image: the same proportions, up to a rounding of one."""
    height, width = sides
    return height * width > 1 and abs(height * size[1] - width * size[0]) < max(size)


def _grid(places: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Find the height and width of a grid of so many places in the image's proportions."""
    if places < 2:
        return None
    ideal = round((places * size[0] / size[1]) ** 0.5)
    for height in (ideal, ideal - 1, ideal + 1):
        if height > 0 and places % height == 0 and _fits((height, places // height), size):
            return height, places // height
    return None
