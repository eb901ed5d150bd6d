"""The classifier that a fully connected network of infinite width and any depth, also infinite, comes to by training; in closed form.

Radhakrishnan, Belkin and Uhler 2022, arXiv 2204.14126. Gradient flow on the squared loss makes f_L(x) = Y' K_L(X,X)^-1 K_L(X,x) of a
network with L hidden layers. As L grows, the activation alone decides between nearest neighbour, majority vote and a vote weighted by a
singular kernel, which for `optimal_activation(d)` comes to the best possible classifier on data of dimension d.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import linalg
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from retinue.data import Data, Split
from retinue.engine import stages
from retinue.errors import ArgumentError, DataError, unknown
from retinue.metrics import intrinsic_dimension
from retinue.models.wide_deep_network import HermiteActivation, WideDeepNetwork, empirical_kernel
from retinue.theory.dual_activation import COINCIDENT, DualActivation, check_depth, optimal_activation

__all__ = [
    "DualActivation",
    "HermiteActivation",
    "WideDeepClassifier",
    "WideDeepNetwork",
    "empirical_kernel",
    "optimal_activation",
    "infinite_networks",
    "measured_dimension",
]

Array = NDArray[np.float64]
MAPPINGS = ("auto", "sphere", "minmax")
NEIGHBOURS, MEASURED = 20, 2000  # for the intrinsic dimension: neighbours of a point, and points
JITTER = 1e-12  # smallest pivot of a Gram matrix that counts as regular; its diagonal is 1
LOWEST = -600.0  # exponent below which a decision is raised, so that its sign survives in a float


class WideDeepClassifier(ClassifierMixin, BaseEstimator):
    """What an infinitely wide network of some depth predicts when it has been trained to the end; nothing is trained.

    Memory, beside twice the training inputs: at infinite depth only the blocks of `memory`; at finite depth 8 n^2 bytes for n training
    inputs as well (0.8 GB for 10,000), and three times that where the kernel matrix is singular. Cost of a fit: O(n^3) at finite depth,
    nothing at infinite; of a prediction: O(n) for each input.

    Args:
        activation: "optimal", "relu", "erf", "sine", "cosine", "gelu", "tanh", a `DualActivation`, or Hermite coefficients.
        dim: dimension of the data, for "optimal"; None measures the intrinsic dimension of the training inputs.
        depth: hidden layers: infinite, or a whole number of 0 or more; 0 is a linear model.
        mapping: how inputs come to the non-negative part of the unit sphere. "sphere" divides each by its norm; "minmax" first brings
            each feature to [0, 1], with the training inputs' least and largest value, and appends a 1; "auto" takes "sphere" where it
            can: more than one feature, no negative value, no input of zeros.
        memory: MiB that a block of kernel values may take.

    Attributes:
        classes_: the labels.
        activation_: the `DualActivation`.
        dim_: dimension for which "optimal" was built; None for other activations.
        mapping_: "sphere" or "minmax".

    >>> X, y = [[0.9, 0.1], [0.8, 0.3], [0.1, 0.9], [0.2, 0.7]], ["a", "a", "b", "b"]
    >>> WideDeepClassifier(dim=1).fit(X, y).predict([[2.0, 1.0], [1.0, 3.0]]).tolist()
    ['a', 'b']
    """

    def __init__(
        self,
        activation: Any = "optimal",  # scikit-learn's contract: anything is taken here, and `fit` says what cannot be
        dim: Any = None,
        depth: Any = math.inf,
        mapping: Any = "auto",
        memory: Any = 256.0,
    ) -> None:
        self.activation = activation
        self.dim = dim
        self.depth = depth
        self.mapping = mapping
        self.memory = memory

    def fit(self, X: Any, y: Any) -> "WideDeepClassifier":
        """Take the training inputs; at finite depth, solve for them.

        Args:
            X: inputs, one a row.
            y: a label for each.

        Raises:
            ArgumentError: if a setting cannot be, there is one class only, or infinite depth has no limit with this activation.
            DataError: if an input cannot be mapped to the sphere.
        """
        X, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        depth = self.depth if self.depth == math.inf else check_depth("WideDeepClassifier", self.depth)
        if self.mapping not in MAPPINGS:
            raise unknown("WideDeepClassifier", "`mapping`", self.mapping, MAPPINGS)
        if not self.memory > 0:
            raise ArgumentError(f"WideDeepClassifier: `memory` must be above 0 MiB, got {self.memory}. 256 is usual.")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentError(
                f"WideDeepClassifier: all labels are of one class, {self.classes_[0]}. Give inputs of two classes at least."
            )
        self._choose_mapping(X)
        points = self._on_sphere(X)
        self.activation_, self.dim_ = self._activation(points)
        if depth == math.inf and self.activation_.regime == "undefined":
            raise ArgumentError(
                f"WideDeepClassifier: with A={self.activation_.A:.4g} and B'={self.activation_.B1:.4g} infinite depth has no limit. "
                "Take a finite `depth`, or an activation with A = 0 that is not linear."
            )
        votes = np.eye(len(self.classes_))[numbers]
        if depth != math.inf:
            points, votes = _merged(points, votes)
            votes = self._solved(points, votes)
        self.points_: Array = points
        self.votes_: Array = votes
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of the largest output for each input."""
        most = np.concatenate([scores.argmax(1) for scores, _ in self._blocks(X)])
        return self.classes_[most]

    def decision_function(self, X: Any) -> Array:
        """Compute the outputs, one column a class; for two classes the second minus the first, one number an input.

        At finite depth these are the network's outputs f_L(x) for one-hot labels, raised to e^-600 where they are smaller than that. At
        infinite depth f_L(x) comes to 0 off the training inputs; these are the shares of the classes in the vote that decides its sign.
        """
        outputs = np.concatenate([scores * np.exp(np.maximum(scale, LOWEST))[:, None] for scores, scale in self._blocks(X)])
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict_proba(self, X: Any) -> Array:
        """Compute the classes' shares of the positive outputs; they sum to 1, and are not calibrated."""
        scores = np.concatenate([scores for scores, _ in self._blocks(X)])
        positive = scores.clip(min=0)
        positive = np.where(positive.sum(1, keepdims=True) > 0, positive, scores - scores.min(1, keepdims=True))
        total = positive.sum(1, keepdims=True)
        return np.where(total > 0, positive / np.where(total > 0, total, 1), 1 / len(self.classes_))

    def _blocks(self, X: Any) -> Iterator[tuple[Array, Array]]:
        """Yield outputs of some inputs at a time, divided by e^scale, and the scale."""
        check_is_fitted(self)
        points = self._on_sphere(validate_data(self, X, reset=False, dtype=np.float64))
        rows = self._rows(len(self.points_))
        for start in range(0, len(points), rows):
            xi = _products(points[start : start + rows], self.points_)
            yield self._limit(xi) if self.depth == math.inf else self._finite(xi)

    def _rows(self, columns: int) -> int:
        return max(1, int(self.memory * 2**20 / (8 * 4 * columns)))  # products, kernel, and what exp and comparisons make of it

    def _finite(self, xi: Array) -> tuple[Array, Array]:
        log_kernel = self.activation_.log_kernel(xi, int(self.depth))
        scale = log_kernel.max(1)
        scale[scale == -np.inf] = 0.0
        log_kernel -= scale[:, None]
        return np.exp(log_kernel, out=log_kernel) @ self.votes_, scale

    def _limit(self, xi: Array) -> tuple[Array, Array]:
        """Vote as infinite depth does; an input that is a training input has that one's label, or the mean where there are several."""
        top = xi.max(1, keepdims=True)
        met = top[:, 0] >= COINCIDENT
        regime = self.activation_.regime
        if regime == "majority":
            scores = np.repeat(self.votes_.mean(0, keepdims=True), len(xi), 0)
            scores[met] = (xi[met] >= COINCIDENT) @ self.votes_
        elif regime == "nearest":
            scores = (xi >= top - (1 - COINCIDENT)) @ self.votes_
        else:
            weights = self.activation_.log_psi(xi)
            most = weights.max(1, keepdims=True)
            weights -= np.where(np.isfinite(most), most, 0)  # inf stays inf and is handled below; a row of zeros weighs nothing
            scores = np.exp(np.minimum(weights, 0.0, out=weights), out=weights) @ self.votes_
            scores[met] = (xi[met] >= COINCIDENT) @ self.votes_
        total = scores.sum(1, keepdims=True)
        share = self.votes_.mean(0)  # an input at a right angle to all others
        return np.where(total > 0, scores / np.where(total > 0, total, 1), share), np.zeros(len(xi))

    def _solved(self, points: Array, votes: Array) -> Array:
        """Return K^-1 Y, or the least-norm solution where the kernel is of lower rank than the number of inputs."""
        factor, info = linalg.lapack.dpotrf(self._gram(points), lower=1, overwrite_a=1, clean=0)
        if info == 0 and factor.diagonal().min() ** 2 > JITTER:
            return linalg.lapack.dpotrs(factor, votes, lower=1)[0]
        del factor
        values, vectors = linalg.eigh(self._gram(points), lower=True, overwrite_a=True, check_finite=False)
        kept = values > JITTER * max(values[-1], 1.0) * 10
        vectors = vectors[:, kept]
        return vectors @ ((vectors.T @ votes) / values[kept, None])

    def _gram(self, points: Array) -> Array:
        """Compute the lower half of K_L(X, X) / K_L(1), block by block, laid out for LAPACK to work in place."""
        n = len(points)
        gram = np.empty((n, n), order="F")
        rows = self._rows(n)
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            gram[start:stop, :stop] = self.activation_.kernel(_products(points[start:stop], points[:stop]), int(self.depth))
        np.fill_diagonal(gram, 1.0)
        return gram

    def _activation(self, points: Array) -> tuple[DualActivation, float | None]:
        if isinstance(self.activation, DualActivation):
            return self.activation, None
        if not isinstance(self.activation, str):
            if not isinstance(self.activation, Sequence):
                raise ArgumentError(
                    "WideDeepClassifier: `activation` must be a name, a DualActivation or Hermite coefficients, got "
                    f"{self.activation!r}. For a function write DualActivation.from_function(phi)."
                )
            return DualActivation(self.activation), None
        if self.activation != "optimal":
            return DualActivation.named(self.activation), None
        dim = self.dim if self.dim is not None else max(1, round(measured_dimension(points)))
        return optimal_activation(dim), dim

    def _choose_mapping(self, X: Array) -> None:
        fits = X.shape[1] > 1 and X.min() >= 0 and bool(X.any(1).all())
        self.mapping_ = ("sphere" if fits else "minmax") if self.mapping == "auto" else self.mapping
        if self.mapping_ == "minmax":
            self.least_: Array = X.min(0)
            self.range_: Array = X.max(0) - self.least_

    def _on_sphere(self, X: Array) -> Array:
        if self.mapping_ == "minmax":
            unit = np.divide(X - self.least_, self.range_, out=np.zeros_like(X), where=self.range_ > 0).clip(0, 1)
            X = np.hstack([unit, np.ones((len(X), 1))])
        elif X.min() < 0:
            raise DataError(
                f"WideDeepClassifier: inputs must not be negative to be divided by their norm, got {X.min():.4g}. "
                'Take mapping="minmax", which first brings each feature to [0, 1].'
            )
        largest = X.max(1, keepdims=True)
        if not largest.all():
            row = int(np.flatnonzero(largest[:, 0] == 0)[0])
            raise DataError(
                f'WideDeepClassifier: row {row} of the inputs is all 0 and has no direction. Leave it out, or take mapping="minmax".'
            )
        scaled = X / largest  # squares of tiny or huge values would leave the floats
        return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def measured_dimension(points: Float[np.ndarray, "points features"]) -> float:
    """Estimate the dimension of the set that points fill, from 2,000 of them at most; 1 where there are too few to tell."""
    points = np.unique(points.round(12), axis=0)  # copies of a point say nothing
    k = min(NEIGHBOURS, len(points) - 1)
    if k < 3:
        return 1.0
    found = intrinsic_dimension(torch.from_numpy(points), k=k, max_samples=MEASURED).value
    return found if math.isfinite(found) else 1.0


