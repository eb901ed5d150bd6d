"""Images that are kept: decoded once to bytes in memory, or decoded when they are asked for."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from retinue.data.preprocessing import BadImageError, Preprocessing, from_array, peek
from retinue.errors import DataError

CHUNK = 4096  # arrays are resized so many at a time
TASK = 64  # items that a thread takes at a time
MOST_LISTED = 200

Bad = dict[int, str]


class MemoryStore:
    """All images as bytes in one tensor.

    Args:
        images: of one size.
    """

    def __init__(self, images: UInt8[Tensor, "images channels height width"]) -> None:
        self.tensor = images
        self._copies: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.tensor)

    def images(self, indices: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch channels height width"]:
        """Return some of the images."""
        return self.tensor.index_select(0, indices)

    def on(self, device: torch.device) -> Tensor:
        """Return all images on a device; they are copied there once."""
        if device.type == "cpu":
            return self.tensor
        if device not in self._copies:
            self._copies[device] = self.tensor.to(device)
        return self._copies[device]


class FileStore:
    """Images that are decoded, or made, anew each time.

    Args:
        items: what `Preprocessing.read` takes.
        preprocessing: how they are read.
    """

    span = 0  # what one epoch adds to the numbers of the images: 0 shows the same images in every epoch, the length never shows one twice

    def __init__(self, items: Sequence[Any], preprocessing: Preprocessing) -> None:
        self.items, self.preprocessing = items, preprocessing

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocessing.read(self.items[index])

    def images(self, indices: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch channels height width"]:
        """Decode some of the images."""
        return torch.stack([self[index] for index in indices.tolist()])

    def targets(self, numbers: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"] | None:
        """Return shares of the classes, where an image shows several; None: its label says all."""
        return None


Store = MemoryStore | FileStore


def shapes(items: Sequence[Any] | NDArray[Any]) -> tuple[list[tuple[int, int]], int, Bad]:
    """Read the sizes of all images, whether any has colour (3) or none (1), and which have no head to read."""
    if isinstance(items, np.ndarray):
        try:
            first = from_array(items[:1])
        except BadImageError as error:
            raise DataError(f"data: {error}.") from error
        return [(first.shape[-2], first.shape[-1])], first.shape[-3], {}
    found, bad = _each(peek, items)
    sizes = [size for size, _ in found.values()]
    return sizes, max((channels for _, channels in found.values()), default=1), bad


def load(items: Sequence[Any] | NDArray[Any], preprocessing: Preprocessing) -> tuple[MemoryStore, Bad]:
    """Decode everything once; broken images stay black in the store and are listed with the reason."""
    shape = (len(items), preprocessing.channels, *preprocessing.stored_size)
    images = torch.zeros(shape, dtype=torch.uint8)
    if isinstance(items, np.ndarray):
        try:
            for start in range(0, len(items), CHUNK):
                images[start : start + CHUNK] = preprocessing.fit(from_array(items[start : start + CHUNK]))
        except BadImageError as error:
            raise DataError(f"data: {error}.") from error
        return MemoryStore(images), {}

    def read(item: Any) -> Tensor:
        return preprocessing.read(item)

    bad: Bad = {}
    for start in range(0, len(items), CHUNK):
        found, broken = _each(read, items[start : start + CHUNK])
        bad |= {start + i: reason for i, reason in broken.items()}
        for i, image in found.items():
            images[start + i] = image
    return MemoryStore(images), bad


def scan(items: Sequence[Any], preprocessing: Preprocessing) -> Bad:
    """Decode everything once only to see which images are broken."""

    def check(item: Any) -> None:
        preprocessing.read(item)

    return _each(check, items)[1]


def fits_in_memory(count: int, preprocessing: Preprocessing) -> bool:
    """Tell whether all images as bytes take less than a quarter of this machine's memory."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
    height, width = preprocessing.stored_size
    return count * preprocessing.channels * height * width <= pages // 4


def refusal(bad: Bad, names: Sequence[str], total: int) -> str:
    """List broken images with their reasons, and the way out."""
    lines = [f"  {names[i]}: {reason}" for i, reason in sorted(bad.items())[:MOST_LISTED]]
    if len(bad) > MOST_LISTED:
        lines.append(f"  and {len(bad) - MOST_LISTED} more")
    listed = "\n".join(lines)
    return f'data: {len(bad)} of {total} images cannot be used. Mend or remove them, or leave them out with on_bad="skip":\n{listed}'


def _each(function: Any, items: Sequence[Any]) -> tuple[dict[int, Any], Bad]:
    """Apply a function to each item on threads (decoding releases Python's lock), and keep apart what fails."""
    found: dict[int, Any] = {}
    bad: Bad = {}

    def some(start: int) -> None:
        for i, item in enumerate(items[start : start + TASK], start):
            try:
                found[i] = function(item)
            except BadImageError as error:
                bad[i] = str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(some, range(0, len(items), TASK)))
    return dict(sorted(found.items())), bad


def file_names(items: Sequence[Any]) -> list[str]:
    """Name items that have no better name."""
    return [str(item) if isinstance(item, str | Path) else f"image {i}" for i, item in enumerate(items)]
