"""Noise added to pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

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
from retinue.data.views.draws import derive, normal, uniform


@dataclass(frozen=True, repr=False)
class GaussianNoise(View):
    """Independent normal noise on every value, cut off at 0 and 1.

    Args:
        sigma: standard deviation, in [0, 1] for bytes too; or the pair (smallest, largest), from which each image draws its own.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if `sigma` is negative or `p` not in [0, 1].
    """

    name: ClassVar[str] = "gaussian_noise"
    sigma: float | Sequence[float] = 0.1
    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability(self)
        self._span()

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        low, high = self._span()
        draws = uniform(keys, 2)

        def change(images: Tensor, sigma: Tensor, keys: Tensor) -> Tensor:
            noise = normal(keys, math.prod(images.shape[1:])).view(images.shape).mul_(column(sigma))
            return to_kind(noise.add_(to_unit(images)).clamp_(0, 1), images)

        return on_rows(images, drawn(draws[:, 0], self.p), change, low + (high - low) * draws[:, 1], derive(keys, 0))

    def _span(self) -> tuple[float, float]:
        if isinstance(self.sigma, list | tuple):
            return check_range(self, "sigma", 0, math.inf, hint="They are in [0, 1] for bytes too: 3 / 255.")
        sigma = check_number(self, "sigma", 0, hint="It is in [0, 1] for bytes too: 3 / 255.")
        return sigma, sigma
