"""From a file to the numbers that a network sees: decoding, size, channels, normalisation. The same for training and for prediction."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode

from retinue.errors import ArgumentError, DataError, ShapeError, unknown

Resize = Literal["crop", "stretch", "pad"]
RESIZES = ("crop", "stretch", "pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
Item = str | Path | bytes | Image.Image | NDArray[Any]
GREY_MODES = ("1", "L", "I;16", "I;16B", "I;16L", "I", "LA", "La")


class BadImageError(DataError):
    """One image cannot be used; the text says why, not which."""


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input; a checkpoint keeps it, so that prediction does what training did.

    Attributes:
        input_size: height and width that the network sees.
        channels: 1 (grey) or 3 (RGB).
        mean: of each channel, in [0, 1]; subtracted.
        std: of each channel; divided by.
        resize: "crop" scales the short side and cuts the centre, "stretch" changes the aspect, "pad" keeps everything and fills with black.
        interpolation: "bilinear", "bicubic" (both antialiased) or "nearest".
        read_size: height and width at which images are kept before views; larger than `input_size`, it leaves room for random crops.
    """

    input_size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: Resize = "crop"
    interpolation: str = "bicubic"
    read_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ArgumentError(f"data: `channels` must be 1 (grey) or 3 (RGB), got {self.channels}.")
        if self.resize not in RESIZES:
            raise unknown("data", "`resize`", self.resize, RESIZES)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("data", "`interpolation`", self.interpolation, INTERPOLATIONS)
        if any(len(values) not in (1, self.channels) for values in (self.mean, self.std)):
            raise ArgumentError(f"data: `mean` and `std` need 1 or {self.channels} numbers, got {len(self.mean)} and {len(self.std)}.")
        if not all(value > 0 and math.isfinite(value) for value in self.std):
            raise ArgumentError(f"data: every `std` must be positive, got {self.std}.")
        if self.read_size is not None and (self.read_size[0] < self.input_size[0] or self.read_size[1] < self.input_size[1]):
            raise ArgumentError(f"data: `read_size` {self.read_size} must not be smaller than `input_size` {self.input_size}.")

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the images before views."""
        return self.read_size or self.input_size

    def read(self, item: Item) -> UInt8[Tensor, "channels height width"]:
        """Decode one image and bring it to `stored_size` and `channels`.

        Args:
            item: a path, encoded bytes, a Pillow image, or an array (height, width) or (height, width, channels).

        Raises:
            BadImageError: if it is no image, cut off, or of a kind that has no meaning as a picture; the text says which.
        """
        return self.fit(decode(item))

    def fit(self, images: UInt8[Tensor, "*batch inchannels inheight inwidth"]) -> UInt8[Tensor, "*batch channels height width"]:
        """Bring decoded images to `stored_size` and `channels`."""
        return resized(with_channels(images, self.channels), self.stored_size, self.resize, self.interpolation)

    def normalize(self, images: UInt8[Tensor, "*batch c h w"] | Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
        """Subtract the mean and divide by the standard deviation; bytes count as [0, 255], floats as [0, 1]."""
        mean, std = self._moments(images)
        if images.dtype == torch.uint8:
            return torch.addcmul(-mean / std, images.float(), 1 / (255 * std))
        return (images - mean) / std

    def denormalize(self, images: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w"]:
        """Undo `normalize`, to [0, 1]."""
        mean, std = self._moments(images)
        return images * std + mean

    def centre(self, images: Tensor) -> Tensor:
        """Cut the centre of `input_size` out of images of `stored_size`; images of `input_size` stay as they are."""
        return images if tuple(images.shape[-2:]) == self.input_size else TF.center_crop(images, list(self.input_size))

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Build it from what `to_dict` returned."""
        arguments: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**arguments)

    def _moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[-3] != self.channels:
            raise ShapeError(
                f"these images have {images.shape[-3]} channels and {self.channels} are expected. Open the data with channels=."
            )
        dtype = images.dtype if images.is_floating_point() else torch.float32
        mean, std = (torch.tensor(values, device=images.device, dtype=dtype).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std


def decode(item: Item) -> UInt8[Tensor, "channels height width"]:
    """Decode one image to bytes, with 1 channel (grey) or 3 (RGB).

    EXIF rotation is applied, palettes are looked up, transparency is laid over white, 16-bit grey is scaled to 8 bits, of an animation
    the first frame is taken.

    Raises:
        BadImageError: with the reason.
    """
    if isinstance(item, np.ndarray):
        return from_array(item[None])[0]
    try:
        if isinstance(item, Image.Image):
            return _pixels(item)
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            return _pixels(image)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except Image.DecompressionBombError:
        raise BadImageError("more pixels than Pillow opens; scale it down first") from None
    except FileNotFoundError:
        raise BadImageError("no such file") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        KeyError,
        AttributeError,
        MemoryError,
    ) as error:  # plugins' own
        raise BadImageError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _pixels(image: Image.Image) -> Tensor:
    image.load()
    if image.mode == "F":
        raise BadImageError("32-bit float pixels, whose range nobody knows; convert it to 8 or 16 bits")
    if image.format == "TIFF" or any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("32-bit integer pixels beyond 16 bits; convert it to 8 or 16 bits")
        return torch.from_numpy(((values * 255 + 32767) // 65535).astype(np.uint8))[None]
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if transparent:
        grey = image.mode in GREY_MODES
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("L" if grey else "RGB")
    elif image.mode in ("1", "L"):
        image = image.convert("L")
    elif image.mode != "RGB":
        image = image.convert("RGB")
    values = np.array(image)
    return torch.from_numpy(values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1)))


