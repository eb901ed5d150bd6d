"""The classifier of infinite width: kernel of depth 5 and solve, beside the recursion in plain NumPy and scikit-learn's KernelRidge.

Both in float64, from the same inputs to the same answers; and the singular kernel of infinite depth beside its iteration in plain NumPy.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge

from retinue.theory.dual_activation import DualActivation, optimal_activation
from retinue.theory.wide_and_deep import WideDeepClassifier

INPUTS, FEATURES, CLASSES, DEPTH = 2000, 64, 10, 5
Array = NDArray[np.float64]


def recursion(phi: DualActivation, xi: Array, depth: int) -> Array:
    """Compute the tangent kernel as one would write it down."""
    dual, slope = phi.squares, phi.slopes
    S: Any = xi
    K: Any = xi
    for _ in range(depth):
        S, K = np.polynomial.polynomial.polyval(S, dual), K * np.polynomial.polynomial.polyval(S, slope)
        K = K + S
    return K


def iteration(phi: DualActivation, xi: Array) -> Array:
    """Compute psi as one would write it down: phiv again and again, until all is below 1e-12."""
    S, n = np.minimum(xi, 1 - 1e-12), 0
    while S.max() > 1e-12:
        S, n = np.polynomial.polynomial.polyval(S, phi.squares), n + 1
    return np.exp(np.log(S) - 2 * n * math.log(phi.A1))


def seconds(function: Callable[[], Any]) -> float:
    """Time a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure both in turn, medians, as inputs a second; and check that they mean the same.

    Args:
        quick: few inputs and rounds, to see that it runs.
    """
    rng = np.random.default_rng(0)
    count = 200 if quick else INPUTS
    X, unseen = (rng.random((count, FEATURES)) for _ in range(2))
    y = rng.integers(0, CLASSES, count)
    unit, there = (points / np.linalg.norm(points, axis=1, keepdims=True) for points in (X, unseen))
    phi = optimal_activation(8)

    def ours(depth: float) -> Array:
        return WideDeepClassifier(phi, depth=depth).fit(X, y).predict(unseen)

    def ridge() -> Array:
        K, k = recursion(phi, (unit @ unit.T).clip(0, 1), DEPTH), recursion(phi, (there @ unit.T).clip(0, 1), DEPTH)
        scale = K[0, 0]
        return KernelRidge(alpha=1e-12, kernel="precomputed").fit(K / scale, np.eye(CLASSES)[y]).predict(k / scale).argmax(1)

    def votes() -> Array:
        return (iteration(phi, (there @ unit.T).clip(0, 1)) @ np.eye(CLASSES)[y]).argmax(1)

    rows = []
    for name, depth, peer in ((f"depth {DEPTH}", DEPTH, ridge), ("infinite depth", math.inf, votes)):
        assert (ours(depth) == peer()).mean() > 0.999
        pairs = [(count / seconds(lambda depth=depth: ours(depth)), count / seconds(peer)) for _ in range(2 if quick else 7)]  # type: ignore[misc]
        mine, theirs = (statistics.median(values) for values in zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append({
            "name": f"{name}, {count:,} inputs to train and to predict", "ours": mine, "peer": theirs, "ratio": ratio,
            "unit": "inputs/s", "target": 1.0,
        })  # fmt: skip
    return rows
