"""Gradient caching: the loss of a very large batch with the memory of a small one (Gao et al. 2021, arXiv 2101.06983)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retinue.errors import ArgumentError


def in_chunks(
    embed: Callable[[Tensor], Tensor], images: Float[Tensor, "images ..."], chunk: int | None, *modules: nn.Module
) -> Float[Tensor, "images ..."]:
    """Embed images a few at a time, of which none keeps its activations.

    The loss is computed from all embeddings. Its backward pass first gets the gradient at these, then embeds each chunk again, now with a
    graph, and hands its gradient on. So the result and the gradient are those of the batch as a whole; only batch norm in training sees
    chunks. Each pass draws the same dropout, and running averages move once.

    Args:
        embed: a function whose result for a row depends on this row alone.
        images: the batch.
        chunk: images at a time; None: all at once, as without caching.
        modules: the networks that `embed` runs; their running averages stay as they are when a chunk is embedded again.

    Raises:
        ArgumentError: if `chunk` is not positive.
    """
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ArgumentError(f"in_chunks: `chunk` must be a whole number of images, 1 or more, got {chunk!r}. None takes all at once.")
    if chunk is None or chunk >= len(images) or not torch.is_grad_enabled():
        return embed(images)

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _kept_averages(*modules)

    parts: list[Tensor] = [checkpoint(embed, part, use_reentrant=False, context_fn=contexts) for part in images.split(chunk)]
    return torch.cat(parts)


@contextlib.contextmanager
def _kept_averages(*modules: nn.Module) -> Iterator[None]:
    """Let layers write their running averages into copies that are thrown away."""
    buffers = {id(part): part for module in modules for part in module.modules() if part._buffers}.values()
    held = [(part, name, value) for part in buffers for name, value in part._buffers.items() if value is not None]
    for part, name, value in held:
        part._buffers[name] = value.clone()
    try:
        yield
    finally:
        for part, name, value in held:
            part._buffers[name] = value
