"""Accuracy, calibration and confusion: by hand, by law, and beside torchmetrics and scikit-learn."""

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError
from retinue.metrics import (
    balanced_accuracy,
    brier_score,
    calibration,
    confusion_matrix,
    expected_calibration_error,
    most_confused,
    negative_log_likelihood,
    per_class,
    top_k_accuracy,
)

SCORES = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
LABELS = torch.tensor([1, 1, 0, 2])
seeds = st.integers(0, 2**31)


def drawn(seed: int, images: int = 60, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Probabilities and labels that agree more often than by chance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator) * 2
    logits[torch.arange(images), labels] += 1
    return logits.softmax(-1), labels


@pytest.mark.parametrize(("k", "right"), [(1, 1), (2, 2), (3, 4)])
def test_top_k_by_hand(k: int, right: int) -> None:
    assert top_k_accuracy(SCORES, LABELS, k=k) == right / 4


def test_equal_scores_rank_by_class_number() -> None:
    constant = torch.zeros(4, 4)
    labels = torch.arange(4)
    assert [float(top_k_accuracy(constant, labels, k=k)) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    tied = torch.tensor([[1.0, 2.0, 2.0]])
    assert float(top_k_accuracy(tied, torch.tensor([1]))) == 1
    assert float(top_k_accuracy(tied, torch.tensor([2]))) == 0
    assert float(top_k_accuracy(tied, torch.tensor([2]), k=2)) == 1


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=20), seeds)
def test_top_1_is_what_argmax_says_also_with_ties(rows: list[list[int]], seed: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    labels = torch.randint(4, (len(rows),), generator=torch.Generator().manual_seed(seed))
    assert top_k_accuracy(scores, labels) == (scores.argmax(-1) == labels).float().mean()


def test_a_label_that_scored_no_number_is_never_right() -> None:
    scores = torch.full((1, 3), math.nan)
    assert top_k_accuracy(scores, torch.tensor([0])) == 0
    assert top_k_accuracy(torch.tensor([[math.nan, 1.0]]), torch.tensor([1])) == 1


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_that_of_torchmetrics_and_scikit_learn(k: int) -> None:
    scores, labels = drawn(seed=k)
    expected = peer.multiclass_accuracy(scores, labels, 5, average="micro", top_k=k)
    assert top_k_accuracy(scores, labels, k=k) == pytest.approx(float(expected), abs=1e-6)
    other = sklearn.metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(5)) if k < 5 else 1.0
    assert top_k_accuracy(scores, labels, k=k) == pytest.approx(other, abs=1e-6)


def test_calibration_by_hand() -> None:
    # confidences 0.8, 0.8, 0.8, 0.6, of which 2 of 3 and 1 of 1 are right; two bins would be one
    shares = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 1])
    found = calibration(shares, labels, bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.count.tolist() == [0, 0, 1, 3]
    assert found.confidence[2:].tolist() == pytest.approx([0.6, 0.8], abs=1e-15)
    assert found.accuracy[2:].tolist() == pytest.approx([1, 2 / 3], abs=1e-15)
    assert found.confidence[:2].isnan().all()
    expected = 1 / 4 * (1 - 0.6) + 3 / 4 * (0.8 - 2 / 3)  # = 0.2
    assert float(found.error) == pytest.approx(expected, abs=1e-15)
    assert float(expected_calibration_error(shares, labels, bins=4)) == pytest.approx(0.2, abs=1e-15)


def test_a_bin_holds_its_upper_bound() -> None:
    shares = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])  # exact in binary
    assert calibration(shares, torch.zeros(3, dtype=torch.long), bins=4).count.tolist() == [0, 1, 1, 1]


def test_sure_and_right_costs_nothing_sure_and_wrong_everything() -> None:
    sure = torch.eye(3)
    assert expected_calibration_error(sure, torch.arange(3)) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 2, 0])) == 1
    assert brier_score(sure, torch.arange(3)) == 0
    assert brier_score(sure, torch.tensor([1, 2, 0])) == 2


def test_what_is_no_number_stays_none() -> None:
    shares = torch.tensor([[math.nan, math.nan], [0.8, 0.2]])
    assert expected_calibration_error(shares, torch.tensor([0, 0])).isnan()


@given(seeds, st.integers(1, 40), st.integers(1, 20))
def test_calibration_lies_in_the_unit_interval_and_forgets_the_order(seed: int, images: int, bins: int) -> None:
    shares, labels = drawn(seed, images)
    error = expected_calibration_error(shares, labels, bins)
    assert 0 <= error <= 1
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(calibration(shares[order], labels[order], bins).count, calibration(shares, labels, bins).count)
    assert expected_calibration_error(shares[order], labels[order], bins) == pytest.approx(float(error), abs=1e-12)
    assert brier_score(shares[order], labels[order]) == pytest.approx(float(brier_score(shares, labels)), rel=1e-5)


@given(seeds)
def test_one_bin_compares_the_two_means(seed: int) -> None:
    shares, labels = drawn(seed)
    expected = abs(float(shares.double().max(1).values.mean()) - float(top_k_accuracy(shares.double(), labels).double()))
    assert expected_calibration_error(shares, labels, bins=1) == pytest.approx(expected, abs=1e-7)  # accuracy is a float32


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_is_that_of_torchmetrics(bins: int) -> None:
    shares, labels = drawn(seed=bins, images=500)
    expected = peer.multiclass_calibration_error(shares, labels, 5, n_bins=bins, norm="l1")
    assert expected_calibration_error(shares, labels, bins) == pytest.approx(float(expected), abs=1e-6)  # theirs sums in float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken(dtype: torch.dtype) -> None:
    shares, labels = drawn(seed=0, classes=1000)
    assert expected_calibration_error(shares.to(dtype), labels) == pytest.approx(
        float(expected_calibration_error(shares, labels)), abs=0.01
    )


