"""What happens to a picture on its way through the web, as views: compression, blur, noise, quarter turns; and ImagiNet's blocks of them.

The probabilities and ranges are those of the paper's code (Boychev and Cholakov 2024, arXiv 2407.20020).
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from retinue.data.views.base import Images, Keys, View, Viewed, check_probability, drawn, keep, on_rows, to_bytes, to_unit
from retinue.data.views.compose import Choose, Compose
from retinue.data.views.crops import Crop, Flip
from retinue.data.views.draws import uniform, whole
from retinue.data.views.noise import GaussianNoise
from retinue.data.views.resampling import GaussianBlur, RandomResizedCrop
from retinue.errors import ArgumentError, ShapeError, unknown

FORMATS = ("jpeg", "webp")
KERNELS = (3, 5, 7)  # of the blur, in pixels
TRAIN_QUALITY = (50, 95)
NOISE = (math.sqrt(3) / 255, math.sqrt(10) / 255)  # standard deviations: variances 3 to 10 of bytes


def check_quality(where: str, quality: int | Sequence[int]) -> tuple[int, int]:
    """Read a quality of compression, or the pair (smallest, largest).

    Raises:
        ArgumentError: unless these are whole numbers in 1 to 100, in order.
    """
    pair = tuple(quality) if isinstance(quality, list | tuple) else (quality, quality)
    fits = len(pair) == 2 and all(isinstance(end, int) and not isinstance(end, bool) and 1 <= end <= 100 for end in pair)
    if not fits or pair[0] > pair[1]:
        raise ArgumentError(
            f"{where}: `quality` must be a whole number from 1 to 100, or the pair (smallest, largest) of such, got {quality!r}."
        )
    return pair[0], pair[1]


def check_formats(where: str, formats: str | Sequence[str]) -> tuple[str, ...]:
    """Read the formats of compression.

    Raises:
        ArgumentError: if there is none, or one is neither "jpeg" nor "webp".
    """
    names = (formats,) if isinstance(formats, str) else tuple(formats)
    for name in names:
        if name not in FORMATS:
            raise unknown(where, "lossy format (`formats`)", name, FORMATS)
    if not names:
        raise ArgumentError(f"{where}: `formats` is empty. Give one or both of {', '.join(FORMATS)}.")
    return names


def recompressed(image: UInt8[Tensor, "channels height width"], format: str, quality: int) -> UInt8[Tensor, "channels height width"]:
    """Compress an image with losses and decode it again, by Pillow.

    Args:
        image: grey or RGB; each of any other number of channels is compressed as a grey image.
        format: "jpeg" or "webp".
        quality: 1 to 100.
    """
    if image.shape[0] not in (1, 3):
        return torch.cat([recompressed(channel[None], format, quality) for channel in image])
    grey = image.shape[0] == 1
    pixels = image.cpu().permute(1, 2, 0).numpy()
    held = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(held, format.upper(), quality=int(quality))
    with Image.open(held) as picture:
        found = np.array(picture.convert("L" if grey else "RGB"))
    return torch.from_numpy(found).reshape(*found.shape[:2], -1).permute(2, 0, 1).contiguous().to(image.device)


@dataclass(frozen=True, repr=False)
class Compress(View):
    """Lossy compression, JPEG or WebP with equal odds, of a random quality.

    Args:
        quality: whole number from 1 to 100; or the pair (smallest, largest), of which each is equally likely.
        formats: "jpeg", "webp", or both.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "compress"
    quality: int | Sequence[int] = TRAIN_QUALITY
    formats: str | Sequence[str] = FORMATS
    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self)
        check_quality(self.name, self.quality)
        keep(self, "formats", check_formats(self.name, self.formats))

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        low, high = check_quality(self.name, self.quality)
        draws = uniform(keys, 3)
        chosen, qualities = whole(draws[:, 1], len(self.formats)), low + whole(draws[:, 2], high - low + 1)

        def change(some: Tensor, formats: Tensor, qualities: Tensor) -> Tensor:
            if not len(some):
                return some
            pixels = some if some.dtype == torch.uint8 else to_bytes(to_unit(some).clamp_(0, 1).mul_(255))
            rows = zip(pixels, formats.tolist(), qualities.tolist())
            done = torch.stack([recompressed(image, self.formats[format], quality) for image, format, quality in rows])
            return done if some.dtype == torch.uint8 else to_unit(done).to(some.dtype)

        return on_rows(images, drawn(draws[:, 0], self.p), change, chosen, qualities)


@dataclass(frozen=True, repr=False)
class QuarterTurn(View):
    """A turn by 0, 90, 180 or 270 degrees, each equally likely; the images must be square.

    Args:
        p: probability with which an image is turned at all.

    Raises:
        ArgumentError: if `p` is not in [0, 1].
        ShapeError: if the images are not square.
    """

    name: ClassVar[str] = "quarter_turn"
    p: float = 0.33

    def __post_init__(self) -> None:
        check_probability(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        height, width = images.shape[-2:]
        if height != width:
            raise ShapeError(
                f"quarter_turn: images must be square, got {height}x{width} px. Crop them first: crop(0, {min(height, width)})."
            )
        draws = uniform(keys, 2)
        turns = whole(draws[:, 1], 4) * drawn(draws[:, 0], self.p)
        every = torch.stack([torch.rot90(images, k, dims=(2, 3)) for k in range(4)])
        return every[turns, torch.arange(len(images), device=images.device)]


@dataclass(frozen=True, repr=False)
class Perturb(View):
    """One of compression, Gaussian blur (kernels of 3 to 7 px) and noise (variance about 3 to 10 of bytes), each equally likely.

    Args:
        p: probability with which an image is changed.
        quality: of the compression.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "perturb"
    p: float = 0.5
    quality: int | Sequence[int] = TRAIN_QUALITY

    def __post_init__(self) -> None:
        check_probability(self)
        check_quality(self.name, self.quality)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        widths = [0.3 * ((kernel - 1) * 0.5 - 1) + 0.8 for kernel in KERNELS]  # OpenCV's width of a kernel, in pixels
        blurs = Choose([GaussianBlur(kernel, (width, width), p=1) for kernel, width in zip(KERNELS, widths)])
        block = Choose([Compress(self.quality), blurs, GaussianNoise(NOISE)])
        return Choose([Compose([]), block], weights=[1 - self.p, self.p])(images, keys)


def training_views(size: int = 96, perturb: float = 0.5) -> Compose:
    """Return the views of training: a crop, a perturbation with this probability, quarter turns and flips with 0.33.

    >>> training_views(32)
    crop(0, size=32), perturb(), quarter_turn(), flip(p=0.33)
    """
    return Compose([Crop(0, size), *([Perturb(perturb)] if perturb else []), QuarterTurn(0.33), Flip(0.33)])


def calibration_views(size: int = 256, perturb: bool = True) -> Compose:
    """Return the views of the calibration stage, which are heavier: crops are resized as well.

    With probability 0.5 an image is a random resized crop, compressed with 0.5, or, as likely, a crop with a perturbation with 0.7.

    Args:
        size: side of the crops.
        perturb: False leaves out compression and perturbations.
    """
    resized: View = Compose([RandomResizedCrop(size), Compress(p=0.5)]) if perturb else RandomResizedCrop(size)
    cropped: View = Compose([Crop(0, size), Perturb(0.7)]) if perturb else Crop(0, size)
    return Compose([Choose([Crop(0, size), Choose([resized, cropped])]), QuarterTurn(0.33), Flip(0.33)])
