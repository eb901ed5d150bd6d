"""`open`: any source of labelled images as training, validation and test split, decoded once."""

import hashlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from retinue.data import named
from retinue.data.loader import Loader
from retinue.data.preprocessing import Preprocessing, Resize, common_size, moments
from retinue.data.records import Records
from retinue.data.splits import PARTS, split_indices, thinned
from retinue.data.store import Bad, FileStore, MemoryStore, Store, file_names, fits_in_memory, load, refusal, scan, shapes
from retinue.errors import ArgumentError, DataError, unknown

log = logging.getLogger(__name__)

MOMENTS_FROM = 10_000  # images from which mean and standard deviation are computed


@dataclass
class Split:
    """Some of the images of a source.

    Attributes:
        store: all images of the source.
        positions: which of them belong to the split.
        labels: their class numbers.
        names: what to call each (a file, a row).
        classes: names of the classes.
        preprocessing: how the images were read and are normalised.
    """

    store: Store
    positions: Int[Tensor, " images"]
    labels: Int[Tensor, " images"]
    names: Sequence[str]
    classes: list[str]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.positions)

    def images(self, indices: Int[Tensor, " batch"] | Sequence[int] | None = None) -> UInt8[Tensor, "batch channels height width"]:
        """Return some of the images as bytes, or all of them."""
        chosen = self.positions if indices is None else self.positions[torch.as_tensor(indices, dtype=torch.int64)]
        return self.store.images(chosen)

    def name(self, index: int) -> str:
        """Return what to call an image."""
        return self.names[int(index)]

    def subset(self, indices: Int[Tensor, " chosen"] | Sequence[int]) -> "Split":
        """Return a split of some of the images, in the order given."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        names = [self.names[i] for i in chosen.tolist()]
        return replace(self, positions=self.positions[chosen], labels=self.labels[chosen], names=names)

    def loader(self, batch_size: int, **options: Any) -> Loader:
        """Return the batches; options as in `retinue.data.Loader`."""
        return Loader(self, batch_size, **options)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of labels and images (of names, where images are decoded when they are asked for)."""
        digest = hashlib.blake2b(self.labels.numpy().tobytes(), digest_size=12)
        if isinstance(self.store, MemoryStore):
            for start in range(0, len(self), 4096):
                digest.update(self.store.images(self.positions[start : start + 4096]).numpy().tobytes())
        else:
            digest.update("\n".join(self.names).encode())
        return digest.hexdigest()


@dataclass
class Data:
    """A source of images in three splits.

    Attributes:
        train: for learning.
        val: for choosing (the best checkpoint, when to stop).
        test: for the final measurement only.
        classes: names of the classes.
        preprocessing: what turns a file into the network's input.
        name: of the source.
        opened_with: what `retinue.data.open` was called with; None if the data was made in memory.
        skipped: broken images that were left out: name and reason.
    """

    train: Split
    val: Split
    test: Split
    classes: list[str]
    preprocessing: Preprocessing
    name: str
    opened_with: dict[str, Any] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """Return JSON values that identify the data in a run's record."""
        return {
            "name": self.name,
            "opened_with": self.opened_with,
            "classes": len(self.classes),
            "images": {part: len(getattr(self, part)) for part in PARTS},
            "fingerprint": self.train.fingerprint,
            "preprocessing": self.preprocessing.to_dict(),
            "skipped": len(self.skipped),
        }