def test_likelihood_and_brier_by_hand() -> None:
    assert float(negative_log_likelihood(torch.zeros(2, 4), torch.tensor([0, 3]))) == pytest.approx(math.log(4), abs=3e-7)
    assert float(brier_score(SCORES, LABELS)) == pytest.approx((0.14 + 0.78 + 0.98 + 1.26) / 4, abs=1e-6)


def test_likelihood_is_that_of_scikit_learn() -> None:
    shares, labels = drawn(seed=3)
    shares = shares.double() / shares.double().sum(1, keepdim=True)
    expected = sklearn.metrics.log_loss(labels, shares, labels=range(5))
    assert float(negative_log_likelihood(shares.log(), labels)) == pytest.approx(expected, abs=1e-12)
    expected = sklearn.metrics.brier_score_loss(labels, shares, labels=list(range(5)), scale_by_half=False)
    assert float(brier_score(shares, labels)) == pytest.approx(expected, abs=1e-12)


def test_confusion_by_hand() -> None:
    matrix = confusion_matrix(SCORES.argmax(-1), LABELS, classes=3)
    assert matrix.tolist() == [[0, 0, 1], [1, 1, 0], [1, 0, 0]]  # rows: what it is; columns: what was said
    found = per_class(matrix)
    assert found.support.tolist() == [1, 2, 1]
    assert found.precision.tolist() == [0, 1, 0]
    assert found.recall.tolist() == [0, 0.5, 0]
    assert found.f1.tolist() == pytest.approx([0, 2 / 3, 0], abs=1e-15)
    assert float(balanced_accuracy(matrix)) == pytest.approx(1 / 6, abs=1e-15)


def test_an_always_positive_classifier() -> None:
    matrix = torch.tensor([[0, 207], [0, 1352]])
    found = per_class(matrix)
    assert round(float(matrix.diagonal().sum() / matrix.sum()), 4) == 0.8672
    assert round(float(found.f1[1]), 4) == 0.9289
    assert float(balanced_accuracy(matrix)) == 0.5


def test_classes_that_do_not_occur_count_for_nothing() -> None:
    matrix = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), classes=4)
    assert per_class(matrix).f1.tolist() == [1, 1, 0, 0]
    assert float(balanced_accuracy(matrix)) == 1
    assert confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 0]), classes=1).tolist() == [[2]]


@given(seeds)
def test_confusion_forgets_the_order_of_the_images_and_follows_that_of_the_classes(seed: int) -> None:
    shares, labels = drawn(seed)
    said = shares.argmax(-1)
    matrix = confusion_matrix(said, labels, classes=5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(confusion_matrix(said[order], labels[order], classes=5), matrix)
    new = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    renamed = confusion_matrix(new[said], new[labels], classes=5)
    assert torch.equal(renamed[new][:, new], matrix)
    assert matrix.sum() == 60


def test_per_class_numbers_are_those_of_scikit_learn() -> None:
    shares, labels = drawn(seed=4)
    said = shares.argmax(-1)
    matrix = confusion_matrix(said, labels, classes=5)
    assert matrix.tolist() == sklearn.metrics.confusion_matrix(labels, said).tolist()
    found = per_class(matrix)
    expected = sklearn.metrics.precision_recall_fscore_support(labels, said, zero_division=0)
    for ours, theirs in zip((found.precision, found.recall, found.f1, found.support), expected):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert float(balanced_accuracy(matrix)) == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, said), abs=1e-12)


def test_the_commonest_mistakes_come_first_and_right_answers_never() -> None:
    matrix = torch.tensor([[9, 1, 0], [3, 9, 0], [1, 0, 9]])
    assert most_confused(matrix) == [(1, 0, 3), (0, 1, 1), (2, 0, 1)]
    assert most_confused(matrix, most=1) == [(1, 0, 3)]
    assert matrix.tolist() == [[9, 1, 0], [3, 9, 0], [1, 0, 9]]  # it was not written to
    assert most_confused(torch.eye(3, dtype=torch.long)) == []


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: top_k_accuracy(SCORES, LABELS, k=4), ArgumentError, r"`k` must lie between 1 and the number of classes \(3\), got 4"),
        (lambda: top_k_accuracy(SCORES, LABELS, k=0), ArgumentError, "got 0"),
        (lambda: top_k_accuracy(SCORES, LABELS[:3]), ShapeError, r"one number an image; got \(4, 3\) and \(3,\)"),
        (lambda: top_k_accuracy(SCORES[0], LABELS[0]), ShapeError, r"got \(3,\) and \(\)"),
        (lambda: top_k_accuracy(SCORES[:0], LABELS[:0]), ArgumentError, "no images to measure on"),
        (lambda: negative_log_likelihood(SCORES, LABELS + 1), ArgumentError, "`labels` must lie between 0 and 2, .* got 1 to 3"),
        (lambda: negative_log_likelihood(SCORES, LABELS - 1), ArgumentError, "got -1 to 1"),
        (lambda: expected_calibration_error(SCORES.log(), LABELS), ArgumentError, r"For logits give logits\.softmax\(-1\)"),
        (lambda: brier_score(2 * SCORES, LABELS), ArgumentError, "sum to 1 in each row"),
        (lambda: calibration(SCORES, LABELS, bins=0), ArgumentError, "`bins` must be 1 or more, got 0"),
        (lambda: confusion_matrix(LABELS, LABELS[:2], 3), ShapeError, "got 4 predictions and 2 labels"),
        (lambda: confusion_matrix(LABELS, LABELS, 2), ArgumentError, "`predicted` must lie between 0 and 1"),
    ],
)
def test_what_is_refused(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
