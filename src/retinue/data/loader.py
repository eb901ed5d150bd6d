"""Batches: their order is a function of (seed, epoch) alone and a position is an index, so that resuming jumps and replays nothing."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from retinue.data import views as kit
from retinue.data.store import FileStore, MemoryStore
from retinue.errors import ArgumentError

if TYPE_CHECKING:
    from retinue.data.dataset import Split

View = Callable[..., Any]
AT_A_TIME = 1 << 22  # numbers in the images that are viewed together: small batches one by one would keep the cores waiting


@dataclass
class Batch:
    """What an objective gets.

    Attributes:
        images: normalised; the first of `views`.
        labels: class numbers.
        indices: positions in the split.
        views: all views of each image that were asked for, one tensor each.
        targets: shares of the classes, where a view mixed images, or images show several; None otherwise.
    """

    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"]
    indices: Int[Tensor, " batch"]
    views: tuple[Tensor, ...] = ()
    targets: Float[Tensor, "batch classes"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def split(self, sizes: Sequence[int]) -> "list[Batch]":
        """Cut the batch into smaller ones, each in memory of its own: where numbers lie can change how they are rounded."""
        if len(sizes) == 1:
            return [self]

        def cut(tensor: Tensor) -> list[Tensor]:
            return [part.clone() for part in tensor.split(list(sizes))]

        views = list(zip(*map(cut, self.views))) or [()] * len(sizes)
        images = [shown[0] for shown in views] if self.views else cut(self.images)
        targets = [None] * len(sizes) if self.targets is None else cut(self.targets)
        return [Batch(*row) for row in zip(images, cut(self.labels), cut(self.indices), views, targets)]

    def to(self, device: torch.device | str, memory_format: torch.memory_format = torch.preserve_format) -> "Batch":
        """Return the batch on a device."""
        device = torch.device(device)
        if self.images.device == device and memory_format is torch.preserve_format:
            return self
        views = tuple(view.to(device, memory_format=memory_format, non_blocking=True) for view in self.views)
        images = views[0] if views else self.images.to(device, memory_format=memory_format, non_blocking=True)
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        labels, indices = self.labels.to(device, non_blocking=True), self.indices.to(device, non_blocking=True)
        return dataclasses.replace(self, images=images, labels=labels, indices=indices, views=views, targets=targets)


class Loader:
    """The batches of a split.

    Args:
        split: the images.
        batch_size: images of one process in a batch.
        shuffle: another order in every epoch, and no incomplete last batch (unless it is the only one); else the split's own order.
        views: what each image is shown as: None (as it is), one view, or several, each of which makes a tensor of its own.
        seed: of the order and of the views.
        rank: which process this is; a batch of all processes together is cut into equal parts.
        world: number of processes.
        workers: processes that decode, for data that is not kept in memory.
        device: where the images are sampled and viewed.

    Raises:
        ArgumentError: if a number is not positive.
    """

    def __init__(
        self,
        split: "Split",
        batch_size: int,
        *,
        shuffle: bool = False,
        views: View | Sequence[View] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ArgumentError(f"data: `batch_size` must be at least 1, got {batch_size}.")
        if workers < 0:
            raise ArgumentError(f"data: `workers` must be 0 or more, got {workers}.")
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.rank, self.world, self.workers, self.device = rank, world, workers, torch.device(device)
        chosen = [views] if views is None or callable(views) else list(views)
        self.views: list[View] = [kit.Compose([]) if view is None else view for view in chosen]

    def __len__(self) -> int:
        whole = self.batch_size * self.world
        return max(1, len(self.split) // whole) if self.shuffle else -(-len(self.split) // whole)

    def order(self, epoch: int) -> Int[Tensor, " images"]:
        """Return the order of the images in an epoch."""
        if not self.shuffle:
            return torch.arange(len(self.split))
        generator = torch.Generator().manual_seed(int(kit.keys(self.seed, epoch, torch.tensor([-1]))[0]) & ((1 << 62) - 1))
        return torch.randperm(len(self.split), generator=generator)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on."""
        whole = self.batch_size * self.world
        order = self.order(epoch)[: len(self) * whole]
        parts = [part.tensor_split(self.world)[self.rank] for part in order.split(whole)[start:]]
        store = self.split.store
        if isinstance(store, FileStore):
            yield from self._decoded(store, parts, epoch)
            return
        together = max(1, AT_A_TIME // (self.batch_size * store.tensor[0].numel()))
        for first in range(0, len(parts), together):
            some = parts[first : first + together]
            indices = torch.cat(some)
            batch = self._batch(self._stored(store, self.split.positions[indices]), indices.to(self.device), epoch)
            yield from batch.split([len(part) for part in some])

    def _stored(self, store: MemoryStore, positions: Tensor) -> Tensor:
        return store.on(self.device).index_select(0, positions.to(self.device))

    def _decoded(self, store: FileStore, parts: list[Tensor], epoch: int) -> Iterator[Batch]:
        asked = [self.split.positions[indices] + epoch * store.span for indices in parts]
        source: Any = torch.utils.data.DataLoader(
            store,  # type: ignore[arg-type]
            batch_sampler=[numbers.tolist() for numbers in asked],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for indices, numbers, images in zip(parts, asked, source):
            targets = store.targets(numbers)
            yield self._batch(images.to(self.device, non_blocking=True), indices.to(self.device), epoch, targets)

    def _batch(self, images: Tensor, indices: Tensor, epoch: int, targets: Tensor | None = None) -> Batch:
        labels = self.split.labels.to(self.device)[indices]
        own = kit.keys(self.seed, epoch, indices)
        shown, targets = [], None if targets is None else targets.to(self.device)
        for number, view in enumerate(self.views):
            keys = kit.derive(own, number)
            if getattr(view, "mixes", False):
                if targets is not None and number == 0:
                    raise ArgumentError(f"data: the view {view!r} mixes labels, and these images show several classes each. Leave it out.")
                viewed, mixed = self._mix(view, images, labels, keys)
                targets = mixed if number == 0 else targets
            else:
                viewed = view(images, keys)
            shown.append(self.split.preprocessing.normalize(self.split.preprocessing.centre(viewed)))
        return Batch(shown[0], labels, indices, tuple(shown), targets)

    def _mix(self, view: View, images: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each image with one drawn from the whole split, so that a row depends on its own key alone."""
        partners = kit.partner_indices(keys, len(self.split))
        store = self.split.store
        positions = self.split.positions.to(partners.device)[partners]
        others = self._stored(store, positions) if isinstance(store, MemoryStore) else store.images(positions.cpu()).to(self.device)
        viewed, share = view(images, keys, partners=others)
        classes = len(self.split.classes)
        own, other = (F.one_hot(numbers, classes).float() for numbers in (labels, self.split.labels.to(self.device)[partners]))
        share = share[:, None].to(own.dtype)
        return viewed, share * own + (1 - share) * other
