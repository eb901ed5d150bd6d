"""The scattering transform: a fixed first layer, of wavelets, moduli and averages, in which nothing is learned.

S0 = x * phi, S1 = |x * psi_1| * phi, S2 = ||x * psi_1| * psi_2| * phi for a second wavelet of a larger scale than the first (Bruna and
Mallat 2013, arXiv 1203.1513, section 2; Kinakh et al. 2021, arXiv 2108.13939). The constants of the wavelets are kymatio's.
"""

import math
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError

Filter = NDArray[np.float64]
SIGMA = 0.8  # standard deviation of a wavelet's envelope at scale 0, in pixels; it doubles with each scale, ...
XI = 0.75 * math.pi  # ... and the frequency halves
PI = 3.1415  # as kymatio has it in the filters' norms, so that the average of ones is 1.00003
REACH = 9  # standard deviations, behind which nothing of a Gaussian is left
ROOM = {"cpu": 1 << 19, "cuda": 1 << 25}  # complex numbers that are held at once: a core's cache, and a quarter GiB


def scattering_channels(J: int, L: int, max_order: int = 2) -> int:
    """Count the coefficients at each place: K = 1 + J L + L^2 J (J - 1) / 2.

    >>> scattering_channels(2, 8), scattering_channels(2, 16), scattering_channels(3, 8)
    (81, 289, 217)
    """
    return 1 + (J * L if max_order > 0 else 0) + (L * L * J * (J - 1) // 2 if max_order > 1 else 0)


class Scattering2d(nn.Module):
    """Scatter each channel of a batch of images; the maps are 2^J times smaller.

    For each channel of the images there are K maps, in this order: S0; S1 with the scale outside and the angle inside; S2 with scale and
    angle of the first wavelet outside, those of the second inside. Borders are reflected. Gradients pass to the images, where asked for.

    Args:
        J: scales, 1 or more: features of 2^J pixels.
        L: angles, evenly over half a turn.
        shape: height and width of the images, 2^J at least.
        max_order: 2; 1 leaves out S2, 0 also S1.
        pre_pad: the images come with their borders, `padded` px; else they are reflected here.

    Raises:
        ArgumentError: if J, L or the order cannot be.
        ShapeError: if a side of the images is less than 2^J.

    >>> Scattering2d(J=2, L=8, shape=(32, 32))(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 243, 8, 8])
    """

    rows_0: Tensor
    columns_0: Tensor
    source_rows: Tensor
    source_columns: Tensor

    def __init__(self, J: int, L: int, shape: tuple[int, int], max_order: int = 2, pre_pad: bool = False) -> None:
        super().__init__()
        _check(J, L, shape, max_order)
        self.J, self.L, self.shape, self.max_order, self.pre_pad = J, L, (shape[0], shape[1]), max_order, pre_pad
        self.channels = scattering_channels(J, L, max_order)
        step = 1 << J
        height, width = (((side + step) // step + 1) * step for side in self.shape)
        self.padded = (height, width)
        device = torch.get_default_device()
        for name, values in filters(J, L, *self.padded).items():  # not saved: they follow from the arguments
            self.register_buffer(name, torch.from_numpy(values).to(device, torch.get_default_dtype()), persistent=False)
        for name, side, padded in zip(("source_rows", "source_columns"), self.shape, self.padded):
            self.register_buffer(name, torch.from_numpy(_reflected(side, padded)).to(device), persistent=False)
        self._largest = math.prod(self.padded) * (L * L if J > 1 and max_order > 1 else L)  # numbers of one image at once

    def extra_repr(self) -> str:
        """Return the arguments as text."""
        return f"J={self.J}, L={self.L}, shape={self.shape}, max_order={self.max_order}"

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch coefficients mapheight mapwidth"]:
        """Compute the maps, for the channels one after the other.

        Raises:
            ShapeError: if the images have another size, or are no floats.
        """
        expected = self.padded if self.pre_pad else self.shape
        if x.ndim != 4 or tuple(x.shape[2:]) != expected:
            raise ShapeError(
                f"scattering: the transform was built for images of {expected[0]}x{expected[1]} px in batches (batch, channels, height, "
                f"width), got {tuple(x.shape)}. Resize them, or build it for their size: shape=(height, width)."
            )
        if not x.is_floating_point():
            raise ShapeError(f"scattering: images must be floats, got {x.dtype}. Normalise them first: preprocessing.normalize(images).")
        kept = self.rows_0.dtype
        kind = kept if kept == torch.float64 else torch.float32  # sixteen bits are too few for a Fourier transform
        planes, device = x.flatten(0, 1).to(kind), x.device.type
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            parts: tuple[Tensor, ...] = (planes,)  # a program must not hold the length of a batch
        else:
            parts = planes.split(max(1, ROOM.get(device, ROOM["cuda"]) // self._largest))
            if not len(planes):  # the Fourier transform of nothing is an error
                return x.new_empty(len(x), x.shape[1] * self.channels, len(self.rows_0), self.columns_0.shape[1], dtype=kept)
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            maps = torch.cat([self._scatter(part) for part in parts])
        return maps.unflatten(0, x.shape[:2]).flatten(1, 2).to(kept)

    def _scatter(self, x: Float[Tensor, "planes height width"]) -> Float[Tensor, "planes coefficients mapheight mapwidth"]:
        if not self.pre_pad:
            x = x.index_select(1, self.source_rows).index_select(2, self.source_columns)
        zero, first, second = [self._average(x, 0)[:, None]], [], []
        spectrum = _spectrum(x)[:, None] if self.max_order else x
        for j1 in range(self.J if self.max_order else 0):
            u1 = self._wavelets(spectrum, j1, 0)
            first.append(self._average(u1, j1))
            if self.max_order > 1 and j1 < self.J - 1:
                inner = _spectrum(u1)[:, :, None]
                larger = [self._average(self._wavelets(inner, j2, j1), j2) for j2 in range(j1 + 1, self.J)]
                second.append(torch.cat(larger, 2).flatten(1, 2))
        return torch.cat(zero + first + second, 1)

    def _wavelets(self, spectrum: Tensor, j: int, res: int) -> Tensor:
        """Compute |x * psi_{j, theta}| for all angles, at every 2^(j - res)th place of each side; the spectrum is at every 2^res-th."""
        psi = self.get_buffer(f"psi_{j}_{res}").to(spectrum.dtype)
        folds = 1 << (j - res)
        height, width = psi.shape[1] // folds, psi.shape[2] // folds
        # taking every second value is adding the halves of a spectrum
        blocks = [(slice(a * height, (a + 1) * height), slice(b * width, (b + 1) * width)) for a in range(folds) for b in range(folds)]
        rows, columns = blocks[0]
        folded = spectrum[..., rows, columns] * psi[:, rows, columns]
        for rows, columns in blocks[1:]:
            folded = torch.addcmul(folded, spectrum[..., rows, columns], psi[:, rows, columns])
        return torch.fft.ifft2(torch.view_as_complex(folded.unflatten(-1, (-1, 2)))).abs()

    def _average(self, u: Tensor, j: int) -> Tensor:
        """Compute u * phi at every 2^(J - j)th place, without the borders; phi is a product, so this is one matrix for each side."""
        rows, columns = (self.get_buffer(f"{side}_{j}").to(u.dtype) for side in ("rows", "columns"))
        return rows @ u @ columns


def _spectrum(x: Tensor) -> Tensor:
    """Compute the Fourier transform of maps, real and imaginary parts in turn along the rows."""
    return torch.view_as_real(torch.fft.fft2(x)).flatten(-2)


@lru_cache(maxsize=16)
def filters(J: int, L: int, height: int, width: int) -> dict[str, Filter]:
    """Compute the spectra of the wavelets and the matrices of the averages.

    Args:
        J: scales.
        L: angles.
        height: of the padded images; a multiple of 2^J.
        width: of the padded images.

    Returns:
        "psi_j_r", the (L, height / 2^r, 2 width / 2^r) spectra of the wavelets of scale j for maps at every 2^r-th place, each number
        twice, to meet both parts of a complex one, divided by the 4^(j - r) values that are added up where the result is at every 2^j-th;
        and "rows_j" and "columns_j", the matrices which average maps at every 2^j-th place from the left and from the right.
    """
    found: dict[str, Filter] = {}
    for j in range(J):
        spectra = np.stack([_wavelet(height, width, j, theta, L) for theta in range(L)])
        for res in range(max(j, 1)):  # images, and the maps of smaller wavelets
            found[f"psi_{j}_{res}"] = _coarser(_coarser(spectra, res, 1), res, 2).repeat(2, 2) / 4 ** (j - res)
        found[f"rows_{j}"], found[f"columns_{j}"] = _averages(height, J, j), _averages(width, J, j).T.copy()
    return found


def _wavelet(height: int, width: int, j: int, theta: int, L: int) -> Filter:
    """Compute the spectrum of one Morlet wavelet: g (e^(i xi u) - beta), where beta makes the mean zero."""
    sigma, slant, angle = SIGMA * 2**j, 4 / L, (int(L - L / 2 - 1) - theta) * math.pi / L
    reach = REACH * sigma * max(1, 1 / slant)
    periods = range(-2, 3) if reach > min(height, width) else range(-1, 1)
    y, x = (np.arange(periods.start * side, periods.stop * side) for side in (height, width))
    along = y[:, None] * math.cos(angle) + x * math.sin(angle)
    across = x * math.cos(angle) - y[:, None] * math.sin(angle)
    envelope = np.exp(-(along**2 + slant**2 * across**2) / (2 * sigma**2)) / (2 * PI * sigma**2 / slant)

    def periodic(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(len(periods), height, len(periods), width).sum((0, 2))

    wave, gaussian = periodic(envelope * np.exp(1j * XI / 2**j * along)), periodic(envelope)
    return np.fft.fft2(wave - wave.sum() / gaussian.sum() * gaussian).real


def _averages(side: int, J: int, j: int) -> Filter:
    """Compute the matrix that averages one side at every 2^j-th place, and takes every 2^(J - j)th but the first and the last."""
    sigma = SIGMA * 2 ** (J - 1)
    x = np.arange(-2 * side, 3 * side)
    gaussian = np.exp(-(x**2) / (2 * sigma**2)).reshape(5, side).sum(0) / (math.sqrt(2 * PI) * sigma)
    kernel = np.fft.ifft(_coarser(np.fft.fft(gaussian).real, j, 0)).real
    places = np.arange(1, side // 2**J - 1) * 2 ** (J - j)
    return kernel[(places[:, None] - np.arange(len(kernel))) % len(kernel)]


def _coarser(spectrum: Filter, res: int, axis: int) -> Filter:
    """Cut a spectrum along one axis to the frequencies that are left at every 2^res-th place."""
    half = spectrum.shape[axis] >> (res + 1)
    if not res:
        return spectrum
    return np.concatenate([np.take(spectrum, range(half), axis), np.take(spectrum, range(-half, 0), axis)], axis)


def _reflected(side: int, padded: int) -> NDArray[np.int64]:
    """Tell where the pixels of a padded side come from: reflected at its ends, which are not repeated."""
    before = (padded - side) // 2
    places = np.arange(-before, padded - before) % (2 * side - 2)
    return np.minimum(places, 2 * side - 2 - places)


def _check(J: int, L: int, shape: tuple[int, int], max_order: int) -> None:
    for name, value, least in (("J", J, 1), ("L", L, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(
                f"scattering: `{name}` must be a whole number of at least {least}, got {value!r}. Usual are J=2 scales and L=8 angles."
            )
    if max_order not in (0, 1, 2):
        raise ArgumentError(f"scattering: `max_order` must be 0, 1 or 2, got {max_order!r}. The network takes 2.")
    if min(shape) < 2**J:
        raise ShapeError(
            f"scattering: images of {shape[0]}x{shape[1]} px are smaller than the features of 2^J = {2**J} px. "
            "Take fewer scales: a smaller `J`."
        )
