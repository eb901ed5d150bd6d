"""Views that turn, shift, scale and shear images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from retinue.data.views.base import Images, Keys, View, Viewed, check_number, check_probability, check_range, drawn, keep, on_rows, to_bytes
from retinue.data.views.crops import windows
from retinue.data.views.draws import uniform, whole
from retinue.errors import unknown

INTERPOLATIONS = ("nearest", "bilinear")
Maps = Float64[Tensor, "batch 6"]


@dataclass(frozen=True, repr=False)
class Affine(View):
    """A turn, a shift, a change of scale and a shear at once, each random.

    Args:
        degrees: the turn is uniform in [-degrees, degrees], counter-clockwise; or the pair (smallest, largest).
        translate: the shift is at most this share of the width and of the height, in whole pixels; or the pair (across, down).
        scale: smallest and largest factor.
        shear: the shear along the rows is uniform in [-shear, shear] degrees; or the pair (smallest, largest).
        interpolation: "bilinear" or "nearest".
        fill: what comes in from outside, in [0, 1], for bytes too.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "affine"
    degrees: float | Sequence[float] = 0.0
    translate: float | Sequence[float] = 0.0
    scale: Sequence[float] = (1.0, 1.0)
    shear: float | Sequence[float] = 0.0
    interpolation: str = "bilinear"
    fill: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _span(self, "degrees", 360)
        _span(self, "shear", 89)
        _shares(self, "translate")
        check_range(self, "scale", 0, math.inf, hint="They are factors: 2 doubles each side.", above=True)
        check_probability(self)
        check_warp(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        draws = uniform(keys, 6).double()
        turn = _between(_span(self, "degrees", 360), draws[:, 1]).deg2rad()
        shear = _between(_span(self, "shear", 89), draws[:, 2]).deg2rad()
        scale = _between((self.scale[0], self.scale[1]), draws[:, 3])
        limits = [share * length for share, length in zip(_shares(self, "translate"), (images.shape[3], images.shape[2]))]
        across, down = (_between((-limit, limit), draws[:, i]).round() for i, limit in ((4, limits[0]), (5, limits[1])))
        maps = inverse_maps(turn, shear, scale, across, down)
        return on_rows(images, drawn(draws[:, 0], self.p), lambda some, those: warp(some, those, self.interpolation, self.fill), maps)


@dataclass(frozen=True, repr=False)
class Rotate(View):
    """A turn about the middle by a random angle; the size stays.

    Args:
        degrees: the turn is uniform in [-degrees, degrees], counter-clockwise; or the pair (smallest, largest).
        interpolation: "bilinear" or "nearest".
        fill: what comes in from outside, in [0, 1], for bytes too.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "rotate"
    degrees: float | Sequence[float]
    interpolation: str = "bilinear"
    fill: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _span(self, "degrees", 360)
        check_probability(self)
        check_warp(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        return Affine(degrees=self.degrees, interpolation=self.interpolation, fill=self.fill, p=self.p)._apply(images, keys)


@dataclass(frozen=True, repr=False)
class Translate(View):
    """A shift by a random number of whole pixels.

    Args:
        share: the shift is at most this share of the width and of the height; or the pair (across, down).
        fill: what comes in from outside, in [0, 1], for bytes too.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "translate"
    share: float | Sequence[float]
    fill: float = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        _shares(self, "share")
        check_probability(self)
        check_warp(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        height, width = images.shape[-2:]
        across, down = (int(share * length) for share, length in zip(_shares(self, "share"), (width, height)))
        draws = uniform(keys, 3)
        fill = round(self.fill * 255) if images.dtype == torch.uint8 else self.fill

        def change(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
            return windows(F.pad(images, (across, across, down, down), value=fill), top, left, height, width)

        return on_rows(images, drawn(draws[:, 0], self.p), change, whole(draws[:, 1], 2 * down + 1), whole(draws[:, 2], 2 * across + 1))


def inverse_maps(
    turn: Float64[Tensor, " batch"],
    shear: Float64[Tensor, " batch"],
    scale: Float64[Tensor, " batch"],
    across: Float64[Tensor, " batch"],
    down: Float64[Tensor, " batch"],
) -> Maps:
    """Compute where the pixels of the result come from: (a, b, c, d, e, f) of x' = a x + b y + c, y' = d x + e y + f, from the middle.

    Args:
        turn: radians, counter-clockwise.
        shear: radians; along the rows, before the turn.
        scale: factor.
        across: pixels to the right, after all else.
        down: pixels downwards.
    """
    sine, cosine, slope = turn.sin(), turn.cos(), shear.tan()
    a, b = (cosine + sine * slope) / scale, (cosine * slope - sine) / scale
    d, e = sine / scale, cosine / scale
    return torch.stack((a, b, -a * across - b * down, d, e, -d * across - e * down), 1)


def warp(images: Images, maps: Maps, interpolation: str, fill: float) -> Images:
    """Take each pixel of the result from where `maps` says, between four pixels or from the nearest one.

    Args:
        images: bytes, or floats in [0, 1].
        maps: see `inverse_maps`.
        interpolation: "bilinear" or "nearest".
        fill: what comes in from outside, in [0, 1].
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(length, device=images.device, dtype=torch.float32) - (length - 1) / 2 for length in (width, height))
    across, down = (
        (part / (length / 2)).float()[..., None, None] for part, length in ((maps[:, :3], width), (maps[:, 3:], height))
    )  # grid_sample counts in halves of the image
    grid = torch.empty(len(images), height, width, 2, device=images.device)
    for place, part in enumerate((across, down)):
        torch.add(part[:, 0] * x, part[:, 1] * y[:, None] + part[:, 2], out=grid[..., place])
    outside = fill * 255 if images.dtype == torch.uint8 else fill
    source = images.float() - outside if outside else images.float()
    shown = F.grid_sample(source, grid, mode=interpolation, padding_mode="zeros", align_corners=False).add_(outside)
    return to_bytes(shown.clamp_(0, 255)) if images.dtype == torch.uint8 else shown.to(images.dtype)


def check_warp(view: View) -> None:
    """Refuse a `fill` or an `interpolation` that `warp` cannot take.

    Raises:
        ArgumentError: naming the argument.
    """
    check_number(view, "fill", 0, 1, hint="For bytes too: write 128 / 255 for 128.")
    interpolation = getattr(view, "interpolation", "nearest")
    if interpolation not in INTERPOLATIONS:
        raise unknown(view.name, "interpolation", interpolation, INTERPOLATIONS)


def _span(view: View, argument: str, most: float) -> tuple[float, float]:
    """Read an argument in degrees: a pair, or a number which stands for both directions."""
    value = getattr(view, argument)
    if isinstance(value, list | tuple):
        return check_range(view, argument, -most, most, hint="Or give one number, which stands for both directions.")
    check_number(view, argument, 0, most, hint="It is in degrees, and stands for both directions.")
    return -value, value


def _shares(view: View, argument: str) -> tuple[float, float]:
    """Read an argument which is a share of both sides, or the pair (across, down)."""
    value = getattr(view, argument)
    pair = isinstance(value, list | tuple)
    if pair and len(value) == 2 and all(isinstance(v, int | float) and 0 <= v <= 1 for v in value):
        return keep(view, argument, tuple(value))
    check_number(view, argument, 0, 1, hint="It is a share of width and height, or the pair of both shares (across, down).")
    return value, value


def _between(span: tuple[float, float], uniform: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * uniform
