"""Soft targets of which only the largest shares are kept, and the ways back to a target over all classes.

Faghri et al. 2023 (arXiv 2303.08983) keep the 10 largest of ImageNet's 1,000 for each stored image; their code has two ways back.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError, unknown

Densify = Literal["smooth", "zeros", "zeros_reference"]
METHODS = ("smooth", "zeros", "zeros_reference")
ROUNDING = 5e-7  # by which a sum of shares in single precision misses 1


def sparsify(probabilities: Float[Tensor, "*rows classes"], k: int) -> tuple[Float[Tensor, "*rows k"], Int64[Tensor, "*rows k"]]:
    """Keep the `k` largest shares of each row, largest first; equal ones by class number.

    Args:
        probabilities: shares of the classes; rows sum to 1.
        k: from 1 to the number of classes.

    Returns:
        The shares, unchanged, and their class numbers.

    Raises:
        ArgumentError: if there are not so many classes.

    >>> values, ids = sparsify(torch.tensor([[0.1, 0.2, 0.7]]), k=2)
    >>> ids.tolist()
    [[2, 1]]
    """
    classes = probabilities.shape[-1]
    if not 1 <= k <= classes:
        raise ArgumentError(
            f"sparsify: `k` must lie between 1 and the number of classes ({classes}), got {k}. The paper keeps 10 of 1,000."
        )
    values, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    return values[..., :k].contiguous(), ids[..., :k].contiguous()


def densify(
    values: Float[Tensor, "*rows k"], ids: Int[Tensor, "*rows k"], classes: int, method: Densify = "smooth"
) -> Float[Tensor, "*rows classes"]:
    """Make targets over all classes of the shares that were kept; each row of the result sums to 1.

    Args:
        values: shares of the classes that were kept, 0 or more.
        ids: their class numbers, each once in a row.
        classes: how many there are.
        method: "smooth" gives each class that was not kept an equal part of what is missing to 1 (the paper's default); "zeros" gives
            them nothing and divides the kept shares by their sum; "zeros_reference" gives them nothing and puts the softmax of the kept
            shares, as the official code does, which makes them nearly equal.

    Raises:
        ArgumentError: if the method does not exist, or a class or a share cannot be.
        ShapeError: if values and ids differ in shape, or there are more of them than classes.

    >>> densify(torch.tensor([0.7, 0.2]), torch.tensor([3, 1]), classes=4).tolist()[3] == torch.tensor(0.7).item()
    True
    """
    if method not in METHODS:
        raise unknown("densify", "`method`", method, METHODS)
    check_sparse(values, ids, classes, "densify")
    return spread(values, ids, classes, method)


def spread(
    values: Float[Tensor, "*rows k"], ids: Int[Tensor, "*rows k"], classes: int, method: Densify = "smooth"
) -> Float[Tensor, "*rows classes"]:
    """Compute `densify` of shares that were checked before, without waiting for a device."""
    return scattered(*completed(values, classes, method), ids, classes)


def completed(
    values: Float[Tensor, "*rows k"], classes: int, method: Densify = "smooth"
) -> tuple[Float[Tensor, "*rows k"], Float[Tensor, "*rows 1"]]:
    """Compute the shares of the kept classes in a target, and the one share of each other class, as `densify` says."""
    values, kept = values.float(), values.shape[-1]
    total = values.sum(-1, keepdim=True)
    if method == "smooth" and kept < classes:
        # kept shares that were rounded up may sum to more than 1: then nothing is missing, and they are divided by their sum
        return torch.where(total > 1 + ROUNDING, values / total, values), (1 - total).clamp_min(0) / (classes - kept)
    if method == "zeros_reference":
        return values.softmax(-1), torch.zeros_like(total)
    return torch.where((total - 1).abs() > ROUNDING, values / total, values), torch.zeros_like(total)


def scattered(
    values: Float[Tensor, "*rows k"], others: Float[Tensor, "*rows 1"], ids: Int[Tensor, "*rows k"], classes: int
) -> Float[Tensor, "*rows classes"]:
    """Put the shares of the kept classes at their places, and one share at all others."""
    return others.expand(*values.shape[:-1], classes).contiguous().scatter_(-1, ids.long(), values)


def check_sparse(values: Tensor, ids: Tensor, classes: int, where: str) -> None:
    """Refuse kept shares from which no target can be made.

    Args:
        values: shares.
        ids: class numbers.
        classes: how many there are.
        where: who asks, for the message.

    Raises:
        ShapeError: if the shapes do not fit together.
        ArgumentError: if a class number or a share lies outside its range.
    """
    if values.shape != ids.shape or not 1 <= values.shape[-1] <= classes:
        raise ShapeError(
            f"{where}: `values` and `ids` must have one shape, with 1 to {classes} shares in a row (the number of classes), got "
            f"{tuple(values.shape)} and {tuple(ids.shape)}."
        )
    if not ids.numel():
        return
    if not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        raise ArgumentError(
            f"{where}: `ids` must lie between 0 and {classes - 1}, as there are {classes} classes; got {int(ids.min())} to "
            f"{int(ids.max())}."
        )
    if not (bool((values >= 0).all()) and float(values.float().sum(-1).min()) > 0 and float(values.max()) <= 1):
        raise ArgumentError(f"{where}: `values` must be shares in [0, 1], not all 0 in a row. Give probabilities, not logits.")
