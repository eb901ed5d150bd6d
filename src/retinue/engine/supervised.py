"""Supervised learning: cross-entropy against labels, or against shares of classes where a view mixed images."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine.evaluation import judge
from retinue.engine.modes import evaluating
from retinue.engine.objective import Objective
from retinue.errors import ArgumentError


class Supervised(Objective):
    """Cross-entropy of the model's logits.

    Args:
        label_smoothing: share of every target that is spread over all classes, in [0, 1) (arXiv 1512.00567, section 7).
        aux_weight: weight of the loss of an auxiliary head, for models that return (logits, auxiliary logits) in training.
        class_weights: weight of each class in the loss; None weighs all alike.

    >>> loss = Supervised(label_smoothing=0.1)
    """

    monitor, mode = "top1", "max"

    def __init__(self, label_smoothing: float = 0.0, aux_weight: float = 0.4, class_weights: list[float] | None = None) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ArgumentError(
                f"Supervised: `label_smoothing` must lie in [0, 1), got {label_smoothing}. The paper of Inception-v3 has 0.1."
            )
        if class_weights is not None and not all(weight >= 0 for weight in class_weights):
            raise ArgumentError(f"Supervised: `class_weights` must be 0 or more, got {class_weights}.")
        self.label_smoothing, self.aux_weight, self.class_weights = label_smoothing, aux_weight, class_weights
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.weights: Tensor | None
        self.register_buffer("weights", weights, persistent=False)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse data of one class, and a model with another number of outputs than there are classes."""
        classes = len(data.classes)
        if classes < 2:
            raise ArgumentError(
                f"Supervised: {data.name} has one class ({data.classes[0]}), so there is nothing to tell apart. Add a second."
            )
        if model.num_classes != classes:
            raise ArgumentError(
                f"Supervised: the model has {model.num_classes} outputs and {data.name} has {classes} classes. "
                f"Build it with num_classes={classes}."
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ArgumentError(f"Supervised: `class_weights` needs {classes} numbers, one for each class, got {len(self.class_weights)}.")

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and how many images of the batch are right."""
        out = model(batch.images)
        logits, auxiliary = out if isinstance(out, tuple) else (out, None)
        loss = self._loss(logits, batch)
        if auxiliary is not None:
            loss = loss + self.aux_weight * self._loss(auxiliary, batch)
        return {"loss": loss, "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    def _loss(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        target = batch.labels if batch.targets is None else batch.targets
        return F.cross_entropy(logits, target, weight=self.weights, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the plain cross-entropy over a held-out split."""
        with evaluating(model):
            pairs = [(model(batch.images).float(), batch.labels) for batch in loader.batches()]
        return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
