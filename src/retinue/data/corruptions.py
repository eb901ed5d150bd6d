"""Images as they come out of bad light, bad cameras and bad files, at five severities: to measure on, never to train on.

The kinds are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261) that need nothing but arithmetic; the strengths are our own, chosen
for images of 32 pixels and given in shares of the side where they are lengths, so that accuracies are not comparable with ImageNet-C.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from retinue.data.views import color
from retinue.data.views.base import to_bytes, to_unit
from retinue.data.views.draws import derive, normal, uniform
from retinue.data.views.resampling import GaussianBlur, Resize
from retinue.data.views.warps import inverse_maps, warp
from retinue.errors import ArgumentError, unknown

SEVERITIES = (1, 2, 3, 4, 5)
Floats = Float[Tensor, "batch channels height width"]
Keys = Int64[Tensor, " batch"]

# The quantisation table of luminance of JPEG (ITU T.81, annex K.1), by which the coefficients of 8x8 blocks are divided.
QUANTISATION = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92), (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def gaussian_noise(x: Floats, keys: Keys, strength: float) -> Floats:
    """Add independent normal noise of this standard deviation to every value."""
    return x.add_(normal(keys, math.prod(x.shape[1:])).view(x.shape), alpha=strength)


def shot_noise(x: Floats, keys: Keys, strength: float) -> Floats:
    """Add noise of a standard deviation that grows with the square root of the brightness, as that of few photons."""
    return x.add_(normal(keys, math.prod(x.shape[1:])).view(x.shape) * x.clamp_min(0).sqrt(), alpha=strength)


def impulse_noise(x: Floats, keys: Keys, strength: float) -> Floats:
    """Set this share of the values to black or white."""
    draw = uniform(keys, math.prod(x.shape[1:])).view(x.shape)
    return torch.where(draw < strength / 2, 0.0, torch.where(draw < strength, 1.0, x))


def gaussian_blur(x: Floats, keys: Keys, strength: float) -> Floats:
    """Blur with this standard deviation, in shares of the shorter side."""
    side = min(x.shape[-2:])
    sigma = strength * side
    reach = max(1, min(math.ceil(3 * sigma), side - 1))
    return GaussianBlur(2 * reach + 1, (sigma, sigma), 1.0).blurred(x.clamp(0, 1), torch.full((len(x),), sigma, device=x.device))


def motion_blur(x: Floats, keys: Keys, strength: float) -> Floats:
    """Average along a line of this length, in shares of the shorter side, in a random direction."""
    length = strength * min(x.shape[-2:])
    angle = uniform(keys, 1)[:, 0].double() * math.pi
    steps = max(2, 2 * math.ceil(length) + 1)
    total = torch.zeros_like(x)
    for step in range(steps):
        shift = length * (step / (steps - 1) - 0.5)
        total += _shifted(x, shift * angle.cos(), shift * angle.sin())
    return total.div_(steps)


def contrast(x: Floats, keys: Keys, strength: float) -> Floats:
    """Move every value towards the image's mean, by this share of the way."""
    return color.contrast(x.clamp_(0, 1), torch.full((len(x),), 1 - strength, device=x.device))


def brightness(x: Floats, keys: Keys, strength: float) -> Floats:
    """Add this much to every value."""
    return x.add_(strength)


def darkness(x: Floats, keys: Keys, strength: float) -> Floats:
    """Take this much of every value's light."""
    return x.mul_(1 - strength)


def fog(x: Floats, keys: Keys, strength: float) -> Floats:
    """Lay smooth random clouds of white over the image; at most this share of it is hidden."""
    clouds = torch.zeros(len(x), 1, *x.shape[-2:], device=x.device)
    for octave in range(3):
        side = 2 + 2**octave
        grid = uniform(derive(keys, octave), side * side).view(-1, 1, side, side)
        clouds += F.interpolate(grid, x.shape[-2:], mode="bilinear", align_corners=True) / 2**octave
    hidden = clouds.mul_(strength / 1.75)
    return x.mul_(1 - hidden).add_(hidden)


def pixelate(x: Floats, keys: Keys, strength: float) -> Floats:
    """Shrink each side to 1 - strength, and enlarge again without smoothing."""
    height, width = x.shape[-2:]
    small = (max(1, round(height * (1 - strength))), max(1, round(width * (1 - strength))))
    return Resize((height, width), "nearest")(Resize(small)(x.clamp(0, 1), keys), keys)


