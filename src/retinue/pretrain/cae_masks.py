"""Which patches are hidden: rectangles, or places drawn one by one (BEiT, arXiv 2106.08254, algorithm 1, and CAE)."""

import math
import random

import numpy as np
import torch
from jaxtyping import Bool, Int64
from numpy.typing import NDArray
from torch import Tensor

from retinue.data import views
from retinue.errors import ArgumentError, ShapeError

ATTEMPTS = 10  # rectangles tried before the range of areas is drawn from anew
ROUNDS = 2000  # after which the rectangles that are asked for cannot fill the grid


class RandomMask:
    """Hide the same number of patches of every image, each set of places equally likely.

    Args:
        grid: rows and columns of patches.
        masked: how many are hidden; None hides half.

    Raises:
        ArgumentError: if nothing or everything would be hidden.

    >>> int(RandomMask((4, 4), 6)(torch.tensor([1, 2])).sum())
    12
    """

    def __init__(self, grid: tuple[int, int], masked: int | None = None) -> None:
        self.grid, self.masked = grid, checked_count(grid, masked)

    def __call__(self, keys: Int64[Tensor, " batch"]) -> Bool[Tensor, "batch places"]:
        """Draw a mask, True where hidden, for each key; row i depends on key i alone."""
        order = views.uniform(keys, self.grid[0] * self.grid[1]).argsort(dim=1, stable=True)
        return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, : self.masked], True)


class BlockMask:
    """Hide rectangles until the same number of patches is hidden in every image.

    A rectangle has an area drawn uniformly between `min_area` and what is still to be hidden, and an aspect ratio drawn uniformly in its
    logarithm; it is smaller than the grid, stands anywhere, and counts if it hides something new and not too much.

    Args:
        grid: rows and columns of patches.
        masked: how many are hidden; None hides half.
        min_area: smallest area of a rectangle as long as so much is to be hidden; 16 in the paper for 14x14 patches, None scales that
            with the grid (5 for 8x8).
        aspect: smallest and largest height / width.

    Raises:
        ArgumentError: if nothing or everything would be hidden, `min_area` exceeds `masked`, the aspects are no range, or rectangles of
            this kind cannot fill the grid so far.

    >>> BlockMask((14, 14), 98, min_area=16)(torch.tensor([1, 2])).sum(1).tolist()
    [98, 98]
    """

    def __init__(
        self,
        grid: tuple[int, int],
        masked: int | None = None,
        min_area: int | None = None,
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        self.grid, self.masked = grid, checked_count(grid, masked)
        scaled = min(self.masked, max(1, round(16 * grid[0] * grid[1] / 196)))
        self.min_area = scaled if min_area is None else min_area
        if not 1 <= self.min_area <= self.masked:
            raise ArgumentError(
                f"BlockMask: `min_area` must lie between 1 and the {self.masked} hidden patches, got {self.min_area}. The paper has 16 of "
                "98; take 4 for 8x8 patches."
            )
        if not 0 < aspect[0] <= aspect[1]:
            raise ArgumentError(f"BlockMask: `aspect` must be a smallest and a largest height / width above 0, got {aspect}.")
        self.aspect = (math.log(aspect[0]), math.log(aspect[1]))
        self._draw(0)

    def __call__(self, keys: Int64[Tensor, " batch"]) -> Bool[Tensor, "batch places"]:
        """Draw a mask, True where hidden, for each key; row i depends on key i alone."""
        rows = np.array([self._draw(key) for key in keys.tolist()], dtype=bool)
        return torch.from_numpy(rows).to(keys.device).view(len(keys), self.grid[0] * self.grid[1])

    def _draw(self, key: int) -> NDArray[np.bool_]:
        chance, hidden = random.Random(key), np.zeros(self.grid, dtype=bool)
        remaining = self.masked
        for _ in range(ROUNDS):
            if not remaining:
                return hidden
            remaining -= self._rectangle(hidden, remaining, chance)
        raise ArgumentError(
            f"BlockMask: no rectangles of these areas and aspects hide {self.masked} of {self.grid[0]}x{self.grid[1]} patches. Lower "
            "`min_area`, or take RandomMask."
        )

    def _rectangle(self, hidden: NDArray[np.bool_], remaining: int, chance: random.Random) -> int:
        """Hide one rectangle, if one of ten drawn ones fits, and return how much it hides."""
        for _ in range(ATTEMPTS):
            area, aspect = chance.uniform(self.min_area, remaining), math.exp(chance.uniform(*self.aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < height < self.grid[0] and 0 < width < self.grid[1]):
                continue
            top, left = chance.randint(0, self.grid[0] - height), chance.randint(0, self.grid[1] - width)
            part = hidden[top : top + height, left : left + width]
            new = height * width - int(part.sum())
            if 0 < new <= remaining:
                part[:] = True
                return new
        return 0


def checked_count(grid: tuple[int, int], masked: int | None) -> int:
    """Return how many patches are hidden, half of them by default.

    Raises:
        ArgumentError: if none or all would be.
    """
    places = grid[0] * grid[1]
    count = places // 2 if masked is None else masked
    if not 0 < count < places:
        raise ArgumentError(
            f"CAE: `masked` must be at least 1 and less than all {places} patches, got {count}. The paper hides half: {places // 2}."
        )
    return count


def places_of(mask: Bool[Tensor, "batch places"]) -> Int64[Tensor, "batch chosen"]:
    """List the places where a mask is True, row by row in their order.

    Raises:
        ShapeError: if the rows have different numbers of them.
    """
    counts = mask.sum(1)
    if len(mask) and bool((counts != counts[0]).any()):
        raise ShapeError(
            f"CAE: every image of a batch must have as many hidden patches, got {int(counts.min())} to {int(counts.max())}. Draw the masks "
            "with BlockMask or RandomMask."
        )
    return mask.nonzero()[:, 1].view(len(mask), -1)
