"""What SimCLRv2 minimises once there are labels: fine-tuning, and distillation (Chen et al. 2020, arXiv 2006.10029, section 2)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Objective, Supervised, evaluating
from retinue.engine.lars import exempt
from retinue.errors import ArgumentError, ShapeError
from retinue.losses import soft_cross_entropy

UNLABELLED = -1


def distillation_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    temperature: float = 1.0,
    labels: Int[Tensor, " batch"] | None = None,
    alpha: float = 1.0,
    *,
    scale_by_tau2: bool = False,
) -> Float[Tensor, ""]:
    """Compute -mean_x sum_y P_T(y|x; tau) log P_S(y|x; tau) (equation 2), or with labels the weighted sum with cross-entropy (equation 3).

    Args:
        student_logits: of the network that learns.
        teacher_logits: of the same crops; they get no gradient.
        temperature: tau of both: 0.1 for a student of the teacher's size, 1 for a smaller one.
        labels: classes, -1 where an image has none; read where `alpha` is below 1.
        alpha: weight of the teacher's answers; 1 - alpha is that of the labels.
        scale_by_tau2: multiply the teacher's term with tau^2, as the official notebook does; the formula has no such factor.

    Raises:
        ShapeError: if student and teacher differ in the number of classes, or there are more or fewer labels than images.
        ArgumentError: if the temperature is not positive, `alpha` lies outside [0, 1], or labels are missing.

    >>> teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
    >>> round(distillation_loss(torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]]), teacher).item(), 6)
    1.011813
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeError(
            f"distillation_loss: student and teacher must answer alike, got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}. Build the student with num_classes={teacher_logits.shape[-1]}."
        )
    _check("distillation_loss", temperature, alpha)
    loss = soft_cross_entropy(student_logits / temperature, (teacher_logits.detach() / temperature).softmax(-1))
    if scale_by_tau2:
        loss = loss * temperature**2
    if alpha == 1:
        return loss
    if labels is None:
        raise ArgumentError(f"distillation_loss: `alpha` {alpha} gives labels a weight, and there are no `labels`. Give them, or alpha=1.")
    if labels.shape != student_logits.shape[:1]:
        raise ShapeError(f"distillation_loss: `labels` must be {len(student_logits)} whole numbers, got {tuple(labels.shape)}.")
    told = F.cross_entropy(student_logits, labels, ignore_index=UNLABELLED, reduction="sum") / (labels != UNLABELLED).sum().clamp_min(1)
    return alpha * loss + (1 - alpha) * told


def _check(where: str, temperature: float, alpha: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"{where}: `temperature` must be above 0, got {temperature}. The paper has 0.1 and 1.")
    if not 0 <= alpha <= 1:
        raise ArgumentError(f"{where}: `alpha` must lie in [0, 1], got {alpha}. It is the weight of the teacher's answers.")


def head_penalty(model: Any, decay: float) -> Tensor | float:
    """Compute decay / 2 ||W||^2 of the classifier's weights: LARS does not decay these, so the official code puts it in the loss."""
    return 0.5 * decay * model.get_classifier().weight.square().sum() if decay else 0.0


def _check_decay(where: str, head_decay: float) -> None:
    if not head_decay >= 0:
        raise ArgumentError(f"{where}: `head_decay` must be 0 or more, got {head_decay}.")


class FineTuning(Supervised):
    """Cross-entropy, with the weight decay of the classifier in the loss.

    Args:
        head_decay: of the classifier's weights; for "simclrlars", which leaves the classifier alone.

    >>> objective = FineTuning(head_decay=1e-4)
    """

    def __init__(self, head_decay: float = 0.0) -> None:
        super().__init__()
        _check_decay("FineTuning", head_decay)
        self.head_decay = head_decay

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network, whose classifier LARS moves by plain momentum."""
        network: Any = super().prepare(model, data)
        exempt(network.get_classifier())
        return network

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and how many images of the batch are right."""
        numbers = super().forward(model, batch)
        return {**numbers, "loss": numbers["loss"] + head_penalty(model, self.head_decay)}


class Distillation(Objective):
    """A student's cross-entropy with a fine-tuned teacher's probabilities of the same crops; labels may have a part in it.

    Args:
        teacher: a classifier; a copy of it is kept, frozen and in evaluation mode.
        temperature: tau: 0.1 for a student of the teacher's size, 1 for a smaller one.
        alpha: weight of the teacher's answers; 1 uses no label.
        labelled: which training images have a label, by their positions; None: all. Read where `alpha` is below 1.
        scale_by_tau2: see `distillation_loss`.
        head_decay: as in `FineTuning`.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> from retinue.models import tiny
    >>> objective = Distillation(tiny("timm_cnn"), temperature=0.1)
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        teacher: nn.Module,
        temperature: float = 1.0,
        *,
        alpha: float = 1.0,
        labelled: Sequence[int] | None = None,
        scale_by_tau2: bool = False,
        head_decay: float = 0.0,
    ) -> None:
        super().__init__()
        _check("Distillation", temperature, alpha)
        _check_decay("Distillation", head_decay)
        self.temperature, self.alpha, self.scale_by_tau2, self.head_decay = temperature, alpha, scale_by_tau2, head_decay
        self._labelled = None if labelled is None else [int(place) for place in labelled]
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.register_buffer("known", None, persistent=False)

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the student, whose classifier LARS moves by plain momentum."""
        network: Any = super().prepare(model, data)
        exempt(network.get_classifier())
        return network

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a student or a teacher with other outputs than there are classes."""
        for who, network in (("student", model), ("teacher", self.teacher)):
            outputs = getattr(network, "num_classes", len(data.classes))
            if outputs != len(data.classes):
                raise ArgumentError(
                    f"Distillation: the {who} has {outputs} outputs and {data.name} has {len(data.classes)} classes. Build it with "
                    f"num_classes={len(data.classes)}."
                )
        if self._labelled is not None:
            if not all(0 <= place < len(data.train) for place in self._labelled):
                raise ArgumentError(f"Distillation: `labelled` must be positions among the {len(data.train)} training images.")
            self.known = torch.zeros(len(data.train), dtype=torch.bool)
            self.known[self._labelled] = True

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and how many images of the batch are right (which is measured, not learned)."""
        with torch.no_grad():
            answers = self.teacher(batch.images)
        logits, labels = model(batch.images), batch.labels
        right = (logits.argmax(-1) == labels).float().mean()
        if self.known is not None:
            labels = labels.masked_fill(~self.known[batch.indices], UNLABELLED)
        loss = distillation_loss(logits, answers, self.temperature, labels, self.alpha, scale_by_tau2=self.scale_by_tau2)
        agreement = (logits.argmax(-1) == answers.argmax(-1)).float().mean()
        return {"loss": loss + head_penalty(model, self.head_decay), "top1": right, "agreement": agreement}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the plain cross-entropy over a held-out split, on labels."""
        with evaluating(model):
            return Supervised().evaluate(model, loader)
