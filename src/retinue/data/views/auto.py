"""Augmentation policies that are drawn, not learned: RandAugment and TrivialAugment, with the fourteen operations of torchvision."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Float, Int64
from torch import Tensor

from retinue.data.views import color
from retinue.data.views.base import Images, Keys, View, Viewed, check_number, check_probability, column, drawn, on_rows, to_kind, to_unit
from retinue.data.views.draws import derive, normal, uniform, whole
from retinue.data.views.jitter import solarized
from retinue.data.views.warps import check_warp, warp


class Strengths(NamedTuple):
    """What the operations do at full magnitude."""

    shear: float  # pixels along for each pixel across
    translate: float  # pixels, or a share of the side where it is below 1
    rotate: float  # degrees
    enhance: float  # brightness, colour, contrast and sharpness are multiplied by 1 plus or minus this
    posterize: float  # bits that are lost


RANDOM = Strengths(shear=0.3, translate=150 / 331, rotate=30.0, enhance=0.9, posterize=4)  # torchvision's RandAugment
WIDE = Strengths(shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)  # torchvision's TrivialAugmentWide

# The first five move pixels; they stand together so that one warp does them all.
OPERATIONS = (
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "identity", "brightness", "color", "contrast", "sharpness", "posterize",
    "solarize", "autocontrast", "equalize",
)  # fmt: skip
MOVES = 5
ENHANCE = {"brightness": color.brightness, "color": color.saturation, "contrast": color.contrast, "sharpness": color.sharpness}


@dataclass(frozen=True, repr=False)
class RandAugment(View):
    """Some of fourteen operations, one after the other, all at one magnitude (RandAugment, Cubuk et al. 2020, section 3).

    Operations and scales are torchvision's. timm's "rand-m9-mstd0.5-inc1" comes close with `bins=11, std=0.5, p=0.5`: its magnitudes run
    to 10, and each of its operations is left out half the time.

    Args:
        num_ops: operations for each image.
        magnitude: from 0, which does next to nothing, to `bins` - 1.
        bins: number of magnitudes.
        std: standard deviation with which the magnitude is drawn for each image and operation.
        p: probability with which each drawn operation is carried out.
        interpolation: "nearest" or "bilinear", for the operations that move pixels.
        fill: what comes in from outside, in [0, 1], for bytes too.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "randaugment"
    num_ops: int = 2
    magnitude: float = 9
    bins: int = 31
    std: float = 0.0
    p: float = 1.0
    interpolation: str = "nearest"
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "num_ops", 1, whole=True, hint="It is the number of operations for each image.")
        check_number(self, "bins", 2, whole=True, hint="It is the number of magnitudes.")
        check_number(self, "magnitude", 0, self.bins - 1, hint="It is a step of `bins`; timm's magnitudes run from 0 to 10, with bins=11.")
        check_number(self, "std", 0, hint="It is in steps of the magnitude.")
        check_probability(self)
        check_warp(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        for step in range(self.num_ops):
            own = derive(keys, step)
            draws = uniform(own, 3)
            magnitude = (self.magnitude + self.std * normal(derive(own, 0), 1)[:, 0]).clamp(0, self.bins - 1) / (self.bins - 1)
            operation, sign = whole(draws[:, 0], len(OPERATIONS)), torch.where(draws[:, 1] < 0.5, -1.0, 1.0)

            def change(images: Tensor, operation: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
                return operate(images, operation, magnitude, sign, RANDOM, self.interpolation, self.fill)

            images = on_rows(images, drawn(draws[:, 2], self.p), change, operation, magnitude, sign)
        return images


@dataclass(frozen=True, repr=False)
class TrivialAugment(View):
    """One of fourteen operations at a random magnitude (TrivialAugment, Müller and Hutter 2021, section 3, with its wide space).

    Args:
        bins: number of magnitudes.
        interpolation: "nearest" or "bilinear", for the operations that move pixels.
        fill: what comes in from outside, in [0, 1], for bytes too.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "trivialaugment"
    bins: int = 31
    interpolation: str = "nearest"
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_number(self, "bins", 2, whole=True, hint="It is the number of magnitudes.")
        check_warp(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        draws = uniform(keys, 3)
        operation, sign = whole(draws[:, 0], len(OPERATIONS)), torch.where(draws[:, 1] < 0.5, -1.0, 1.0)
        magnitude = whole(draws[:, 2], self.bins).float() / (self.bins - 1)
        return operate(images, operation, magnitude, sign, WIDE, self.interpolation, self.fill)


def operate(
    images: Images,
    operation: Int64[Tensor, " batch"],
    magnitude: Float[Tensor, " batch"],
    sign: Float[Tensor, " batch"],
    strengths: Strengths,
    interpolation: str = "nearest",
    fill: float = 0.0,
) -> Images:
    """Do to each image its own operation; the images that share one are brought together.

    Args:
        images: bytes, or floats in [0, 1].
        operation: places in `OPERATIONS`.
        magnitude: in [0, 1].
        sign: -1 or 1, for the operations that have two directions.
        strengths: what magnitude 1 stands for.
        interpolation: for the operations that move pixels.
        fill: what comes in from outside, in [0, 1].
    """
    together = operation.argsort(stable=True)
    counts = torch.bincount(operation, minlength=len(OPERATIONS)).tolist()
    counts = [sum(counts[:MOVES]), *counts[MOVES:]]
    groups = zip(("move", *OPERATIONS[MOVES:]), images.index_select(0, together).split(counts), together.split(counts))
    parts = []
    for name, part, rows in groups:
        if not len(rows):
            continue
        level, way = magnitude[rows], sign[rows]
        if name == "move":
            maps = _moves(operation[rows], level * way, images.shape[-2], images.shape[-1], strengths)
            parts.append(warp(part, maps, interpolation, fill))
        elif name in ENHANCE:
            parts.append(to_kind(ENHANCE[name](to_unit(part), 1 + strengths.enhance * level * way), part))
        elif name == "posterize":
            parts.append(_posterized(part, 8 - (strengths.posterize * level).round().long()))
        elif name == "solarize":
            parts.append(solarized(part, 1 - level))
        elif name == "autocontrast":
            parts.append(to_kind(color.autocontrast(to_unit(part)), part))
        else:
            parts.append(TF.equalize(part) if name == "equalize" else part)
    return torch.cat(parts).index_select(0, together.argsort()) if parts else images


def _moves(operation: Tensor, level: Tensor, height: int, width: int, strengths: Strengths) -> Tensor:
    """Compute the maps of `warp` for the operations that move pixels; a shear leaves the first row or column where it is."""
    level = level.double()
    shear_x, shear_y, translate_x, translate_y, rotate = ((operation == number) * level for number in range(MOVES))
    turn = (rotate * strengths.rotate).deg2rad()
    sine, cosine = turn.sin(), turn.cos()
    b, d = shear_x * strengths.shear, shear_y * strengths.shear
    across, down = (
        (level * strengths.translate * (length if strengths.translate < 1 else 1)).trunc()
        for level, length in ((translate_x, width), (translate_y, height))
    )
    return torch.stack((cosine, b - sine, b * (height / 2) - across, sine + d, cosine, d * (width / 2) - down), 1)


def _posterized(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the first bits of each value; whole numbers are shifted, since a power of floats may miss them."""
    if images.dtype == torch.uint8:
        return images & column(256 - (1 << (8 - bits))).to(torch.uint8)
    levels = column(1 << bits).float()
    return (images.float() * levels).floor_().clamp_min_(0).minimum(levels - 1).div_(levels).to(images.dtype)
