"""Views that mix two images and their labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from retinue.data.views.base import Images, Keys, Share, View, Viewed, check_number, check_probability, column, drawn, to_kind, to_unit
from retinue.data.views.draws import beta, uniform, whole

HINT = "It shapes Beta(alpha, alpha), from which the share is drawn; 1 is uniform. To mix less often, lower `p`."


@dataclass(frozen=True, repr=False)
class Mixup(View):
    """The weighted mean of two images; the labels are mixed alike (mixup, Zhang et al. 2018, section 2).

    Bytes stay bytes, so the mean is rounded to 1/255.

    Args:
        alpha: of Beta(alpha, alpha), from which each image's own share is drawn.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if `alpha` is not positive or `p` not in [0, 1].
    """

    name: ClassVar[str] = "mixup"
    mixes: ClassVar[bool] = True
    alpha: float = 0.2
    p: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "alpha", 0, hint=HINT, above=True)
        check_probability(self)

    def _mix(self, images: Images, partners: Images, keys: Keys) -> tuple[Viewed, Share]:
        draws = uniform(keys, 2)
        share = torch.where(drawn(draws[:, 0], self.p), beta(draws[:, 1], self.alpha), 1.0)
        mixed = to_unit(images).mul_(column(share)).add_(to_unit(partners).mul_(column(1 - share)))
        return to_kind(mixed, images), share


@dataclass(frozen=True, repr=False)
class CutMix(View):
    """A box of the partner pasted into the image; the labels are mixed by area (CutMix, Yun et al. 2019, section 3.1).

    The box has the image's aspect and the area 1 - lambda, with lambda from Beta(alpha, alpha), and its centre is uniform over the image.
    What juts out is cut off, and the share is the share of pixels that are really left.

    Args:
        alpha: of Beta(alpha, alpha); the paper uses 1.
        p: probability with which an image is changed.

    Raises:
        ArgumentError: if `alpha` is not positive or `p` not in [0, 1].
    """

    name: ClassVar[str] = "cutmix"
    mixes: ClassVar[bool] = True
    alpha: float = 1.0
    p: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "alpha", 0, hint=HINT, above=True)
        check_probability(self)

    def _mix(self, images: Images, partners: Images, keys: Keys) -> tuple[Viewed, Share]:
        draws = uniform(keys, 4)
        side = (1 - beta(draws[:, 1], self.alpha)).clamp_min(0).sqrt() * drawn(draws[:, 0], self.p)
        inside = torch.ones(len(images), 1, 1, 1, dtype=torch.bool, device=images.device)
        area = torch.ones(len(images), dtype=torch.int64, device=images.device)
        for dim, draw in ((2, draws[:, 2]), (3, draws[:, 3])):
            length = images.shape[dim]
            cut = (side * length).long()
            start = whole(draw, length) - cut // 2
            place = torch.arange(length, device=images.device)
            within = (place >= start[:, None]) & (place < (start + cut)[:, None])
            inside = inside & within.view(-1, 1, length, 1).transpose(2, dim)
            area = area * within.sum(1)
        share = 1 - area.double() / (images.shape[2] * images.shape[3])
        taken = inside.to(images.dtype)
        return images * (1 - taken) + partners * taken, share.float()