def infinite_networks(
    data: Data,
    *,
    activations: Sequence[str] = ("optimal", "relu", "cosine"),
    depths: Sequence[float | str] = (1, 10, "inf"),
    dim: float | None = None,
    memory: float = 256.0,
    run_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Measure what infinitely wide networks of several activations and depths would reach on images, without training one.

    Args:
        data: images; their pixels in [0, 1] are the inputs, and those of training and validation are the training inputs.
        activations: names, as in `WideDeepClassifier`.
        depths: numbers of hidden layers, and "inf".
        dim: dimension of the data, for "optimal"; None measures it.
        memory: MiB for blocks of the kernel.
        run_dir: the folder; what has been computed there is not computed again.

    Returns:
        For each "ACTIVATION, depth DEPTH" the share of right answers on the test images (validation images where there are none) as
        "top1" and, for "optimal", the "dim" it was built for.

    Raises:
        ArgumentError: if a setting cannot be, or there is no image to test.
    """
    parts = [data.train] if not len(data.test) else [data.train, data.val]
    held_out = data.test if len(data.test) else data.val
    if not len(held_out):
        raise ArgumentError("infinite_networks: there is no image to test. Open the data with a larger test_fraction.")
    X, y = (np.concatenate(arrays) for arrays in zip(*map(_pixels, (part for part in parts if len(part)))))
    unseen, truth = _pixels(held_out)
    finished = stages(run_dir)

    def one(name: str, depth: float) -> dict[str, Any]:
        classifier = WideDeepClassifier(name, dim, depth, memory=memory).fit(X, y)
        reached = {"top1": float((classifier.predict(unseen) == truth).mean())}
        return reached if classifier.dim_ is None else {**reached, "dim": classifier.dim_}

    pairs = [(name, float(depth)) for name in activations for depth in depths]
    return {label: finished(label, one, name, depth) for name, depth in pairs for label in [f"{name}, depth {depth:g}"]}


def _pixels(split: Split) -> tuple[Array, NDArray[np.int64]]:
    images = split.preprocessing.centre(split.images())
    return images.flatten(1).numpy() / 255.0, split.labels.numpy()


def _products(a: Array, b: Array) -> Array:
    xi = a @ b.T
    return np.clip(xi, 0.0, 1.0, out=xi)


def _merged(points: Array, votes: Array) -> tuple[Array, Array]:
    """Merge training inputs that coincide and give each the mean of its labels: the interpolation of least norm does the same."""
    _, first, group = np.unique(points.round(12), axis=0, return_index=True, return_inverse=True)
    if len(first) == len(points):
        return points, votes
    group = group.reshape(-1)
    sums = np.zeros((len(first), votes.shape[1]))
    np.add.at(sums, group, votes)
    return points[first], sums / np.bincount(group)[:, None]
