"""Views of colour, and the policies drawn from many operations: each beside torchvision with the same parameters."""

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode

from retinue import views
from retinue.data.views import auto, color
from retinue.errors import ArgumentError

PEERS = {"brightness": TF.adjust_brightness, "contrast": TF.adjust_contrast, "saturation": TF.adjust_saturation, "hue": TF.adjust_hue}
STEP = 1.001 / 255


def pictures(count: int, channels: int = 3, side: int = 16) -> Tensor:
    """Draw images with flat, grey, black and white parts among the random ones."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    images[0, :, :4] = images[0, :1, :4]
    images[0, :, 4], images[0, :, 5] = 0, 255
    images[1] = torch.tensor([200, 30, 30])[:channels, None, None] if channels <= 3 else 9
    return images


def keys(count: int, seed: int = 0) -> Tensor:
    return views.keys(seed, 0, torch.arange(count))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
@given(factor=st.floats(0, 3, width=32))
def test_a_factor_does_what_torchvisions_does(name: str, factor: float) -> None:
    images = pictures(3) / 255
    peer = {**PEERS, "sharpness": TF.adjust_sharpness}[name]
    ours = getattr(color, name)(images.clone(), torch.full((3,), factor))
    expected = torch.stack([peer(image, factor) for image in images])
    assert (ours - expected).abs().max() < 3e-6  # float32, values up to 3


@given(turn=st.floats(-0.5, 0.5, width=32))
def test_a_turn_of_hue_is_torchvisions(turn: float) -> None:
    images = pictures(4) / 255
    assert (color.hue(images.clone(), torch.full((4,), turn)) - TF.adjust_hue(images, turn)).abs().max() < 1e-5  # theirs divides more often


def test_hue_by_hand() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    for turn, expected in ((1 / 3, [0, 1, 0]), (-1 / 3, [0, 0, 1]), (1 / 6, [1, 1, 0]), (0.5, [0, 1, 1]), (1 / 12, [1, 0.5, 0])):
        assert color.hue(red.clone(), torch.tensor([turn])).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    grey = torch.full((1, 3, 1, 1), 0.3)
    assert torch.equal(color.hue(grey.clone(), torch.tensor([0.2])), grey)


def test_contrast_and_saturation_of_zero_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]).view(1, 3, 1, 2)
    bright = [0.2989 + 0.587 * 0.5, 0.587 * 0.5 + 0.114]
    assert color.saturation(image.clone(), torch.zeros(1)).flatten().tolist() == pytest.approx(bright * 3, abs=1e-6)
    assert color.contrast(image.clone(), torch.zeros(1)).flatten().tolist() == pytest.approx([sum(bright) / 2] * 6, abs=1e-6)


def test_jitter_with_fixed_factors_is_torchvisions_chain() -> None:
    images = pictures(5)
    shown = views.ColorJitter((1.3, 1.3), (0.7, 0.7), (1.5, 1.5), (0.1, 0.1))(images)
    x = images / 255
    for name, factor in (("brightness", 1.3), ("contrast", 0.7), ("saturation", 1.5), ("hue", 0.1)):
        x = torch.stack([PEERS[name](image, factor) for image in x])
    assert (shown / 255 - x).abs().max() < STEP


@pytest.mark.parametrize("name", list(PEERS))
def test_each_part_of_jitter_on_bytes_is_torchvisions(name: str) -> None:
    images, factor = pictures(5), 0.2 if name == "hue" else 1.4
    shown = views.ColorJitter(**{name: (factor, factor)})(images)
    assert (shown.int() - torch.stack([PEERS[name](image, factor) for image in images]).int()).abs().max() <= 1


def test_each_image_draws_factors_of_its_own_range() -> None:
    images = torch.full((2000, 1, 1, 1), 100, dtype=torch.uint8)
    factors = views.ColorJitter(brightness=0.4)(images, keys(2000)).flatten().double() / 100
    assert 0.6 <= factors.min() < 0.61
    assert 1.39 < factors.max() <= 1.4
    assert abs(factors.mean() - 1) < 0.02
    factors = views.ColorJitter(brightness=(1.5, 2.0))(images, keys(2000)).flatten().double() / 100
    assert factors.min() >= 1.5
    assert factors.max() <= 2.0
    assert views.ColorJitter(brightness=2.0)(images, keys(2000)).min() == 0  # never below 0


def test_on_other_than_three_channels_saturation_and_hue_change_nothing() -> None:
    for channels in (1, 2, 4):
        images = pictures(4, channels)
        assert torch.equal(views.ColorJitter(saturation=(2, 2), hue=(0.3, 0.3))(images), images)
        assert torch.equal(views.Grayscale(1.0)(images), images)
        assert not torch.equal(views.ColorJitter(brightness=(0.5, 0.5), contrast=(0.5, 0.5))(images), images)
    grey = pictures(4, 1)
    for name, peer in (("contrast", TF.adjust_contrast), ("brightness", TF.adjust_brightness)):
        shown = views.ColorJitter(**{name: (0.6, 0.6)})(grey)
        assert (shown.int() - torch.stack([peer(image, 0.6) for image in grey]).int()).abs().max() <= 1


def test_large_batches_are_worked_on_in_blocks_without_a_trace() -> None:
    images, view = pictures(10), views.ColorJitter(0.4, 0.4, 0.4, 0.1)
    many = images.repeat(60, 1, 1, 1)  # 600 images of 256 pixels: more than one block
    assert torch.equal(view(many, keys(10).repeat(60)), view(images, keys(10)).repeat(60, 1, 1, 1))


def test_grey_and_solarized_are_torchvisions() -> None:
    images = pictures(5)
    assert (views.Grayscale(1.0)(images).int() - TF.rgb_to_grayscale(images, 3).int()).abs().max() <= 1
    for level in (0, 1, 128, 200, 255):
        expected = TF.solarize(images, level)
        assert torch.equal(views.Solarize(level / 255, p=1.0)(images), expected)
    floats = images / 255
    assert torch.equal(views.Solarize(0.5, p=1.0)(floats), TF.solarize(floats, 0.5))


def test_normalizing_by_hand_and_as_torchvision() -> None:
    image = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert views.Normalize(0.5, 0.25)(image).flatten().tolist() == [-2.0, 2.0]
    images, mean, std = pictures(3) / 255, (0.1, 0.2, 0.3), (0.2, 0.3, 0.4)
    assert torch.equal(views.Normalize(mean, std)(images), TF.normalize(images, list(mean), list(std)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "color_jitter(-0.1)",
            r"color_jitter: `brightness` must be a number of at least 0, got -0\.1\. The factor is drawn from \[1 - value",
        ),
        ("color_jitter(hue=0.6)", r"color_jitter: `hue` must be a number in \[0, 0\.5\], got 0\.6\. It is a share of the full circle\."),
        ("color_jitter(hue=(-0.6, 0))", r"color_jitter: `hue` must be a number in \[-0\.5, 0\.5\], got -0\.6\. Or give one number"),
        ("color_jitter(contrast=(2, 1))", r"color_jitter: `contrast` must be \(smallest, largest\) in this order, got \(2, 1\)"),
        ("solarize(128)", r"solarize: `threshold` must be a number in \[0, 1\], got 128\. For bytes too: write 128 / 255 for 128\."),
        ("normalize(0.5, 0)", r"normalize: `std` must be positive numbers, one a channel, got 0\. Pixels count as \[0, 1\]\."),
        ('normalize("x", 1)', r"normalize: `mean` must be numbers, one a channel, got 'x'"),
        ("randaugment(0)", r"randaugment: `num_ops` must be a whole number of at least 1, got 0"),
        ("randaugment(2, 31)", r"randaugment: `magnitude` must be a number in \[0, 30\], got 31\. It is a step of `bins`"),
        ("randaugment(bins=1)", r"randaugment: `bins` must be a whole number of at least 2, got 1\. It is the number of magnitudes\."),
        ("randaugment(std=-1)", r"randaugment: `std` must be a number of at least 0, got -1\. It is in steps of the magnitude\."),
        ('randaugment(interpolation="bicubic")', r'randaugment: no interpolation is called "bicubic"'),
        ("trivialaugment(fill=2)", r"trivialaugment: `fill` must be a number in \[0, 1\], got 2"),
    ],
)
def test_arguments_that_cannot_work_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        views.parse(text)


def test_moments_of_too_many_channels_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"normalize: `mean` has 2 numbers and the images have 3 channels\. Give one for each\."):
        views.Normalize((0.1, 0.2), 1.0)(pictures(2))


# ------------------------------------------------------------------------------------------------- RandAugment and TrivialAugment

THEIRS = {
    "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX", "translate_y": "TranslateY", "rotate": "Rotate",
    "identity": "Identity", "brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip
POLICIES = {"randaugment": (T.RandAugment, auto.RANDOM), "trivialaugment": (T.TrivialAugmentWide, auto.WIDE)}


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", auto.OPERATIONS)
def test_each_operation_is_torchvisions_at_every_magnitude(name: str, policy: str, interpolation: str) -> None:
    theirs, strengths = POLICIES[policy]
    images = pictures(3, side=24)
    fades, signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
    number = auto.OPERATIONS.index(name)
    for step in (0, 4, 9, 17, 30):
        for sign in (1.0, -1.0) if signed else (1.0,):
            magnitudes = fades(31, 24, 24)
            magnitude = 0.0 if magnitudes is None else float(magnitudes[step]) * sign
            rows = torch.full((3,), number), torch.full((3,), step / 30), torch.full((3,), sign)
            for kind in (images, images / 255):
                expected = [
                    theirs()._apply_image_or_video_transform(x, THEIRS[name], magnitude, InterpolationMode(interpolation), {}) for x in kind
                ]
                off = (auto.operate(kind, *rows, strengths, interpolation).float() - torch.stack(expected).float()).abs()
                if number < auto.MOVES:  # a pixel whose source lies halfway between two may fall either way
                    assert (off > (1 if kind is images else 1e-4)).float().mean() <= 0.01, (step, sign)
                else:  # where theirs cuts bytes off, grey and result, ours rounds once
                    assert off.max() <= (2 if kind is images else 1e-5), (step, sign)


def test_the_operations_are_torchvisions() -> None:
    assert set(THEIRS) == set(auto.OPERATIONS)
    for theirs, _ in POLICIES.values():
        assert set(theirs._AUGMENTATION_SPACE) == set(THEIRS.values())


def test_mixed_operations_come_back_in_their_rows() -> None:
    images = pictures(40)
    operation = torch.arange(40) % len(auto.OPERATIONS)
    level, sign = torch.full((40,), 0.5), torch.ones(40)
    together = auto.operate(images, operation, level, sign, auto.RANDOM)
    for row in range(40):
        one = slice(row, row + 1)
        assert torch.equal(together[one], auto.operate(images[one], operation[one], level[one], sign[one], auto.RANDOM))


def test_every_operation_is_drawn_equally_often_and_p_leaves_some_out() -> None:
    image = pictures(3)[2:]
    count = 1400
    shown = views.RandAugment(1, 20)(image.expand(count, -1, -1, -1), keys(count))
    alike = (shown == image).flatten(1).all(1).double().mean()
    assert abs(alike - 2 / 14) < 4 * (2 / 14 / count) ** 0.5  # identity, and autocontrast of an image that has black and white
    kept = views.RandAugment(1, 20, p=0.25)(image.expand(count, -1, -1, -1), keys(count))
    assert abs((kept == image).flatten(1).all(1).double().mean() - (1 - 0.25 * (1 - alike))) < 0.06


def test_a_spread_of_magnitudes_makes_more_different_pictures() -> None:
    image = torch.full((300, 1, 3, 3), 100, dtype=torch.uint8)
    fixed, spread = (len(set(views.RandAugment(1, 9, std=std)(image, keys(300)).amax((1, 2, 3)).tolist())) for std in (0.0, 2.0))
    assert fixed < 12
    assert spread > 2 * fixed
