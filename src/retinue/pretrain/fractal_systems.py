"""Iterated function systems whose attractors are neither dust nor clouds (Anderson & Farrell 2022, arXiv 2110.03091, section 3)."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.random import Generator
from numpy.typing import NDArray

from retinue.errors import ArgumentError, unknown

System = Float[np.ndarray, "maps 2 3"]
Systems = Sequence[Float[np.ndarray, "_ 2 3"]]  # of any numbers of maps
Values = Float[np.ndarray, "maps 2"]
METHODS = ("sequential", "rejection")
TRIES = 1000  # of the rejection sampler
BURN_IN = 20  # steps of each walker that are not kept
WALKERS = 1000


def band(maps: int) -> tuple[float, float]:
    """Return the range of the sigma-factor, the sum of s1 + 2 s2 over the maps, in which attractors look well (section 3.2).

    >>> band(2), band(8)
    ((3.5, 4.0), (6.5, 7.0))
    """
    return (5 + maps) / 2, (6 + maps) / 2


def sample_ifs(
    n: int | tuple[int, int] = (2, 4),
    alpha: float | None = None,
    bval: float = 1.0,
    rng: Generator | None = None,
    *,
    method: str = "sequential",
) -> System:
    """Draw a system of affine maps x -> A x + b, each A = U diag(s1, s2) V with U and V turns and mirrors.

    Args:
        n: number of maps, or the smallest and the largest of which one is drawn.
        alpha: the sigma-factor, in (0, 3 n); None draws it from `band`.
        bval: the translations are uniform in (-bval, bval).
        rng: the source of randomness; None takes a fresh one.
        method: "sequential" never rejects; "rejection" is uniform over all singular values of this sum.

    Returns:
        The maps as (A | b), in float64.

    Raises:
        ArgumentError: if `n` is below 2, or `alpha` lies outside (0, 3 n).

    >>> system = sample_ifs(3, rng=np.random.default_rng(0))
    >>> system.shape, bool(4.0 <= sigma_factor(system) <= 4.5)
    ((3, 2, 3), True)
    """
    low, high = (n, n) if isinstance(n, int) else n
    if low < 2 or high < low:
        raise ArgumentError(f"fractals: `n` must be 2 maps or more, or (fewest, most), got {n}. One map has a single point as attractor.")
    rng = rng or np.random.default_rng()
    maps = int(rng.integers(low, high + 1))
    factor = rng.uniform(*band(maps)) if alpha is None else alpha
    values = sample_svs(maps, factor, rng, method)
    left, right = _turns(maps, rng), _turns(maps, rng)
    matrices = (left * values[:, None, :]) @ right
    return np.concatenate([matrices, rng.uniform(-bval, bval, (maps, 2, 1))], axis=2)


def sample_svs(maps: int, alpha: float, rng: Generator, method: str = "sequential") -> Values:
    """Draw singular values 1 >= s1 >= s2 >= 0 of every map with sum (s1 + 2 s2) = alpha (algorithm 1).

    Args:
        maps: how many maps.
        alpha: the sum, in (0, 3 maps).
        rng: the source of randomness.
        method: "sequential" takes for each value what the later maps can still make up for; "rejection" draws all but the last uniformly
            until the last is possible.

    Raises:
        ArgumentError: if `alpha` cannot be, or 1000 tries were rejected.
    """
    if method not in METHODS:
        raise unknown("fractals", "method", method, METHODS)
    if not 0 < alpha < 3 * maps:
        raise ArgumentError(
            f"fractals: `alpha` must lie strictly between 0 and {3 * maps} for {maps} maps, got {alpha}. "
            f"The paper draws it between {band(maps)[0]} and {band(maps)[1]}."
        )
    if method == "rejection":
        for _ in range(TRIES):
            values = np.sort(rng.random((maps, 2)), axis=1)[:, ::-1].copy()
            values[-1, 0] = alpha - 2 * values[-1, 1] - (values[:-1] @ (1.0, 2.0)).sum()
            if values[-1, 1] <= values[-1, 0] <= 1:
                return values
        raise ArgumentError(f'fractals: {TRIES} draws with alpha={alpha} were rejected. Take method="sequential", which rejects none.')
    values, rest = np.empty((maps, 2)), alpha
    for i in range(maps - 1):
        later = 3 * (maps - 1 - i)  # the most that later maps can take
        values[i, 0] = rng.uniform(max(0.0, (rest - later) / 3), min(1.0, rest))
        rest -= values[i, 0]
        values[i, 1] = rng.uniform(max(0.0, (rest - later) / 2), min(values[i, 0], rest / 2))
        rest -= 2 * values[i, 1]
    values[-1, 1] = rng.uniform(max(0.0, (rest - 1) / 2), rest / 3)
    values[-1, 0] = rest - 2 * values[-1, 1]
    return values


def _turns(maps: int, rng: Generator) -> Float[np.ndarray, "maps 2 2"]:
    """Draw rotations by any angle times diag(+-1, +-1)."""
    angle, signs = rng.uniform(-math.pi, math.pi, maps), rng.choice((-1.0, 1.0), (maps, 1, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    turns: NDArray[np.float64] = np.stack([cos, -sin, sin, cos], axis=1).reshape(maps, 2, 2) * signs
    return turns


def sigma_factor(system: System) -> float:
    """Compute the sum of s1 + 2 s2 over the maps.

    >>> sigma_factor(np.array([[[0.5, 0, 0], [0, 0.5, 0]]] * 3))
    4.5
    """
    return float((np.linalg.svd(system[:, :, :2], compute_uv=False) @ (1.0, 2.0)).sum())


def probabilities(system: System) -> Float[np.ndarray, " maps"]:
    """Compute how often each map is chosen: in proportion to the area that it leaves, |det A| (section 3.1); alike where all leave none."""
    areas = np.abs(system[:, 0, 0] * system[:, 1, 1] - system[:, 0, 1] * system[:, 1, 0])
    total = areas.sum()
    return areas / total if total > 0 and math.isfinite(total) else np.full(len(system), 1 / len(system))


def fixed_point(affine: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2"]:
    """Solve x = A x + b.

    >>> fixed_point(np.array([[0.5, 0, 1], [0, 0.25, 0.5]])).round(8).tolist()
    [2.0, 0.66666667]
    """
    return np.linalg.solve(np.eye(2) - affine[:, :2], affine[:, 2])


def contracts(systems: Float[np.ndarray, "*some maps 2 3"]) -> bool:
    """Tell whether the largest singular value of every map is below 1: s1^2 + s2^2 < 1 + (s1 s2)^2, and s1 s2 < 1.

    >>> contracts(np.array([[[0.5, 0, 1], [0, 0.9, 0]], [[0.1, 1, 0], [0, 0, 0]]]))
    False
    """
    squares = (systems[..., :2] ** 2).sum((-2, -1))
    areas = systems[..., 0, 0] * systems[..., 1, 1] - systems[..., 0, 1] * systems[..., 1, 0]
    return bool(((squares < 1 + areas**2) & (np.abs(areas) < 1)).all())


def check_system(system: System, allow_divergent: bool = False) -> System:
    """Return the system as float64.

    Args:
        system: maps (A | b).
        allow_divergent: let maps that stretch pass.

    Raises:
        ArgumentError: if it has another shape, is not finite, or a map does not contract.
    """
    system = np.asarray(system, dtype=np.float64)
    if system.ndim != 3 or system.shape[1:] != (2, 3) or not len(system):
        raise ArgumentError(
            f"fractals: a system must have the shape (maps, 2, 3), got {system.shape}. Each map is a 2x2 matrix and a shift."
        )
    if not np.isfinite(system).all():
        raise ArgumentError("fractals: the system has entries that are not finite. Every number of a map must be.")
    largest = np.linalg.svd(system[:, :, :2], compute_uv=False)[:, 0]
    if largest.max() >= 1 and not allow_divergent:
        raise ArgumentError(
            f"fractals: map {int(largest.argmax())} does not contract: its largest singular value is {largest.max():.4g}. "
            "Scale it below 1, or pass allow_divergent=True."
        )
    return system


def iterate_ifs(
    system: System, n_points: int, rng: Generator | None = None, *, allow_divergent: bool = False
) -> Float[np.ndarray, "points 2"]:
    """Play the chaos game: points of the attractor, each the image of the one before under a map drawn by `probabilities`.

    Up to 1000 walkers start at the fixed point of map 0, which is in the attractor, and step side by side; their first 20 points are
    left out.

    Args:
        system: the maps.
        n_points: how many points.
        rng: the source of randomness; None takes a fresh one.
        allow_divergent: try a system that does not contract.

    Raises:
        ArgumentError: if the system does not contract, or its points overflow.

    >>> points = iterate_ifs(np.array([[[0.5, 0, 1], [0, 0.25, 0.5]]]), 3)
    >>> points.round(4).tolist()
    [[2.0, 0.6667], [2.0, 0.6667], [2.0, 0.6667]]
    """
    if n_points < 1:
        raise ArgumentError(f"fractals: `n_points` must be at least 1, got {n_points}. The paper takes 100,000.")
    system, rng = check_system(system, allow_divergent), rng or np.random.default_rng()
    walkers = min(WALKERS, n_points)
    steps = -(-n_points // walkers)
    try:
        places = np.tile(fixed_point(system[0])[:, None], walkers)
    except np.linalg.LinAlgError:  # a map with the eigenvalue 1 has no point of its own
        places = np.zeros((2, walkers))
    edges = np.cumsum(probabilities(system))[:-1]
    found = np.empty((steps, 2, walkers))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(BURN_IN + steps):
            maps = system[np.searchsorted(edges, rng.random(walkers), side="right")]
            places = np.stack([(maps[:, row, :2].T * places).sum(0) + maps[:, row, 2] for row in (0, 1)])
            if step >= BURN_IN:
                found[step - BURN_IN] = places
    if not np.isfinite(found).all():
        raise ArgumentError("fractals: the points of this system grow beyond all numbers. Take a system whose maps contract.")
    points: NDArray[np.float64] = found.transpose(0, 2, 1).reshape(-1, 2)[:n_points]
    return points


def sample_systems(count: int, n: int | Sequence[int] = (2, 4), seed: int = 0, *, bval: float = 1.0) -> Systems:
    """Draw systems, each from a source of its own: system 7 of seed 0 is the same however many are asked for.

    Args:
        count: how many.
        n: number of maps, or the smallest and the largest.
        seed: of the draws.
        bval: as in `sample_ifs`.
    """
    if count < 1:
        raise ArgumentError(f"fractals: the number of systems must be at least 1, got {count}.")
    maps = n if isinstance(n, int) else (n[0], n[-1])
    return [sample_ifs(maps, bval=bval, rng=np.random.default_rng([seed, 0, number])) for number in range(count)]
