"""Views that only move pixels by whole steps: crops and mirror images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from retinue.data.views.base import Images, Keys, View, Viewed, check_number, check_probability, check_size, drawn
from retinue.data.views.draws import uniform, whole
from retinue.errors import ShapeError, unknown

MODES = ("zeros", "reflect", "edge")


@dataclass(frozen=True, repr=False)
class Crop(View):
    """A window at a random place of the padded image; every place is equally likely.

    Args:
        padding: pixels added on each side.
        size: side of the window, or (height, width); None keeps the image's.
        mode: what is added: "zeros", "reflect" (without the border pixel) or "edge" (the border pixel).

    Raises:
        ArgumentError: if an argument cannot work.
        ShapeError: for images that are too small for the window or the reflection.
    """

    name: ClassVar[str] = "crop"
    padding: int
    size: int | Sequence[int] | None = None
    mode: str = "zeros"

    def __post_init__(self) -> None:
        check_number(self, "padding", 0, whole=True, hint="It is in pixels.")
        if self.size is not None:
            check_size(self)
        if self.mode not in MODES:
            raise unknown("crop", "mode", self.mode, MODES)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        height, width = images.shape[-2:] if self.size is None else check_size(self)
        padded = pad(images, self.padding, self.mode)
        down, right = padded.shape[-2] - height, padded.shape[-1] - width
        if down < 0 or right < 0:
            raise ShapeError(
                f"crop: a window of {height}x{width} px does not fit into {padded.shape[-2]}x{padded.shape[-1]} px. "
                "Give more `padding` or a smaller `size`."
            )
        draws = uniform(keys, 2)
        return windows(padded, whole(draws[:, 0], down + 1), whole(draws[:, 1], right + 1), height, width)


@dataclass(frozen=True, repr=False)
class CenterCrop(View):
    """The window in the middle.

    Args:
        size: side of the window, or (height, width).

    Raises:
        ArgumentError: if the size is not positive.
        ShapeError: for images that are smaller than the window.
    """

    name: ClassVar[str] = "center_crop"
    size: int | Sequence[int]

    def __post_init__(self) -> None:
        check_size(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        height, width = check_size(self)
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        if top < 0 or left < 0:
            raise ShapeError(
                f"center_crop: a window of {height}x{width} px does not fit into {images.shape[-2]}x{images.shape[-1]} px. "
                f"Enlarge the images first: resize({max(height, width)})."
            )
        return images[..., top : top + height, left : left + width].contiguous()


@dataclass(frozen=True, repr=False)
class Flip(View):
    """Left and right exchanged.

    Args:
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if `p` is not in [0, 1].
    """

    name: ClassVar[str] = "flip"
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        return _mirrored(images, drawn(uniform(keys, 1)[:, 0], self.p), -1)


@dataclass(frozen=True, repr=False)
class VerticalFlip(View):
    """Top and bottom exchanged.

    Args:
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if `p` is not in [0, 1].
    """

    name: ClassVar[str] = "vertical_flip"
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        return _mirrored(images, drawn(uniform(keys, 1)[:, 0], self.p), -2)


def pad(
    images: Images, padding: int, mode: str
) -> UInt8[Tensor, "batch channels newheight newwidth"] | Float[Tensor, "batch channels newheight newwidth"]:
    """Add `padding` pixels on each side.

    Raises:
        ShapeError: if the reflection would leave the image on its other side.
    """
    if not padding:
        return images
    if mode == "zeros":
        return F.pad(images, (padding, padding, padding, padding))
    if mode == "reflect" and padding >= min(images.shape[-2:]):
        raise ShapeError(
            f"crop: {images.shape[-2]}x{images.shape[-1]} px cannot be reflected by {padding} px. "
            'Give a `padding` below the shorter side, or mode="edge".'
        )
    for dim in (2, 3):
        last = images.shape[dim] - 1
        source = torch.arange(-padding, last + padding + 1, device=images.device)
        source = last - (last - source.abs()).abs() if mode == "reflect" else source.clamp(0, last)
        images = images.index_select(dim, source)
    return images


def windows(
    images: Images, top: Int64[Tensor, " batch"], left: Int64[Tensor, " batch"], height: int, width: int
) -> UInt8[Tensor, "batch channels newheight newwidth"] | Float[Tensor, "batch channels newheight newwidth"]:
    """Cut a window out of each image.

    Args:
        images: contiguous.
        top: first row of each window, which lies inside the image.
        left: first column.
        height: rows of the windows.
        width: columns.
    """
    batch, channels, rows, columns = images.shape
    if not images.numel():
        return images.new_empty(batch, channels, height, width)
    # Every run of `width` pixels of the storage is a row of this view, so that one index_select copies whole rows.
    runs = images.as_strided((images.numel() - width + 1, width), (1, 1))
    device = images.device
    planes = torch.arange(batch * channels, device=device).view(batch, channels, 1) * (rows * columns)
    starts = planes + (top[:, None] + torch.arange(height, device=device))[:, None] * columns + left[:, None, None]
    return runs.index_select(0, starts.flatten()).view(batch, channels, height, width)


def _mirrored(images: Images, rows: Bool[Tensor, " batch"], dim: int) -> Images:
    both = torch.cat((images, images.flip(dim)))
    return both.index_select(0, torch.arange(len(images), device=images.device) + rows * len(images))
