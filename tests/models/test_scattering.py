"""The scattering transform: the exact checks of its page, kymatio's numbers, laws, and what it refuses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support import images
from torch import Tensor
from torch.testing import assert_close

from retinue.errors import ArgumentError, ShapeError
from retinue.models.scattering import Scattering2d, scattering_channels

SMALL = Scattering2d(2, 3, (13, 18))
PAGE = Scattering2d(2, 8, (32, 32))


def square(shift: int = 0) -> Tensor:
    """Draw the page's white square of 12x12 px on 32x32."""
    image = torch.zeros(1, 1, 32, 32)
    image[..., 8:20, 10 + shift : 22 + shift] = 1
    return image


def spot(seed: int) -> Tensor:
    """Draw a smooth pattern with empty borders."""
    return F.pad(F.avg_pool2d(images(1, 1, 16, 16, seed=seed), 3, 1, 1), (8, 8, 8, 8))


def wave(height: int, width: int) -> Tensor:
    rows, columns = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    return (torch.cos(0.9 * rows + 0.4 * columns) + 0.5 * torch.sin(0.02 * rows * columns)).float()[None, None]


@pytest.mark.parametrize(("J", "L", "channels"), [(1, 8, 9), (2, 4, 25), (2, 8, 81), (2, 16, 289), (3, 8, 217)])
def test_the_numbers_of_coefficients_of_the_page(J: int, L: int, channels: int) -> None:
    assert scattering_channels(J, L) == channels
    side = 32 // 2**J
    assert Scattering2d(J, L, (32, 32))(torch.zeros(1, 1, 32, 32)).shape == (1, channels, side, side)


def test_the_sizes_of_the_maps_of_the_page() -> None:
    assert Scattering2d(2, 2, (28, 28))(torch.zeros(2, 3, 28, 28)).shape == (2, 27, 7, 7)
    assert Scattering2d(2, 2, (96, 96))(torch.zeros(1, 1, 96, 96)).shape == (1, 9, 24, 24)
    assert Scattering2d(2, 2, (33, 30))(torch.zeros(1, 1, 33, 30)).shape == (1, 9, 8, 7)
    assert PAGE(torch.zeros(0, 3, 32, 32)).shape == (0, 243, 8, 8)


def test_ones_are_their_own_average_and_nothing_else() -> None:
    maps = PAGE(torch.ones(1, 1, 32, 32))[0]
    assert_close(maps[0], torch.full((8, 8), 1.00003), rtol=0, atol=2e-6)  # kymatio's pi is 3.1415
    assert maps[1:].abs().max() < 1e-6


def test_the_square_of_the_page() -> None:
    maps = PAGE(square())[0].double()
    sums = [float(maps[part].sum()) for part in (slice(0, 1), slice(1, 17), slice(17, 81))]
    assert sums == pytest.approx([9.000265, 16.622021, 12.263164], abs=2e-5)  # sums of a thousand float32
    assert maps[[0, 1, 2, 17, 18], 4, 4].tolist() == pytest.approx([0.986693, 0.005703, 0.009619, 0.003760, 0.003787], abs=1e-6)


def test_a_shift_by_a_cell_shifts_the_maps_by_one_and_a_smaller_one_changes_little() -> None:
    here, there = PAGE(square())[0], PAGE(square(4))[0]
    assert_close(here[..., :, 1:-2], there[..., :, 2:-1], rtol=0, atol=1e-6)
    near = PAGE(square(1))[0]
    assert float((near - here).norm() / here.norm()) == pytest.approx(0.169, abs=5e-4)
    assert float((square(1) - square()).norm() / square().norm()) == pytest.approx(0.408, abs=5e-4)


def test_a_quarter_turn_shifts_the_angles_by_half_of_them() -> None:
    image = spot(0)
    here, turned = (PAGE(x)[0].double().mean((1, 2)) for x in (image, torch.rot90(image, 1, (2, 3))))
    first, again = here[1:17].view(2, 8), turned[1:17].view(2, 8)
    assert float((first.roll(4, 1) / again - 1).abs().max()) < 0.02
    second, later = here[17:].view(8, 8), turned[17:].view(8, 8)
    assert float((second.roll((4, 4), (0, 1)) / later - 1).abs().max()) < 0.02
    assert float((second / later - 1).abs().max()) > 0.1, "without the shift they differ"


