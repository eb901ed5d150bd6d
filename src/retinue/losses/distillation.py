"""Learning from another network's answers instead of labels (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError


def soft_cross_entropy(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute the mean of -sum_c t_c log softmax(z)_c in nats.

    Args:
        logits: z, of the network that learns.
        targets: t, shares of the classes; rows sum to 1 (a teacher's softmax, mixed labels).

    Raises:
        ShapeError: if the two differ in shape.
    """
    _check("soft_cross_entropy", logits, targets)
    return F.cross_entropy(logits, targets)


def distillation_kl(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Compute T^2 KL(softmax(v / T) || softmax(z / T)) in nats, averaged over the batch (section 2).

    The gradient of the divergence falls with 1 / T^2; the factor keeps it as strong as that of a loss on labels beside it.

    Args:
        student: logits z; the gradient flows into these alone.
        teacher: logits v of the same images.
        temperature: T, above 0. At 1 it differs from `soft_cross_entropy` by the teacher's entropy; for a large T the gradient is that
            of half the squared difference of the centred logits, divided by the number of classes (equation 4).

    Raises:
        ArgumentError: if the temperature is not positive.
        ShapeError: if the two differ in shape.
    """
    _check("distillation_kl", student, teacher)
    if not temperature > 0:
        raise ArgumentError(f"distillation_kl: `temperature` must be above 0, got {temperature}. The paper used 1 to 20.")
    ours, theirs = F.log_softmax(student / temperature, -1), F.log_softmax(teacher.detach() / temperature, -1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def target_kl(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute KL(t || softmax(z)) in nats, averaged over the batch: `soft_cross_entropy` without the entropy of the targets.

    Args:
        logits: z, of the network that learns.
        targets: t, shares of the classes, which may be 0.

    Raises:
        ShapeError: if the two differ in shape.

    >>> import torch
    >>> round(float(target_kl(torch.zeros(1, 4), torch.eye(4)[:1])), 4)  # log 4
    1.3863
    """
    _check("target_kl", logits, targets)
    return F.kl_div(logits.float().log_softmax(-1), targets, reduction="batchmean")


def _check(where: str, logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ShapeError(
            f"{where}: both need one row an image and one column a class, got {tuple(logits.shape)} and {tuple(targets.shape)}."
        )
