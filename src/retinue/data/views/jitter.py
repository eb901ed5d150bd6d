"""Views that change colours and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from retinue.data.views import color
from retinue.data.views.base import (
    Images,
    Keys,
    View,
    Viewed,
    check_number,
    check_probability,
    check_range,
    column,
    drawn,
    on_rows,
    to_kind,
    to_unit,
)
from retinue.data.views.draws import derive, uniform
from retinue.errors import ArgumentError

BLOCK = 1 << 17  # pixels that are worked on at once, so that their planes stay in a core's cache
OPERATIONS = (color.brightness, color.contrast, color.saturation, color.hue)


@dataclass(frozen=True, repr=False)
class ColorJitter(View):
    """Brightness, contrast, saturation and hue, each by a random factor, in this order.

    Each change is torchvision's; torchvision also draws the order anew for each image. On images that have not three channels, saturation
    and hue change nothing.

    Args:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; or the pair (smallest, largest).
        contrast: as `brightness`; 0 gives the image's mean brightness.
        saturation: as `brightness`; 0 gives grey.
        hue: the turn is uniform in [-hue, hue], in shares of the full circle, at most 0.5; or the pair (smallest, largest).
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if a factor or `p` lies outside its range.
    """

    name: ClassVar[str] = "color_jitter"
    brightness: float | Sequence[float] = 0.0
    contrast: float | Sequence[float] = 0.0
    saturation: float | Sequence[float] = 0.0
    hue: float | Sequence[float] = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self)
        self._ranges()

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        chosen = drawn(uniform(keys, 1)[:, 0], self.p)
        changes = [(operation, *span) for operation, span in zip(OPERATIONS, self._ranges()) if span is not None]
        draws = uniform(derive(keys, 0), len(changes))
        factors = [low + (high - low) * draws[:, number] for number, (_, low, high) in enumerate(changes)]

        def change(images: Tensor, *factors: Tensor) -> Tensor:
            size = len(images) if images.is_cuda else max(1, BLOCK // (images.shape[-2] * images.shape[-1]))
            shown = []
            for part, *own in zip(*(values.split(size) for values in (images, *factors))):
                x = to_unit(part)
                for (operation, _, _), factor in zip(changes, own):
                    operation(x, factor)
                shown.append(to_kind(x, part))
            return torch.cat(shown)

        return on_rows(images, chosen, change, *factors)

    def _ranges(self) -> list[tuple[float, float] | None]:
        """Read the four ranges; one that changes nothing is None."""
        spans: list[tuple[float, float] | None] = []
        for argument in ("brightness", "contrast", "saturation", "hue"):
            value, turns = getattr(self, argument), argument == "hue"
            hint = "It is a share of the full circle." if turns else "The factor is drawn from [1 - value, 1 + value]."
            low, high, neutral = (-0.5, 0.5, 0.0) if turns else (0.0, float("inf"), 1.0)
            if isinstance(value, list | tuple):
                span = check_range(self, argument, low, high, hint="Or give one number, which makes the range symmetrical.")
            else:
                check_number(self, argument, 0, high, hint=hint)
                span = (max(low, neutral - value), neutral + value)
            spans.append(None if span == (neutral, neutral) else (float(span[0]), float(span[1])))
        return spans


@dataclass(frozen=True, repr=False)
class Grayscale(View):
    """Grey in all three channels; changes nothing where there are not three channels.

    Args:
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if `p` is not in [0, 1].
    """

    name: ClassVar[str] = "grayscale"
    p: float = 0.1

    def __post_init__(self) -> None:
        check_probability(self)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        if images.shape[1] != 3:
            return images

        def change(images: Images) -> Tensor:
            return to_kind(color.luma(to_unit(images)), images).expand_as(images)

        return on_rows(images, drawn(uniform(keys, 1)[:, 0], self.p), change)


@dataclass(frozen=True, repr=False)
class Solarize(View):
    """All values at or above a threshold inverted.

    Args:
        threshold: in [0, 1], for bytes too.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if an argument is not in [0, 1].
    """

    name: ClassVar[str] = "solarize"
    threshold: float = 0.5
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self)
        check_number(self, "threshold", 0, 1, hint="For bytes too: write 128 / 255 for 128.")

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        thresholds = torch.full((len(images),), self.threshold, device=images.device)
        return on_rows(images, drawn(uniform(keys, 1)[:, 0], self.p), solarized, thresholds)


@dataclass(frozen=True, repr=False)
class Normalize(View):
    """Each channel minus its mean, divided by its standard deviation; bytes become floats, so it comes last.

    Args:
        mean: of each channel, in [0, 1]; one number stands for all channels.
        std: of each channel.

    Raises:
        ArgumentError: if the numbers are not finite, a `std` is not positive, or there are not as many as channels.
    """

    name: ClassVar[str] = "normalize"
    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        for argument in ("mean", "std"):
            value = getattr(self, argument)
            values = tuple(value) if isinstance(value, list | tuple) else (value,)
            numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < float("inf") for v in values)
            if not values or not numbers or (argument == "std" and not all(v > 0 for v in values)):
                kind = "positive numbers" if argument == "std" else "numbers"
                raise ArgumentError(f"normalize: `{argument}` must be {kind}, one a channel, got {value!r}. Pixels count as [0, 1].")
            object.__setattr__(self, argument, tuple(values))

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        for argument in ("mean", "std"):
            given = len(getattr(self, argument))
            if given not in (1, images.shape[1]):
                raise ArgumentError(
                    f"normalize: `{argument}` has {given} numbers and the images have {images.shape[1]} channels. Give one for each."
                )
        x = to_unit(images) if images.dtype == torch.uint8 else images.clone()
        mean, std = (torch.tensor(v, device=x.device, dtype=x.dtype).view(-1, 1, 1) for v in (self.mean, self.std))
        return x.sub_(mean).div_(std)


def solarized(images: Images, thresholds: Float[Tensor, " batch"]) -> Images:
    """Invert the values at or above each row's threshold."""
    if images.dtype == torch.uint8:  # 255 - x is x with every bit exchanged
        bound = column(thresholds.double() * 255 - 1e-4).ceil().to(torch.int16)  # 128 / 255 as a float is a little more than that
        return images.bitwise_xor((images >= bound).to(torch.uint8).mul_(255))
    return torch.where(images >= column(thresholds).to(images.dtype), 1 - images, images)
