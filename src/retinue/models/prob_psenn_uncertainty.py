"""How sure a probabilistic prototype network is of its answer and of its explanation (Vadillo et al. 2024, arXiv 2403.13740).

Of the answer: predictive entropy = aleatoric part (entropy that single samples have) + epistemic part (their disagreement). Of the
explanation: overlap (two classes' prototypes explain the image equally well) and typicality (the image is farther from its prototypes
than the training images were).
"""

import logging
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError

log = logging.getLogger(__name__)
INSIDE = 1e-8  # within logarithms
POINTS = 200  # of the integral under two densities: a seventh of a bandwidth between two of them
REACH = 6.0  # bandwidths beyond the samples, where nothing is left of a density
AT_A_TIME = 1 << 22  # values of kernels in memory at once


def entropies(probs: Float[Tensor, "batch samples classes"]) -> dict[str, Float[Tensor, " batch"]]:
    """Compute predictive entropy, its aleatoric and its epistemic part, in nats.

    Args:
        probs: class probabilities by single samples of the prototypes.

    Returns:
        "predictive" = "aleatoric" + "epistemic", of which none is negative.

    Raises:
        ArgumentError: if there is no sample. A single one is warned about: it cannot disagree with itself.
    """
    samples = probs.shape[1]
    if samples < 1:
        raise ArgumentError("prob_psenn: there is no sample of the prototypes. Take `num_samples` of 200 or more.")
    if samples == 1:
        log.warning("prob_psenn: with one sample the epistemic uncertainty is 0, whatever the image. Take num_samples=200 or more.")
    predictive = _entropy(probs.mean(1))
    aleatoric = _entropy(probs).mean(1)
    return {"predictive": predictive, "aleatoric": aleatoric, "epistemic": (predictive - aleatoric).clamp_min(0)}


def overlaps(distances: Float[Tensor, "batch samples classes"], predicted: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    """Compute the area under both densities of distances, those to the predicted class's prototypes and those to each other class's.

    Densities are Gaussian kernel estimates with Scott's bandwidth. The integral runs over the part of the line where both are above 0.
    Where distances do not vary there is no density: the overlap is 1 if they are equal, else 0.

    Args:
        distances: to samples of the prototypes.
        predicted: the class whose explanation is doubted.

    Returns:
        Overlaps in [0, 1]; that of the predicted class with itself is given as 0.
    """
    samples, classes = distances.shape[1:]
    rows = max(1, AT_A_TIME // (samples * classes * POINTS * 2))
    parts = [_overlaps(d, c) for d, c in zip(distances.split(rows), predicted.split(rows))]
    return torch.cat(parts) if parts else distances.new_zeros(0, classes)


def _overlaps(distances: Tensor, predicted: Tensor) -> Tensor:
    d = distances.double().transpose(1, 2)  # batch, classes, samples
    d = (d - d.mean((1, 2), keepdim=True)).float()  # what is left is small enough for float32, in which kernels cost half
    samples = d.shape[2]
    width = (d.std(2, correction=1) if samples > 1 else d.new_zeros(d.shape[:2])) * samples**-0.2
    low, high = d.amin(2), d.amax(2)
    tiny = 1e-6 * distances.abs().amax((1, 2)).float().clamp_min(1e-6)[:, None]  # what rounding leaves of equal distances
    constant = width <= tiny
    own = predicted[:, None]
    d_own = d.gather(1, own[..., None].expand(-1, -1, samples))
    width_own = width.gather(1, own)
    start = torch.maximum(low - REACH * width, (low - REACH * width).gather(1, own))
    end = torch.minimum(high + REACH * width, (high + REACH * width).gather(1, own))
    step = (end - start).clamp_min(0) / POINTS
    middle = start[..., None] + step[..., None] * (torch.arange(POINTS, device=d.device, dtype=d.dtype) + 0.5)
    theirs, ours = _density(middle, d, width), _density(middle, d_own.expand_as(d), width_own.expand_as(width))
    area = (torch.minimum(theirs, ours).sum(2) * step).clamp(0, 1)
    equal = (d - d_own).abs().amax(2) <= tiny
    area = torch.where(constant | constant.gather(1, own), (constant & equal).to(area.dtype), area)
    return area.scatter(1, own, 0.0).to(distances.dtype)


def _density(points: Tensor, samples: Tensor, width: Tensor) -> Tensor:
    width = width.clamp_min(1e-30)[..., None]
    apart = (points[..., None] - samples[..., None, :]) / width[..., None]
    return apart.square_().mul_(-0.5).exp_().mean(-1) / (width * math.sqrt(2 * math.pi))


def typicality(mean_distances: Float[Tensor, "batch classes"], train: Float[Tensor, "classes images"]) -> Float[Tensor, " batch"]:
    """Compute the share of the nearest class's training images that are nearer to its prototypes than the image is.

    Near 1 the explanation is not supported: the image is farther away than nearly all training images were.

    Args:
        mean_distances: of each image to each class's prototypes, over samples.
        train: for each class the mean distances of its own training images; negative numbers stand for none.

    Returns:
        Shares in [0, 1]; not a number for a class without training images.

    Raises:
        ShapeError: if the training distances are those of other classes.
    """
    if train.shape[0] != mean_distances.shape[1]:
        raise ShapeError(
            f"prob_psenn: `train_stats` must have a row for each of {mean_distances.shape[1]} classes, got {train.shape[0]}. "
            "Compute it by training_distances(model, data.train)."
        )
    nearest, which = mean_distances.min(1)
    own: Tensor = train[which]
    there: Bool[Tensor, "batch images"] = own >= 0
    return (there & (own < nearest[:, None])).sum(1) / there.sum(1)


def by_class(values: list[Tensor], labels: list[Tensor], classes: int) -> Float[Tensor, "classes images"]:
    """Sort one number for each image into one row for each class, filled up with -1."""
    flat, own = torch.cat(values), torch.cat(labels)
    rows = [flat[own == k].sort().values for k in range(classes)]
    table = flat.new_full((classes, max(len(row) for row in rows)), -1.0)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return table


def _entropy(probs: Tensor) -> Tensor:
    return -(probs * (probs + INSIDE).log()).sum(-1)
