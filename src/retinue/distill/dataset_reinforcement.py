"""Dataset reinforcement: store teachers' answers to N augmentations of each image once, then train any model on them (Faghri et al. 2023).

`ReinforcementBuilder` writes a store beside a data set, `ReinforcedDataset` shows the data set through it ("data+"), and `Reinforced`
learns from that in an ordinary `fit`, with no teacher in memory (arXiv 2303.08983).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor, nn

from retinue.data import Batch, Data, Split
from retinue.data import views as kit
from retinue.data.store import FileStore, MemoryStore
from retinue.data.views.base import View, to_unit
from retinue.data.views.draws import derive, fresh_keys, uniform, whole
from retinue.distill.reinforcement_builder import ReinforcementBuilder, replayed, same_pixels
from retinue.distill.reinforcement_store import ReinforcementStore, open_stores
from retinue.engine import Supervised
from retinue.errors import ArgumentError, unknown
from retinue.losses import target_kl
from retinue.losses.sparse_targets import METHODS, Densify, completed, scattered

__all__ = ["Reinforced", "ReinforcedDataset", "ReinforcementBuilder", "ReinforcementStore"]

PLAIN = -101  # what is derived from a row's key for the views of images that keep their label
ORIGINAL = -1  # in place of a record: the image itself

Stores = str | Path | ReinforcementStore | Sequence[str | Path | ReinforcementStore]


class Drawn(NamedTuple):
    """What images are shown as, and the answers to that.

    Attributes:
        images: not normalised: bytes, or floats in [0, 1].
        values: shares of some classes.
        others: the share of each other class.
        ids: which classes; one may come several times, always with one share.
        records: numbers of the records: those of the first store come first; -1 is the image itself.
    """

    images: Tensor
    values: Float[Tensor, "batch k"]
    others: Float[Tensor, "batch 1"]
    ids: Int64[Tensor, "batch k"]
    records: Int64[Tensor, " batch"]


class ReinforcedDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A data set shown through its store: each image as one of its stored augmentations, with the teachers' answer to that.

    Item i is (image, target): a normalised image and shares of the classes. It is drawn anew at each access from torch's default generator,
    which `DataLoader` seeds differently for each worker and epoch. For `retinue.fit` use `data` and `Reinforced`, in which the draw
    depends on (seed, epoch, image) alone.

    Args:
        dataset: the data; its training images are shown.
        stores: the folder of a store that was built for these images, or several, of which one is picked for each item.
        p: probability with which a record is shown; otherwise the image itself is, with its label. 0 is never, 1 always.
        densify: how targets are made of the kept shares: "smooth", "zeros" or "zeros_reference"; see `retinue.losses.densify`.
        views: how images are augmented that are shown with their label, such as "crop(4), flip"; None as they are.

    Raises:
        ArgumentError: if an argument cannot be.
        CheckpointError: if a store is not finished, or was altered.
        DataError: if a store is of other images or classes, or this machine replays other pixels than were shown to the teachers.
    """

    def __init__(
        self, dataset: Data, stores: Stores, p: float = 0.99, densify: Densify = "smooth", views: str | View | None = None
    ) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(f"ReinforcedDataset: `p` must lie in [0, 1], got {p}. The paper has 0.99.")
        if densify not in METHODS:
            raise unknown("ReinforcedDataset", "`densify`", densify, METHODS)
        self.views = kit.parse(views) if isinstance(views, str) else views
        if getattr(self.views, "mixes", False):
            raise ArgumentError(
                f"ReinforcedDataset: `views` are for images that keep their label, and {self.views!r} mixes labels. Leave the mixing out."
            )
        self.plain, self.split, self.p, self.densify = dataset, dataset.train, p, densify
        self.stores = open_stores(stores)
        for store in self.stores:
            store.check_data(self.split)
            same_pixels(store, self.split)
        self.samples = torch.tensor([store.samples for store in self.stores])

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], Float[Tensor, " classes"]]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several items at once, as `DataLoader` asks for them."""
        images, targets = self.batch(torch.tensor(indices))
        return list(zip(images, targets))

    def batch(
        self, indices: Int64[Tensor, " batch"], keys: Int64[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch classes"]]:
        """Return images, normalised, and targets.

        Args:
            indices: numbers of images.
            keys: one a row, see `retinue.views.keys`; None draws them.
        """
        keys = fresh_keys(len(indices), indices.device) if keys is None else keys
        drawn = self.draw(indices, self.split.images(indices), keys)
        seen = self.split.preprocessing
        return seen.normalize(seen.centre(drawn.images)), scattered(drawn.values, drawn.others, drawn.ids, len(self.split.classes))

    def draw(self, indices: Int64[Tensor, " batch"], images: Shaped[Tensor, "batch ..."], keys: Int64[Tensor, " batch"]) -> "Drawn":
        """Pick a record for each image, and carry it out.

        Args:
            indices: numbers of the images.
            images: as the split has them.
            keys: one a row, from which the record is drawn.
        """
        draws = uniform(keys, 2 if len(self.stores) == 1 else 3)
        if len(self.stores) == 1:
            sample = record = whole(draws[:, 1], self.stores[0].samples)
            drawn: Sequence[Tensor] = self._replayed(0, indices, images, sample)
        else:
            samples = self.samples.to(keys.device)
            store = whole(draws[:, 2], len(self.stores))
            sample = whole(draws[:, 1], samples[store])
            record = (samples.cumsum(0) - samples)[store] + sample
            drawn = self._of_several(store, indices, images, sample)
        plain = (draws[:, 0] >= self.p).nonzero()[:, 0]
        if len(plain):
            drawn = self._with_originals(drawn, plain, indices, images, keys)
            record = record.index_fill(0, plain, ORIGINAL)
        images, values, others, ids = drawn
        return Drawn(images, values, others, ids, record)

    def _replayed(self, number: int, indices: Tensor, images: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Carry out records of one store: images, and shares of the kept classes, of each other one, and which are kept."""
        store = self.stores[number]
        packed, values, ids = store.rows(indices, sample)
        shown = replayed(self.split, store.augmentation, images, indices, packed)
        return shown, *completed(values, len(self.split.classes), self.densify), ids

    def _of_several(self, store: Tensor, indices: Tensor, images: Tensor, sample: Tensor) -> list[Tensor]:
        """Carry out a record of each image's own store; a store that keeps fewer classes repeats one of them."""
        order = store.argsort(stable=True)
        most, parts = max(one.topk for one in self.stores), []
        for number, rows in enumerate(order.split(torch.bincount(store, minlength=len(self.stores)).tolist())):
            if len(rows):
                shown, values, others, ids = self._replayed(number, indices[rows], images[rows], sample[rows])
                values, ids = (torch.cat((part, part[:, :1].expand(-1, most - part.shape[1])), 1) for part in (values, ids))
                parts.append((self.split.preprocessing.centre(shown), values, others, ids))
        columns = list(zip(*parts))
        if len({part.dtype for part in columns[0]}) > 1:
            columns[0] = tuple(to_unit(part) if part.dtype == torch.uint8 else part for part in columns[0])
        back = order.argsort()
        return [torch.cat(column).index_select(0, back) for column in columns]

    def _with_originals(self, drawn: Sequence[Tensor], plain: Tensor, indices: Tensor, images: Tensor, keys: Tensor) -> list[Tensor]:
        """Put images themselves, with their labels, in place of some rows."""
        shown, values, others, ids = drawn
        own = images.index_select(0, plain)
        own = own if self.views is None else self.views(own, derive(keys.index_select(0, plain), PLAIN))
        shown, own = self.split.preprocessing.centre(shown), self.split.preprocessing.centre(own)
        if own.dtype != shown.dtype:
            shown, own = (to_unit(part) if part.dtype == torch.uint8 else part for part in (shown, own))
        labels = self.split.labels.to(indices.device)[indices[plain], None].expand(-1, ids.shape[1])
        return [
            shown.index_copy(0, plain, own),
            values.index_fill(0, plain, 1.0),
            others.index_fill(0, plain, 0.0),
            ids.index_copy(0, plain, labels),
        ]

    @property
    def data(self) -> Data:
        """The data for `retinue.fit`, whose training images `Reinforced` replays; images and labels are those of `dataset`."""
        positions = torch.arange(len(self.split))
        store = _Places(self.split) if isinstance(self.split.store, MemoryStore) else _PlacesAndFiles(self.split)
        names = list(self.split.names)
        return replace(self.plain, train=replace(self.split, store=store, positions=positions, names=names))

    @property
    def bytes_per_image(self) -> float:
        """Size of the stores on disk, for each image."""
        return sum(store.bytes for store in self.stores) / len(self)


