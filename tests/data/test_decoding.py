"""Every kind of image becomes the pixels that a person sees, or is refused by name."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from retinue.data import BadImageError, Preprocessing, decode
from retinue.data.preprocessing import common_size, from_array, moments, peek, resized
from retinue.errors import ArgumentError, ShapeError

RED = (200, 30, 10)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 12, width: int = 8) -> Image.Image:
    values = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def test_rgb_and_grey_are_taken_as_they_are() -> None:
    assert torch.equal(decode(encoded(gradient())), torch.from_numpy(np.array(gradient())).permute(2, 0, 1))
    grey = gradient().convert("L")
    assert torch.equal(decode(encoded(grey)), torch.from_numpy(np.array(grey))[None])


def test_a_jpeg_gives_the_pixels_of_pillow() -> None:
    for image in (gradient(), gradient().convert("L")):
        content = encoded(image, "JPEG")
        expected = np.asarray(Image.open(io.BytesIO(content)))
        expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
        assert np.array_equal(decode(content).numpy(), expected)


def test_16_bits_are_scaled_and_not_cut_off() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(values))).tolist() == [[[0, 1, 128, 255]]]


def test_a_palette_is_looked_up() -> None:
    assert decode(encoded(Image.new("RGB", (2, 1), RED).convert("P", palette=Image.Palette.ADAPTIVE)))[:, 0, 0].tolist() == list(RED)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (1, 1), (*RED, 0))
    half = Image.new("LA", (1, 1), (0, 128))
    assert decode(encoded(clear)).flatten().tolist() == [255, 255, 255]
    assert decode(encoded(half)).tolist() == [[[127]]]
    palette = Image.new("P", (1, 1), 0)
    assert decode(encoded(palette, transparency=0)).flatten().tolist() == [255, 255, 255]


def test_one_bit_and_cmyk_are_converted() -> None:
    assert decode(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255]]]
    assert decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_rotation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # left half white
    turned = decode(encoded(image, kind, exif=exif))
    assert turned.shape == (3, 16, 8)
    assert turned[0, :8].float().mean() > 250
    assert turned[0, 8:].float().mean() < 5
    assert peek(encoded(image, kind, exif=exif)) == ((16, 8), 3)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("white", "black")]
    assert decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0, 0] == 255


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, I am a text", "not an image"),
        (b"", "not an image"),
        (encoded(gradient(200, 200))[:300], "truncated|Truncated|broken"),
        (encoded(gradient(200, 200), "JPEG")[:700], "truncated"),
        (encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"), "32-bit float pixels"),
        (encoded(Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), "TIFF"), "32-bit integer pixels beyond 16 bits"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        decode(content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="no such file"):
        decode(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((1, 2, 2), np.nan), "NaN or infinite"),
        (np.full((1, 2, 2), 3.5), r"float pixels must lie in \[0, 1\], got 3\.5"),
        (np.full((1, 2, 2), -1), "integer pixels must lie in 0 to 255, got -1"),
        (np.zeros((1, 2, 2, 5)), "1, 3 or 4 channels, got 5"),
        (np.zeros((2, 2)), r"must be \(N, H, W\) or \(N, H, W, C\), got \(2, 2\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array: Any, message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        from_array(array)


def test_arrays_of_every_kind() -> None:
    assert from_array(np.array([[[0.0, 1.0]]])).tolist() == [[[[0, 255]]]]
    assert from_array(np.array([[[True, False]]])).tolist() == [[[[255, 0]]]]
    assert from_array(np.array([[[65535]]], dtype=np.uint16)).tolist() == [[[[255]]]]
    assert from_array(np.zeros((5, 4, 3, 3), dtype=np.uint8)).shape == (5, 3, 4, 3)
    assert from_array(np.zeros((5, 3, 7, 9), dtype=np.uint8)).shape == (5, 3, 7, 9)
    assert from_array(np.array([[[[10, 20, 30, 0]]]], dtype=np.uint8)).flatten().tolist() == [255, 255, 255]


def test_crop_stretch_and_pad() -> None:
    image = torch.zeros(1, 4, 8, dtype=torch.uint8)
    image[:, :, 2:6] = 100
    assert resized(image, (4, 4), "crop", "bilinear").unique().tolist() == [100]
    padded = resized(image, (8, 8), "pad", "bilinear")
    assert padded[0, :2].sum() == 0
    assert padded[0, 2:6].max() == 100
    stretched = resized(image, (4, 4), "stretch", "nearest")
    assert stretched[0, 0].tolist() == [0, 100, 100, 0]


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["crop", "stretch", "pad"]))
def test_every_size_becomes_the_size_asked_for(height: int, width: int, resize: str) -> None:
    assert resized(torch.zeros(1, height, width, dtype=torch.uint8), (16, 24), resize, "bicubic").shape == (1, 16, 24)


def test_one_image_and_a_batch_are_resized_alike() -> None:
    batch = torch.randint(0, 256, (3, 3, 9, 13), dtype=torch.uint8)
    one = Preprocessing((16, 16))
    assert torch.equal(one.fit(batch), torch.stack([one.fit(image) for image in batch]))


def test_normalising_by_hand_and_back() -> None:
    one = Preprocessing((1, 1), 3, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
    normal = one.normalize(image)
    assert normal.flatten().tolist() == pytest.approx([1.0, -1.0, 0.2], abs=1e-6)
    assert torch.allclose(one.normalize(image.float() / 255), normal, atol=1e-6)
    assert torch.allclose(one.denormalize(normal), image.float() / 255, atol=1e-6)
    with pytest.raises(ShapeError, match="these images have 1 channels and 3 are expected"):
        one.normalize(torch.zeros(1, 1, 1, 1))


def test_preprocessing_survives_json_and_refuses_what_cannot_be() -> None:
    one = Preprocessing((8, 9), 1, (0.1,), (0.2,), "pad", "bilinear", (10, 12))
    assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    for options, message in [
        ({"channels": 2}, r"`channels` must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ({"resize": "croop"}, r'no `resize` is called "croop"\. Did you mean crop'),
        ({"interpolation": "cubic"}, r"Did you mean bicubic"),
        ({"mean": (0.1, 0.2)}, r"`mean` and `std` need 1 or 3 numbers, got 2 and 1"),
        ({"std": (0.0,)}, r"every `std` must be positive"),
        ({"read_size": (4, 4)}, r"`read_size` \(4, 4\) must not be smaller than `input_size` \(8, 8\)"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            Preprocessing((8, 8), **options)


def test_moments_are_numpys() -> None:
    images = torch.randint(0, 256, (7, 3, 5, 5), dtype=torch.uint8)
    mean, std = moments(images)
    values = images.numpy() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)), abs=5e-5)
    assert std == pytest.approx(values.std((0, 2, 3)), abs=5e-5)
    assert moments(torch.zeros(2, 1, 2, 2, dtype=torch.uint8)) == ((0.0,), (1.0,))


def test_the_common_size() -> None:
    assert common_size([(20, 30)] * 3) == (20, 30)
    assert common_size([(100, 200), (150, 120), (500, 600)]) == (128, 128)
    assert common_size([(1000, 2000), (3000, 2000)]) == (224, 224)
    assert common_size([(10, 20), (12, 12)]) == (11, 11)


def test_more_room_for_crops_is_cut_away_in_the_centre() -> None:
    one = Preprocessing((4, 4), 1, read_size=(8, 8))
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 2:6, 2:6] = 9
    assert one.centre(image).unique().tolist() == [9]
    assert isinstance(one.read(np.zeros((20, 20), dtype=np.uint8)), Tensor)
    assert one.read(np.zeros((20, 20), dtype=np.uint8)).shape == (1, 8, 8)
