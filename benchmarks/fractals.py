"""Rendering of 64 fractals of 2 to 4 maps, beside the chaos game as the paper's code runs it: point by point, compiled by numba."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from retinue.pretrain.fractal_render import draw_patch, render_batch
from retinue.pretrain.fractal_systems import probabilities, sample_systems

IMAGES = 64


@njit
def chaos_game(system: Any, edges: Any, count: int) -> Any:  # pragma: no cover - compiled
    (a, b, e), (c, d, f) = system[0]
    det = (1 - a) * (1 - d) - b * c
    x, y = ((1 - d) * e + b * f) / det, ((1 - a) * f + c * e) / det
    points = np.empty((count, 2))
    for i in range(count):
        draw, which = np.random.rand(), 0
        while which < len(edges) - 1 and draw > edges[which]:
            which += 1
        (a, b, e), (c, d, f) = system[which]
        x, y = a * x + b * y + e, c * x + d * y + f
        points[i] = x, y
    return points


@njit
def draw(points: Any, size: int, patch: Any) -> Any:  # pragma: no cover - compiled
    x0, x1, y0, y1 = points[:, 0].min(), points[:, 0].max(), points[:, 1].min(), points[:, 1].max()
    across, down = (size - 1) / max(x1 - x0, 1e-300), (size - 1) / max(y1 - y0, 1e-300)
    grey = np.zeros((size, size))
    for i in range(len(points)):
        row, column = int((points[i, 0] - x0) * across), int((points[i, 1] - y0) * down)
        for j in range(3):
            for k in range(3):
                r, c = row + j - 1, column + k - 1
                if patch[j, k] and 0 <= r < size and 0 <= c < size:
                    grey[r, c] += 1
    return grey / grey.max()


def seconds(render: Callable[[], Any]) -> float:
    started = time.perf_counter()
    render()
    return time.perf_counter() - started


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure both in turn on one core; medians, as images a second."""
    systems = sample_systems(IMAGES)
    rngs = [np.random.default_rng(number) for number in range(IMAGES)]
    patches = [draw_patch(rng) for rng in rngs]
    rows = []
    for size, points in ((32, 20_000), (64, 20_000), (224, 100_000)):

        def theirs(size: int = size, points: int = points) -> list[Any]:
            edges = [np.cumsum(probabilities(system)) for system in systems]
            return [draw(chaos_game(system, edge, points), size, patch) for system, edge, patch in zip(systems, edges, patches)]

        def ours(size: int = size, points: int = points) -> Any:
            return render_batch(systems, rngs, size, points)

        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(2 if quick else 9):
            for who, render in (("ours", ours), ("peer", theirs)):
                took = seconds(render)
                if number:  # the first round compiles, and warms up
                    times[who].append(took)
        rate = {who: IMAGES / statistics.median(values) for who, values in times.items()}
        name = f"fractal of {points:,} points at {size} px"
        rows.append({"name": name, **rate, "ratio": rate["ours"] / rate["peer"], "unit": "images/s", "target": 1.0})
    return rows
