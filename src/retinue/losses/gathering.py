"""Tensors of all processes at once, with gradients that find their way back to the process that they belong to."""

import torch.distributed
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def processes() -> int:
    """Count the processes that train together; 1 where there is one alone."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return torch.distributed.get_rank() if processes() > 1 else 0


def gather_with_gradient(rows: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "all ..."]:
    """Put the rows of all processes one after the other, in the order of their ranks; alone, return the rows.

    Each process computes a loss of its own from all rows. A row's gradient is the sum over the processes' losses, so where the engine then
    averages the parameters' gradients over the processes, they are those of the mean of the losses. All processes must have as many rows,
    and all must run their backward pass.

    Args:
        rows: of this process.

    >>> gather_with_gradient(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """
    if processes() == 1:
        return rows
    if not rows.requires_grad:
        parts = [torch.empty_like(rows) for _ in range(processes())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(rows))
