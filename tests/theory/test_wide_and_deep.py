"""The classifier of infinite width: scikit-learn's contract, the three limits, the closed form by a plain route, memory, and refusals."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import check_estimator

import retinue
from retinue.data import from_arrays
from retinue.errors import ArgumentError, DataError
from retinue.theory.dual_activation import DualActivation, optimal_activation
from retinue.theory.wide_and_deep import WideDeepClassifier, infinite_networks, measured_dimension

IMAGES, LABELS = load_digits(return_X_y=True)
X, Y, UNSEEN, TRUTH = IMAGES[:300], LABELS[:300], IMAGES[300:500], LABELS[300:500]
H2 = [0, 0, 1]
BIASED = [0.2**0.5, 0.3**0.5, 0.5**0.5]


def unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("depth", [math.inf, 2])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_it_is_an_estimator_of_scikit_learn(depth: float) -> None:
    check_estimator(WideDeepClassifier(depth=depth))


def plain(activation: DualActivation, xi: np.ndarray, depth: int) -> np.ndarray:
    S = K = xi
    for _ in range(depth):
        S, K = activation.dual(S), activation.dual(S) + K * activation.ddual(S)
    return K


@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("name", ["relu", "optimal", "erf"])
def test_outputs_are_those_of_kernel_ridge_regression_without_a_ridge(name: str, depth: int) -> None:
    classifier = WideDeepClassifier(name, dim=6, depth=depth).fit(X, Y)
    train, unseen = unit(X), unit(UNSEEN)
    K = plain(classifier.activation_, np.clip(train @ train.T, 0, 1), depth)
    k = plain(classifier.activation_, np.clip(unseen @ train.T, 0, 1), depth)
    peer = KernelRidge(alpha=1e-12 * K[0, 0], kernel="precomputed").fit(K, np.eye(10)[Y]).predict(k)
    assert_allclose(classifier.decision_function(UNSEEN), peer, rtol=0, atol=1e-7)
    assert (classifier.predict(UNSEEN) == peer.argmax(1)).all()


@pytest.mark.parametrize("depth", [1, 10, 50])
@pytest.mark.parametrize("activation", ["optimal", "relu", "cosine"])
def test_training_labels_are_interpolated(activation: str, depth: int) -> None:
    classifier = WideDeepClassifier(activation, depth=depth).fit(X, Y)
    assert_allclose(classifier.decision_function(X), np.eye(10)[Y], rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", [H2, [0, 0, 0.5**0.5, 0.5**0.5], "cosine"])
def test_without_a_and_a_prime_depth_makes_the_nearest_neighbour(activation: object) -> None:
    nearest = KNeighborsClassifier(1, metric="cosine").fit(X, Y).predict(UNSEEN)
    assert (WideDeepClassifier(activation).fit(X, Y).predict(UNSEEN) == nearest).all()  # type: ignore[arg-type]
    agreed = [(WideDeepClassifier(activation, depth=depth).fit(X, Y).predict(UNSEEN) == nearest).mean() for depth in (1, 10, 200)]  # type: ignore[arg-type]
    assert agreed[0] < agreed[1]
    assert agreed[1] > 0.99
    assert agreed[2] == 1  # not even at depth 200 does the kernel become 0 / 0


def test_with_a_depth_makes_the_majority() -> None:
    labels = np.where(Y == 3, 3, 5)
    for activation in (BIASED, "relu"):
        classifier = WideDeepClassifier(activation).fit(X, labels)
        assert (classifier.predict(UNSEEN) == 5).all()
        assert (classifier.predict(X) == labels).all()  # a training input keeps its label
        assert_allclose(classifier.predict_proba(UNSEEN)[0], [(labels == 3).mean(), (labels == 5).mean()], rtol=1e-12)
    assert (WideDeepClassifier(BIASED, depth=80).fit(X, labels).predict(UNSEEN) == 5).all()


def test_between_them_every_training_input_votes_with_psi() -> None:
    classifier = WideDeepClassifier(dim=2).fit(X, Y)
    votes = optimal_activation(2).psi(unit(UNSEEN) @ unit(X).T) @ np.eye(10)[Y]
    assert_allclose(classifier.decision_function(UNSEEN), votes / votes.sum(1, keepdims=True), rtol=1e-9)
    assert_allclose(classifier.predict_proba(UNSEEN), votes / votes.sum(1, keepdims=True), rtol=1e-9)
    deep = WideDeepClassifier(dim=2, depth=2000).fit(X, Y).predict(UNSEEN)
    assert (deep == classifier.predict(UNSEEN)).mean() > 0.97


def test_two_classes_have_one_output() -> None:
    classifier = WideDeepClassifier("relu", depth=2).fit(X, Y % 2)
    assert classifier.decision_function(UNSEEN).shape == (200,)
    assert ((classifier.decision_function(UNSEEN) > 0) == classifier.predict(UNSEEN)).all()


@settings(max_examples=12, deadline=None)
@given(st.permutations(range(10)), st.integers(0, 1000), st.sampled_from([math.inf, 1, 4]), st.sampled_from(["optimal", "relu", "cosine"]))
def test_names_of_classes_and_scales_of_inputs_do_not_matter(names: list[int], seed: int, depth: float, activation: str) -> None:
    if activation == "relu" and depth == math.inf:
        activation = "erf"  # of a vote of equal classes the first wins, by name
    before = WideDeepClassifier(activation, dim=4, depth=depth).fit(X[:80], Y[:80])
    scales = 10 ** np.random.default_rng(seed).uniform(-200, 100, size=(80, 1))
    after = WideDeepClassifier(activation, dim=4, depth=depth).fit(X[:80] * scales, np.array(names)[Y[:80]])
    assert_allclose(after.predict_proba(UNSEEN * 7)[:, names], before.predict_proba(UNSEEN), rtol=0, atol=1e-7)


def test_copies_with_other_labels_are_averaged() -> None:
    points, labels = np.vstack([X[:50], 3 * X[:1], X[:1]]), np.append(Y[:50], [Y[1], Y[1]])
    for depth in (2, math.inf):
        share = WideDeepClassifier("optimal", dim=3, depth=depth).fit(points, labels).decision_function(X[:1])[0]
        assert_allclose(share[[Y[0], Y[1]]], [1 / 3, 2 / 3], rtol=0, atol=1e-6)


def test_a_kernel_of_low_rank_gives_the_least_squares() -> None:
    classifier = WideDeepClassifier("relu", depth=0).fit(X, Y)  # 64 features, 300 inputs
    weights = np.linalg.lstsq(unit(X), np.eye(10)[Y], rcond=1e-10)[0]
    assert_allclose(classifier.decision_function(UNSEEN), unit(UNSEEN) @ weights, rtol=0, atol=1e-6)


def test_signed_features_are_brought_to_the_sphere() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 2)) * [1, 50]
    labels = (points[:, 0] * points[:, 1] > 0).astype(int)
    classifier = WideDeepClassifier().fit(points[:150], labels[:150])
    assert classifier.mapping_ == "minmax"
    assert_allclose(np.linalg.norm(classifier.points_, axis=1), 1, rtol=1e-12)
    assert classifier.points_.min() >= 0
    assert (classifier.predict(points[150:]) == labels[150:]).mean() > 0.85
    assert len(classifier.predict(1e9 * points[:3])) == 3  # beyond what was seen
    assert WideDeepClassifier().fit(X, Y).mapping_ == "sphere"


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_dimension_is_measured(d: int) -> None:
    rng = np.random.default_rng(d)
    flat = rng.random((1500, d)) @ np.linalg.qr(rng.normal(size=(12, d)))[0].T
    assert measured_dimension(flat) == pytest.approx(d, rel=0.18)  # uniform in a cube: the edges take some
    assert measured_dimension(np.vstack([flat, flat])) == pytest.approx(measured_dimension(flat), rel=0.2)
    assert measured_dimension(flat[:2]) == 1
    assert WideDeepClassifier().fit(np.abs(rng.normal(size=(500, 4))), rng.integers(0, 2, 500)).dim_ == 3


def test_the_memory_is_what_is_stated() -> None:
    """At infinite depth the blocks, at finite depth one matrix as well; twice the inputs are for their mapping."""
    rng = np.random.default_rng(0)
    n, memory = 1500, 4
    points, labels = rng.random((n, 20)), rng.integers(0, 3, n)
    for depth, matrices in ((math.inf, 0), (2, 1)):
        classifier = WideDeepClassifier("optimal", dim=2, depth=depth, memory=memory)
        tracemalloc.start()
        classifier.fit(points, labels).predict(points)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.15 * (8 * n * n * matrices + memory * 2**20 + 6 * points.nbytes)
    small = WideDeepClassifier("optimal", dim=2, depth=2, memory=0.01).fit(points[:200], labels[:200])
    large = WideDeepClassifier("optimal", dim=2, depth=2).fit(points[:200], labels[:200])
    assert_allclose(small.decision_function(points), large.decision_function(points), rtol=1e-6, atol=1e-9)


def test_a_procedure_measures_many_and_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = retinue.data.open("digits", train_images=200)
    settings = {"activations": ["optimal", "relu"], "depths": [1, "inf"], "run_dir": tmp_path}
    numbers = infinite_networks(data, **settings)  # type: ignore[arg-type]
    assert list(numbers) == ["optimal, depth 1", "optimal, depth inf", "relu, depth 1", "relu, depth inf"]
    assert numbers["relu, depth 1"]["top1"] > 0.9 > 0.2 > numbers["relu, depth inf"]["top1"]
    assert numbers["optimal, depth inf"]["dim"] >= 2
    monkeypatch.setattr(WideDeepClassifier, "fit", lambda *_: pytest.fail("computed again"))
    assert infinite_networks(data, **settings) == numbers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": -1}, r"`depth` must be a whole number of 0 or more, got -1"),
        ({"depth": math.nan}, r"`depth` must be a whole number of 0 or more, got nan"),
        ({"activation": [0, 1]}, r"infinite depth has no limit\. Take a finite `depth`"),
        ({"activation": [0.8, 0.6]}, r"A=0\.8 and B'=0\.36 infinite depth has no limit"),
        ({"activation": [1, 1]}, r"`coef` needs squares that sum to 1"),
        ({"activation": -1}, r"must be a name, a DualActivation or Hermite coefficients, got -1\. For a function write"),
        ({"depth": "deep"}, r"`depth` must be a whole number of 0 or more, got deep"),
        ({"activation": "optimum"}, r'no activation is called "optimum"\. Did you mean optimal'),
        ({"dim": 0.5}, r"`d` must be 1 or more"),
        ({"mapping": "sphera"}, r"`mapping` is called \"sphera\"\. Did you mean sphere"),
        ({"memory": 0}, r"`memory` must be above 0 MiB, got 0"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        WideDeepClassifier(**options).fit(X, Y)  # type: ignore[arg-type]


def test_data_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match=r"all labels are of one class, 7\. Give inputs of two classes"):
        WideDeepClassifier().fit(X, np.full(300, 7))
    black = np.vstack([X, np.zeros((1, 64))])
    with pytest.raises(DataError, match=r"row 300 of the inputs is all 0 and has no direction"):
        WideDeepClassifier(mapping="sphere").fit(black, np.append(Y, 0))
    with pytest.raises(DataError, match=r"must not be negative to be divided by their norm, got -16\. Take mapping=\"minmax\""):
        WideDeepClassifier(mapping="sphere").fit(-X, Y)
    with pytest.raises(DataError, match=r"must not be negative"):
        WideDeepClassifier().fit(X, Y).predict(-UNSEEN)
    alone = from_arrays(torch.randint(0, 255, (8, 4, 4), dtype=torch.uint8), [0, 1] * 4, val_fraction=0.0, test_fraction=0.0)
    with pytest.raises(ArgumentError, match=r"no image to test\. Open the data with a larger test_fraction"):
        infinite_networks(alone)
