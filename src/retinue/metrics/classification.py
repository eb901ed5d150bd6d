"""How good a classifier is: accuracy, calibration, confusion, and what follows from them.

Scores are logits or probabilities as each function says; none of them guesses which it was given.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from retinue.errors import ArgumentError, ShapeError


def top_k_accuracy(scores: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], k: int = 1) -> Float[Tensor, ""]:
    """Compute the share of images whose label is among the `k` highest scores.

    Equal scores rank by class number, lower first, so that k = 1 is what `argmax` says and a constant classifier is right for one class
    only. A score that is not a number ranks last, whatever the others are.

    Args:
        scores: logits or probabilities; only their order counts.
        labels: class numbers, one an image.
        k: from 1 to the number of classes.

    Raises:
        ArgumentError: if `k` is outside, or a label is no class.
        ShapeError: if scores and labels do not belong together.

    >>> float(top_k_accuracy(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), torch.tensor([2, 0]), k=2))
    1.0
    """
    _check("top_k_accuracy", scores, labels)
    classes = scores.shape[1]
    if not 1 <= k <= classes:
        raise ArgumentError(
            f"top_k_accuracy: `k` must lie between 1 and the number of classes ({classes}), got {k}. Use k=min(k, {classes})."
        )
    own = scores.gather(1, labels.long()[:, None])
    earlier = torch.arange(classes, device=scores.device) < labels[:, None]
    ahead = (scores > own) | ((scores == own) & earlier)
    return ((ahead.sum(1) < k) & ~own[:, 0].isnan()).float().mean()


def negative_log_likelihood(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Float[Tensor, ""]:
    """Compute the mean of -log p(label) in nats: the cross-entropy, without smoothing or weights.

    Args:
        logits: before the softmax.
        labels: class numbers.

    >>> round(float(negative_log_likelihood(torch.zeros(1, 4), torch.tensor([2]))), 4)  # log 4
    1.3863
    """
    _check("negative_log_likelihood", logits, labels)
    return F.cross_entropy(logits, labels.long())


def brier_score(probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Float[Tensor, ""]:
    """Compute the mean of sum_c (p_c - [c is the label])^2, from 0 (sure and right) to 2 (sure and wrong) (Brier 1950).

    Args:
        probabilities: of each class; rows sum to 1.
        labels: class numbers.

    >>> float(brier_score(torch.tensor([[0.5, 0.5]]), torch.tensor([0])))
    0.5
    """
    _check("brier_score", probabilities, labels)
    _check_shares("brier_score", probabilities)
    return (probabilities - F.one_hot(labels.long(), probabilities.shape[1])).square().sum(1).mean()


@dataclass(frozen=True)
class Calibration:
    """How often predictions of about the same confidence are right.

    Attributes:
        edges: bounds of the bins of confidence, from 0 to 1.
        count: predictions in each bin.
        confidence: their mean confidence; not a number in an empty bin.
        accuracy: the share of them that is right; not a number in an empty bin.
    """

    edges: Float[Tensor, " edges"]
    count: Int[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]

    @property
    def error(self) -> Float[Tensor, ""]:
        """The expected calibration error: sum of (share of the images) * |accuracy - confidence| (Guo et al. 2017, equation 3)."""
        gap = torch.where(self.count > 0, (self.accuracy - self.confidence).abs(), 0.0)
        return (self.count.double() / self.count.sum() * gap).sum()


def calibration(probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], bins: int = 15) -> Calibration:
    """Sort predictions by the probability of the class they name, into bins of equal width (Guo et al. 2017, arXiv 1706.04599, section 2).

    A bin holds its upper bound and not its lower one, as in the paper, and accuracy and confidence are those of the highest probability.

    Args:
        probabilities: of each class; rows sum to 1. Logits go through `softmax(-1)` first.
        labels: class numbers.
        bins: how many; 15 in the paper.

    Raises:
        ArgumentError: if there are no bins, or rows are no probabilities.
    """
    _check("calibration", probabilities, labels)
    _check_shares("calibration", probabilities)
    if bins < 1:
        raise ArgumentError(f"calibration: `bins` must be 1 or more, got {bins}. The paper has 15.")
    confidence, named = probabilities.double().max(1)  # in single precision a sum of many confidences loses the fourth digit
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=probabilities.device)
    place = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(place, minlength=bins)
    sums = [
        torch.zeros(bins, dtype=torch.float64, device=edges.device).index_add_(0, place, x)
        for x in (confidence, (named == labels).double())
    ]
    return Calibration(edges, count, sums[0] / count, sums[1] / count)


def expected_calibration_error(
    probabilities: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], bins: int = 15
) -> Float[Tensor, ""]:
    """Compute by how much confidence and accuracy differ on average, in [0, 1]; arguments as in `calibration`.

    >>> round(float(expected_calibration_error(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))), 6)  # |1/2 - 0.8|
    0.3
    """
    return calibration(probabilities, labels, bins).error


def confusion_matrix(predicted: Int[Tensor, " images"], labels: Int[Tensor, " images"], classes: int) -> Int[Tensor, "classes classes"]:
    """Count images by label (row) and predicted class (column).

    Args:
        predicted: class numbers, such as `logits.argmax(-1)`.
        labels: class numbers.
        classes: how many there are.

    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    if predicted.shape != labels.shape:
        raise ShapeError(f"confusion_matrix: got {len(predicted)} predictions and {len(labels)} labels. Give one of each an image.")
    for name, numbers in (("predicted", predicted), ("labels", labels)):
        _check_range("confusion_matrix", name, numbers, classes)
    if classes == 1:  # torchmetrics wants two at least
        return torch.tensor([[len(labels)]], device=labels.device)
    return multiclass_confusion_matrix(predicted, labels, num_classes=classes, validate_args=False)


