"""Small changes of an iterated function system, which make another picture of the same class (Anderson & Farrell 2022, section 4)."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from retinue.errors import unknown
from retinue.pretrain.fractal_systems import System, band, contracts, sigma_factor

TRIES = 4  # draws that may stretch before the system stays as it is
STRENGTH = 0.4  # of FractalDB's weights (Kataoka et al. 2020, section 3.2)


def scaled(system: System, rng: Generator) -> System:
    """Multiply one map, its matrix and its shift, by U(0.8, 1.1)."""
    changed = system.copy()
    changed[rng.integers(len(system))] *= rng.uniform(0.8, 1.1)
    return changed


def turned(system: System, rng: Generator) -> System:
    """Turn one map before or after its scaling: U or V of its singular value decomposition, by U(-0.5, 0.5) rad."""
    changed, which, angle = system.copy(), rng.integers(len(system)), rng.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = changed[which, :, :2]
    changed[which, :, :2] = turn @ matrix if rng.random() < 0.5 else matrix @ turn  # the turn joins U, or V
    return changed


def shifted(system: System, rng: Generator) -> System:
    """Move one map's translation by U(-0.5, 0.5) along each axis."""
    changed = system.copy()
    changed[rng.integers(len(system)), :, 2] += rng.uniform(-0.5, 0.5, 2)
    return changed


def stretched(system: System, rng: Generator) -> System:
    """Add U(-0.1, 0.1) to the singular values of one map; the sigma-factor must stay in its band, so that it may be refused."""
    changed, which = system.copy(), rng.integers(len(system))
    left, values, right = np.linalg.svd(changed[which, :, :2])
    values = np.sort(np.clip(values + rng.uniform(-0.1, 0.1, 2), 0, 1))[::-1]
    changed[which, :, :2] = (left * values) @ right
    low, high = band(len(system))
    return changed if low <= sigma_factor(changed) <= high else changed * np.nan


def weighted(system: System, rng: Generator) -> System:
    """Multiply one entry, the same in every map, by one of 1 - 2k, 1 - k, 1, 1 + k, 1 + 2k, as FractalDB does."""
    changed = system.copy()
    changed[:, rng.integers(2), rng.integers(3)] *= 1 + STRENGTH * rng.integers(-2, 3)
    return changed


def unchanged(system: System, rng: Generator) -> System:
    """Return the system."""
    return system


JITTERS: dict[str, Callable[[System, Generator], System]] = {
    "scale": scaled, "turn": turned, "shift": shifted, "singular": stretched, "fractaldb": weighted, "none": unchanged,
}  # fmt: skip


def jitter_ifs(system: System, rng: Generator, kind: str = "scale") -> System:
    """Change a system a little; a change after which a map would stretch is drawn anew, four times at most.

    Args:
        system: contracting maps.
        rng: the source of randomness.
        kind: "scale" (the paper's default), "turn", "shift", "singular", "fractaldb" or "none".

    Returns:
        A system whose maps contract; the given one, if every try was refused.

    Raises:
        ArgumentError: if there is no such kind.
    """
    if kind not in JITTERS:
        raise unknown("fractals", "`jitter`", kind, JITTERS)
    for _ in range(TRIES):
        changed = JITTERS[kind](system, rng)
        if contracts(changed):
            return changed
    return system
