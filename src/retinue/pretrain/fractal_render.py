"""Points of an attractor as a grey picture, and a renderer of many systems (Anderson & Farrell 2022, arXiv 2110.03091, section 3.1).

The chaos game is one long chain and slow in Python. `render_batch` draws from the same measure in one sweep, by its self-similarity: the
attractor is a union of small copies of itself, one for each word of maps, and the share of points in a copy is the word's probability.
A few hundred points of the attractor, put through a few hundred words, are tens of thousands of points, without a chain and without a
random number for each.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator
from numpy.typing import NDArray

from retinue.errors import ArgumentError
from retinue.pretrain.fractal_systems import Systems, check_system, contracts, fixed_point, probabilities

Grey = Float[np.ndarray, "size size"]
Patch = Bool[np.ndarray, "3 3"]
Region = tuple[float, float, float, float]
SMALLEST = 8  # pixels
GROWING = 16  # the likeliest 1/16 of the words grow in each round
JUMPS = 4  # words that carry the first points from the fixed point over the attractor: some 30 maps
SCOUTS = 8  # points of each copy that tell where the attractor is, before a window is laid on it
INSIDE = 1e-3  # pixels by which points are moved up, so that rounding does not push the lowest out of the picture
WIDE = 4000  # pixels from which float32 cannot number them all
TRIES = 4  # windows that may miss the attractor
AT_A_TIME = 64  # systems whose words are composed together


def render_ifs(
    points: Float[np.ndarray, "points 2"],
    size: int,
    region: Region | None = None,
    patch: Patch | None = None,
    binary: bool = False,
) -> Grey:
    """Count the points in each pixel, and divide by the largest count.

    Args:
        points: their first coordinate runs down the rows, the second along the columns.
        size: side of the picture in pixels.
        region: (x0, y0, x1, y1) that fills the picture; None takes the points' own extent. Points outside are left out, exactly (the
            official code rounds towards zero, so that points up to one pixel before the low edges fall into the first row or column).
        patch: cells of the 3x3 neighbourhood that each point paints; None: its own pixel.
        binary: 1 wherever there is a point.

    Raises:
        ArgumentError: if the picture is below 8 pixels, the region is empty, or a point is not finite.

    >>> float(render_ifs(np.zeros((5, 2)), 8).sum())
    1.0
    """
    check_size(size)
    points = np.asarray(points)
    if not np.isfinite(points).all():
        raise ArgumentError("fractals: there are points that are not finite. Take a system whose maps contract.")
    if region is not None and not (region[2] > region[0] and region[3] > region[1]):
        raise ArgumentError(f"fractals: `region` must be (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {region}.")
    (x0, y0), (x1, y1) = (points.min(0), points.max(0)) if region is None else (region[:2], region[2:])
    rows = (points[:, 0] - x0) * (size - 1) / ((x1 - x0) or 1.0)
    columns = (points[:, 1] - y0) * (size - 1) / ((y1 - y0) or 1.0)
    return _grey(_counts(rows, columns, size, None), patch, binary)


def draw_patch(rng: Generator) -> Patch:
    """Draw the cells that every point of one picture paints: each with probability 1/2, the middle if none is."""
    patch = rng.random((3, 3)) < 0.5
    patch[1, 1] |= not patch.any()
    return patch


def check_size(size: int) -> None:
    """Refuse pictures that are too small to show anything."""
    if size < SMALLEST:
        raise ArgumentError(f"fractals: `size` must be {SMALLEST} pixels or more, got {size}.")


def render_batch(
    systems: Systems,
    rngs: Sequence[Generator],
    size: int,
    n_points: int = 100_000,
    *,
    window: bool = True,
    patch: bool = True,
) -> UInt8[np.ndarray, "systems size size"]:
    """Render systems to bytes; every lit pixel is at least 1, and the brightest is 255.

    Args:
        systems: contracting maps, of any numbers of maps.
        rngs: one source of randomness for each, so that a picture does not depend on the others.
        size: side in pixels.
        n_points: of each picture; some more, to fill the last word.
        window: show a random part: the centre moves by U(-0.2, 0.2) of the extent along each axis, the sides are U(0.5, 2) times it.
        patch: let each point paint a random part of its neighbourhood, drawn once for each picture.

    Raises:
        ArgumentError: if a system does not contract, or a number cannot be.

    Returns:
        The pictures: what `render_ifs` makes of the chaos game's points, but for their noise.
    """
    check_size(size)
    if n_points < 1:
        raise ArgumentError(f"fractals: `n_points` must be at least 1, got {n_points}. The paper takes 100,000.")
    pictures = np.zeros((len(systems), size, size), dtype=np.uint8)
    side = math.isqrt(n_points - 1) + 1
    for maps in sorted({len(system) for system in systems}):
        alike = [i for i, system in enumerate(systems) if len(system) == maps]
        for start in range(0, len(alike), AT_A_TIME):
            some = alike[start : start + AT_A_TIME]
            together = np.stack([systems[i] for i in some])
            if not contracts(together):
                together = np.stack([check_system(system) for system in together])  # says which map, and refuses it
            words, shares = compose(together, side)
            sources = [rngs[i] for i in some]
            seeds = _seeds(together, words, shares, sources, -(-n_points // shares.shape[1]))
            for i, own, share, seed, rng in zip(some, words, shares, seeds, sources):
                pictures[i] = _picture(own, share, seed, rng, size, window, patch)
    return pictures


def compose(
    systems: Float[np.ndarray, "systems maps 2 3"], count: int
) -> tuple[Float[np.ndarray, "systems words 2 3"], Float[np.ndarray, "systems words"]]:
    """Cut each attractor into at least `count` copies of itself; in each round the likeliest words grow by a map.

    Args:
        systems: of one number of maps each.
        count: how many words at least (one map makes one word).

    Returns:
        The maps of the words, and the probability of each word; those of a system add up to 1.
    """
    number, maps = systems.shape[:2]
    sizes = [maps]
    while maps > 1 and sizes[-1] < count:
        sizes.append(sizes[-1] + -(-sizes[-1] // GROWING) * (maps - 1))
    chances = np.stack([probabilities(system) for system in systems])
    words, shares = np.empty((number, sizes[-1], 2, 3)), np.empty((number, sizes[-1]))
    words[:, :maps], shares[:, :maps] = systems, chances
    own, row = systems[:, None], np.arange(number)[:, None]
    for size, next_size in pairwise(sizes):
        growing = (next_size - size) // (maps - 1)
        chosen = np.argpartition(shares[:, :size], size - growing, axis=1)[:, size - growing :]
        old = words[row, chosen][:, :, None]
        grown = _after(old, own)
        likely = shares[row, chosen][..., None] * chances[:, None]
        words[row, chosen], shares[row, chosen] = grown[:, :, 0], likely[:, :, 0]
        words[:, size:next_size] = grown[:, :, 1:].reshape(number, -1, 2, 3)
        shares[:, size:next_size] = likely[:, :, 1:].reshape(number, -1)
    return words, shares


def _after(second: NDArray[np.float64], first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compose affine maps: A (A' x + b') + b. Written out, as a product of matrices may round by how many there are."""
    made = second[..., :, :1] * first[..., :1, :] + second[..., :, 1:2] * first[..., 1:, :]
    made[..., 2] += second[..., 2]
    return made


