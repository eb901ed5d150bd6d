"""Training on labels and on a teacher's answers together (Bello et al. 2021, arXiv 2103.07579, section 7)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from retinue.data import Batch, Data
from retinue.engine import Supervised
from retinue.errors import ShapeError


class SelfTraining(Supervised):
    """CE(labelled) + CE(pseudo-labelled), each a mean of its own, for a split that holds images of both kinds.

    Args:
        targets: shares of the classes for each image of the training split, in its order; one-hot or smoothed where there is a label.
        pseudo: which of them a teacher gave, as `retinue.models.pseudo_label` does.

    Raises:
        ShapeError: if the two differ in their number of images.

    >>> SelfTraining(torch.eye(3), torch.tensor([False, True, True])).pseudo.tolist()
    [False, True, True]
    """

    def __init__(self, targets: Float[Tensor, "images classes"], pseudo: Bool[Tensor, " images"]) -> None:
        super().__init__()
        if len(targets) != len(pseudo):
            raise ShapeError(f"SelfTraining: `targets` has {len(targets)} rows and `pseudo` {len(pseudo)}. Both need one an image.")
        self.targets: Tensor
        self.pseudo: Tensor
        self.register_buffer("targets", targets, persistent=False)
        self.register_buffer("pseudo", pseudo, persistent=False)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a split of another length, or of other classes, than the targets."""
        super().check(model, data)
        wanted = (len(data.train), len(data.classes))
        if tuple(self.targets.shape) != wanted:
            raise ShapeError(
                f"SelfTraining: `targets` must be {wanted[0]} images x {wanted[1]} classes, as the training split is, got "
                f"{tuple(self.targets.shape)}. Give one row for each image, in the split's order."
            )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute both means, and add them up; a kind that the batch lacks counts 0."""
        logits, pseudo = model(batch.images), self.pseudo[batch.indices].float()
        each = F.cross_entropy(logits, self.targets[batch.indices], reduction="none")
        loss = sum((each * rows).sum() / rows.sum().clamp(min=1) for rows in (1 - pseudo, pseudo))
        return {"loss": torch.as_tensor(loss)}
