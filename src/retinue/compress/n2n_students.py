"""How N2N trains students on their teacher's answers (section 3.4)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Objective, evaluating, judge
from retinue.errors import ArgumentError, ShapeError

STUDENT: dict[str, Any] = {"epochs": 5, "optimizer": "adam", "lr": 5e-4, "weight_decay": 5e-4, "schedule": "constant"}
FINAL: dict[str, Any] = {**STUDENT, "epochs": 50}  # "to convergence"


def logit_error(student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute the mean squared difference of the logits, without softmax (equation 5).

    Args:
        student: logits of the network that learns.
        teacher: logits of the same images.

    Raises:
        ShapeError: if the two differ in shape.

    >>> float(logit_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]])))
    2.0
    """
    if student.shape != teacher.shape:
        raise ShapeError(f"logit_error: student and teacher give logits of shapes {tuple(student.shape)} and {tuple(teacher.shape)}.")
    return F.mse_loss(student, teacher)


def tempered_error(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    temperature: float = 3.0,
    label_weight: float = 0.3,
) -> Float[Tensor, ""]:
    """Compute (1 - lambda) MSE(log softmax(z / T), log softmax(v / T)) + lambda CE(z, labels), for the last training.

    The authors' code has it so; the paper's text weights the squared difference of the logits instead.

    Args:
        student: logits z.
        teacher: logits v of the same images.
        labels: classes.
        temperature: T.
        label_weight: lambda.
    """
    soft = logit_error((student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1))
    return (1 - label_weight) * soft + label_weight * F.cross_entropy(student, labels)


class TeachersAnswers(Objective):
    """Learn a teacher's logits: of the images as they are, computed once for all students, or of each batch as it is shown.

    Args:
        teacher: logits of all training images in their order, or the network that gives them, which then sees every view.
        temperature: T of `tempered_error`; None takes `logit_error`, which needs no labels.
        label_weight: lambda of `tempered_error`.

    Raises:
        ArgumentError: if a number cannot be.
    """

    monitor, mode = "top1", "max"
    answers: Tensor

    def __init__(self, teacher: Tensor | nn.Module, temperature: float | None = None, label_weight: float = 0.3) -> None:
        super().__init__()
        if temperature is not None and not temperature > 0:
            raise ArgumentError(f"TeachersAnswers: `temperature` must be above 0, got {temperature}. The authors' code has 3.")
        if not 0 <= label_weight <= 1:
            raise ArgumentError(f"TeachersAnswers: `label_weight` must lie in [0, 1], got {label_weight}.")
        self.temperature, self.label_weight = temperature, label_weight
        answers, network = (teacher, None) if isinstance(teacher, Tensor) else (torch.empty(0), teacher)
        self.register_buffer("answers", answers, persistent=False)
        object.__setattr__(self, "teacher", network)  # watched, not owned: it is no part of the training
        self.teacher: Any

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse answers for other images or other classes; bring the teacher to the student's device."""
        classes = len(data.classes)
        if self.teacher is None and tuple(self.answers.shape) != (len(data.train), classes):
            raise ArgumentError(
                f"TeachersAnswers: {data.name} has {len(data.train)} training images of {classes} classes, and the answers are of shape "
                f"{tuple(self.answers.shape)}. Compute them for these: retinue.engine.logits(teacher, data.train)."
            )
        if self.teacher is not None:
            self.teacher.to(next(model.parameters()).device)
            own = getattr(self.teacher, "preprocessing", data.preprocessing)
            self.renormalise = None if own == data.preprocessing else (data.preprocessing, own)

    def check_views(self, views: Any) -> None:
        """Refuse views where the answers belong to the images as they are."""
        if self.teacher is None:
            raise ArgumentError("TeachersAnswers: these answers belong to the images as they are. Leave `views` out, or give the teacher.")

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the share of right answers."""
        logits = model(batch.images)
        with torch.no_grad():
            taught = self.answers[batch.indices] if self.teacher is None else self._ask(batch.images)
        if self.temperature is None:
            loss = logit_error(logits, taught)
        else:
            loss = tempered_error(logits, taught, batch.labels, self.temperature, self.label_weight)
        return {"loss": loss, "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    def _ask(self, images: Tensor) -> Tensor:
        if self.renormalise is not None:
            shown, own = self.renormalise
            images = own.normalize(shown.denormalize(images))
        with evaluating(self.teacher):
            return self.teacher(images)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and cross-entropy by the labels of a held-out split."""
        device = next(model.parameters()).device
        with evaluating(model):
            pairs = [(model(batch.images.to(device)).float().cpu(), batch.labels.cpu()) for batch in loader.batches()]
        return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
