"""How much a small change made against a network hurts it: the fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Preprocessing, Split
from retinue.engine.evaluation import as_trained
from retinue.engine.modes import evaluating
from retinue.errors import ArgumentError

EPSILONS = (1.0, 2.0, 4.0, 8.0)  # on the scale of [0, 255]; the paper has 2, and shows the others in its appendix


class OnPixels(nn.Module):
    """A network that takes pixels in [0, 255], and normalises them itself.

    Args:
        model: the network.
        preprocessing: how its images are normalised.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.model(self.preprocessing.normalize(x / 255))


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"],
    eps: float,
    clip: tuple[float, float] = (0.0, 255.0),
) -> Float[Tensor, "batch channels height width"]:
    """Move every pixel by `eps` to where the loss rises: x_adv = clip(x + eps sign(grad_x loss)).

    Args:
        model: takes such images and gives logits; it is run in evaluation mode and nothing of it changes, gradients included.
        x: images, within `clip`.
        y: their classes.
        eps: how far, on the images' own scale; 0 gives the images back.
        clip: the range of the pixels.

    Raises:
        ArgumentError: if `eps` is negative, or there are pixels outside the range.
    """
    if not eps >= 0:
        raise ArgumentError(f"fgsm: `eps` must be 0 or more, got {eps}. On the scale of [0, 255] the paper has 2.")
    low, high = clip
    if len(x) and (float(x.min()) < low or float(x.max()) > high):
        raise ArgumentError(
            f"fgsm: `x` has pixels from {float(x.min()):.4g} to {float(x.max()):.4g}, outside of `clip` {clip}. "
            "Give images as they are before normalisation, or their own range."
        )
    with torch.enable_grad(), evaluating(model):
        moved = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(model(moved), y, reduction="sum")  # so that a row's gradient does not depend on the batch
        (gradient,) = torch.autograd.grad(loss, moved)
    return (x + eps * gradient.sign()).clamp(low, high)


def attacked(
    model: nn.Module, split: Split, epsilons: Sequence[float] = EPSILONS, *, batch_size: int = 256
) -> dict[float, dict[str, float]]:
    """Measure a classifier on images and on the same images changed against it.

    Args:
        model: gives logits.
        split: the images, labelled.
        epsilons: how far each pixel is moved, on the scale of [0, 255].
        batch_size: images at a time.

    Returns:
        For 0 (as they are) and each epsilon: "top1" and "loss" in nats.

    Raises:
        ArgumentError: if the split is empty, or an epsilon is negative.
    """
    if not len(split):
        raise ArgumentError("attacked: the split is empty. Open the data with a larger test_fraction.")
    split = as_trained(model, split)
    network = OnPixels(model, split.preprocessing)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    table = {}
    for eps in (0.0, *(float(one) for one in epsilons)):
        right, loss = 0, 0.0
        for some in torch.arange(len(split)).split(batch_size):
            images = split.preprocessing.centre(split.images(some)).float().to(device)
            labels = split.labels[some].to(device)
            with torch.no_grad(), evaluating(network):
                logits = network(fgsm(network, images, labels, eps) if eps else images).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        table[eps] = {"top1": right / len(split), "loss": loss / len(split)}
    return table
