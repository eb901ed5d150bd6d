"""PrototypeDL: train a classifier that decides by likeness to prototypes which can be looked at (Li et al. 2018, arXiv 1710.04806).

`PrototypeLoss` trains a `PrototypeClassifier`, or one that is built around any other network, with the paper's four losses.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Objective, evaluating, judge
from retinue.errors import ArgumentError, ShapeError
from retinue.explain.prototype_elastic import Elastic
from retinue.models.prototype_autoencoders import BackboneEncoder, ConvDecoder, ConvEncoder
from retinue.models.prototype_network import Evidence, PrototypeClassifier, around, prototype_dl, squared_distances

__all__ = [
    "BackboneEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "Elastic",
    "Evidence",
    "PrototypeClassifier",
    "PrototypeLoss",
    "around",
    "prototype_dl",
    "prototype_loss",
    "squared_distances",
]
ROUNDING = 1e-3  # by which pixels may leave their range


def prototype_loss(
    out: dict[str, Tensor],
    x: Float[Tensor, "batch channels height width"],
    y: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
    w_class: float = 20.0,
    w_ae: float = 1.0,
    w_r1: float = 1.0,
    w_r2: float = 1.0,
    low: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Compute w_class E + w_ae R + w_r1 R1 + w_r2 R2 of a batch (the paper's equation 5).

    E is the cross-entropy; R the squared error of the reconstruction, summed over pixels; R1 the mean over prototypes of the squared
    distance to the nearest image of the batch; R2 the mean over images of that to the nearest prototype. R1 asks for batches that are large
    beside the number of prototypes.

    Args:
        out: what a `PrototypeClassifier` returns with `return_all`.
        x: the images, in the range in which the decoder paints.
        y: class numbers, or shares of the classes.
        w_class: weight of E.
        w_ae: weight of R.
        w_r1: weight of R1.
        w_r2: weight of R2.
        low: the lowest value that the decoder paints: 0 for a sigmoid, -1 for a tanh.

    Returns:
        The sum, and its parts unweighted: "class", "ae", "r1" and "r2".

    Raises:
        ArgumentError: if the batch has fewer than two images, or (on the CPU, where looking costs nothing) pixels lie outside what
            the decoder can paint.
        ShapeError: if the reconstruction is of another shape than the images.
    """
    if len(x) < 2:
        raise ArgumentError(
            f"prototype_loss: R1 looks for the nearest image of a batch, so it needs two at least, got {len(x)}. Take larger batches."
        )
    if out["reconstruction"].shape != x.shape:
        raise ShapeError(
            f"prototype_loss: the reconstruction must be of the images' shape {tuple(x.shape)}, got {tuple(out['reconstruction'].shape)}."
        )
    if x.device.type == "cpu" and not (x.amin() >= low - ROUNDING and x.amax() <= 1 + ROUNDING):
        raise ArgumentError(
            f"prototype_loss: pixels must lie in [{low:g}, 1], which is what the decoder can paint, got {float(x.amin()):.4g} to "
            f"{float(x.amax()):.4g}. Give it model.pixels.painted(images)."
        )
    distances = out["distances"]
    parts = {
        "class": F.cross_entropy(out["logits"], y),
        "ae": (out["reconstruction"] - x).square().flatten(1).sum(1).mean(),
        "r1": distances.amin(0).mean(),
        "r2": distances.amin(1).mean(),
    }
    total = w_class * parts["class"] + w_ae * parts["ae"] + w_r1 * parts["r1"] + w_r2 * parts["r2"]
    return total, parts


class PrototypeLoss(Objective):
    """Train a `PrototypeClassifier`, or one that is built around any other network.

    Args:
        w_class: weight of the cross-entropy.
        w_ae: weight of the reconstruction's error, which is summed over pixels.
        w_r1: weight of R1, which draws every prototype to an image.
        w_r2: weight of R2, which draws every image to a prototype.
        num_prototypes: of the network that is built around another one.
        latent_dim: its length of the code.
        elastic: show each training image elastically deformed, as the paper does for MNIST, instead of by the `views` of `fit`.

    Raises:
        ArgumentError: if a weight is negative.

    >>> objective = PrototypeLoss(num_prototypes=20)
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        w_class: float = 20.0,
        w_ae: float = 1.0,
        w_r1: float = 1.0,
        w_r2: float = 1.0,
        num_prototypes: int = 15,
        latent_dim: int = 40,
        elastic: bool = False,
    ) -> None:
        super().__init__()
        self.weights = {"w_class": w_class, "w_ae": w_ae, "w_r1": w_r1, "w_r2": w_r2}
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ArgumentError(
                    f"PrototypeLoss: `{name}` must be 0 or more, got {weight}. The paper has 20 for the classes and 1 for the rest."
                )
        self.num_prototypes, self.latent_dim = num_prototypes, latent_dim
        self.views = (Elastic(),) if elastic else None

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network: the model, or one built around it; it takes over how the data is normalised."""
        seen = data.preprocessing
        if not isinstance(model, PrototypeClassifier):
            shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
            model = around(model, num_prototypes=self.num_prototypes, latent_dim=self.latent_dim, **shape)
        check_images("PrototypeLoss", model.image_shape, data)
        model.pixels.remember(seen.mean, seen.std)
        return model

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse another number of classes than the network was built for."""
        if model.num_classes != len(data.classes):
            raise ArgumentError(
                f"PrototypeLoss: the model has {model.num_classes} outputs and {data.name} has {len(data.classes)} classes. "
                f"Build it with num_classes={len(data.classes)}."
            )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, its parts, and the share of right answers."""
        network: Any = model
        out = network(batch.images, return_all=True)
        labels = batch.labels if batch.targets is None else batch.targets
        total, parts = prototype_loss(out, network.pixels.painted(batch.images), labels, **self.weights, low=network.pixels.low)
        told = {name: value.detach() for name, value in parts.items()}
        return {"loss": total, **told, "top1": (out["logits"].argmax(1) == batch.labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute the numbers of `retinue.evaluate`, and "ae", "r1" and "r2" over the whole split."""
        network: Any = model
        logits, labels, errors, nearest = [], [], [], []
        closest = torch.full((network.num_prototypes,), torch.inf, device=next(model.parameters()).device)
        with evaluating(model):
            for batch in loader.batches():
                out = network(batch.images, return_all=True)
                logits.append(out["logits"].float())
                labels.append(batch.labels)
                errors.append((out["reconstruction"] - network.pixels.painted(batch.images)).square().flatten(1).sum(1))
                nearest.append(out["distances"].amin(1))
                closest = torch.minimum(closest, out["distances"].amin(0))
        means = {"ae": torch.cat(errors).mean(), "r1": closest.mean(), "r2": torch.cat(nearest).mean()}
        return {**judge(torch.cat(logits), torch.cat(labels)), **{name: float(value) for name, value in means.items()}}


def check_images(where: str, image_shape: tuple[int, int, int], data: Data) -> None:
    """Refuse data whose images are not of the shape that a network was built for.

    Raises:
        ArgumentError: with what to build.
    """
    seen = data.preprocessing
    if image_shape != (seen.channels, *seen.input_size):
        raise ArgumentError(
            f"{where}: the model takes images of shape {image_shape} and {data.name} has {(seen.channels, *seen.input_size)}. "
            f"Build it with in_chans={seen.channels}, input_size={seen.input_size}."
        )
