"""How much of a label is left under the noise at each time (Li, Teh and Pascanu 2025, arXiv 2503.24322, section 2.1).

Time runs from noise (t = 0) to clean (t = T, or 1): abar rises, unlike in diffusion libraries.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError

FINEST_CLAMPED = 16  # blocks from which a clamped cosine repeats levels


@dataclass(frozen=True)
class CosineSchedule:
    """abar_t = cos^2(pi/2 (1 - t/T)), kept within [low, high].

    Below 16 blocks it is clamped; from 16 on clamping would repeat levels at both ends, whose blocks would learn nothing, so it is
    rescaled: low + (high - low) cos^2. The last weight SNR(T) - SNR(T - 1) grows like 1 / (1 - high) and drowns the others where `high` is
    close to 1.

    Attributes:
        low: smallest abar, above 0.
        high: largest, below 1.
    """

    low: float = 0.01
    high: float = 0.99

    def __call__(self, steps: int) -> list[float]:
        """Return abar at t = 0, ..., steps."""
        cosine = [math.cos(math.pi / 2 * (1 - t / steps)) ** 2 for t in range(steps + 1)]
        if steps < FINEST_CLAMPED:
            return [min(max(value, self.low), self.high) for value in cosine]
        return [self.low + (self.high - self.low) * value for value in cosine]


@dataclass(frozen=True)
class Coefficients:
    """What a chain of T steps needs.

    Attributes:
        abar: share of the label's variance at t = 0, ..., T.
        snr: abar / (1 - abar).
        a: weight of the block's answer at t = 1, ..., T.
        b: weight of the state before.
        c: variance of the noise that is added.
    """

    abar: list[float]
    snr: list[float]
    a: list[float]
    b: list[float]
    c: list[float]


def coefficients(levels: Sequence[float]) -> Coefficients:
    """Compute the coefficients of the chain (the paper's posterior of z_t given z_{t-1} and the label).

    With alpha_{t-1} = abar_{t-1} / abar_t: a_t = sqrt(abar_t) (1 - alpha_{t-1}) / (1 - abar_{t-1}), b_t = sqrt(alpha_{t-1}) (1 - abar_t) /
    (1 - abar_{t-1}), c_t = (1 - abar_t) (1 - alpha_{t-1}) / (1 - abar_{t-1}).

    Args:
        levels: abar at t = 0, ..., T.

    Raises:
        ArgumentError: if they do not rise strictly, or touch 0 or 1.

    >>> [round(value, 6) for value in coefficients([0.01, 0.5, 0.99]).snr]
    [0.010101, 1.0, 99.0]
    """
    abar = torch.tensor(list(levels), dtype=torch.float64, device="cpu")
    if len(abar) < 2 or not (abar.diff() > 0).all():
        raise ArgumentError(
            f"noprop: a schedule must rise strictly over two times at least, got {_few(levels)}. Time runs from noise to clean."
        )
    if not (abar[0] > 0 and abar[-1] < 1):
        raise ArgumentError(
            f"noprop: a schedule must stay strictly between 0 and 1, got {_few(levels)}: at 1 the weights are infinite. Take 0.01 to 0.99."
        )
    before, after = abar[:-1], abar[1:]
    alpha = before / after
    return Coefficients(
        abar=abar.tolist(),
        snr=(abar / (1 - abar)).tolist(),
        a=(after.sqrt() * (1 - alpha) / (1 - before)).tolist(),
        b=(alpha.sqrt() * (1 - after) / (1 - before)).tolist(),
        c=((1 - after) * (1 - alpha) / (1 - before)).tolist(),
    )


def check_steps(num_blocks: int, schedule: Callable[[int], Sequence[float]] = CosineSchedule()) -> Coefficients:
    """Compute the coefficients of a schedule over so many blocks.

    Raises:
        ArgumentError: if there is no block, or the schedule cannot be.
    """
    if num_blocks < 1:
        raise ArgumentError(f"noprop: `num_blocks` must be at least 1, got {num_blocks}. The paper has 10.")
    return coefficients(schedule(num_blocks))


class LearnedSchedule(nn.Module):
    """abar(t) = sigmoid(-gamma(t)) for t in [0, 1], with a gamma that falls monotonously and is learned (the paper's continuous time).

    gamma(t) = g0 + (g1 - g0) (1 - n(t)) with n(t) = (h(t) - h(0)) / (h(1) - h(0)), so that gamma(0) = g1 and gamma(1) = g0, g0 < g1; and
    h(t) = p t + sum_i q_i sigmoid(r_i t + s_i) with positive p, q and r.

    Args:
        low: abar(0) before training.
        high: abar(1) before training.
        hidden: number of sigmoids.

    Raises:
        ArgumentError: if not 0 < low < high < 1.
    """

    def __init__(self, low: float = 0.01, high: float = 0.99, hidden: int = 16) -> None:
        super().__init__()
        coefficients([low, high])
        g0, g1 = (math.log((1 - abar) / abar) for abar in (high, low))
        self.g0 = nn.Parameter(torch.tensor(g0))
        self.gap = nn.Parameter(torch.tensor(math.log(math.expm1(g1 - g0))))  # g1 - g0 through softplus, so it stays positive
        self.line = nn.Parameter(torch.tensor(math.log(math.expm1(1.0))))
        self.heights = nn.Parameter(torch.full((hidden,), math.log(math.expm1(1 / hidden))))
        self.slopes = nn.Parameter(torch.full((hidden,), math.log(math.expm1(4.0))))
        self.shifts = nn.Parameter(torch.linspace(0.0, -4.0, hidden))

    def forward(self, t: Float[Tensor, " times"]) -> tuple[Float[Tensor, " times"], Float[Tensor, " times"]]:
        """Compute gamma and its derivative after time."""
        slopes, heights, line = F.softplus(self.slopes), F.softplus(self.heights), F.softplus(self.line)

        def h(time: Tensor) -> Tensor:
            return line * time + (heights * torch.sigmoid(slopes * time[..., None] + self.shifts)).sum(-1)

        first, last = h(t.new_zeros(())), h(t.new_ones(()))
        bend = torch.sigmoid(slopes * t[..., None] + self.shifts)
        rise = line + (heights * slopes * bend * (1 - bend)).sum(-1)
        gap = F.softplus(self.gap)
        return self.g0 + gap * (1 - (h(t) - first) / (last - first)), -gap * rise / (last - first)

    def abar(self, t: Float[Tensor, " times"]) -> Float[Tensor, " times"]:
        """Compute abar(t)."""
        return torch.sigmoid(-self(t)[0])


def _few(levels: Sequence[float]) -> str:
    told = ", ".join(f"{value:g}" for value in list(levels)[:8])
    return f"[{told}{', ...' if len(levels) > 8 else ''}]"
