"""Intrinsic dimension: how many numbers it takes to say where a point lies among others of its kind."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from retinue.errors import ArgumentError, DataError, unknown
from retinue.metrics.neighbours import flat, groups, nearest

Method = Literal["mle", "twonn"]
METHODS = ("mle", "twonn")
Correction = Literal["k-2", "k-1"]
CORRECTIONS = ("k-2", "k-1")
LEAST_POINTS = 3
LEVELS = (2.5, 97.5)  # percentiles of the interval


class IDResult(NamedTuple):
    """An intrinsic dimension, its 95 % interval if one was asked for, points whose neighbours were measured, and duplicates left out."""

    value: float
    ci: tuple[float, float] | None
    n_used: int
    n_duplicates: int


def intrinsic_dimension(
    x: Shaped[Tensor, "points ..."],
    method: Method = "mle",
    k: int = 20,
    correction: Correction = "k-2",
    max_samples: int | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> IDResult:
    """Estimate how many numbers it takes to say where a point lies among the others.

    Args:
        x: points of any shape.
        method: "mle" is the maximum likelihood of Levina and Bickel (2004), inverses averaged as by MacKay and Ghahramani; "twonn" is
            a line through the origin, log(1 / (1 - F)) against log(T_2 / T_1) without the largest (Facco et al. 2017).
        k: neighbours of the likelihood.
        correction: "k-2" divides as the official code does, "k-1" as the plain likelihood; with inverses averaged, k-1 is nearly unbiased.
        max_samples: measure the neighbours (among all points) of so many points only, drawn at random; None takes all.
        n_bootstrap: draws of these points for the interval; 0 gives none. Neighbours are not drawn anew, so it is a little too narrow.
        seed: of the draws.

    Returns:
        The dimension. It grows with the number of points, and is too low for high dimensions: compare at the same number.

    Raises:
        ArgumentError: if an argument cannot be, or there are not more distinct points than neighbours.
        DataError: if there are fewer than three distinct points, or values that are not finite.

    >>> points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [12.0]])
    >>> round(intrinsic_dimension(points, k=3).value, 6)
    0.606699
    """
    where = "intrinsic_dimension"
    if method not in METHODS:
        raise unknown(where, "`method`", method, METHODS)
    if correction not in CORRECTIONS:
        raise unknown(where, "`correction`", correction, CORRECTIONS)
    divisor = k - 2 if correction == "k-2" else k - 1
    if method == "mle" and divisor < 1:
        raise ArgumentError(
            f'{where}: `k` must be at least {3 if correction == "k-2" else 2} with correction="{correction}", got {k}. The paper has 20.'
        )
    if n_bootstrap < 0 or (max_samples is not None and max_samples < 2):
        raise ArgumentError(f"{where}: `n_bootstrap` must be 0 or more and `max_samples` at least 2, got {n_bootstrap} and {max_samples}.")
    points = flat(where, x)
    repeated = {i for members in groups(points) for i in members[1:]}
    if repeated:
        points = points[[i for i in range(len(points)) if i not in repeated]]
    if len(points) < LEAST_POINTS:
        raise DataError(f"{where}: there are {len(points)} distinct points, and at least {LEAST_POINTS} are needed. Give more images.")
    needed = k if method == "mle" else 2
    if len(points) <= needed:
        raise ArgumentError(
            f"{where}: `k` must be smaller than the number of distinct points, {len(points)}, got {k}. "
            "Take fewer neighbours or more images."
        )
    generator = torch.Generator().manual_seed(seed)
    anchors = None
    if max_samples is not None and max_samples < len(points):
        anchors = torch.randperm(len(points), generator=generator)[:max_samples].sort().values
    distances = nearest(points, needed, anchors).distances
    # what each point adds: the sum of its k - 1 logarithms, or the logarithm of mu = T_2 / T_1
    logs = (distances[:, -1:] / distances[:, :-1]).log().sum(1)

    def estimate(some: Tensor) -> float:
        return _likelihood(some, divisor) if method == "mle" else _two_neighbours(some)

    interval = None
    if n_bootstrap:
        draws = [estimate(logs[torch.randint(len(logs), (len(logs),), generator=generator)]) for _ in range(n_bootstrap)]
        low, high = torch.tensor(draws, dtype=torch.float64).quantile(torch.tensor(LEVELS, dtype=torch.float64) / 100).tolist()
        interval = (low, high)
    return IDResult(estimate(logs), interval, len(logs), len(repeated))


def _likelihood(sums: Tensor, divisor: int) -> float:
    mean = float(sums.mean())
    return divisor / mean if mean > 0 else float("inf")


def _two_neighbours(logs: Tensor) -> float:
    ordered = logs.sort().values[:-1]  # the largest has F = 1
    heights = -torch.log1p(-torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(logs))
    squares = float(ordered.square().sum())
    return float((ordered * heights).sum()) / squares if squares > 0 else float("inf")
