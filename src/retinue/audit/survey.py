"""One pass over all images of a data set: what is kept of each is small, so that 50,000 images take little memory.

Of each image stay its pixels at the resolution at which distances are measured (each scaled to a maximum of 255), a hash, brightness,
contrast, and whether it has colour: channels x height x width + about 100 bytes an image.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retinue.audit.dataset_properties import scaled
from retinue.data import Data, Split
from retinue.data.splits import PARTS
from retinue.errors import ArgumentError
from retinue.metrics.neighbours import digests

LARGEST_SIDE = 64  # of the resolution, unless another is asked for
AT_ONCE = 1 << 24  # numbers in the images that are read together: 64 MB as float32


@dataclass
class Survey:
    """What is kept of every image, in the order train, val, test.

    Attributes:
        data: the images themselves.
        pixels: each scaled to a maximum of 255, at the resolution of the distances.
        parts: 0, 1 or 2 for train, val or test.
        rows: position in its split.
        labels: class numbers.
        hashes: equal for images that are the same at the size at which a network sees them.
        brightness: mean of all pixels, in [0, 1].
        contrast: standard deviation of all pixels, in [0, 1].
        coloured: whether its channels differ.
        moments: of each split that has images, mean and standard deviation of each channel, in [0, 1].
    """

    data: Data
    pixels: UInt8[Tensor, "images channels height width"]
    parts: Int[Tensor, " images"]
    rows: Int[Tensor, " images"]
    labels: Int[Tensor, " images"]
    hashes: list[bytes]
    brightness: Float[Tensor, " images"]
    contrast: Float[Tensor, " images"]
    coloured: Tensor
    moments: dict[str, tuple[list[float], list[float]]]

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, i: int) -> Split:
        """Return the split to which an image belongs."""
        return getattr(self.data, PARTS[int(self.parts[i])])

    def name(self, i: int) -> str:
        """Return what to call an image."""
        return self.split(i).name(int(self.rows[i]))

    def label(self, i: int) -> str:
        """Return an image's class by name."""
        return self.data.classes[int(self.labels[i])]

    def part(self, i: int) -> str:
        """Return the split of an image by name."""
        return PARTS[int(self.parts[i])]

    def picture(self, i: int) -> UInt8[Tensor, "channels height width"]:
        """Return an image as a network sees it."""
        return self.split(i).images([int(self.rows[i])])[0]

    def of(self, part: str) -> Int[Tensor, " images"]:
        """Return the positions of a split's images."""
        return (self.parts == PARTS.index(part)).nonzero()[:, 0]


def resolution_of(data: Data, side: int | None = None) -> tuple[int, int]:
    """Return height and width at which distances are measured: the images' own, or scaled to `side` at the longer side.

    Args:
        data: the images.
        side: None takes the images' own size, at most 64.

    Raises:
        ArgumentError: if the side is not positive.
    """
    if side is not None and side < 1:
        raise ArgumentError(f"audit: `resolution` must be positive, got {side}. 32 is usual.")
    height, width = data.preprocessing.stored_size
    factor = (min(max(height, width), LARGEST_SIDE) if side is None else side) / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def survey(data: Data, resolution: int | None = None) -> Survey:
    """Look at every image once.

    Args:
        data: the images.
        resolution: side at which distances are measured; None takes the images' own, at most 64.

    Raises:
        ArgumentError: if the resolution is not positive.
    """
    size = resolution_of(data, resolution)
    channels = data.preprocessing.channels
    count = sum(len(getattr(data, part)) for part in PARTS)
    pixels = torch.empty((count, channels, *size), dtype=torch.uint8)
    brightness, contrast, coloured = torch.empty(count), torch.empty(count), torch.zeros(count, dtype=torch.bool)
    hashes: list[bytes] = []
    moments: dict[str, tuple[list[float], list[float]]] = {}
    step = max(1, AT_ONCE // (channels * data.preprocessing.stored_size[0] * data.preprocessing.stored_size[1]))
    start = 0
    for part in PARTS:
        split: Split = getattr(data, part)
        if not len(split):
            continue
        sums = torch.zeros(2, channels, dtype=torch.float64)
        for some in torch.arange(len(split)).split(step):
            images = split.images(some)
            place = slice(start, start + len(images))
            values = images.float()
            hashes += digests(images)
            brightness[place], contrast[place] = values.mean((1, 2, 3)) / 255, values.flatten(1).std(1, unbiased=False) / 255
            coloured[place] = (images != images[:, :1]).flatten(1).any(1)
            sums += torch.stack([values.mean((2, 3)).sum(0), values.square().mean((2, 3)).sum(0)]).double()
            small = values if size == tuple(values.shape[-2:]) else F.interpolate(values, size, mode="area")
            pixels[place] = scaled(small).round().byte()
            start += len(images)
        mean, square = sums / len(split)
        moments[part] = ((mean / 255).tolist(), ((square - mean.square()).clamp(min=0).sqrt() / 255).tolist())
    lengths = [len(getattr(data, part)) for part in PARTS]
    return Survey(
        data=data,
        pixels=pixels,
        parts=torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)),
        rows=torch.cat([torch.arange(length) for length in lengths]),
        labels=torch.cat([getattr(data, part).labels for part in PARTS]),
        hashes=hashes,
        brightness=brightness,
        contrast=contrast,
        coloured=coloured,
        moments=moments,
    )
