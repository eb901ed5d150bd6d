"""Curves as geometry: a page sets them so that lines stretch with the window while text keeps its size.

Coordinates run from 0 to 100 in both directions, y downwards, as SVG has them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.ticker import MaxNLocator

MOST_POINTS = 300  # of one line; more are averaged, as no screen shows them
MOST_BANDS = 100  # places where the pointer finds numbers

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One line: its label, the number of its colour, its SVG path, and its last value as text."""

    label: str
    colour: int
    path: str
    last: str


@dataclass(frozen=True)
class Chart:
    """Lines in common axes.

    Attributes:
        title: what is drawn.
        lines: in the order of the legend.
        x_ticks: place and text.
        y_ticks: place and text.
        bands: place, width and text of what the pointer finds.
        mark: place of a vertical line, or None.
        logarithmic: whether y is.
        description: in words, for those who do not see it.
    """

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    bands: list[tuple[float, float, str]]
    mark: float | None
    logarithmic: bool
    description: str


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_name: str = "epoch",
    percent: bool = False,
    logarithmic: Callable[[Sequence[float]], bool] = lambda values: False,
    from_zero: bool = False,
    mark: float | None = None,
    colours: Mapping[str, int] | None = None,
) -> Chart | None:
    """Lay out lines; None if there is not one finite point.

    Args:
        title: what is drawn.
        lines: points (x, y) by label, x rising; a value that is not finite breaks the line.
        x_name: what x counts.
        percent: y is a share.
        logarithmic: says of all values whether y should be.
        from_zero: let y begin at 0.
        mark: x of a vertical line.
        colours: number of each line's colour; None counts them.
    """
    lines = {label: _thinned(points) for label, points in lines.items()}
    lines = {label: points for label, points in lines.items() if any(math.isfinite(y) for _, y in points)}
    if not lines:
        return None
    values = [y for points in lines.values() for _, y in points if math.isfinite(y)]
    log = logarithmic(values)
    low, high, ticks = _log_axis(values) if log else _axis([*values, 0.0] if from_zero else values, most=1.0 if percent else math.inf)
    left = min(0.0, *(points[0][0] for points in lines.values()))
    right = max(points[-1][0] for points in lines.values())

    def across(x: float) -> float:
        return 50.0 if right == left else 100 * (x - left) / (right - left)

    def down(y: float) -> float:
        up = (math.log(y / low) / math.log(high / low)) if log else (y - low) / (high - low)
        return 100 * (1 - up)

    def text(y: float) -> str:
        return f"{100 * y:.1f} %" if percent else _plain(y, 3)

    drawn = [
        Line(
            label,
            (colours or {}).get(label, i),
            _path(points, across, down),
            text(next(y for _, y in reversed(points) if math.isfinite(y))),
        )
        for i, (label, points) in enumerate(lines.items())
    ]
    x_ticks = [
        x for x in MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=right - left >= 2).tick_values(left, right) if left <= x <= right
    ]
    return Chart(
        title=title,
        lines=drawn,
        x_ticks=[(across(x), f"{x:,g}" if x < 1e6 else f"{x:.0e}") for x in x_ticks],
        y_ticks=[(down(y), f"{100 * y:g} %" if percent else _plain(y, 6)) for y in ticks],
        bands=_bands(lines, across, text, x_name),
        mark=across(mark) if mark is not None and left <= mark <= right else None,
        logarithmic=log,
        description=f"{title} by {x_name}. " + " ".join(_told(label, points, text) for label, points in lines.items()),
    )


def _plain(value: float, digits: int) -> str:
    """Write a number briefly: 0.250, 2.5e-4, 2,550."""
    if not math.isfinite(value):
        return f"{value}"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(power)}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:g}" if digits > 3 or not value else f"{value:#.{digits}g}".rstrip(".")


def _thinned(points: Points) -> Points:
    """Average neighbours where there are more points than a screen shows."""
    if len(points) <= MOST_POINTS:
        return points
    parts = np.array_split(np.array(points, dtype=np.float64), MOST_POINTS)
    return [(float(x), float(y)) for x, y in (part.mean(0) for part in parts)]


def _axis(values: Sequence[float], most: float) -> tuple[float, float, list[float]]:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - abs(low or 1) / 10, high + abs(high or 1) / 10
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, min(high, most) if most > low else high)
    ticks = [float(round(tick, 12)) for tick in ticks if tick <= most or high > most]
    return min(ticks[0], low), max(ticks[-1], high), ticks


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    low, high = min(values) / 1.1, max(values) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [float(f"{step}e{power}") for power in powers for step in steps if low <= float(f"{step}e{power}") <= high]
        if len(ticks) <= 5:
            break
    return low, high, ticks[:: max(1, math.ceil(len(ticks) / 5))]


def _path(points: Points, across: Scale, down: Scale) -> str:
    """Draw a line through the finite points; one that stands alone becomes a dot by its round ends."""
    words, pen_down = [], False
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{'L' if pen_down else 'M'}{across(x):.2f} {down(y):.2f}{'' if pen_down else 'h0'}")
        pen_down = math.isfinite(y)
    return "".join(words)


def _bands(lines: Mapping[str, Points], across: Scale, text: Callable[[float], str], x_name: str) -> list[tuple[float, float, str]]:
    """Cut the width into bands around the points of the line that has fewest; each tells every line's value nearest to it."""
    places = [x for x, _ in min(lines.values(), key=len)]
    places = places[:: max(1, math.ceil(len(places) / MOST_BANDS))]
    middles = [across((a + b) / 2) for a, b in pairwise(places)]
    bands = []
    for x, start, end in zip(places, [0.0, *middles], [*middles, 100.0]):
        values = [(label, min(points, key=lambda point: abs(point[0] - x))[1]) for label, points in lines.items()]
        told = ", ".join(f"{label} {text(y)}".strip() for label, y in values)
        bands.append((round(start, 2), round(end - start, 2), f"{x_name} {x:,g}: {told}"))
    return bands


def _told(label: str, points: Points, text: Callable[[float], str]) -> str:
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    return f"{label} goes from {text(finite[0][1])} to {text(finite[-1][1])}.".lstrip()