def from_array(images: NDArray[Any]) -> UInt8[Tensor, "batch channels height width"]:
    """Turn arrays (batch, height, width) or (batch, height, width, channels) into bytes with the channels first.

    Args:
        images: bytes; 16-bit integers (scaled to 8 bits); booleans; or floats in [0, 1]. Channels may also come second.

    Raises:
        BadImageError: if the shape or the values cannot be images.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise BadImageError(f"arrays of images must be (N, H, W) or (N, H, W, C), got {images.shape}")
    if images.shape[-1] not in (1, 2, 3, 4) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.shape[-1] not in (1, 3, 4):
        raise BadImageError(f"images must have 1, 3 or 4 channels, got {images.shape[-1]}")
    if images.dtype == np.uint16:
        images = ((images.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif images.dtype == np.bool_:
        images = images.astype(np.uint8) * 255
    elif np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            raise BadImageError("NaN or infinite pixels")
        if images.size and (images.min() < 0 or images.max() > 1):
            raise BadImageError(f"float pixels must lie in [0, 1], got {images.min():.4g} to {images.max():.4g}")
        images = (images * 255 + 0.5).astype(np.uint8)
    elif images.dtype != np.uint8:
        if images.size and (images.min() < 0 or images.max() > 255):
            raise BadImageError(f"integer pixels must lie in 0 to 255, got {images.min()} to {images.max()}")
        images = images.astype(np.uint8)
    if images.shape[-1] == 4:  # transparency over white, rounded
        alpha = images[..., 3:].astype(np.uint32)
        images = ((images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Repeat grey three times, or weigh RGB to grey (ITU-R 601)."""
    if images.shape[-3] == channels:
        return images
    return TF.rgb_to_grayscale(images) if channels == 1 else images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()


def resized(images: Tensor, size: tuple[int, int], resize: str, interpolation: str) -> Tensor:
    """Bring images to a size in one of the three ways of `Preprocessing`."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    mode = InterpolationMode(interpolation)
    if resize == "stretch":
        return TF.resize(images, list(size), mode, antialias=True)
    choose = max if resize == "crop" else min
    scale = choose(size[0] / height, size[1] / width)
    inner = [max(1, round(height * scale)), max(1, round(width * scale))]
    if resize == "crop":
        inner = [max(inner[0], size[0]), max(inner[1], size[1])]
    scaled = images if inner == [height, width] else TF.resize(images, inner, mode, antialias=True)
    return TF.center_crop(scaled, list(size))  # cuts what is too large, and pads with zeros what is too small


def peek(item: Item) -> tuple[tuple[int, int], int]:
    """Read height, width and channels (1 or 3) from the head of a file, without decoding it.

    Raises:
        BadImageError: if there is no head to read.
    """
    if isinstance(item, np.ndarray):
        array = item if item.ndim == 3 else item[..., None]
        return (array.shape[0], array.shape[1]), 1 if array.shape[-1] == 1 else 3
    if isinstance(item, Image.Image):
        return (item.height, item.width), 1 if item.mode in GREY_MODES else 3
    try:
        with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
            width, height = image.size
            if image.info and image.getexif().get(0x0112, 1) >= 5:  # turned by a quarter
                width, height = height, width
            return (height, width), 1 if image.mode in GREY_MODES else 3
    except Exception as error:
        raise BadImageError("not an image") from error


def moments(images: UInt8[Tensor, "batch channels height width"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute each channel's mean and standard deviation, in [0, 1] and rounded to four digits; a constant channel counts as std 1."""
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp_min(0).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) or 1.0 for s in std.tolist())


def common_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Choose a size for images: theirs if they agree, else a square of the median short side, a multiple of 32 and at most 224."""
    if len(set(sizes)) == 1:
        return sizes[0]
    median = int(np.median([min(size) for size in sizes]))
    side = max(32, min(224, round(median / 32) * 32)) if median >= 32 else median
    return side, side
