"""Jigsaw: pre-train any backbone by guessing in which order the tiles of each image are shown.

As the pretext task of ScatSimCLR (Kinakh et al. 2021, arXiv 2108.13939), after Noroozi and Favaro 2016, arXiv 1603.09246.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from retinue.data import Batch, Data, views
from retinue.data.views.draws import whole
from retinue.engine import Objective
from retinue.errors import ArgumentError, ShapeError
from retinue.models import feature_size, pooled_features

POOL = math.factorial(9)  # permutations that are compared: all of nine tiles, a sample of more


def permutation_set(count: int = 35, tiles: int = 9, seed: int = 0) -> Int[Tensor, "count tiles"]:
    """Choose permutations that differ at many places: each is the one farthest from those before it, the first is drawn.

    Farthest is the largest distance of Hamming to the nearest of them; among equals, the largest mean distance to all.

    Args:
        count: how many.
        tiles: how many tiles each puts in order.
        seed: of the first, and of the sample where there are more than 9! permutations.

    Raises:
        ArgumentError: if there are not so many.

    >>> table = permutation_set(35)
    >>> min(int((a != b).sum()) for i, a in enumerate(table) for b in table[:i])
    7
    """
    if not 2 <= count <= math.factorial(tiles):
        raise ArgumentError(
            f"jigsaw: `permutations` must be from 2 to {math.factorial(tiles)}, as many as {tiles} tiles have, got {count}. The "
            "paper has 35."
        )
    return torch.from_numpy(_permutation_set(count, tiles, seed).astype(np.int64))


def tiles_of(images: Float[Tensor, "batch channels height width"], grid: int = 3) -> Float[Tensor, "batch tiles channels height width"]:
    """Cut images into grid x grid tiles, row by row, and enlarge each bilinearly to the size of the whole image.

    Pixels on a border between two tiles that belong to both in part are in neither, as in the official code.

    Args:
        images: normalised; the official code forgets that for tiles alone.
        grid: tiles along each side.

    Raises:
        ShapeError: if a tile would have fewer than 3 pixels along a side.

    >>> tiles_of(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 9, 3, 32, 32])
    """
    _check_size(images.shape[-2:], grid)
    rows, columns = ([(-(-k * side // grid), (k + 1) * side // grid) for k in range(grid)] for side in images.shape[-2:])
    parts = [images[..., top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return torch.stack([F.interpolate(part, images.shape[-2:], mode="bilinear", align_corners=False) for part in parts], 1)


class JigsawPretext(Objective):
    """Cross-entropy of the guessed order of the tiles, one of a few that are fixed and saved with the weights.

    Each tile passes through the backbone on its own, so a batch of B images costs grid^2 B passes. In training, the order of an image is
    drawn anew each time; in evaluation, the same image always has the same one.

    Args:
        model: the backbone to pre-train.
        grid: tiles along each side of the image.
        permutations: how many orders, chosen by `permutation_set`; or the orders themselves.
        seed: of that choice.
        tile_dim: length of what is kept of each tile.
        hidden_dim: width of the layer that sees all tiles.
        drop_rate: share dropped before each layer but the first.

    Raises:
        ArgumentError: if the grid or the orders cannot be.

    >>> from retinue.models import tiny
    >>> JigsawPretext(tiny("ours"), permutations=4).table.shape
    torch.Size([4, 9])
    """

    monitor, mode = "jigsaw_accuracy", "max"
    table: Tensor

    def __init__(
        self,
        model: nn.Module,
        grid: int = 3,
        permutations: int | Sequence[Sequence[int]] = 35,
        seed: int = 0,
        tile_dim: int = 512,
        hidden_dim: int = 4096,
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        if grid < 2:
            raise ArgumentError(f"jigsaw: `grid` must be at least 2 tiles along each side, got {grid}. The paper has 3.")
        self.grid, self.permutations, self.seed = grid, permutations, seed
        table = permutation_set(permutations, grid**2, seed) if isinstance(permutations, int) else _table(permutations, grid**2)
        self.register_buffer("table", table)
        self.tile = nn.Sequential(nn.Linear(feature_size(model), tile_dim), nn.ReLU(inplace=True), nn.Dropout(drop_rate))
        self.head = nn.Sequential(
            nn.Linear(grid**2 * tile_dim, hidden_dim), nn.ReLU(inplace=True), nn.Dropout(drop_rate), nn.Linear(hidden_dim, len(table))
        )

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse images that are too small to be cut, before anything is computed."""
        _check_size(data.preprocessing.input_size, self.grid)

    def beside(self, view: Any) -> tuple[Any, ...]:
        """Say what is shown beside a loss whose images are drawn by `view`: the image as it is."""
        return (views.Compose([]),)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the share of orders that are guessed right."""
        orders = self.orders(batch)
        tiles = tiles_of(batch.images, self.grid)
        shuffled = tiles[torch.arange(len(tiles), device=tiles.device)[:, None], self.table[orders]]
        seen = self.tile(pooled_features(model, shuffled.flatten(0, 1)))
        logits = self.head(seen.unflatten(0, tiles.shape[:2]).flatten(1))
        return {"loss": F.cross_entropy(logits, orders), "jigsaw_accuracy": (logits.argmax(-1) == orders).float().mean()}

    def orders(self, batch: Batch) -> Int[Tensor, " batch"]:
        """Draw the order of each image, as a place in `table`."""
        if self.training:
            return torch.randint(len(self.table), (len(batch),), device=batch.images.device)
        return whole(views.uniform(views.keys(self.seed, 0, batch.indices), 1)[:, 0], len(self.table))


@lru_cache(maxsize=8)
def _permutation_set(count: int, tiles: int, seed: int) -> NDArray[np.int8]:
    random = np.random.default_rng(seed)
    if math.factorial(tiles) <= POOL:
        every = itertools.chain.from_iterable(itertools.permutations(range(tiles)))
        pool = np.fromiter(every, np.int8).reshape(-1, tiles)
    else:
        pool = random.permuted(np.tile(np.arange(tiles, dtype=np.int8), (POOL, 1)), axis=1)
    if count > len(pool):
        raise ArgumentError(f"jigsaw: of {tiles} tiles, {len(pool)} orders are compared, got `permutations` {count}. Take fewer.")
    pool = np.ascontiguousarray(pool.T)  # a permutation in each column: what is added up then lies side by side
    chosen = [int(random.integers(pool.shape[1]))]
    nearest, total = np.full(pool.shape[1], tiles + 1), np.zeros(pool.shape[1], dtype=np.int64)
    while len(chosen) < count:
        distance = (pool != pool[:, chosen[-1:]]).sum(0)
        nearest, total = np.minimum(nearest, distance), total + distance
        chosen.append(int((nearest * (tiles * count + 1) + total).argmax()))
    return pool[:, chosen].T


def _table(permutations: Any, tiles: int) -> Tensor:
    rows = [list(row) for row in permutations]
    for number, row in enumerate(rows):
        if sorted(row) != list(range(tiles)):
            raise ArgumentError(
                f"jigsaw: row {number} of `permutations` must hold each of 0 to {tiles - 1} once, got {row}. Tiles are counted row by row."
            )
        if row in rows[:number]:
            raise ArgumentError(f"jigsaw: row {number} of `permutations` repeats row {rows.index(row)}, so nobody can tell them apart.")
    if len(rows) < 2:
        raise ArgumentError(f"jigsaw: `permutations` must hold two orders at least, got {len(rows)}. With one there is nothing to guess.")
    return torch.tensor(rows)


def _check_size(sides: Sequence[int], grid: int) -> None:
    if min(sides) < 3 * grid:
        raise ShapeError(
            f"jigsaw: images must have {3 * grid} px or more along each side to be cut into {grid}x{grid} tiles, got "
            f"{sides[0]}x{sides[1]}. Open the data with input_size={3 * grid} or more."
        )
