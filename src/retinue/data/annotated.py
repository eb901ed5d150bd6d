"""Annotated images as data for the engine: windows at the images' own resolution, since resizing destroys the traces of generators."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from retinue.data.annotations import Annotations, Track, read_annotations
from retinue.data.dataset import Data, Split
from retinue.data.preprocessing import Preprocessing, decode, with_channels
from retinue.data.splits import split_indices
from retinue.data.store import FileStore, Store, fits_in_memory, load, refusal, scan
from retinue.errors import ArgumentError, DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
SKIP = ', or leave them out with on_bad="skip"'  # which is not offered here: whoever trains shall know what the set lacks


class Windowed(Preprocessing):
    """Keeps the middle of each image at the image's own resolution, where `Preprocessing` would scale; small images are padded."""

    def read(self, item: Any) -> UInt8[Tensor, "channels height width"]:
        """Decode one image and cut its middle.

        Raises:
            BadImageError: if it cannot be decoded.
        """
        return window(with_channels(decode(item), self.channels), self.stored_size)


def window(image: UInt8[Tensor, "channels height width"], size: tuple[int, int]) -> UInt8[Tensor, "channels newheight newwidth"]:
    """Pad an image by reflection to at least this size, and cut the middle out.

    Args:
        image: bytes.
        size: height and width.
    """
    missing = [max(0, wanted - given) for wanted, given in zip(size, image.shape[-2:])]
    if any(missing):
        added = [(0, 0), *((some // 2, some - some // 2) for some in missing)]
        mode: Any = "reflect" if min(image.shape[-2:]) > 1 else "edge"
        image = torch.from_numpy(np.pad(image.numpy(), added, mode=mode))
    top, left = ((given - wanted) // 2 for wanted, given in zip(size, image.shape[-2:]))
    return image[..., top : top + size[0], left : left + size[1]].contiguous()


def open_annotated(
    root: str | Path,
    annotations: str | Path | Annotations,
    *,
    track: Track = "family",
    test: str | Path | Annotations | None = None,
    input_size: int = 96,
    read_size: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Data:
    """Open annotated images as training, validation and test split.

    Images are never resized: what is kept of each is the window of `read_size` in its middle, of which views crop and evaluation takes the
    middle.

    Args:
        root: the folder of the images.
        annotations: the file of the training images, or what was read from it.
        track: what the classes are: "family" (with "real" as one), "origin", "model", "specific_model" or "content_type".
        test: the file of the test images; None: a share of the others is set apart.
        input_size: side of what the network sees.
        read_size: side of the window; None is `input_size`.
        mean: of each channel in [0, 1]; ImageNet's.
        std: of each channel.
        val_fraction: share of the training images that is set apart for validation.
        test_fraction: share that is set apart for testing, where there is no `test`.
        seed: of the draws.

    Raises:
        DataError: if lines cannot be used, images are missing or cannot be decoded; all are listed.
        ArgumentError: if the track has no single label, or the window is smaller than what the network sees.
    """
    given = locals().items()
    opened_with = None
    if not isinstance(annotations, Annotations) and not isinstance(test, Annotations):
        opened_with = {"source": "retinue.data.open_annotated", **{name: _plain(value) for name, value in given}}
    if track == "all":
        raise ArgumentError('annotations: the track "all" has four labels for each image, and classes need one. Take "family".')
    tables = [one if isinstance(one, Annotations) else read_annotations(one, root) for one in (annotations, test) if one is not None]
    paths: list[str] = []
    labels: list[int] = []
    split: list[str] = []
    classes: list[str] = []
    for part, table in zip(("train", "test"), tables):
        chosen, codes, classes = table.track(track)
        paths += chosen.paths
        labels += codes.tolist()
        split += [part] * len(chosen)
    side = (input_size, input_size)
    kept = None if read_size is None else (read_size, read_size)
    shown = Preprocessing(side, 3, tuple(mean), tuple(std), read_size=kept)
    windowed = Windowed(**vars(shown))
    items = [Path(root) / path for path in paths]
    store: Store
    if fits_in_memory(len(items), windowed):
        store, bad = load(items, windowed)
    else:
        store, bad = FileStore(items, windowed), scan(items, windowed)
    if bad:
        raise DataError(refusal(bad, paths, len(paths)).replace(SKIP, ""))
    numbers = np.array(labels, dtype=np.int64)
    parts = split_indices(numbers, None if test is None else np.array(split), val_fraction, test_fraction, seed)
    made: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        positions = torch.from_numpy(np.asarray(parts[name], dtype=np.int64))
        names = [paths[i] for i in positions.tolist()]
        made[name] = Split(store, positions, torch.from_numpy(numbers)[positions], names, classes, shown)
    return Data(**made, classes=classes, preprocessing=shown, name=str(root), opened_with=opened_with)


def _plain(value: Any) -> Any:
    """Return an argument as JSON has it; a path is written down whole, as a run may be looked at from another folder."""
    if isinstance(value, tuple):
        return list(value)
    return str(Path(value).resolve()) if isinstance(value, Path) or (isinstance(value, str) and Path(value).exists()) else value
