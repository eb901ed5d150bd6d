"""Nearest neighbours of images by blocks: memory does not grow with the square of their number, and small distances are exact.

Distances are searched for by a matrix product in float32, which cancels where two images are nearly the same; those that are found are
computed again from the differences, which are exact where two numbers are near each other, and added up in float64.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from retinue.errors import ArgumentError, DataError

BLOCK = 1 << 23  # numbers in a block of images: 32 MB as float32
CACHED = 1 << 20  # numbers whose differences are taken at a time: they stay near the core
ANCHORS = 512  # rows of the matrix of distances at a time
SLACK = 5  # more neighbours than asked for, since float32 may order the last ones wrongly; one of them is the image itself


class Nearest(NamedTuple):
    """Euclidean distances to the nearest other points, rising, and which points these are."""

    distances: Float[Tensor, "anchors k"]
    indices: Int[Tensor, "anchors k"]


def nearest(x: Shaped[Tensor, "points features"], k: int, anchors: Int[Tensor, " anchors"] | None = None) -> Nearest:
    """Find for each anchor the k nearest other points.

    Args:
        x: bytes or real numbers; bytes are turned into floats block by block.
        k: how many, at most the number of points less one.
        anchors: positions of the points whose neighbours are wanted; None takes all. Neighbours come from all points.

    Returns:
        Distances from the differences themselves. A point is never its own neighbour; another at the same place is.

    Raises:
        ArgumentError: unless 1 <= k < points.
    """
    if not 1 <= k < len(x):
        raise ArgumentError(f"nearest: `k` must lie between 1 and {len(x) - 1}, one less than there are points, got {k}.")
    chosen = torch.arange(len(x)) if anchors is None else anchors
    centre, scale = _centre(x)
    rows = max(1, BLOCK // max(1, x.shape[1]))
    wanted = min(k + SLACK, len(x))
    norms = torch.cat([_floats(some, centre, scale).square_().sum(1) for some in x.split(rows)])
    distances, indices = [], []
    for some in chosen.split(min(ANCHORS, rows)):
        query, own = _floats(x[some], centre, scale), norms[some]
        best = torch.full((len(some), 0), torch.inf)
        places = torch.zeros((len(some), 0), dtype=torch.int64)
        for start in range(0, len(x), rows):
            block = _floats(x[start : start + rows], centre, scale)
            squares = torch.addmm(norms[None, start : start + rows], query, block.T, alpha=-2).add_(own[:, None])
            inside = (some >= start) & (some < start + len(block))
            squares[inside.nonzero()[:, 0], some[inside] - start] = torch.inf  # a point is not its own neighbour
            found = squares.topk(min(wanted, len(block)), largest=False)
            best, places = torch.cat([best, found.values], 1), torch.cat([places, found.indices + start], 1)
            best, order = best.topk(min(wanted, best.shape[1]), largest=False)
            places = places.gather(1, order)
        exact = _exact(x, some, places).masked_fill_(places == some[:, None], torch.inf)
        exact, order = exact.sort(1)
        distances.append(exact[:, :k])
        indices.append(places.gather(1, order)[:, :k])
    return Nearest(torch.cat(distances), torch.cat(indices))


def distance(x: Shaped[Tensor, "points features"], a: Int[Tensor, " pairs"], b: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Compute the distances of pairs of points from their differences."""
    return _exact(x, a, b[:, None])[:, 0]


def groups(x: Shaped[Tensor, "points ..."]) -> list[list[int]]:
    """List the points that are exactly the same, each group in rising order; points that stand alone are left out."""
    found: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests(x)):
        found.setdefault(digest, []).append(i)
    return [members for members in found.values() if len(members) > 1]


def digests(x: Shaped[Tensor, "points ..."]) -> Iterator[bytes]:
    """Hash each point: the same bytes for the same numbers."""
    for some in x.split(ANCHORS):
        plain = some + 0.0 if some.is_floating_point() else some  # -0.0 becomes 0.0
        for row in plain.contiguous().cpu().numpy():
            yield hashlib.blake2b(row.data, digest_size=16).digest()


def flat(where: str, x: Shaped[Tensor, "points ..."]) -> Shaped[Tensor, "points features"]:
    """Return points as rows, and refuse what is no number.

    Raises:
        DataError: if there are NaN or infinite values.
    """
    rows = x.reshape(len(x), -1) if len(x) else x.reshape(0, 1)
    if rows.is_floating_point() or rows.is_complex():
        bad = (~rows.isfinite()).any(1).nonzero()[:, 0]
        if len(bad):
            raise DataError(
                f"{where}: {len(bad)} of {len(rows)} points have values that are NaN or infinite, the first is number {int(bad[0])}. "
                "Remove them."
            )
    return rows if rows.dtype in (torch.uint8, torch.float32, torch.float64) else rows.double()


def _centre(x: Tensor) -> tuple[Tensor, float]:
    """Compute the mean, and one number by which all are divided, so that neither a far origin nor large units spoil float32."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    lowest, highest = x[0].double(), x[0].double()
    for some in x.split(max(1, BLOCK // max(1, x.shape[1]))):
        total += some.sum(0, dtype=torch.float64)
        lowest, highest = torch.minimum(lowest, some.amin(0)), torch.maximum(highest, some.amax(0))
    mean = total / len(x)
    largest = float(torch.maximum(highest - mean, mean - lowest).max())
    return mean, largest or 1.0


def _floats(x: Tensor, centre: Tensor, scale: float) -> Tensor:
    if x.dtype == torch.float64:
        return ((x - centre) / scale).float()
    return (x.float() - centre.float()).div_(scale)


def _exact(x: Tensor, some: Tensor, places: Tensor) -> Tensor:
    """Compute the distance of each of some points to several others: bytes and float32 differ in float32, sums are float64."""
    rows = max(1, CACHED // (places.shape[1] * max(1, x.shape[1])))
    found = [torch.zeros((0, places.shape[1]), dtype=torch.float64)]
    for own, others in zip(some.split(rows), places.split(rows)):
        near, anchor = (x[index] if x.is_floating_point() else x[index].float() for index in (others, own[:, None]))
        found.append(torch.linalg.vector_norm(near.sub_(anchor), dim=2, dtype=torch.float64))
    return torch.cat(found)