def test_noise_loses_energy() -> None:
    noise = images(16, 1, 32, 32)
    energy = 4**2 * PAGE(noise).square().sum() / noise.square().sum()
    assert float(energy) == pytest.approx(0.52, abs=0.03)


@pytest.mark.parametrize(
    ("J", "L", "height", "width", "expected"),
    [  # of kymatio 0.3.0: sum of all, sum of S0, three single numbers, and the sum weighted with the number of the map
        (2, 3, 13, 18, (16.1620817, 2.7138388, 0.150025, 0.1944831, 0.007593, 75.2609754)),
        (3, 4, 24, 17, (14.9686646, 1.0491634, 0.0111706, 0.1852645, 0.0033243, 208.4097717)),
        (1, 8, 8, 8, (14.0039317, 1.4056854, 0.1386443, 0.0752626, 0.0307549, 62.6774958)),
        (2, 5, 4, 9, (2.9333229, -0.5249395, 0.018993, 0.1162891, 0.0062147, 32.5377795)),
    ],
)
def test_kymatios_numbers(J: int, L: int, height: int, width: int, expected: tuple[float, ...]) -> None:
    maps = Scattering2d(J, L, (height, width))(wave(height, width))[0].double()
    count = torch.arange(1, len(maps) + 1)[:, None, None]
    found = maps.sum(), maps[0].sum(), maps[len(maps) // 3, 0, 0], maps[1, -1, -1], maps[-1, 0, -1], (maps * count).sum()
    assert list(map(float, found)) == pytest.approx(list(expected), rel=1e-5, abs=1e-6)


def test_it_is_what_the_formula_says() -> None:
    """One scale and two angles, by sums over pixels with the filters written down once more."""
    size, padded = 8, 12  # a multiple of 2, and 2 on each side
    image = images(1, 1, size, size).double()
    wide = F.pad(image, (2, 2, 2, 2), mode="reflect")[0, 0]
    span = torch.arange(-24, 25, dtype=torch.float64)
    y, x, wrap = span[:, None], span, span.long() % padded
    apart = (torch.arange(padded)[:, None] - torch.arange(padded)) % padded

    def convolved(signal: Tensor, kernel: Tensor) -> Tensor:
        periodic = torch.zeros(padded, padded, dtype=kernel.dtype).index_put((wrap[:, None], wrap), kernel, accumulate=True)
        matrix = periodic[apart[:, None, :, None], apart[None, :, None, :]]  # from each place to each place
        return torch.einsum("abcd,cd->ab", matrix, signal.to(kernel.dtype))

    def bell(along: Tensor, across: Tensor, slant: float) -> Tensor:
        return torch.exp(-(along**2 + slant**2 * across**2) / (2 * 0.8**2)) / (2 * 3.1415 * 0.8**2 / slant)

    expected = [convolved(wide, bell(y, x, 1.0))]
    for angle in (0.0, -math.pi / 2):
        along, across = y * math.cos(angle) + x * math.sin(angle), x * math.cos(angle) - y * math.sin(angle)
        envelope = bell(along, across, 2.0)
        wave = envelope * torch.exp(1j * 0.75 * math.pi * along)
        morlet = wave - wave.sum() / envelope.sum() * envelope
        expected.append(convolved(convolved(wide, morlet).abs(), bell(y, x, 1.0)))
    own = Scattering2d(1, 2, (size, size)).double()(image)[0]
    assert_close(own, torch.stack(expected)[:, 2:-2:2, 2:-2:2], rtol=0, atol=1e-6)  # filters are kept in float32


def test_digits_are_told_apart_better_than_by_their_pixels() -> None:
    """The page's check without learning of features: logistic regression, 100 labels a class."""
    digits = load_digits()
    pixels = F.interpolate(torch.from_numpy(digits.images)[:, None].float() / 16, scale_factor=2, mode="bilinear")
    coefficients = Scattering2d(2, 8, (16, 16))(pixels)
    few = np.concatenate([np.flatnonzero(digits.target == label)[:100] for label in range(10)])
    others = np.setdiff1d(np.arange(len(pixels)), few)
    scores = []
    for kept in (pixels, coefficients):
        x = kept.flatten(1).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(x[few], digits.target[few])
        scores.append(model.score(x[others], digits.target[others]))
    assert scores[1] > scores[0] + 0.01


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), factor=st.floats(0.1, 10))
def test_scale_sign_and_order(seed: int, factor: float) -> None:
    x = images(2, 2, 13, 18, seed=seed)
    maps, negative = SMALL(x), SMALL(-x)
    zero = [0, 16]  # the first map of each channel
    rest = [i for i in range(32) if i not in zero]
    assert (maps[:, rest] >= 0).all() or maps[:, rest].min() > -1e-6  # averages of moduli, in float32
    assert_close(SMALL(factor * x), factor * maps, rtol=1e-4, atol=1e-5)
    assert_close(negative[:, rest], maps[:, rest], rtol=0, atol=1e-6)
    assert_close(negative[:, zero], -maps[:, zero], rtol=0, atol=1e-6)


