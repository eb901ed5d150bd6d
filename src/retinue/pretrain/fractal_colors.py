"""Colours, backgrounds and pasting of rendered fractals (Anderson & Farrell 2022, arXiv 2110.03091, section 3.3 and the official code)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from numpy.typing import NDArray

GreyBytes = UInt8[np.ndarray, "height width"]
Colour = UInt8[np.ndarray, "3 height width"]
LEVELS = 256  # a full turn of hue; OpenCV's 8-bit hue wraps at 180, and what the official code puts above it by a rule of its own


def hsv_to_rgb(hue: NDArray, saturation: NDArray | float, value: NDArray | float) -> NDArray[np.float64]:
    """Convert hue, saturation and value, each in [0, 1], to red, green and blue in [0, 1], which come as a new first axis.

    >>> hsv_to_rgb(np.array([0.0]), np.array([1.0]), np.array([1.0])).ravel().tolist()
    [1.0, 0.0, 0.0]
    """
    channels = []
    for place in (5, 3, 1):
        turn = (place + 6 * hue) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(turn, 4 - turn), 0, 1))
    return np.stack(channels)


def colorize(grey: GreyBytes, rng: Generator) -> Colour:
    """Colour a fractal: the hue runs around the circle with its brightness, from a place drawn for the picture; black stays black.

    Args:
        grey: 0 where there is no point.
        rng: draws the first hue, the saturation in U(0.3, 1) and the value in U(0.5, 1), all constant over the picture.
    """
    first, saturation, value = rng.uniform(0, 255), rng.uniform(0.3, 1), rng.uniform(0.5, 1)
    hue = (np.arange(LEVELS) + first) % LEVELS / LEVELS
    table = to_bytes(hsv_to_rgb(hue, saturation, value))
    table[:, 0] = 0
    return table[:, grey]


def to_bytes(shares: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round [0, 1] to bytes."""
    rounded: NDArray[np.uint8] = (shares * 255 + 0.5).astype(np.uint8)
    return rounded


def composite(fractal: Colour, background: Colour) -> Colour:
    """Lay a coloured fractal over a background: pixels that are not exactly black replace it."""
    return np.where(fractal.any(axis=0), fractal, background)


def diamond_square(size: int, rng: Generator) -> Float[np.ndarray, "size size"]:
    """Make a cloud by midpoint displacement: the mean of four neighbours and a noise that falls from level to level.

    The corners are U(0, 1); at level k = 1, 2, ... the noise is U(-m, m) with m = exp(decay (1 - k)) / 2 and decay in U(0.4, 0.8). Edges
    take their missing neighbour from the opposite side.

    Args:
        size: side; the cloud of 2^n + 1 pixels is cut to it.
        rng: the source of randomness.

    Returns:
        Numbers about [0, 1], and a little beyond.
    """
    return _clouds(size, [rng])[0]


def _clouds(size: int, rngs: Sequence[Generator]) -> Float[np.ndarray, "clouds size size"]:
    levels = max(1, (size - 2).bit_length())
    side = 2**levels + 1
    decay = np.array([rng.uniform(0.4, 0.8) for rng in rngs])
    noise = np.stack([rng.random((side, side), dtype=np.float32) for rng in rngs])
    grid = noise.copy()  # its corners are the cloud's; all else is overwritten
    noise = noise * 2 - 1
    for level in range(1, levels + 1):
        step = 2 ** (levels + 1 - level)
        half = step // 2
        most = (0.5 * np.exp(decay * (1 - level)))[:, None, None].astype(np.float32)
        known = grid[:, ::step, ::step]
        centres = (known[:, :-1, :-1] + known[:, :-1, 1:] + known[:, 1:, :-1] + known[:, 1:, 1:]) / 4
        centres += most * noise[:, half::step, half::step]
        down = np.concatenate([centres[:, -1:], centres, centres[:, :1]], axis=1)
        across = np.concatenate([centres[:, :, -1:], centres, centres[:, :, :1]], axis=2)
        rows = (known[:, :, :-1] + known[:, :, 1:] + down[:, :-1] + down[:, 1:]) / 4
        columns = (known[:, :-1] + known[:, 1:] + across[:, :, :-1] + across[:, :, 1:]) / 4
        grid[:, half::step, half::step] = centres
        grid[:, ::step, half::step] = rows + most * noise[:, ::step, half::step]
        grid[:, half::step, ::step] = columns + most * noise[:, half::step, ::step]
    return grid[:, :size, :size].astype(np.float64)


