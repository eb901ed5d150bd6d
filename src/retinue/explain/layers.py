"""Where in a network a map can be taken: the last layer that has one, found by watching a pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retinue.engine.modes import evaluating
from retinue.errors import ShapeError
from retinue.models.feature_maps import as_map, layout


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
