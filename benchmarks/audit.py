"""Intrinsic dimension and label sharpness of 4,000 images of 32 px in colour, beside the formulas on scikit-learn's neighbours."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from retinue.audit.dataset_properties import intrinsic_dimension, label_sharpness

IMAGES, FEATURES, K, SHARPNESS = 4000, 3072, 20, 1000


def neighbours_dimension(x: Tensor) -> float:
    """Compute the likelihood as scikit-dimension does: neighbours of scikit-learn, then the logarithms."""
    distances = NearestNeighbors(n_neighbors=K).fit(x.numpy()).kneighbors()[0].astype(np.float64)
    return float((K - 2) / np.log(distances[:, -1:] / distances[:, :-1]).sum(1).mean())


def plain_sharpness(x: Tensor, y: Tensor) -> float:
    """Compute the largest ratio from the whole matrix of distances."""
    distances = pairwise_distances(x.double().numpy())
    return float(1 / distances[y.numpy()[:, None] != y.numpy()[None]].min())


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure both in turn on one core; medians, as times a second, and that both give the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return compare(quick)
    finally:
        torch.set_num_threads(threads)


def compare(quick: bool) -> list[dict[str, Any]]:
    """Measure all cases."""
    generator = torch.Generator().manual_seed(0)
    count = 400 if quick else IMAGES
    x = torch.randn(count, 12, generator=generator) @ torch.randn(12, FEATURES, generator=generator)
    y = torch.arange(count) % 2
    few = slice(0, min(count, SHARPNESS))
    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        f"intrinsic dimension of {count:,} images": (lambda: intrinsic_dimension(x, k=K).value, lambda: neighbours_dimension(x)),
        f"label sharpness of {few.stop:,} images": (
            lambda: label_sharpness(x[few], y[few], max_samples=None).value,
            lambda: plain_sharpness(x[few], y[few]),
        ),
    }
    rows = []
    for name, both in cases.items():
        times: list[list[float]] = [[], []]
        found = [0.0, 0.0]
        for number in range(2 if quick else 6):
            for who, function in enumerate(both):
                started = time.perf_counter()
                found[who] = function()
                if number:  # the first round is for warming up
                    times[who].append(time.perf_counter() - started)
        if abs(found[0] / found[1] - 1) > 1e-4:
            raise RuntimeError(f"{name}: {found[0]} and {found[1]} are not the same")
        ours, peer = (1 / statistics.median(values) for values in times)
        rows.append({"name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "unit": "times/s", "target": 1.0})
    return rows