def _seeds(
    systems: Float[np.ndarray, "systems maps 2 3"],
    words: Float[np.ndarray, "systems words 2 3"],
    shares: Float[np.ndarray, "systems words"],
    rngs: Sequence[Generator],
    count: int,
) -> Float[np.ndarray, "systems 2 seeds"]:
    """Draw independent points of each attractor: its fixed point under a few words after each other."""
    edges = np.cumsum(shares, axis=1)[:, :-1]
    chosen = np.stack([np.searchsorted(edge, rng.random((JUMPS, count)), side="right") for edge, rng in zip(edges, rngs)])
    row = np.arange(len(systems))[:, None]
    x, y = np.stack([fixed_point(system[0]) for system in systems])[:, :, None].transpose(1, 0, 2)
    for jump in range(JUMPS):
        word = words[row, chosen[:, jump]]
        x, y = (word[..., i, 0] * x + word[..., i, 1] * y + word[..., i, 2] for i in (0, 1))
    return np.stack([x, y], axis=1)


def _picture(
    words: Float[np.ndarray, "words 2 3"],
    shares: Float[np.ndarray, " words"],
    seeds: Float[np.ndarray, "2 seeds"],
    rng: Generator,
    size: int,
    window: bool,
    patch: bool,
) -> UInt8[np.ndarray, "size size"]:
    kind = np.float32 if size < WIDE else np.float64
    cells = draw_patch(rng) if patch else None
    weights = np.repeat(shares, seeds.shape[1])
    scouts = _spread(words, seeds[:, :SCOUTS] if window else seeds)
    low, high = np.array([axis.min() for axis in scouts]), np.array([axis.max() for axis in scouts])
    extent = np.where(high > low, high - low, 1.0)
    for attempt in range(TRIES + 1 if window else 1):
        corner, sides = low, extent
        if attempt < TRIES and window:
            sides = extent * rng.uniform(0.5, 2.0)
            corner = (low + high - sides) / 2 + extent * rng.uniform(-0.2, 0.2, 2)
        fitted = words * ((size - 1) / sides)[:, None]  # the words' points come out in pixels
        fitted[:, :, 2] -= corner * (size - 1) / sides - INSIDE
        counts = _counts(*_spread(fitted.astype(kind), seeds.astype(kind)), size, weights)
        if counts.any():
            break
    return np.ceil(_grey(counts, cells, False) * 255).astype(np.uint8)


def _spread(words: NDArray, seeds: NDArray) -> tuple[NDArray, NDArray]:
    """Put every point through every word."""
    x, y = (np.multiply.outer(words[:, row, 0], seeds[0]) for row in (0, 1))
    for row, values in enumerate((x, y)):
        values += np.multiply.outer(words[:, row, 1], seeds[1])
        values += words[:, row, 2, None]
    return x, y


def _counts(rows: NDArray, columns: NDArray, size: int, weights: NDArray[np.float64] | None) -> Float[np.ndarray, "padded padded"]:
    """Count points, given in pixels, each as its weight; a border of one pixel around the picture stays empty."""
    wide = size + 2
    for places in (rows, columns):
        np.floor(places, out=places)
        places += 1
        np.clip(places, 0, size + 1, out=places)  # what lies outside goes to the border
    rows *= wide
    rows += columns
    counts = np.bincount(rows.astype(np.int64).ravel(), weights, wide * wide).astype(np.float64).reshape(wide, wide)
    counts[[0, -1]] = 0
    counts[:, [0, -1]] = 0
    return counts


def _grey(counts: Float[np.ndarray, "padded padded"], patch: Patch | None, binary: bool) -> Grey:
    """Spread counts over the patch, and divide by the largest."""
    size = len(counts) - 2
    inner = counts[1:-1, 1:-1]
    if patch is not None:
        inner = np.zeros((size, size))
        for row, column in np.argwhere(patch).tolist():
            inner += counts[2 - row : 2 - row + size, 2 - column : 2 - column + size]
    if binary:
        return (inner > 0).astype(np.float64)
    most = inner.max()
    return inner / most if most > 0 else inner
