"""What a classifier says of held-out images, and how good that is."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Split
from retinue.engine.modes import evaluating
from retinue.errors import ArgumentError
from retinue.metrics import expected_calibration_error, negative_log_likelihood, top_k_accuracy


def logits(
    model: nn.Module, split: Split, *, batch_size: int = 256, workers: int = 0
) -> tuple[Float[Tensor, "images classes"], Int[Tensor, " images"]]:
    """Compute the logits of every image of a split, in evaluation mode, on the model's device.

    Args:
        model: a classifier; one with its own `preprocessing` sees the images as in its training.
        split: the images.
        batch_size: images at a time.
        workers: processes that decode, for data that is not kept in memory.

    Returns:
        Logits and labels, on the CPU.

    Raises:
        ArgumentError: if the split is empty, or its images have another size or other channels than the model was trained on.
    """
    if not len(split):
        raise ArgumentError("evaluate: the split is empty. Open the data with a larger test_fraction or val_fraction.")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    loader = as_trained(model, split).loader(batch_size, workers=workers, device=device)
    found, labels = [], []
    with torch.inference_mode(), evaluating(model):
        for batch in loader.batches():
            found.append(model(batch.images).float().cpu())
            labels.append(batch.labels.cpu())
    return torch.cat(found), torch.cat(labels)


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 256, workers: int = 0) -> dict[str, float]:
    """Measure a classifier on held-out images.

    Args:
        model: gives logits.
        split: such as `data.test`.
        batch_size: images at a time.
        workers: processes that decode, for data that is not kept in memory.

    Returns:
        "top1" and "top5" (shares in [0, 1]), "ece" (expected calibration error, 15 bins) and "loss" (cross-entropy in nats).

    Raises:
        ArgumentError: if the images or classes do not fit the model.
    """
    found, labels = logits(model, split, batch_size=batch_size, workers=workers)
    return judge(found, labels)


def judge(found: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> dict[str, float]:
    """Compute the numbers of `evaluate` from logits and labels."""
    if found.ndim != 2 or int(labels.max()) >= found.shape[1]:
        raise ArgumentError(
            f"evaluate: the model gives outputs of shape {tuple(found.shape[1:])} and labels run to {int(labels.max())}. "
            "Build it with num_classes=len(data.classes)."
        )
    shares = found.softmax(-1)
    return {
        "top1": float(top_k_accuracy(found, labels, k=1)),
        "top5": float(top_k_accuracy(found, labels, k=min(5, found.shape[1]))),
        "ece": float(expected_calibration_error(shares, labels)),
        "loss": float(negative_log_likelihood(found, labels)),
    }


def as_trained(model: nn.Module, split: Split) -> Split:
    """Show a split's images as the model saw them in training, where it remembers that.

    Raises:
        ArgumentError: if the images have another size or other channels.
    """
    own = getattr(model, "preprocessing", None)
    if own is None or own == split.preprocessing:
        return split
    mine, theirs = ((p.input_size, p.channels, p.stored_size, p.resize) for p in (own, split.preprocessing))
    if mine != theirs:
        raise ArgumentError(
            f"evaluate: the model was trained on images of {own.input_size[0]}x{own.input_size[1]} px with {own.channels} channels, these "
            f"are {theirs[0][0]}x{theirs[0][1]} with {theirs[1]}. Open them with retinue.data.open(..., input_size={own.input_size}, "
            f"channels={own.channels}, read_size={own.read_size}, resize={own.resize!r})."
        )
    return dataclasses.replace(split, preprocessing=own)