def test_channels_stand_outside_and_images_do_not_meet() -> None:
    x = images(3, 2, 13, 18)
    maps = SMALL(x)
    for image in range(3):
        for channel in range(2):
            alone = SMALL(x[image : image + 1, channel : channel + 1])[0]
            assert_close(maps[image, 16 * channel : 16 * channel + 16], alone, rtol=0, atol=1e-6)


def test_large_batches_are_computed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(5, 2, 13, 18)
    expected = SMALL(x)
    monkeypatch.setattr("retinue.models.scattering.ROOM", {"cpu": 1, "cuda": 1})
    assert_close(SMALL(x), expected, rtol=0, atol=1e-6)


def test_fewer_orders_are_the_first_maps() -> None:
    x = images(2, 1, 13, 18)
    for order, count in ((0, 1), (1, 7), (2, 16)):
        assert scattering_channels(2, 3, order) == count
        assert_close(Scattering2d(2, 3, (13, 18), max_order=order)(x), SMALL(x)[:, :count])


def test_borders_of_ones_own() -> None:
    transform = Scattering2d(2, 3, (12, 12), pre_pad=True)
    assert transform.padded == (20, 20)
    x = images(1, 1, 12, 12)
    assert_close(transform(F.pad(x, (4, 4, 4, 4), mode="reflect")), Scattering2d(2, 3, (12, 12))(x))


def test_nothing_is_learned_or_saved_and_gradients_pass_to_the_images() -> None:
    assert not list(SMALL.parameters())
    assert not SMALL.state_dict()
    x = images(1, 1, 13, 18)
    assert not SMALL(x).requires_grad
    small = Scattering2d(1, 2, (4, 4)).double()
    assert torch.autograd.gradcheck(small, images(1, 1, 4, 4).double().requires_grad_())
    zeros = torch.zeros(1, 1, 13, 18, requires_grad=True)
    SMALL(zeros).sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()


def test_precisions() -> None:
    x = images(2, 1, 13, 18)
    exact = SMALL(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SMALL(x), exact), "it does not take part in mixed precision"
    assert_close(Scattering2d(2, 3, (13, 18)).double()(x.double()).float(), exact, rtol=0, atol=1e-6)
    half = Scattering2d(2, 3, (13, 18)).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), exact, rtol=0, atol=0.05)  # 8 bits of image and filters


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"J": 0}, ArgumentError, r"scattering: `J` must be a whole number of at least 1, got 0\. Usual are J=2 scales and L=8 angles\."),
        ({"L": 0}, ArgumentError, r"scattering: `L` must be a whole number of at least 1, got 0"),
        ({"J": 1.5}, ArgumentError, r"scattering: `J` must be a whole number of at least 1, got 1\.5"),
        ({"max_order": 3}, ArgumentError, r"scattering: `max_order` must be 0, 1 or 2, got 3"),
        (
            {"shape": (3, 8)},
            ShapeError,
            r"images of 3x8 px are smaller than the features of 2\^J = 4 px\. Take fewer scales",
        ),
    ],
)
def test_transforms_that_cannot_be_are_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Scattering2d(**{"J": 2, "L": 2, "shape": (8, 8), **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(1, 1, 16, 18),
            r"built for images of 13x18 px in batches \(batch, channels, height, width\), got \(1, 1, 16, 18\)",
        ),
        (torch.zeros(13, 18), r"in batches \(batch, channels, height, width\), got \(13, 18\)"),
        (torch.zeros(1, 1, 13, 18, dtype=torch.uint8), r"images must be floats, got torch\.uint8\. Normalise them first: preprocessing\."),
        (torch.zeros(1, 1, 13, 18, dtype=torch.complex64), r"images must be floats, got torch\.complex64"),
    ],
)
def test_images_that_cannot_be_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        SMALL(x)
