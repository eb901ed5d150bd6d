"""Resampling by one matrix for the rows and one for the columns of each image, in arithmetic that is exact.

Weights are whole multiples of a power of two and so are pixels, so that a product of matrices is a sum of whole numbers that the floats
hold exactly: every order of summation, hence every batch size, library and device, gives the same bits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Real, UInt8
from torch import Tensor

from retinue.data.views.base import (
    Images,
    Keys,
    View,
    Viewed,
    check_number,
    check_probability,
    check_range,
    check_size,
    drawn,
    on_rows,
    to_bytes,
)
from retinue.data.views.draws import uniform, whole
from retinue.errors import ArgumentError, ShapeError, unknown

BYTE_BITS = 15  # 8 bits of a pixel and 15 of a weight, with room for bicubic's overshoot, in the 24 of float32
FLOAT_BITS = 24  # 24 and 24 in the 53 of float64
ATTEMPTS = 10
BLOCK, LEAST = 1 << 17, 4  # weights of windows that a processor's cache holds, and windows below which one product pays less


def _nearest(distance: Tensor) -> Tensor:
    return ((distance > -0.5) & (distance <= 0.5)).to(distance.dtype)


def _triangle(distance: Tensor) -> Tensor:
    return distance.abs().neg_().add_(1).clamp_min_(0)


def _cubic(distance: Tensor) -> Tensor:
    """Compute Keys' kernel with a = -1/2, as Pillow and torchvision have it."""
    x = distance.abs()
    near = x.mul(1.5).sub_(2.5).mul_(x).mul_(x).add_(1)
    far = x.mul(-0.5).add_(2.5).mul_(x).sub_(4).mul_(x).add_(2)
    return torch.where(x < 1, near, far.mul_(x < 2))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"nearest": _nearest, "bilinear": _triangle, "bicubic": _cubic}


@dataclass(frozen=True, repr=False)
class Resize(View):
    """Another size, antialiased; the aspect changes where the size asks for it.

    Args:
        size: side, or (height, width).
        interpolation: "bilinear", "bicubic" or "nearest".

    Raises:
        ArgumentError: if the size is not positive, or the interpolation does not exist.
    """

    name: ClassVar[str] = "resize"
    size: int | Sequence[int]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        check_size(self)
        if self.interpolation not in KERNELS:
            raise unknown("resize", "interpolation", self.interpolation, KERNELS)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        rows, columns = (
            shares(torch.zeros(1, device=images.device), torch.full((1,), length, device=images.device), length, size, self.interpolation)
            for length, size in zip(images.shape[-2:], check_size(self))
        )
        return resample(images, rows, columns)