def jpeg(x: Floats, keys: Keys, strength: float) -> Floats:
    """Round the cosine coefficients of blocks of 8x8 pixels as JPEG does, each channel with the table of luminance times `strength`."""
    height, width = x.shape[-2:]
    # in double precision, so that no batch size and no library rounds a coefficient to another whole number
    padded = F.pad(x.double().flatten(0, 1)[:, None], (0, -width % 8, 0, -height % 8), mode="replicate")[:, 0] * 255 - 128
    place = torch.arange(8, dtype=torch.float64)
    basis = (((2 * place + 1) * place[:, None]) * math.pi / 16).cos() * 0.5
    basis[0] *= math.sqrt(0.5)
    basis = basis.to(x.device)
    table = (torch.tensor(QUANTISATION, device=x.device) * strength).clamp(1, 255).round()
    blocks = padded.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3)  # (planes, blocks down, blocks across, 8, 8)
    rounded = (basis @ blocks @ basis.T).div_(table).round_().mul_(table)
    back = (basis.T @ rounded @ basis).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return ((back + 128) / 255)[:, :height, :width].reshape(x.shape).float()


def rotation(x: Floats, keys: Keys, strength: float) -> Floats:
    """Turn by this many degrees, to either side; black comes in."""
    sign = torch.where(uniform(keys, 1)[:, 0] < 0.5, -1.0, 1.0).double()
    none = torch.zeros_like(sign)
    return warp(x, inverse_maps((sign * strength).deg2rad(), none, none + 1, none, none), "bilinear", 0.0)


def elastic(x: Floats, keys: Keys, strength: float) -> Floats:
    """Pull the image about like rubber: a random shift of up to this share of the side at each knot of a 4x4 net, smooth between."""
    knots = (uniform(keys, 32).view(-1, 2, 4, 4) * 2 - 1) * (2 * strength)  # grid_sample counts in halves of the image
    pull = F.interpolate(knots, x.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(still, list(x.shape), align_corners=False) + pull
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption, and its strength at each of the five severities."""

    change: Callable[[Floats, Keys, float], Floats]
    strengths: tuple[float, float, float, float, float]


CORRUPTIONS = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": Corruption(shot_noise, (0.06, 0.1, 0.16, 0.24, 0.34)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.03, 0.06, 0.11, 0.18)),
    "gaussian_blur": Corruption(gaussian_blur, (0.012, 0.02, 0.03, 0.045, 0.065)),
    "motion_blur": Corruption(motion_blur, (0.06, 0.1, 0.15, 0.21, 0.3)),
    "contrast": Corruption(contrast, (0.25, 0.4, 0.55, 0.7, 0.85)),
    "brightness": Corruption(brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "darkness": Corruption(darkness, (0.2, 0.4, 0.55, 0.7, 0.82)),
    "fog": Corruption(fog, (0.3, 0.45, 0.6, 0.75, 0.9)),
    "pixelate": Corruption(pixelate, (0.25, 0.4, 0.55, 0.68, 0.8)),
    "jpeg": Corruption(jpeg, (0.6, 1.0, 2.0, 3.5, 5.0)),
    "rotation": Corruption(rotation, (5.0, 10.0, 16.0, 23.0, 32.0)),
    "elastic": Corruption(elastic, (0.02, 0.035, 0.05, 0.07, 0.095)),
}


def corrupt(
    images: UInt8[Tensor, "batch channels height width"], kind: str, severity: int, keys: Keys
) -> UInt8[Tensor, "batch channels height width"]:
    """Corrupt images; row i depends on image i and key i alone.

    Args:
        images: bytes.
        kind: a name of `CORRUPTIONS`.
        severity: 1 (hardly seen) to 5.
        keys: one a row, see `retinue.views.keys`.

    Raises:
        ArgumentError: if there is no such kind or severity.

    >>> corrupt(torch.full((1, 1, 8, 8), 51, dtype=torch.uint8), "brightness", 2, torch.zeros(1, dtype=torch.int64)).unique()
    tensor([102], dtype=torch.uint8)
    """
    if kind not in CORRUPTIONS:
        raise unknown("corrupt", "corruption", kind, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ArgumentError(f"corrupt: `severity` must be a whole number from 1 to 5, got {severity!r}.")
    corruption = CORRUPTIONS[kind]
    shown = corruption.change(to_unit(images), keys, corruption.strengths[severity - 1])
    return to_bytes(shown.clamp(0, 1).mul_(255))


def _shifted(x: Floats, across: Tensor, down: Tensor) -> Floats:
    """Move each image by a fraction of pixels; what comes in repeats the border."""
    still = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    still[:, 0, 2], still[:, 1, 2] = (across * 2 / x.shape[-1]).float(), (down * 2 / x.shape[-2]).float()
    grid = F.affine_grid(still, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
