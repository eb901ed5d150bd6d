"""MEAL V2: a trained network gets better by the averaged answers of teachers alone (Shen and Savvides 2020, arXiv 2009.08453).

No architecture is changed, and labels only measure: the soft label of an ensemble replaces them, and a discriminator tells the student's
logits from the teachers'. The method fine-tunes: begin from a student that was trained before (`retinue.distill.distill_ensemble`).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.data import views as kit
from retinue.distill.ensemble import EnsembleTeacher, Teachers
from retinue.engine import Objective, evaluating, judge
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.losses import soft_cross_entropy

__all__ = ["EnsembleTeacher", "LogitDiscriminator", "MEALv2", "adversarial_loss", "similarity_loss"]

Adversarial = Literal["reverse", "joint"] | None
SIDES = ("reverse", "joint")
TOLERANCE = 1e-3  # by which a row of soft labels may miss 1
PLAYER = "discriminator"


class LogitDiscriminator(nn.Module):
    """Tells whose logits it sees: three linear layers C -> C/k -> C/k^2 -> 2, with ReLU after each.

    (The paper's 1x1 convolutions on a map of one pixel.) The ReLU after the last layer is the official code's: outputs are never below 0,
    and when all of them are 0 the loss is ln 2 and nothing is learned any more.

    Args:
        num_classes: C.
        reduction: k. None is the paper's 8, and 2 for fewer than 64 classes, with widths of 1 at least.

    Raises:
        ArgumentError: if a layer would be empty.

    >>> sum(parameter.numel() for parameter in LogitDiscriminator(1000).parameters())
    127047
    """

    def __init__(self, num_classes: int, reduction: int | None = None) -> None:
        super().__init__()
        if num_classes < 1 or (reduction is not None and reduction < 1):
            raise ArgumentError(f"LogitDiscriminator: `num_classes` and `reduction` must be at least 1, got {num_classes} and {reduction}.")
        k = (8 if num_classes >= 64 else 2) if reduction is None else reduction
        widths = [num_classes // k, num_classes // k**2]
        if reduction is None:
            widths = [max(1, width) for width in widths]
        if not widths[1]:
            raise ArgumentError(
                f"LogitDiscriminator: with {num_classes} classes and `reduction` {k} a layer would be empty ({num_classes} -> {widths[0]} "
                f"-> {widths[1]}). Leave `reduction` out, or use 2."
            )
        sizes = [num_classes, *widths, 2]
        self.layers = nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))

    def forward(self, rows: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows 2"]:
        """Compute two scores: that a row is the student's, and that it is the teachers'."""
        return self.layers(rows)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def reverse(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x, through which gradients flow back with the other sign (Ganin and Lempitsky 2015)."""
    result: Tensor = _Reverse.apply(x)
    return result


def similarity_loss(logits: Float[Tensor, "batch classes"], shares: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute the mean of -sum_c p_c log softmax(s)_c in nats: KL(p || q) and p's entropy, which has no gradient (equation 3).

    Args:
        logits: s, of the student.
        shares: p, soft labels.

    Raises:
        ArgumentError: if rows of `shares` do not sum to 1, or they want a gradient.
        ShapeError: if the two differ in shape.

    >>> round(similarity_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.3536, 0.4669, 0.1795]])).item(), 4)
    1.5817
    """
    if shares.requires_grad:
        raise ArgumentError("similarity_loss: the soft labels want a gradient, which would teach the teachers. Give shares.detach().")
    sums = shares.sum(-1)
    if shares.numel() and not bool((sums - 1).abs().max() <= TOLERANCE):
        raise ArgumentError(
            f"similarity_loss: every row of soft labels must sum to 1 (within {TOLERANCE:g}), got sums from {float(sums.min()):.4g} to "
            f"{float(sums.max()):.4g}. Give probabilities, not logits."
        )
    return soft_cross_entropy(logits, shares)


def adversarial_loss(
    discriminator: nn.Module, student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the binary cross-entropy of a discriminator's two scores, and the share of its scores that are 0 (equations 4 and 5).

    Args:
        discriminator: gives two scores a row.
        student: rows whose scores shall be (1, 0).
        teacher: rows whose scores shall be (0, 1).

    Raises:
        ShapeError: if there are more rows of one than of the other.
    """
    if student.shape != teacher.shape:
        raise ShapeError(f"adversarial_loss: student and teacher need rows alike, got {tuple(student.shape)} and {tuple(teacher.shape)}.")
    scores = discriminator(torch.cat([student, teacher]))
    sides = torch.eye(2, device=scores.device, dtype=scores.dtype).repeat_interleave(len(student), 0)
    return F.binary_cross_entropy_with_logits(scores, sides), (scores.detach() == 0).float().mean()


