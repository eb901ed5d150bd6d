"""Random erasing: boxes of an image lose their content."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retinue.data.views.base import Images, Keys, View, Viewed, check_number, check_probability, check_range, drawn, keep, on_rows
from retinue.data.views.draws import derive, uniform, whole
from retinue.errors import ArgumentError, unknown

MODES = ("const", "rand", "pixel")
ATTEMPTS = 10


@dataclass(frozen=True, repr=False)
class Erase(View):
    """Boxes of random area, aspect and place filled over (random erasing, Zhong et al. 2020, algorithm 1).

    A box that does not fit is drawn again, ten times at most. Colours are those before normalisation.

    Args:
        p: probability with which an image is changed.
        area: smallest and largest share of the image that is erased, by all boxes together.
        ratio: smallest and largest height of a box for each pixel of its width; drawn evenly on the logarithm.
        mode: "const" fills with `fill`, "rand" with one random colour for each box, "pixel" with a random colour for each pixel.
        count: number of boxes.
        fill: in [0, 1], for bytes too; one number, or one for each channel.

    Raises:
        ArgumentError: if an argument cannot work.
    """

    name: ClassVar[str] = "erase"
    p: float = 0.5
    area: Sequence[float] = (0.02, 1 / 3)
    ratio: Sequence[float] = (0.3, 1 / 0.3)
    mode: str = "const"
    count: int = 1
    fill: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        check_probability(self)
        check_range(self, "area", 0, 1, hint="They are shares of the image.")
        check_range(self, "ratio", 0, math.inf, hint="They are height / width.", above=True)
        check_number(self, "count", 1, whole=True, hint="It is the number of boxes.")
        if self.mode not in MODES:
            raise unknown("erase", "mode", self.mode, MODES)
        fill = tuple(self.fill) if isinstance(self.fill, list | tuple) else (self.fill,)
        if not fill or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in fill):
            raise ArgumentError(f"erase: `fill` must be numbers in [0, 1], one or one a channel, got {self.fill!r}. For bytes too.")
        if isinstance(self.fill, list):
            keep(self, "fill", fill)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        return on_rows(images, drawn(uniform(keys, 1)[:, 0], self.p), self._erased, derive(keys, 0))

    def _erased(self, images: Tensor, keys: Tensor) -> Tensor:
        batch, height, width = len(images), *images.shape[-2:]
        for box in range(self.count):
            draws = uniform(derive(keys, box), 4 * ATTEMPTS).view(batch, ATTEMPTS, 4).double()
            area = (self.area[0] + (self.area[1] - self.area[0]) * draws[..., 0]) * (height * width / self.count)
            low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
            ratio = (low + (high - low) * draws[..., 1]).exp()
            tall, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
            fits = (tall < height) & (wide < width)
            first = fits.to(torch.uint8).argmax(1, keepdim=True)
            tall, wide = (side.gather(1, first) * fits.gather(1, first) for side in (tall, wide))
            top, left = (
                whole(draws[..., place].gather(1, first).float(), length - side + 1)
                for place, length, side in ((2, height, tall), (3, width, wide))
            )
            down, right = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
            rows, columns = (down >= top) & (down < top + tall), (right >= left) & (right < left + wide)
            erased = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.dtype)
            images = images * (1 - erased) + self._paint(images, derive(keys, self.count + box)) * erased
        return images

    def _paint(self, images: Tensor, keys: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        if self.mode == "const":
            fill = self.fill if isinstance(self.fill, tuple) else (self.fill,)
            if len(fill) not in (1, channels):
                raise ArgumentError(f"erase: `fill` has {len(fill)} numbers and the images have {channels} channels. Give one for each.")
            paint = torch.tensor(fill, device=images.device).view(1, -1, 1, 1)
        else:
            shape = (channels, 1, 1) if self.mode == "rand" else (channels, height, width)
            paint = uniform(keys, math.prod(shape)).view(-1, *shape)
        return (paint * 255 + 0.5).to(torch.uint8) if images.dtype == torch.uint8 else paint.to(images.dtype)