class Replay:
    """The view through which a loader shows `ReinforcedDataset.data`; it remembers the answer to what each image was last shown as.

    An image comes once in an epoch, so that this is the answer for the batch in which it is, until the next epoch's batches are made.

    Args:
        dataset: what is shown.
    """

    def __init__(self, dataset: ReinforcedDataset) -> None:
        self.dataset = dataset
        self.last: tuple[Tensor, ...] = ()

    def __call__(self, rows: Shaped[Tensor, "batch ..."], keys: Int64[Tensor, " batch"]) -> Shaped[Tensor, "batch ..."]:
        """Show what a loader took out of `_Places` or `_PlacesAndFiles`."""
        split = self.dataset.split
        if rows.ndim == 1:
            indices, store = rows, split.store
            images = store.on(rows.device).index_select(0, split.positions.to(rows.device)[rows])  # type: ignore[union-attr]
        else:
            indices = rows[:, -8:].clone(memory_format=torch.contiguous_format).view(torch.int64)[:, 0]
            images = rows[:, :-8].reshape(len(rows), split.preprocessing.channels, *split.preprocessing.stored_size)
        shown, *answers, _ = self.dataset.draw(indices, images, keys)
        if not self.last or self.last[0].device != indices.device:
            self.last = tuple(torch.zeros(len(split), *part.shape[1:], dtype=part.dtype, device=part.device) for part in answers)
        for kept, part in zip(self.last, answers):
            kept.index_copy_(0, indices, part)
        return shown

    def targets(self, indices: Int64[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Return the targets of what images were last shown as."""
        values, others, ids = (part.index_select(0, indices) for part in self.last)
        return scattered(values, others, ids, len(self.dataset.split.classes))


class Reinforced(Supervised):
    """The divergence KL(target || softmax(model)) in nats, averaged over the batch (section 3): no labels, temperature or smoothing beside.

    Args:
        dataset: data and stores; give its `data` to `retinue.fit`.
        aux_weight: weight of the same loss of an auxiliary head, for models that return (logits, auxiliary logits) in training.

    With `plus = ReinforcedDataset(data, "stores/digits")`: `retinue.fit(model, Reinforced(plus), plus.data, epochs=150)`.
    """

    def __init__(self, dataset: ReinforcedDataset, aux_weight: float = 0.4) -> None:
        super().__init__(aux_weight=aux_weight)
        self.p, self.densify, self.shown_plainly = dataset.p, dataset.densify, repr(dataset.views)
        self.stores = [store.seal for store in dataset.stores]  # for the run's record: another store is another run
        self._dataset, self._replay = dataset, Replay(dataset)
        self.views = (self._replay,)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse data other than the data set's own, and a model with another number of outputs."""
        if not isinstance(data.train.store, _Places | _PlacesAndFiles) or data.train.store.split is not self._dataset.split:
            raise ArgumentError(
                f"Reinforced: these are not the data that the stores are shown through ({data.name}). Give fit the data of the data set: "
                "fit(model, Reinforced(plus), plus.data)."
            )
        super().check(model, data)

    def _loss(self, logits: Float[Tensor, "batch classes"], batch: Batch) -> Float[Tensor, ""]:
        return target_kl(logits, self._replay.targets(batch.indices))


class _Places(MemoryStore):
    """Hands a loader the places of images instead of images, so that a view knows whose record to carry out."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.store.tensor)  # type: ignore[union-attr]
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def images(self, indices: Int[Tensor, " batch"]) -> Any:
        """Return the images themselves."""
        return self.split.images(indices)

    def on(self, device: torch.device) -> Tensor:
        """Return all places."""
        return torch.arange(len(self.split), device=device)


class _PlacesAndFiles(FileStore):
    """Hands a loader decoded images as flat bytes, with the place of each behind them."""

    def __init__(self, split: Split) -> None:
        super().__init__(split.store.items, split.preprocessing)  # type: ignore[union-attr]
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        image = self.split.store[int(self.split.positions[index])]  # type: ignore[index]
        return torch.cat((image.flatten(), torch.tensor([index]).view(torch.uint8)))

    def images(self, indices: Int[Tensor, " batch"]) -> Any:
        """Return the images themselves."""
        return self.split.images(indices)