class MEALv2(Objective):
    """Minimise L_sim -+ L_D: the cross-entropy with the teachers' mean probabilities, and the discriminator's loss.

    The discriminator is a player of its own, "discriminator"; give it a learning rate: fit(players={"discriminator": {"lr": 1e-4}}). (So
    the official code means it; its schedule then overwrites that by the student's rate.) Teachers and student see the same crops.

    Args:
        teachers: an `EnsembleTeacher`, or what it is made of: networks, folders of runs, names of networks with published weights.
        data: what is trained on; its image size serves to try out teachers that do not say how many classes they have.
        combine: "mean" or "random", of the teachers.
        resize: show a teacher that was made for another size the images at that size.
        adversarial: "reverse" is the paper's: the student makes L_D large, and the discriminator makes it small. "joint" is the official
            code's: both make it small. None has no discriminator.
        discriminator: reads rows of logits; None is `LogitDiscriminator`.
        hard_label_weight: weight of cross-entropy with labels beside; for comparison alone, as the paper finds that it harms.
        cutmix: paste a box of another image into each before teachers and student see it; the teachers label what they see.
        aux_weight: weight of L_sim for an auxiliary head, for students that return (logits, auxiliary logits) in training.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> from retinue.models import tiny
    >>> objective = MEALv2([tiny("timm_cnn"), tiny("timm_vit")])
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        teachers: Teachers | EnsembleTeacher,
        data: Data | None = None,
        *,
        combine: Literal["mean", "random"] = "mean",
        resize: bool = False,
        adversarial: Adversarial = "reverse",
        discriminator: nn.Module | None = None,
        hard_label_weight: float = 0.0,
        cutmix: bool = False,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        if adversarial is not None and adversarial not in SIDES:
            raise unknown("MEALv2", "`adversarial`", adversarial, SIDES)
        if adversarial is None and discriminator is not None:
            raise ArgumentError("MEALv2: with adversarial=None nothing reads the `discriminator`. Leave it out.")
        if not hard_label_weight >= 0:
            raise ArgumentError(f"MEALv2: `hard_label_weight` must be 0 or more, got {hard_label_weight}. The paper has none, 0.")
        if isinstance(teachers, EnsembleTeacher):
            teacher = teachers
        else:
            teacher = EnsembleTeacher(teachers, combine, resize, None if data is None else data.preprocessing.input_size)
        self.teacher_names = teacher.names
        self.adversarial, self.hard_label_weight, self.cutmix, self.aux_weight = adversarial, hard_label_weight, cutmix, aux_weight
        self.combine, self.resize = teacher.combine, teacher.resize
        self.teacher = teacher
        if discriminator is None and adversarial is not None:
            discriminator = LogitDiscriminator(teacher.num_classes)
        self.discriminator = discriminator

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse teachers that do not fit the images, and a student with other outputs than the teachers."""
        if any(model is teacher for teacher in self.teacher.models):
            raise ArgumentError("MEALv2: the student is one of the teachers. Give a copy of it, or another network.")
        self.teacher.seeing(data.preprocessing, data.classes)
        check_outputs(model, data)

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name the student's parameters, and the discriminator's."""
        return two_players(model, self.discriminator)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the student's loss, then the discriminator's, of the same logits: as if both moved at once."""
        rows: list[Tensor] = []
        yield "model", self._numbers(model, batch, rows)
        if self.discriminator is not None:
            loss, _ = adversarial_loss(self.discriminator, *(part.detach() for part in rows))
            yield PLAYER, {"loss": loss}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss whose gradient is right for student and discriminator at once, for loops with one optimiser."""
        return self._numbers(model, batch, [])

    def _numbers(self, model: nn.Module, batch: Batch, rows: list[Tensor]) -> dict[str, Tensor]:
        images = pasted(batch.images) if self.cutmix and model.training else batch.images
        shares, teacher_logits = self.teacher(images)
        out = model(images)
        logits, auxiliary = out if isinstance(out, tuple) else (out, None)
        loss = similarity = soft_cross_entropy(logits, shares)
        numbers = {"similarity": similarity.detach(), "top1": (logits.argmax(-1) == batch.labels).float().mean()}
        if auxiliary is not None:
            loss = loss + self.aux_weight * soft_cross_entropy(auxiliary, shares)
        if self.hard_label_weight:
            loss = loss + self.hard_label_weight * F.cross_entropy(logits, batch.labels)
        rows.extend((logits, teacher_logits))
        if self.discriminator is not None:
            told, zeros = adversarial_loss(self.discriminator, reverse(logits) if self.adversarial == "reverse" else logits, teacher_logits)
            loss = loss + told
            numbers |= {"discriminator": told.detach(), "zeros": zeros}
        return {"loss": loss, **numbers}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the plain cross-entropy over a held-out split, on labels."""
        return on_labels(model, loader)


@torch.no_grad()
def on_labels(model: nn.Module, loader: Loader) -> dict[str, float]:
    """Compute the numbers of `retinue.evaluate` over a held-out split."""
    with evaluating(model):
        pairs = [(model(batch.images).float(), batch.labels) for batch in loader.batches()]
    return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def check_outputs(model: nn.Module, data: Data) -> None:
    """Refuse a student that has not one output for each class.

    Raises:
        ArgumentError: naming both numbers.
    """
    outputs = getattr(model, "num_classes", None)
    if outputs != len(data.classes):
        raise ArgumentError(
            f"MEALv2: the student has {outputs} outputs and {data.name} has {len(data.classes)} classes. Build it with "
            f"num_classes={len(data.classes)}."
        )


def two_players(model: nn.Module, discriminator: nn.Module | None) -> dict[str, list[nn.Parameter]]:
    """Name what learns: the student, and the discriminator where there is one."""
    found = {"model": [parameter for parameter in model.parameters() if parameter.requires_grad]}
    return found if discriminator is None else {**found, PLAYER: list(discriminator.parameters())}


def pasted(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Paste a box of another image of the batch into each, of the area 1 - lambda with lambda uniform (CutMix with beta = 1)."""
    keys = torch.randint(-(1 << 62), 1 << 62, (len(images),), device="cpu").to(images.device)
    partners = images[torch.randperm(len(images), device="cpu").to(images.device)]
    return kit.CutMix(1.0)(images, keys, partners=partners)[0]
