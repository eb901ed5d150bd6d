"""Elastic deformation (Simard et al. 2003), which PrototypeDL shows every training image of MNIST by."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from retinue.data.views.draws import fresh_keys, uniform
from retinue.errors import ArgumentError

NOISE_BITS, WEIGHT_BITS, BETWEEN_BITS = 16, 15, 20  # small enough that all sums below are whole numbers which float64 holds exactly
Images = UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"]


class Elastic:
    """Shift each pixel by a smooth random field; row i of the result depends on image i and key i alone.

    Args:
        alpha: the field, noise in [-1, 1] smoothed, is scaled by it, to pixels.
        sigma: standard deviation of the Gaussian by which it is smoothed, in pixels.

    Raises:
        ArgumentError: if a number is not positive.

    >>> Elastic(alpha=20, sigma=4)
    Elastic(alpha=20, sigma=4)
    """

    def __init__(self, alpha: float = 20.0, sigma: float = 4.0) -> None:
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if not value > 0:
                raise ArgumentError(f"Elastic: `{name}` must be above 0, got {value}. The paper has alpha 20 and sigma 4, both in pixels.")
        self.alpha, self.sigma = alpha, sigma

    def __repr__(self) -> str:
        return f"Elastic(alpha={self.alpha:g}, sigma={self.sigma:g})"

    def __call__(self, images: Images, keys: Int64[Tensor, " batch"] | None = None) -> Any:
        """Show images, bytes or floats in [0, 1], deformed; bilinear between pixels, reflected at the border."""
        keys = fresh_keys(len(images), images.device) if keys is None else keys.to(images.device)
        return deform(images, self.fields(keys, images.shape[-2], images.shape[-1]))

    def fields(self, keys: Int64[Tensor, " batch"], height: int, width: int) -> Float[Tensor, "batch 2 height width"]:
        """Draw the shifts of all pixels, down and to the right, in pixels."""
        scale = 1 << NOISE_BITS
        noise = 2 * (uniform(keys, 2 * height * width).double() * scale).floor() + 1 - scale  # odd numbers, so that the mean is 0
        rows, columns = (smoothing(length, self.sigma, keys.device) for length in (height, width))
        half = rows @ noise.view(-1, 2, height, width)  # sums of whole numbers: exact in any order, so the same for any batch
        half = (half * 2.0 ** (BETWEEN_BITS - NOISE_BITS - WEIGHT_BITS)).round()
        return (half @ columns * (self.alpha * 2.0 ** (-BETWEEN_BITS - WEIGHT_BITS))).float()


def smoothing(length: int, sigma: float, device: torch.device) -> Float[Tensor, "{length} {length}"]:
    """Return the matrix that smooths a row by a Gaussian, cut off at four sigma, with zeros outside; in whole multiples of 2^-15."""
    reach = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    taps = torch.tensor([round(w / total * (1 << WEIGHT_BITS)) for w in weights] + [0], dtype=torch.float64, device=device)
    place = torch.arange(length, device=device)
    return taps[(place - place[:, None]).abs().clamp_max(reach + 1)]


def deform(images: Images, fields: Float[Tensor, "batch 2 height width"]) -> Any:
    """Take each pixel from where a field says.

    Args:
        images: bytes, or floats in [0, 1].
        fields: shifts down and to the right, in pixels.
    """
    height, width = images.shape[-2:]
    down = torch.arange(height, device=images.device)[:, None] + fields[:, 0]
    across = torch.arange(width, device=images.device) + fields[:, 1]
    grid = torch.stack(((2 * across + 1) / width - 1, (2 * down + 1) / height - 1), -1)  # grid_sample counts in halves of the image
    shown = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return shown.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else shown.to(images.dtype)
