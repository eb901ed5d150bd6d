"""What is trained on fractals, and how their weights are fine-tuned (Anderson & Farrell 2022, arXiv 2110.03091, sections 4 and 5)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader, views
from retinue.engine import Objective, Supervised, evaluating
from retinue.errors import ArgumentError, ShapeError
from retinue.models import pooled_features


def multi_instance_loss(logits: Float[Tensor, "batch classes"], multi_hot: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute binary cross-entropy over all classes; those present weigh C / (number present), so that they are not outnumbered.

    Args:
        logits: one for each class.
        multi_hot: 1 for each class that the image shows, 0 for the others; with none, absent ones alone count.

    Returns:
        The mean over all images and classes.

    Raises:
        ShapeError: if the two do not have the same shape.
        ArgumentError: if labels are neither 0 nor 1, or a logit is not finite.

    >>> multi_instance_loss(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    tensor(1.0397)
    """
    if logits.shape != multi_hot.shape or logits.ndim != 2:
        raise ShapeError(
            f"multi_instance_loss: logits of shape {tuple(logits.shape)} and labels of shape {tuple(multi_hot.shape)}. Both must be "
            "(images, classes)."
        )
    if not bool(((multi_hot == 0) | (multi_hot == 1)).all()):
        raise ArgumentError("multi_instance_loss: labels must be 0 or 1 for each class. Class numbers need torch's one_hot first.")
    if not bool(torch.isfinite(logits.detach()).all()):
        raise ArgumentError("multi_instance_loss: there are logits that are not finite. Lower the learning rate, or clip the gradient.")
    return _weighted(logits, multi_hot)


def _weighted(logits: Tensor, multi_hot: Tensor) -> Tensor:
    weight = logits.shape[1] / multi_hot.sum(1, keepdim=True).clamp_min(1)
    return F.binary_cross_entropy_with_logits(logits, multi_hot, pos_weight=weight)


class MultiInstance(Objective):
    """Predict which classes of fractals an image shows, several of them at once: the paper's pre-training task.

    The classes are the targets of a batch, as those of `fractals(mode="multi")` have them; of other data it is the one of the label.
    """

    monitor, mode = "top1", "max"

    def __init__(self) -> None:  # nn.Module's would take any argument
        super().__init__()

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a network without an output for each class."""
        outputs, classes = getattr(model, "num_classes", None), len(data.classes)
        if outputs != classes:
            raise ArgumentError(
                f"MultiInstance: the model has {outputs} outputs and {data.name} has {classes} classes. "
                f"Build it with num_classes={classes}."
            )

    def check_views(self, shown: Any) -> None:
        """Refuse views that mix images: an image's classes would be a mixture's."""
        for view in views.flat(shown):
            if getattr(view, "mixes", False):
                raise ArgumentError(
                    f"MultiInstance: the view {view!r} mixes images, whose classes are sets. Leave it out; flips and crops help."
                )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the share of images whose strongest logit is a class that they show ("top1")."""
        logits = model(batch.images)
        multi_hot = present(batch, logits.shape[1])
        hits = multi_hot.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {"loss": _weighted(logits, multi_hot.to(logits.dtype)), "top1": hits}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Average "loss", "top1" and "recall" (the share of an image's n classes among its n strongest logits) over a held-out split."""
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64)
        with evaluating(model, self):
            for batch in loader.batches():
                batch = batch.to(device)
                logits = model(batch.images).float()
                multi_hot = present(batch, logits.shape[1])
                ranks = logits.argsort(1, descending=True).argsort(1)
                number = multi_hot.sum(1, keepdim=True)
                found = ((ranks < number) * multi_hot).sum(1) / number[:, 0]
                top1 = multi_hot.gather(1, logits.argmax(1, keepdim=True))
                sums += torch.stack([_weighted(logits, multi_hot) * len(batch), top1.sum(), found.sum()]).cpu()
        return dict(zip(("loss", "top1", "recall"), (sums / len(loader.split)).tolist()))


def present(batch: Batch, classes: int) -> Float[Tensor, "batch classes"]:
    """Return 1 for each class that an image shows: the batch's targets, or else the one of its label."""
    return F.one_hot(batch.labels, classes).float() if batch.targets is None else batch.targets


class FastHead(Supervised):
    """Cross-entropy in which the classifier is a player of its own, "head", so that it can learn faster than the backbone, "model".

    The paper fine-tunes so, with ten times the learning rate:
    fit(model, FastHead(), data, lr=0.015, weight_decay=5e-5, players={"head": {"lr": 0.15, "weight_decay": 1e-4}}).
    A step of both is a step of one optimiser with two groups: neither's gradient sees the other's new weights.

    Args:
        label_smoothing: as in `retinue.train.Supervised`.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing=label_smoothing)

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Part the classifier's parameters from all others."""
        head = list(model.get_classifier().parameters())  # type: ignore[operator]
        own = {id(parameter) for parameter in head}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
        return {name: [p for p in some if p.requires_grad] for name, some in (("model", rest), ("head", head))}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the loss as a function of the backbone, then as one of the classifier; both have the same value."""
        head: nn.Module = model.get_classifier()  # type: ignore[operator]
        features = pooled_features(model, batch.images)
        detached = features.detach()
        yield "model", self._numbers(head(features), batch)
        yield "head", self._numbers(head(detached), batch)

    def _numbers(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        truth = batch.labels if batch.targets is None else batch.targets
        loss = F.cross_entropy(logits, truth, label_smoothing=self.label_smoothing)
        return {"loss": loss, "top1": (logits.argmax(1) == batch.labels).float().mean()}
