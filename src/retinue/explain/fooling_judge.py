"""How sure a classifier is of an image: log-odds of every class in float64, which never saturate as probabilities do."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Preprocessing
from retinue.engine import evaluating
from retinue.errors import ArgumentError, NonFiniteError, ShapeError, unknown
from retinue.models.protocol import config

Outputs = Literal["logits", "probabilities"]
OUTPUTS = ("logits", "probabilities")


class Judge:
    """Asks a classifier about images with values in [0, 1].

    Args:
        model: a network, which is asked in evaluation mode and sees images normalised as in its training; or any function of a batch of
            images, which sees them as they are.
        outputs: what it returns: "logits" before the softmax, or "probabilities" after it. One column counts as the logit of class 1.
        preprocessing: how images are normalised; None takes that of the model (`retinue.load` gives it) or, for timm's, of its weights.
        batch_size: images at a time.

    Raises:
        ArgumentError: if it is not known how the model's images are normalised.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        outputs: Outputs = "logits",
        preprocessing: Preprocessing | None = None,
        batch_size: int = 256,
    ) -> None:
        if outputs not in OUTPUTS:
            raise unknown("fool", "`outputs`", outputs, OUTPUTS)
        if batch_size < 1:
            raise ArgumentError(f"fool: `batch_size` must be at least 1, got {batch_size}.")
        self.model, self.outputs, self.batch_size = model, outputs, batch_size
        self.normalisation = normalisation(model, preprocessing)
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.dtype = torch.float32 if parameter is None else parameter.dtype

    def __call__(self, images: Float[Tensor, "count channels height width"]) -> Float[Tensor, "count classes"]:
        """Compute log p / (1 - p) of every class, without gradients, on the CPU."""
        with torch.no_grad(), evaluating(*self.networks()):
            parts = [log_odds(self.ask(part), self.outputs).cpu() for part in images.split(self.batch_size)]
        return torch.cat(parts)

    def ask(self, images: Float[Tensor, "count channels height width"]) -> Float[Tensor, "count classes"]:
        """Return what the model says of images, checked; with gradients, in the model's present mode.

        Raises:
            ShapeError: if it is not one row for each image.
            NonFiniteError: if it is not finite.
            ArgumentError: if it is not what `outputs` says.
        """
        seen = images.to(self.device, self.dtype)
        if self.normalisation is not None:
            seen = self.normalisation.normalize(seen)
        said: Any = self.model(seen)
        if not isinstance(said, Tensor) or said.ndim != 2 or len(said) != len(images):
            got = tuple(said.shape) if isinstance(said, Tensor) else type(said).__name__
            raise ShapeError(f"fool: the model must return one row of {self.outputs} for each of {len(images)} images, got {got}.")
        if not bool(torch.isfinite(said).all()):
            raise NonFiniteError("fool: the model returned values that are not finite. Check its weights, and how images are normalised.")
        self._check(said.detach())
        return said

    def _check(self, said: Tensor) -> None:
        shares = said.shape[1] > 1 and bool((said >= 0).all()) and bool(((said.sum(1) - 1).abs() < 1e-3).all())
        if self.outputs == "logits" and shares:
            raise ArgumentError(
                "fool: the model's outputs are never negative and sum to 1, so they are probabilities and no logits. "
                'Say so: outputs="probabilities"; or take the model without its softmax.'
            )
        if self.outputs == "probabilities" and not (shares or (said.shape[1] == 1 and bool(((said >= 0) & (said <= 1)).all()))):
            raise ArgumentError(
                f"fool: the model's outputs are no probabilities, the first row sums to {float(said[0].sum()):.4g}. "
                'For values before the softmax say outputs="logits".'
            )

    def networks(self) -> list[nn.Module]:
        """Return the model, if it is a network."""
        return [self.model] if isinstance(self.model, nn.Module) else []


def log_odds(said: Float[Tensor, "count outputs"], outputs: Outputs) -> Float[Tensor, "count classes"]:
    """Compute log p / (1 - p) in float64: z_c - log sum_(j != c) exp z_j of logits, which distinguishes where p rounds to 1.

    >>> log_odds(torch.tensor([[100.0, 0.0]]), "logits").tolist()
    [[100.0, -100.0]]
    """
    said = said.double()
    if outputs == "probabilities":
        p = torch.cat([1 - said, said], 1) if said.shape[1] == 1 else said
        p = p.clamp(min=1e-300)
        return p.log() - torch.log1p(-p.clamp(max=1 - 2**-53))
    z = torch.cat([torch.zeros_like(said), said], 1) if said.shape[1] == 1 else said
    share = z - z.logsumexp(1, keepdim=True)
    odds = share - torch.log1p(-share.exp().clamp(max=0.5))  # exact where p <= 1/2
    top = z.argmax(1, keepdim=True)
    others = z.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    return odds.scatter(1, top, z.gather(1, top) - others)


def probability(said: Float[Tensor, "count outputs"], outputs: Outputs) -> Float[Tensor, "count classes"]:
    """Compute the probabilities of all classes, in the model's precision and with gradients."""
    if said.shape[1] == 1:
        one = said.sigmoid() if outputs == "logits" else said
        return torch.cat([1 - one, one], 1)
    return said.softmax(1) if outputs == "logits" else said


def normalisation(model: Any, preprocessing: Preprocessing | None) -> Preprocessing | None:
    """Find how a model's images are normalised; None where it takes them as they are.

    Raises:
        ArgumentError: for a network of the factory that was not loaded from a run: its own settings say nothing of its training.
    """
    own = preprocessing if preprocessing is not None else getattr(model, "preprocessing", None)
    if own is not None or not isinstance(model, nn.Module):
        return own
    made = config(model)
    if made is not None and not made["name"].startswith("timm:"):
        raise ArgumentError(
            f"fool: {made['name']} does not say how its images are normalised. Give preprocessing=data.preprocessing, or take the model "
            "from retinue.load(run_dir)."
        )
    cfg: Any = getattr(model, "pretrained_cfg", None)
    if not cfg or "mean" not in cfg:
        return None
    channels = getattr(model, "in_chans", None) or cfg["input_size"][0]
    if len(cfg["mean"]) not in (1, channels):
        raise ArgumentError(
            f"fool: the model takes {channels} channel(s) and its settings have the mean of {len(cfg['mean'])}. "
            "Give preprocessing=retinue.data.Preprocessing(input_size, channels, mean=..., std=...)."
        )
    return Preprocessing(tuple(cfg["input_size"][-2:]), channels, tuple(cfg["mean"]), tuple(cfg["std"]))


def image_shape(model: Any, found: Preprocessing | None) -> tuple[int, int, int]:
    """Find which images a model takes.

    Raises:
        ArgumentError: if nothing says so.
    """
    made = config(model) if isinstance(model, nn.Module) else None
    size = made["arguments"].get("input_size") if made else None
    if size is None and found is not None:
        size = found.input_size
    if size is None or found is None:
        raise ArgumentError("fool: the model does not say which images it takes. Give image_shape=(channels, height, width).")
    return found.channels, int(size[0]), int(size[1])