def backgrounds(size: int, rngs: Sequence[Generator]) -> UInt8[np.ndarray, "backgrounds 3 size size"]:
    """Colour clouds, one for each source: hue, saturation and value all follow the cloud, each with a slope and a start of its own."""
    clouds = np.clip(_clouds(size, rngs), 0, 1)

    def follow(slope: tuple[float, float], start: tuple[float, float]) -> NDArray[np.float64]:
        drawn = np.array([(rng.uniform(*slope), rng.uniform(*start)) for rng in rngs])
        return clouds * drawn[:, :1, None] + drawn[:, 1:, None]

    hue = follow((0.25, 1), (0, 1)) * 255 % LEVELS / LEVELS
    saturation = np.minimum(follow((0.1, 0.3), (0.4, 0.6)), 1)
    value = np.minimum(follow((0.3, 0.6), (0.4, 0.6)), 1)
    return np.ascontiguousarray(to_bytes(hsv_to_rgb(hue, saturation, value)).swapaxes(0, 1))


def eightfold(image: UInt8[np.ndarray, "*channels side side"], rng: Generator) -> UInt8[np.ndarray, "*channels side side"]:
    """Show a square picture in one of its eight turns and mirrors."""
    transpose, upside, mirror = rng.random(3) < 0.5
    if transpose:
        image = image.swapaxes(-1, -2)
    return image[..., :: -1 if upside else 1, :: -1 if mirror else 1]


def blur(image: Colour, sigma: float) -> Colour:
    """Blur with a 3x3 Gaussian; the border mirrors the picture without repeating its edge.

    Args:
        image: bytes.
        sigma: in pixels.
    """
    side = np.exp(-0.5 / sigma**2)
    middle, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    soft = image.astype(np.float32)
    for axis in (1, 2):
        padded = np.concatenate([soft.take([1], axis), soft, soft.take([-2], axis)], axis)
        before, after = (padded.take(range(start, start + soft.shape[axis]), axis) for start in (0, 2))
        soft = np.float32(middle) * soft + np.float32(side) * (before + after)
    return (soft + 0.5).astype(np.uint8)


def resize(grey: GreyBytes, side: int) -> UInt8[np.ndarray, "side side"]:
    """Bring a square picture to another side, bilinearly, between the nearest four pixels (no antialiasing, as OpenCV does)."""
    old = len(grey)
    places = np.clip((np.arange(side) + 0.5) * (old / side) - 0.5, 0, old - 1)
    low = places.astype(np.int64)
    high, share = np.minimum(low + 1, old - 1), (places - low).astype(np.float32)
    rows = grey[low] + share[:, None] * (grey[high].astype(np.float32) - grey[low])
    both = rows[:, low] + share * (rows[:, high] - rows[:, low])
    return np.ceil(both).astype(np.uint8)  # a pixel with a neighbour in the fractal stays lit


def paste(image: Colour, fractal: UInt8[np.ndarray, "3 rows columns"], top: int, left: int) -> None:
    """Lay a coloured fractal into an image, in place; what hangs over the border is cut, black pixels leave what is there.

    Args:
        image: is changed.
        fractal: smaller or larger.
        top: row of its first row; may be negative.
        left: column of its first column.
    """
    height, width = fractal.shape[1:]
    part = fractal[:, max(0, -top) : image.shape[1] - top, max(0, -left) : image.shape[2] - left]
    if not part.size or top + height <= 0 or left + width <= 0:
        return
    place = image[:, max(0, top) : max(0, top) + part.shape[1], max(0, left) : max(0, left) + part.shape[2]]
    place[:] = composite(part, place)
