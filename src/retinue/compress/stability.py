"""How far two trainings of one subnetwork end from each other: distance, angle, and the error on the straight line between them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from retinue.compress.masks import check_binary
from retinue.errors import ArgumentError, ShapeError

Weights = Mapping[str, Tensor]


def l2_distance(a: Weights, b: Weights, mask: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance of the weights that the mask keeps (section 3 of arXiv 1903.01611).

    Raises:
        ArgumentError: if the two and the mask are not of one network.
        ShapeError: if shapes differ.
    """
    x, y = _kept(a, b, mask)
    return float((x - y).norm())


def angle_deg(a: Weights, b: Weights, mask: Mapping[str, Tensor]) -> float:
    """Return the angle between the weights that the mask keeps, arccos(<a, b> / |a||b|), in degrees.

    Raises:
        ArgumentError: if the two and the mask are not of one network, or all kept weights of one are zero.
        ShapeError: if shapes differ.
    """
    x, y = _kept(a, b, mask)
    if not (x.norm() > 0 and y.norm() > 0):
        raise ArgumentError("angle_deg: all kept weights of one network are zero, so it has no direction. Compare trained networks.")
    x, y = x / x.norm(), y / y.norm()
    # arctan of both half-chords is exact at 0 and 180 degrees, where arccos loses half of the digits
    return math.degrees(2 * math.atan2(float((x - y).norm()), float((x + y).norm())))


def _kept(a: Weights, b: Weights, mask: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    check_binary(mask)
    for name, kept in mask.items():
        for weights in (a, b):
            if name not in weights:
                raise ArgumentError(f'stability: the weight "{name}" of the mask is missing. Compare weights and masks of one network.')
            if weights[name].shape != kept.shape:
                raise ShapeError(
                    f'stability: "{name}" has shape {tuple(weights[name].shape)} and its mask has {tuple(kept.shape)}. '
                    "Compare weights and masks of one network."
                )
    both = [torch.cat([w[name].detach().cpu().double()[kept.cpu().bool()] for name, kept in mask.items()]) for w in (a, b)]
    return both[0], both[1]


@dataclass(frozen=True)
class Barrier:
    """The errors on the line between two networks.

    Attributes:
        alphas: places on the line, from 0 (the first) to 1 (the second).
        errors: error at each.
        height: the largest error, less the mean of both ends.
    """

    alphas: list[float]
    errors: list[float]
    height: float

    @property
    def stable(self) -> bool:
        """Whether the barrier is below 2 points (arXiv 1912.05671, section 3.1), for errors in [0, 1]."""
        return self.height < 0.02


def error_barrier(a: Weights, b: Weights, evaluate: Callable[[dict[str, Tensor]], float], points: int = 31) -> Barrier:
    """Measure the error along (1 - alpha) a + alpha b (arXiv 1912.05671); statistics of batch norms are interpolated as the weights are.

    Args:
        a: all tensors of the first network, as of `state_dict`.
        b: those of the second.
        evaluate: returns the error of a network with the tensors that it is given, in [0, 1].
        points: places on the line, both ends included.

    Raises:
        ArgumentError: if the two are not of one network, or there are fewer than 2 points.
        ShapeError: if shapes differ.
    """
    if points < 2:
        raise ArgumentError(f"error_barrier: `points` must be 2 or more, got {points}. Both ends are points; the paper has 31.")
    strange = sorted(set(a) ^ set(b))
    if strange:
        raise ArgumentError(f'error_barrier: "{strange[0]}" is in one network only. Compare two trainings of the same network.')
    for name in a:
        if a[name].shape != b[name].shape:
            raise ShapeError(
                f'error_barrier: "{name}" has shape {tuple(a[name].shape)} in one network and {tuple(b[name].shape)} in the other. '
                "Compare two trainings of the same network."
            )
    alphas = [i / (points - 1) for i in range(points)]
    errors = [float(evaluate({name: _between(a[name], b[name], alpha) for name in a})) for alpha in alphas]
    return Barrier(alphas, errors, max(errors) - (errors[0] + errors[-1]) / 2)


def _between(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return torch.lerp(a, b, alpha) if a.is_floating_point() else (a if alpha < 0.5 else b)  # counters are not interpolated
