"""Scattering of RGB images, two scales: ours beside kymatio's torch front end, on the same images, without gradients."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retinue.models.scattering import Scattering2d

CASES = ((32, 8), (32, 16), (96, 8))  # side, angles
IMAGES = 32


def rate(transform: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Time one batch, as images a second."""
    started = time.perf_counter()
    transform(images)
    return len(images) / (time.perf_counter() - started)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure both in turn, and check that they mean the same.

    Args:
        quick: few images and rounds, to see that it runs.
    """
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D  # kymatio.torch needs an older SciPy

    rows = []
    for side, angles in CASES[:1] if quick else CASES:
        images = torch.randn(4 if quick else IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
        ours, theirs = Scattering2d(2, angles, (side, side)), ScatteringTorch2D(2, (side, side), angles)
        few = images[:2]
        assert torch.allclose(ours(few), theirs(few).flatten(1, 2), rtol=0, atol=1e-5)
        pairs = [(rate(ours, images), rate(theirs, images)) for _ in range(2 if quick else 7)]
        mine, peer = (statistics.median(values) for values in zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append({
            "name": f"{images.shape[0]} images of {side} px, {angles} angles", "ours": mine, "peer": peer, "ratio": ratio,
            "unit": "images/s", "target": 1.0,
        })  # fmt: skip
    return rows
