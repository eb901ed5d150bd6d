"""MEAL V2 with stored answers: each crop is labelled once, and no teacher runs in training (the FKD variant of arXiv 2009.08453's code).

The store is that of dataset reinforcement: crop box and flip of M crops of each image, and the largest of the teachers' shares.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.distill.dataset_reinforcement import ReinforcedDataset, Replay
from retinue.distill.meal_v2 import (
    PLAYER,
    SIDES,
    Adversarial,
    LogitDiscriminator,
    adversarial_loss,
    check_outputs,
    on_labels,
    reverse,
    two_players,
)
from retinue.distill.reinforcement_builder import ReinforcementBuilder
from retinue.distill.reinforcement_store import ReinforcementStore
from retinue.engine import Objective
from retinue.errors import ArgumentError, unknown
from retinue.losses import soft_cross_entropy

TOPK = 5  # shares that the paper's code keeps; the rest is spread evenly over the other classes ("marginal_smoothing_k5")


def store_teachers(
    data: Data, teachers: Sequence[nn.Module | str | Path] | nn.Module | str | Path, folder: str | Path, crops: int = 8, seed: int = 0
) -> ReinforcementStore:
    """Ask the teachers once about `crops` random resized crops of each training image, and store box, flip and their 5 largest shares.

    A killed call goes on where it stopped when it is given again.

    Args:
        data: whose training images are labelled.
        teachers: networks, folders of runs, or names of networks with published weights; the mean of their shares is kept.
        folder: of the store.
        crops: M, of each image.
        seed: of the crops.

    Raises:
        ArgumentError: if a teacher does not fit the data, or the folder holds another store.
    """
    builder = ReinforcementBuilder(data, teachers, "RRC", crops, topk=min(TOPK, len(data.classes)), seed=seed)
    return builder.build(folder)


class StoredCrop(Replay):
    """A view that shows a training image as one of its stored crops; held-out images stay as they are."""

    def __call__(self, rows: Shaped[Tensor, "batch ..."], keys: Int64[Tensor, " batch"]) -> Shaped[Tensor, "batch ..."]:
        """Show what a loader took out of the data set, places of images; or images."""
        return rows if rows.ndim == 4 else super().__call__(rows, keys)


class StoredMEALv2(Objective):
    """MEAL V2 from a store: a batch holds several crops of each of its images, and the discriminator reads probabilities, not logits.

    An epoch of `fit` shows every image `num_crops` times, so divide the batch size and the epochs of an ordinary training by it.

    Args:
        dataset: data and store, with p=1; give its `data` to `retinue.fit`.
        num_crops: of each image in a batch, drawn independently from its stored ones.
        adversarial: "reverse", "joint" or None, as in `MEALv2`.
        discriminator: reads rows of probabilities; None is `LogitDiscriminator`.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> # store_teachers(data, [a, b], "stores/digits"); plus = ReinforcedDataset(data, "stores/digits", p=1.0)
    >>> # retinue.fit(student, StoredMEALv2(plus), plus.data, epochs=25, batch_size=8)
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        dataset: ReinforcedDataset,
        num_crops: int = 8,
        adversarial: Adversarial = "reverse",
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if num_crops < 1:
            raise ArgumentError(f"StoredMEALv2: `num_crops` must be at least 1, got {num_crops}. The official code has 8.")
        if adversarial is not None and adversarial not in SIDES:
            raise unknown("StoredMEALv2", "`adversarial`", adversarial, SIDES)
        if dataset.p != 1:
            raise ArgumentError(
                f"StoredMEALv2: no image may be shown with its hard label, got a data set with p={dataset.p}. Open it with p=1."
            )
        self.num_crops, self.adversarial = num_crops, adversarial
        self.stores = [store.seal for store in dataset.stores]  # for the run's record: another store is another run
        self._dataset, self._crops = dataset, tuple(StoredCrop(dataset) for _ in range(num_crops))
        self.views = self._crops
        if discriminator is None and adversarial is not None:
            discriminator = LogitDiscriminator(len(dataset.split.classes))
        self.discriminator = discriminator if adversarial is not None else None

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse data other than the data set's own, and a student with other outputs."""
        if getattr(data.train.store, "split", None) is not self._dataset.split:
            raise ArgumentError(
                f"StoredMEALv2: these are not the data that the store is shown through ({data.name}). Give fit the data of the data set: "
                "fit(model, StoredMEALv2(plus), plus.data)."
            )
        check_outputs(model, data)

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name the student's parameters, and the discriminator's."""
        return two_players(model, self.discriminator)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the student's loss, then the discriminator's, of the same probabilities."""
        shares = torch.cat([crop.targets(batch.indices) for crop in self._crops])
        logits = model(torch.cat(batch.views))
        similarity = loss = soft_cross_entropy(logits, shares)
        right = (logits.argmax(-1) == batch.labels.repeat(self.num_crops)).float().mean()
        numbers = {"similarity": similarity.detach(), "top1": right}
        rows = logits.softmax(-1)
        if self.discriminator is not None:
            told, zeros = adversarial_loss(self.discriminator, reverse(rows) if self.adversarial == "reverse" else rows, shares)
            loss = loss + told
            numbers |= {"discriminator": told.detach(), "zeros": zeros}
        yield "model", {"loss": loss, **numbers}
        if self.discriminator is not None:
            yield PLAYER, {"loss": adversarial_loss(self.discriminator, rows.detach(), shares)[0]}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the plain cross-entropy over a held-out split, on labels."""
        return on_labels(model, loader)