@dataclass(frozen=True)
class PerClass:
    """Precision, recall and F1 of each class; 0 where a class was never predicted (precision) or never occurs (recall).

    Attributes:
        precision: of the images predicted to be of the class, the share that is.
        recall: of the images of the class, the share that is found.
        f1: their harmonic mean.
        support: images of the class.
    """

    precision: Float[Tensor, " classes"]
    recall: Float[Tensor, " classes"]
    f1: Float[Tensor, " classes"]
    support: Int[Tensor, " classes"]


def per_class(confusion: Int[Tensor, "classes classes"]) -> PerClass:
    """Compute precision, recall and F1 of each class from a matrix of `confusion_matrix`."""
    right, predicted, support = confusion.diagonal().double(), confusion.sum(0), confusion.sum(1)
    precision, recall = right / predicted.clamp(min=1), right / support.clamp(min=1)
    return PerClass(precision, recall, 2 * right / (predicted + support).clamp(min=1), support)


def balanced_accuracy(confusion: Int[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Compute the mean recall of the classes that occur: what accuracy would be if all had as many images.

    >>> float(balanced_accuracy(torch.tensor([[0, 10], [0, 90]])))  # accuracy would be 0.9
    0.5
    """
    found = per_class(confusion)
    return found.recall[found.support > 0].mean()


def most_confused(confusion: Int[Tensor, "classes classes"], most: int = 10) -> list[tuple[int, int, int]]:
    """List the commonest mistakes: label, predicted class and how many images, most first; equal counts by class number."""
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[: max(most, 0)].tolist()
    return [(*divmod(place, len(confusion)), int(wrong[place])) for place in order if wrong[place]]


def _check(where: str, scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ShapeError(
            f"{where}: scores must have one row an image and one column a class, and labels one number an image; "
            f"got {tuple(scores.shape)} and {tuple(labels.shape)}."
        )
    if not len(labels):
        raise ArgumentError(f"{where}: there are no images to measure on. Give at least one.")
    _check_range(where, "labels", labels, scores.shape[1])


def _check_range(where: str, name: str, numbers: Tensor, classes: int) -> None:
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < classes:
        raise ArgumentError(
            f"{where}: `{name}` must lie between 0 and {classes - 1}, as there are {classes} classes; "
            f"got {int(numbers.min())} to {int(numbers.max())}."
        )


def _check_shares(where: str, probabilities: Tensor) -> None:
    off = (probabilities.double().sum(1) - 1).abs() > 1e-2  # a softmax in bfloat16 over 1000 classes is off by a few thousandths
    if off.any() or (probabilities < 0).any():  # what is not a number passes, and makes the result not a number
        raise ArgumentError(f"{where}: `probabilities` must be 0 or more and sum to 1 in each row. For logits give logits.softmax(-1).")
