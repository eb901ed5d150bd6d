"""Corruptions: worked values, laws that all of them obey, JPEG beside Pillow's, and what is refused."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retinue.data import views
from retinue.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from retinue.errors import ArgumentError


def pictures(count: int, side: int = 32, channels: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=random)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0.02, 0.98).mul(255).byte()


def keys_of(count: int, seed: int = 0) -> torch.Tensor:
    return views.keys(seed, 0, torch.arange(count))


def plain(value: int, side: int = 16) -> torch.Tensor:
    return torch.full((4, 3, side, side), value, dtype=torch.uint8)


def test_light_is_added_taken_and_drawn_together() -> None:
    assert corrupt(plain(51), "brightness", 3, keys_of(4)).unique().tolist() == [128]  # 51 + 0.3 * 255 = 127.5, to even
    assert corrupt(plain(250), "brightness", 5, keys_of(4)).unique().tolist() == [255]
    assert corrupt(plain(200), "darkness", 2, keys_of(4)).unique().tolist() == [120]  # 60 percent are left
    halves = torch.cat((plain(0, 8), plain(200, 8)), 3)
    assert corrupt(halves, "contrast", 2, keys_of(4)).unique().tolist() == [40, 160]  # 0.4 of the way to the mean, 100


def test_noise_has_its_standard_deviation() -> None:
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    for severity, sigma in zip(SEVERITIES[:3], CORRUPTIONS["gaussian_noise"].strengths):
        noise = corrupt(grey, "gaussian_noise", severity, keys_of(8)).float() / 255 - 128 / 255
        assert noise.std().item() == pytest.approx(sigma, rel=0.02)
        assert noise.mean().item() == pytest.approx(0, abs=0.002)
    shot = corrupt(grey, "shot_noise", 2, keys_of(8)).float() / 255
    assert shot.std().item() == pytest.approx(0.1 * (128 / 255) ** 0.5, rel=0.02)
    struck = corrupt(grey, "impulse_noise", 5, keys_of(8))
    assert struck.unique().tolist() == [0, 128, 255]
    for value in (0, 255):
        assert (struck == value).float().mean().item() == pytest.approx(0.09, abs=0.004)


def test_pixelate_makes_blocks() -> None:
    shown = corrupt(pictures(2), "pixelate", 5, keys_of(2))  # 32 px to 6 and back
    assert (shown[..., 1:, :] != shown[..., :-1, :]).any(-1).sum(-1).max() <= 5
    assert (shown[..., 1:] != shown[..., :-1]).any(-2).sum(-1).max() <= 5


def test_jpeg_at_strength_one_is_that_of_pillow_at_quality_50() -> None:
    images = pictures(40, channels=1)
    ours = corrupt(images, "jpeg", 2, keys_of(40))  # strength 1: the table as the standard has it
    theirs = []
    for image in images[:, 0]:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=50)
        theirs.append(torch.from_numpy(np.array(Image.open(file))))
    off = (ours[:, 0].float() - torch.stack(theirs)).abs()
    assert off.mean() < 0.25  # with the table turned over it is 2
    assert (off > 1).float().mean() < 0.08  # libjpeg's cosines are whole numbers: a coefficient may round the other way


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_row_depends_on_its_image_and_key_alone(kind: str) -> None:
    images, keys = pictures(9), keys_of(9)
    for severity in (1, 4):
        shown = corrupt(images, kind, severity, keys)
        assert shown.dtype == torch.uint8
        assert shown.shape == images.shape
        assert torch.equal(shown, corrupt(images, kind, severity, keys))
        some = torch.tensor([6, 2, 2])
        assert torch.equal(corrupt(images[some], kind, severity, keys[some]), shown[some])
    assert torch.equal(images, pictures(9))  # nothing was changed in place


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_harms_more_than_the_one_below(kind: str) -> None:
    images, keys = pictures(24), keys_of(24)
    harm = [(corrupt(images, kind, severity, keys).float() - images.float()).abs().mean().item() for severity in SEVERITIES]
    assert harm == sorted(harm)
    assert harm[0] > 0.2
    assert harm[-1] > 2 * harm[0]


@given(kind=st.sampled_from(sorted(CORRUPTIONS)), height=st.integers(7, 20), width=st.integers(7, 20), channels=st.sampled_from([1, 3]))
def test_any_size_comes_back_as_it_was(kind: str, height: int, width: int, channels: int) -> None:
    images = torch.randint(0, 256, (2, channels, height, width), dtype=torch.uint8)
    assert corrupt(images, kind, 5, keys_of(2)).shape == images.shape


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r'corrupt: no corruption is called "gausian_noise"\. Did you mean gaussian_noise'):
        corrupt(plain(0), "gausian_noise", 1, keys_of(4))
    with pytest.raises(ArgumentError, match=r"corrupt: `severity` must be a whole number from 1 to 5, got 6"):
        corrupt(plain(0), "fog", 6, keys_of(4))