def open(
    source: str | Path,
    *,
    input_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    read_size: int | tuple[int, int] | None = None,
    resize: Resize = "crop",
    interpolation: str = "bicubic",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    splits: Literal["given", "drawn"] = "given",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_images: int | None = None,
    test_images: int | None = None,
    seed: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    in_memory: bool | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Data:
    """Open a source of images.

    Args:
        source: a folder of class folders (with or without train/val/test above them), a parquet file (image bytes and label), an npz file,
            "digits", a name below $RETINUE_DATA such as "cifar10", "torchvision:SVHN", or "hf:owner/name".
        input_size: side, or height and width, of what the network sees; None takes the images' own size if they agree, else their
            median short side, a multiple of 32 and at most 224.
        channels: 1 or 3; None takes 3 if any image has colour.
        read_size: side at which images are kept before views; larger than `input_size`, it leaves room for random crops.
        resize: how another aspect is treated: "crop" the centre, "stretch", or "pad" with black.
        interpolation: "bicubic", "bilinear" or "nearest".
        mean: of each channel in [0, 1]; None computes it from the training images.
        std: of each channel; None computes it.
        splits: "given" keeps the source's splits and draws those that are missing, "drawn" ignores them and draws all.
        val_fraction: share of the training images that is set apart for validation, if the source has no validation split.
        test_fraction: share of the images that is set apart for testing, if the source has no test split.
        train_images: take only so many training images, each class in its share.
        test_images: take only so many test images.
        seed: of all draws.
        on_bad: "raise" lists every image that cannot be read, "skip" leaves them out and says which; nothing is ever replaced.
        in_memory: keep all images decoded; None does if they take less than a quarter of the memory.
        image_column: name of the images in a parquet or npz file; None looks for the usual names.
        label_column: name of the labels.

    Raises:
        DataError: if there is no such data, or images cannot be read; all of them are listed.
        ArgumentError: if an argument cannot be.

    >>> data = open("digits")
    >>> len(data.train), len(data.val), len(data.test), data.preprocessing.input_size, data.preprocessing.channels
    (1295, 143, 359, (8, 8), 1)
    """
    arguments = {name: value for name, value in locals().items() if name != "source"}
    if on_bad not in ("raise", "skip"):
        raise unknown("data", "`on_bad`", on_bad, ("raise", "skip"))
    if splits not in ("given", "drawn"):
        raise unknown("data", "`splits`", splits, ("given", "drawn"))
    if named.maker(str(source)):
        raise ArgumentError(
            f"data: {source} is a function that makes data. Call it, or name it under `data` of a recipe with its arguments."
        )
    records = named.find(str(source), image_column, label_column)
    given = records.split if splits == "given" else None
    try:
        parts = split_indices(records.labels, given, val_fraction, test_fraction, seed)
    except DataError as error:
        raise DataError(f"{str(error).rstrip()} The source is {source}.") from None
    parts["train"] = thinned(parts["train"], records.labels, train_images, seed, "train_images")
    parts["test"] = thinned(parts["test"], records.labels, test_images, seed, "test_images")
    _check_classes(records, parts["train"], str(source))
    sizes = {"input_size": _pair("input_size", input_size), "read_size": _pair("read_size", read_size)}
    kept = sorted(arguments.items())
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in kept}
    signature = {name: value for name, value in plain.items() if value != _DEFAULTS[name]}
    # a path is written down whole: the run may be looked at from another folder
    place = str(Path(source).resolve()) if Path(source).exists() and str(source) != "digits" else str(source)
    return _make(
        records, parts, channels=channels, resize=resize, interpolation=interpolation, mean=mean, std=std, on_bad=on_bad,
        in_memory=in_memory, name=str(source), opened_with={"source": place, **signature}, **sizes,
    )  # fmt: skip


