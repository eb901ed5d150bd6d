"""Operations on the colours of images in [0, 1]: each changes `x` in place, by one factor a row."""

import torch
from jaxtyping import Float
from torch import Tensor

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # torchvision's rounding of ITU-R 601
STEPS = 1 << 22  # means are taken of whole multiples of 1 / STEPS, whose sum in float64 is exact in any order

Floats = Float[Tensor, "batch channels height width"]
Factor = Float[Tensor, " batch"]


def luma(x: Floats) -> Float[Tensor, "batch 1 height width"]:
    """Compute the brightness of each pixel: weighted for three channels, the plain mean for any other number of them."""
    if x.shape[1] == 3:
        return (x[:, 0:1] * RED).add_(x[:, 1:2] * GREEN).add_(x[:, 2:3] * BLUE)
    total = x[:, 0:1].clone()
    for channel in range(1, x.shape[1]):
        total.add_(x[:, channel : channel + 1])
    return total.div_(x.shape[1])


def brightness(x: Floats, factor: Factor) -> Floats:
    """Multiply by the factor."""
    return x.mul_(factor[:, None, None, None]).clamp_(0, 1)


def contrast(x: Floats, factor: Factor) -> Floats:
    """Move away from the image's mean brightness (factor above 1) or towards it."""
    factor = factor[:, None, None, None]
    steps = luma(x).mul_(STEPS).round_().sum((1, 2, 3), keepdim=True, dtype=torch.float64)
    mean = (steps / (STEPS * x.shape[-2] * x.shape[-1])).float()
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation(x: Floats, factor: Factor) -> Floats:
    """Move away from grey (factor above 1) or towards it; changes nothing where there are not three channels."""
    if x.shape[1] != 3:
        return x
    factor = factor[:, None, None, None]
    grey = luma(x).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, 1)


def hue(x: Floats, turn: Factor) -> Floats:
    """Turn the hue by `turn`, a share of the full circle; changes nothing where there are not three channels.

    With V and m the largest and smallest channel and C = V - m, the hue H in sixths of the circle, in -3 .. 3 with red at 0, has the
    magnitude (V - m + g + b - r - m) / C and the sign of g - b. Back again, a channel whose own hue lies at distance d on the circle is
    m + C clip(2 - d, 0, 1), and d = 3 - ||H - own| - 3|. So there is no case for each sixth, only plain arithmetic on whole planes.
    """
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)
    high = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    angle = (green + blue).sub_(red).add_(high).sub_(low).sub_(low)
    chroma = high.sub_(low)
    angle.div_(chroma.clamp_min(1e-12)).copysign_(green - blue)
    shift = 6 * turn[:, None] - torch.tensor([0.0, 2.0, -2.0], device=x.device)
    shift = shift - 6 * (shift / 6).round()  # so that |H - own| is at most 6
    torch.add(angle[:, None], shift[:, :, None, None], out=x)
    x.abs_().sub_(3).abs_().clamp_(1, 2).mul_(chroma[:, None])
    return x.add_(low.sub_(chroma)[:, None])


def sharpness(x: Floats, factor: Factor) -> Floats:
    """Move away from a smoothed copy (factor above 1) or towards it; the border stays, and so do images of less than three pixels."""
    if min(x.shape[-2:]) < 3:
        return x
    inner = x[..., 1:-1, 1:-1]
    rows = x[..., :-2, :] + x[..., 1:-1, :]
    rows.add_(x[..., 2:, :])
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth.add_(rows[..., 2:]).add_(inner * 4).div_(13)
    factor = factor[:, None, None, None]
    inner.mul_(factor).add_(smooth.mul_(1 - factor))
    return x.clamp_(0, 1)


def autocontrast(x: Floats) -> Floats:
    """Stretch each channel to 0 .. 1; a constant channel stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high == low
    return x.sub_(low * ~flat).div_(torch.where(flat, 1.0, high - low))
