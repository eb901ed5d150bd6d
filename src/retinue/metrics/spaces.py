"""How alike two spaces of features are that hold the same images: neighbours, ranks, angles, kernels.

The measures of Moschella et al. 2022 (arXiv 2209.15430, section 4.1), and the maps by which one space is fitted to another.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError
from retinue.metrics.cka import linear_cka

ROWS = 1024  # queries whose cosines are held at a time


def compare_spaces(a: Float[Tensor, "images features"], b: Float[Tensor, "images others"], k: int = 10) -> dict[str, float]:
    """Compare two spaces by four measures, each 1 for a space beside itself.

    Args:
        a: features of some images.
        b: features of the same images in the same order, in another space; of the same length, but for CKA.
        k: neighbours of each image.

    Returns:
        "jaccard", "mrr" and "cosine", which are not numbers where the two differ in length, and "cka" (linear).

    Raises:
        ShapeError: if the spaces hold different numbers of images.
        ArgumentError: if a feature is no finite number, or `k` is out of range.

    >>> space = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> {name: round(value, 6) for name, value in compare_spaces(space, space, k=2).items()}
    {'jaccard': 1.0, 'mrr': 1.0, 'cosine': 1.0, 'cka': 1.0}
    """
    _check("compare_spaces", a, b)
    connected = a.shape[1] == b.shape[1]
    return {
        "jaccard": jaccard(a, b, k) if connected else math.nan,
        "mrr": mean_reciprocal_rank(a, b) if connected else math.nan,
        "cosine": F.cosine_similarity(a, b).mean().item() if connected else math.nan,
        "cka": linear_cka(a, b).item(),
    }


def jaccard(a: Float[Tensor, "images features"], b: Float[Tensor, "images features"], k: int = 10) -> float:
    """Compare the k nearest neighbours by cosine that an image has among the rows of `b`, sought from `a` and from `b` itself.

    Args:
        a: features of some images.
        b: features of the same images, of the same length.
        k: neighbours; the image itself may be one.

    Returns:
        The mean over images of |intersection| / |union|.

    Raises:
        ShapeError: if the shapes differ.
        ArgumentError: if a feature is no finite number, or `k` is out of range.
    """
    _check("jaccard", a, b, width=True)
    if not 1 <= k <= len(a):
        raise ArgumentError(f"jaccard: `k` must lie between 1 and the number of images, {len(a)}, got {k}.")
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    shares = []
    for ours, own in zip(a.split(ROWS), b.split(ROWS)):
        sought, found = ((rows @ b.T).topk(k).indices for rows in (ours, own))
        common = (sought[:, :, None] == found[:, None]).sum((1, 2)).double()
        shares.append(common / (2 * k - common))
    return torch.cat(shares).mean().item()


def mean_reciprocal_rank(a: Float[Tensor, "images features"], b: Float[Tensor, "images features"], top: int | None = None) -> float:
    """Rank the rows of `b` by their cosine with each row of `a`, and average 1 / the place of the same image.

    Args:
        a: features of some images.
        b: features of the same images, of the same length.
        top: places behind this one count 0, as in the official code; None counts all.

    Raises:
        ShapeError: if the shapes differ.
        ArgumentError: if a feature is no finite number, or `top` is below 1.
    """
    _check("mean_reciprocal_rank", a, b, width=True)
    if top is not None and top < 1:
        raise ArgumentError(f"mean_reciprocal_rank: `top` must be at least 1, got {top}.")
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    found = torch.cat([ranks(rows @ b.T, start) for start, rows in zip(range(0, len(a), ROWS), a.split(ROWS))])
    return torch.where(found <= (top or len(b)), 1 / found.double(), 0).mean().item()


def ranks(similarities: Float[Tensor, "queries rows"], start: int = 0) -> Float[Tensor, " queries"]:
    """Return the place of row start + i among all rows, by their similarity with query i: 1 for the most similar.

    Args:
        similarities: of each query with each row.
        start: the row that belongs to the first query.

    >>> ranks(torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.6, 0.5], [0.2, 0.95, 0.9]])).tolist()
    [1.0, 2.0, 2.0]
    """
    queries = torch.arange(len(similarities), device=similarities.device)
    own = similarities[queries, queries + start]
    return 1 + (similarities > own[:, None]).sum(1).to(similarities.dtype)


def procrustes(x: Float[Tensor, "images features"], y: Float[Tensor, "images features"]) -> Float[Tensor, "features features"]:
    """Find the orthogonal Q for which |x Q - y| is least: U V' with U S V' = x' y.

    Args:
        x: features of some images.
        y: features of the same images in another space, of the same length.

    Raises:
        ShapeError: if the shapes differ.
        ArgumentError: if a feature is no finite number.
    """
    _check("procrustes", x, y, width=True)
    U, _, Vh = torch.linalg.svd(x.T @ y)
    return U @ Vh


def affine_map(
    x: Float[Tensor, "images features"], y: Float[Tensor, "images others"]
) -> tuple[Float[Tensor, "features others"], Float[Tensor, " others"]]:
    """Find the matrix M and the shift t for which |x M + t - y| is least; of several, the smallest.

    Args:
        x: features of some images.
        y: features of the same images in another space, of any length.

    Raises:
        ShapeError: if the two have different numbers of images.
        ArgumentError: if a feature is no finite number.
    """
    _check("affine_map", x, y)
    M = torch.linalg.pinv(x - x.mean(0)) @ (y - y.mean(0))
    return M, y.mean(0) - x.mean(0) @ M


def _check(where: str, a: Tensor, b: Tensor, width: bool = False) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not len(a) or (width and a.shape != b.shape):
        wanted = "the same images and be of one length" if width else "the same images"
        raise ShapeError(f"{where}: both spaces must hold {wanted}, one row an image, got {tuple(a.shape)} and {tuple(b.shape)}.")
    for name, space in (("first", a), ("second", b)):
        if not bool(space.isfinite().all()):
            raise ArgumentError(f"{where}: the {name} space holds values that are not finite. Look at the network that made them.")