@dataclass(frozen=True, repr=False)
class RandomResizedCrop(View):
    """A window of random area, aspect and place, brought to one size; antialiased.

    A window that does not fit is drawn again, ten times at most; then it is the largest one in the middle whose aspect is allowed.

    Args:
        size: side of the result, or (height, width).
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width for each pixel of height; drawn evenly on the logarithm.
        interpolation: "bilinear", "bicubic" or "nearest".

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "random_resized_crop"
    size: int | Sequence[int]
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        check_size(self)
        check_range(self, "scale", 0, 1, hint="They are shares of the image's area.", above=True)
        check_range(self, "ratio", 0, float("inf"), hint="They are width / height.", above=True)
        if self.interpolation not in KERNELS:
            raise unknown("random_resized_crop", "interpolation", self.interpolation, KERNELS)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        height, width = images.shape[-2:]
        top, left, tall, wide = self.boxes(keys, height, width)
        size = check_size(self)
        each = size[0] * height + size[1] * width
        count = len(images) if images.is_cuda else max(LEAST, BLOCK // each)
        shown = []
        for part, *window in zip(*(values.split(count) for values in (images, top, tall, left, wide))):
            rows = shares(window[0], window[1], height, size[0], self.interpolation)
            columns = shares(window[2], window[3], width, size[1], self.interpolation)
            shown.append(resample(part, rows, columns))
        return torch.cat(shown)

    def boxes(self, keys: Keys, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the windows of images of one size: top, left, height and width of each, in whole pixels."""
        draws = uniform(keys, 2 * ATTEMPTS + 2).double()
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, :ATTEMPTS])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = (low + (high - low) * draws[:, ATTEMPTS:-2]).exp()
        wide, tall = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        found = fits.gather(1, first)[:, 0]
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        middle = (min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect))))
        tall, wide = (torch.where(found, side.gather(1, first)[:, 0], whole_side) for side, whole_side in zip((tall, wide), middle))
        top = torch.where(found, whole(draws[:, -2], height - tall + 1), (height - tall) // 2)
        left = torch.where(found, whole(draws[:, -1], width - wide + 1), (width - wide) // 2)
        return top, left, tall, wide


@dataclass(frozen=True, repr=False)
class GaussianBlur(View):
    """A Gaussian blur with a random width; borders are reflected.

    Args:
        kernel_size: pixels that a blurred pixel sees along each side; odd.
        sigma: smallest and largest standard deviation, in pixels.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if an argument cannot work, such as an even kernel.
        ShapeError: for images that are too small for the reflection.
    """

    name: ClassVar[str] = "gaussian_blur"
    kernel_size: int
    sigma: Sequence[float] = (0.1, 2.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_number(self, "kernel_size", 1, whole=True, hint="It is in pixels.")
        if self.kernel_size % 2 == 0:
            raise ArgumentError(f"gaussian_blur: `kernel_size` must be odd, got {self.kernel_size}. Take {self.kernel_size + 1}.")
        check_range(self, "sigma", 0, float("inf"), hint="They are in pixels.", above=True)
        check_probability(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        if self.kernel_size // 2 >= min(images.shape[-2:]):
            raise ShapeError(
                f"gaussian_blur: {images.shape[-2]}x{images.shape[-1]} px cannot be reflected by {self.kernel_size // 2} px. "
                "Give a smaller `kernel_size`."
            )
        draws = uniform(keys, 2)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * draws[:, 1]
        return on_rows(images, drawn(draws[:, 0], self.p), self.blurred, sigma)

    def blurred(self, images: Images, sigma: Float[Tensor, " batch"]) -> Images:
        """Blur each image with its own standard deviation."""
        reach = self.kernel_size // 2
        tap = torch.arange(-reach, reach + 1, device=images.device)
        bell = (-0.5 * (tap / sigma[:, None].double()).square()).exp().mul_(1 << FLOAT_BITS).round_()
        matrices = []
        for length in images.shape[-2:]:
            source = (torch.arange(length, device=images.device)[:, None] + tap).abs()
            source = (length - 1) - ((length - 1) - source).abs()
            matrix = torch.zeros(len(images), length, length, dtype=torch.float64, device=images.device)
            matrices.append(matrix.scatter_add_(2, source.expand(len(images), -1, -1), bell[:, None].expand(-1, length, -1)))
        return resample(images, *matrices)


def shares(
    start: Real[Tensor, " batch"], length: Real[Tensor, " batch"], inputs: int, outputs: int, interpolation: str
) -> Float64[Tensor, "batch outputs inputs"]:
    """Compute how much each input pixel adds to each output pixel along one side, as whole numbers that are not normalised yet.

    Args:
        start: first pixel of each image's window.
        length: pixels of each window; the kernel widens with it where there are more of them than `outputs`.
        inputs: pixels of the whole side.
        outputs: pixels of the result.
        interpolation: a name of `KERNELS`.
    """
    start, length = start.double()[:, None, None], length.double()[:, None, None]
    step = length / outputs
    place = torch.arange(outputs, device=start.device, dtype=torch.float64)[:, None]
    pixel = torch.arange(inputs, device=start.device, dtype=torch.float64)
    distance = pixel + 0.5 - (start + (place + 0.5) * step)
    stretch = torch.ones_like(step) if interpolation == "nearest" else step.clamp_min(1)
    inside = (pixel >= start) & (pixel < start + length)
    return KERNELS[interpolation](distance.div_(stretch)).mul_(inside).mul_(1 << FLOAT_BITS).round_()


def resample(
    images: Images, rows: Float64[Tensor, "matrices newheight height"], columns: Float64[Tensor, "matrices newwidth width"]
) -> UInt8[Tensor, "batch channels newheight newwidth"] | Float[Tensor, "batch channels newheight newwidth"]:
    """Weigh the columns, then the rows of each image; bytes are rounded after each step.

    Args:
        images: bytes, or floats.
        rows: whole numbers in proportion to the weights of each output row, for each image or one for all.
        columns: the same for the columns.
    """
    bits = BYTE_BITS if images.dtype == torch.uint8 else FLOAT_BITS
    kind = torch.float32 if images.dtype == torch.uint8 and _float32_is_exact(images.device) else torch.float64
    across, down = (part.div(part.sum(2, keepdim=True)).mul_(1 << bits).round_().to(kind) for part in (columns, rows))
    x = images.to(kind) if images.dtype == torch.uint8 else images.double().mul(1 << bits).round_()
    channels, height, width = images.shape[1], down.shape[1], across.shape[1]
    x = _scaled(x.flatten(1, 2) @ across.mT, images, bits)
    x = x.unflatten(1, images.shape[1:3]).transpose(1, 2).flatten(2)  # the rows first, so that one product serves all channels
    x = _scaled(down @ x, images, bits).view(-1, height, channels, width).transpose(1, 2)
    if images.dtype == torch.uint8:
        return to_bytes(x).contiguous()
    return x.mul(2.0**-bits).clamp_(0, 1).to(images.dtype).contiguous()  # bicubic weights overshoot


def _scaled(x: Tensor, images: Tensor, bits: int) -> Tensor:
    """Divide by the weights' unit, and round to whole numbers again."""
    x = x.mul_(2.0**-bits).round_()
    return x.clamp_(0, 255) if images.dtype == torch.uint8 else x


def _float32_is_exact(device: torch.device) -> bool:
    """Tell whether float32 products keep all bits: on graphics cards and under settings for speed, fewer are used."""
    settings = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return device.type == "cpu" and settings in ("none", "ieee") and not torch.is_autocast_enabled("cpu")