def open_again(opened_with: Mapping[str, Any], reading: Mapping[str, Any]) -> Data:
    """Open data as it was opened before.

    Args:
        opened_with: of `Data`.
        reading: arguments of `open` that say how images are read, as they came out then; for data that a function makes it knows itself.
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in opened_with.items()}
    made = named.maker(str(values["source"]))
    if made is not None:
        again: Data = made(**{name: value for name, value in values.items() if name != "source"})
        return again
    as_read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in reading.items()}
    return open(**{**values, **as_read})


def from_arrays(
    images: NDArray[Any] | Tensor,
    labels: Sequence[int] | NDArray[Any] | Tensor,
    *,
    classes: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    name: str = "arrays",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    **options: Any,
) -> Data:
    """Make data of images that are in memory already.

    Args:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W); bytes, 16-bit integers, or floats in [0, 1].
        labels: class numbers from 0.
        classes: names of the classes; None numbers them.
        split: "train", "val" or "test" for each image; None draws them.
        name: what the data is called in records.
        val_fraction: as in `open`.
        test_fraction: as in `open`.
        seed: of the draws.
        options: `input_size`, `channels`, `mean`, `std`, `resize`, `interpolation` as in `open`.

    Raises:
        DataError: if images and labels do not fit together.

    >>> data = from_arrays(np.zeros((20, 8, 8), dtype=np.uint8), [0, 1] * 10)
    >>> len(data.train), len(data.val), len(data.test)
    (14, 2, 4)
    """
    array = images.numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim == 4 and array.shape[1] in (1, 3) and (isinstance(images, Tensor) or array.shape[-1] not in (1, 3, 4)):
        array = array.transpose(0, 2, 3, 1)
    numbers = np.asarray(labels).astype(np.int64)
    if len(numbers) != len(array) or not len(array):
        raise DataError(f"data: there are {len(array)} images and {len(numbers)} labels. Give as many labels as images, at least one.")
    known = list(classes) if classes is not None else [str(i) for i in range(int(numbers.max()) + 1)]
    if numbers.min() < 0 or numbers.max() >= len(known):
        raise DataError(f"data: labels run from {numbers.min()} to {numbers.max()}, and there are {len(known)} classes.")
    records = Records(array, numbers, known, None if split is None else np.array(split), file_names(range(len(array))))
    parts = split_indices(numbers, records.split, val_fraction, test_fraction, seed)
    sizes = {key: _pair(key, options.pop(key, None)) for key in ("input_size", "read_size")}
    return _make(records, parts, name=name, opened_with=None, **{**_PLAIN, **sizes, **options})


def few_labels(data: Data, *, share: float | None = None, per_class: int | None = None, seed: int = 0) -> Data:
    """Keep the labels of some training images alone, as many of each class; validation and test images stay.

    Args:
        data: labelled images.
        share: share of each class, in (0, 1], at least one image.
        per_class: number of images of each class, instead of a share.
        seed: of the draw; a larger share holds the images of a smaller one.

    Returns:
        Data with fewer training images; mean and standard deviation stay as they were computed from all of them, for they need no labels.

    Raises:
        ArgumentError: unless there is one of `share` and `per_class`, or a class has fewer images.

    >>> len(few_labels(open("digits"), per_class=2).train)
    20
    """
    if (share is None) == (per_class is None):
        raise ArgumentError("few_labels: give `share` or `per_class`, and one of them only.")
    if share is not None and not 0 < share <= 1:
        raise ArgumentError(f"few_labels: `share` must lie in (0, 1], got {share}. For one percent write 0.01.")
    if per_class is not None and per_class < 1:
        raise ArgumentError(f"few_labels: `per_class` must be at least 1, got {per_class}. A class without an image cannot be learned.")
    random, kept = np.random.default_rng(seed), []
    for label, name in enumerate(data.classes):
        members = random.permutation(np.flatnonzero(data.train.labels.numpy() == label))
        count = per_class if per_class is not None else max(1, round(len(members) * share))  # type: ignore[operator]
        if len(members) < count:
            raise ArgumentError(f'few_labels: class "{name}" has {len(members)} training images, and {count} are asked for. Take fewer.')
        kept.append(members[:count])
    return replace(data, train=data.train.subset(torch.from_numpy(np.sort(np.concatenate(kept)))), opened_with=None)


def _make(
    records: Records,
    parts: dict[str, NDArray[np.int64]],
    *,
    input_size: tuple[int, int] | None,
    read_size: tuple[int, int] | None,
    channels: int | None,
    resize: Resize,
    interpolation: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    on_bad: str,
    in_memory: bool | None,
    name: str,
    opened_with: dict[str, Any] | None,
) -> Data:
    used = np.sort(np.concatenate([parts[part] for part in PARTS]))
    items = records.items[used] if isinstance(records.items, np.ndarray) else [records.items[i] for i in used]
    names = [records.names[i] for i in used]
    bad: Bad = {}
    if input_size is None or channels is None:
        found, colours, bad = shapes(items)
        if not found:
            raise DataError(refusal(bad, names, len(names)))
        input_size, channels = input_size or common_size(found), channels or colours
    preprocessing = Preprocessing(input_size, channels, resize=resize, interpolation=interpolation, read_size=read_size)
    store: Store
    if in_memory or (in_memory is None and fits_in_memory(len(items), preprocessing)):
        store, broken = load(items, preprocessing)
        bad |= broken
    else:
        if isinstance(items, np.ndarray):
            items = list(items)
        store = FileStore(items, preprocessing)
        bad |= scan(items, preprocessing)
    if bad and (on_bad == "raise" or len(bad) == len(names)):
        raise DataError(refusal(bad, names, len(names)))
    skipped = [(names[i], reason) for i, reason in sorted(bad.items())]
    for path, reason in skipped:
        log.warning("data: left out %s: %s", path, reason)
    place = {int(original): i for i, original in enumerate(used) if i not in bad}
    chosen = {part: [place[int(i)] for i in parts[part] if int(i) in place] for part in PARTS}
    if not chosen["train"]:
        raise DataError(refusal(bad, names, len(names)))
    if mean is None or std is None:
        step = max(1, len(chosen["train"]) // MOMENTS_FROM)
        computed = moments(store.images(torch.tensor(chosen["train"][::step])))
        mean, std = mean or computed[0], std or computed[1]
    preprocessing = replace(preprocessing, mean=tuple(mean), std=tuple(std))
    labels = torch.from_numpy(records.labels[used])
    made = {}
    for part in PARTS:
        positions = torch.tensor(chosen[part], dtype=torch.int64)
        made[part] = Split(store, positions, labels[positions], [names[i] for i in chosen[part]], records.classes, preprocessing)
    return Data(**made, classes=records.classes, preprocessing=preprocessing, name=name, opened_with=opened_with, skipped=skipped)


def _check_classes(records: Records, train: NDArray[np.int64], source: str) -> None:
    """Refuse a training split that lacks classes which the other splits have."""
    present = set(np.unique(records.labels[train]).tolist())
    absent = [records.classes[i] for i in np.unique(records.labels).tolist() if i not in present]
    if absent and len(present) == 1:
        raise DataError(
            f'data: the training split of {source} has only the class "{records.classes[present.pop()]}", the others have '
            f'{", ".join(absent[:5])} too. Draw the splits anew with splits="drawn".'
        )


def _pair(name: str, size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ArgumentError(f"data: `{name}` must be a positive side or a pair (height, width), got {size}.")
    return pair


_DEFAULTS: dict[str, Any] = {name: parameter.default for name, parameter in inspect.signature(open).parameters.items()}
_PLAIN = {name: _DEFAULTS[name] for name in ("channels", "resize", "interpolation", "mean", "std", "on_bad", "in_memory")}
