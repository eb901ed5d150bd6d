"""Views that move, resample and erase pixels: by hand, then beside torchvision and Pillow."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from retinue import views
from retinue.data.views import crops, resampling, warps
from retinue.errors import ArgumentError, ShapeError

SMALL = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)


def noise(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def keys(count: int, seed: int = 0) -> Tensor:
    return views.keys(seed, 0, torch.arange(count))


# ---------------------------------------------------------------------------------------------------------------- crops and mirrors


def test_flips_by_hand() -> None:
    assert views.Flip(1.0)(SMALL).tolist() == [[[[3, 2, 1], [6, 5, 4]]]]
    assert views.VerticalFlip(1.0)(SMALL).tolist() == [[[[4, 5, 6], [1, 2, 3]]]]
    assert views.Flip(0.0)(SMALL).tolist() == SMALL.tolist()


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_by_hand(mode: str) -> None:
    rows = {
        "reflect": [[5, 4, 5, 6, 5], [2, 1, 2, 3, 2], [5, 4, 5, 6, 5], [2, 1, 2, 3, 2]],
        "edge": [[1, 1, 2, 3, 3]] * 2 + [[4, 4, 5, 6, 6]] * 2,
    }
    assert crops.pad(SMALL, 1, mode)[0, 0].tolist() == rows[mode]


@pytest.mark.parametrize(("mode", "theirs"), [("zeros", "constant"), ("reflect", "reflect"), ("edge", "edge")])
def test_padding_is_torchvisions(mode: str, theirs: str) -> None:
    images = noise(2, 7, 5)
    assert torch.equal(crops.pad(images, 4, mode), TF.pad(images, [4], padding_mode=theirs))
    assert torch.equal(crops.pad(images.float(), 4, mode), TF.pad(images.float(), [4], padding_mode=theirs))


@given(st.integers(1, 6), st.integers(1, 7), st.data())
def test_windows_are_slices(height: int, width: int, data: st.DataObject) -> None:
    images = noise(3, 6, 7)
    top = data.draw(st.lists(st.integers(0, 6 - height), min_size=3, max_size=3))
    left = data.draw(st.lists(st.integers(0, 7 - width), min_size=3, max_size=3))
    cut = crops.windows(images, torch.tensor(top), torch.tensor(left), height, width)
    for row in range(3):
        assert torch.equal(cut[row], images[row, :, top[row] : top[row] + height, left[row] : left[row] + width])


def test_a_crop_takes_each_place_equally_often() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(3600, 1, 3, 3)
    corner = views.Crop(1)(image, keys(3600))[:, 0, 1, 1].long()  # the pixel in the middle tells the place
    counts = torch.bincount(corner, minlength=10)[1:]
    assert counts.sum() == 3600
    assert (counts - 400).abs().max() < 4 * 400**0.5


def test_a_crop_without_room_is_the_image() -> None:
    assert torch.equal(views.Crop(0)(noise(2, 5, 5)), noise(2, 5, 5))
    assert views.Crop(1, size=(4, 6))(noise(2, 5, 5)).shape == (2, 3, 4, 6)


def test_the_centre_is_torchvisions() -> None:
    images = noise(2, 9, 8)
    assert torch.equal(views.CenterCrop((4, 4))(images), TF.center_crop(images, [4, 4]))
    assert views.CenterCrop(1)(torch.arange(9.0).view(1, 1, 3, 3)).item() == 4


def test_crops_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"a window of 12x12 px does not fit into 9x9 px\. Give more `padding` or a smaller `size`\."):
        views.Crop(2, size=12)(noise(1, 5, 5))
    with pytest.raises(ShapeError, match=r'5x5 px cannot be reflected by 5 px\. Give a `padding` below the shorter side, or mode="edge"\.'):
        views.Crop(5, mode="reflect")(noise(1, 5, 5))
    with pytest.raises(
        ShapeError, match=r"center_crop: a window of 6x6 px does not fit into 5x8 px\. Enlarge the images first: resize\(6\)\."
    ):
        views.CenterCrop(6)(noise(1, 5, 8))


# ------------------------------------------------------------------------------------------------------------------------ resampling


def test_the_mean_of_two_pixels_by_hand() -> None:
    images = torch.tensor([[[[10, 20, 30, 41]]]], dtype=torch.uint8)
    # Two pixels become one, so the kernel reaches 2 pixels each way: the output at 1 weighs those at 0.5, 1.5 and 2.5 with 3/4, 3/4, 1/4.
    expected = [(0.75 * 10 + 0.75 * 20 + 0.25 * 30) / 1.75, (0.25 * 20 + 0.75 * 30 + 0.75 * 41) / 1.75]
    assert views.Resize((1, 2))(images)[0, 0, 0].tolist() == [round(value) for value in expected]
    assert views.Resize((1, 2))(images / 255)[0, 0, 0].tolist() == pytest.approx([value / 255 for value in expected], abs=1e-6)
    assert views.Resize((1, 2), "nearest")(images)[0, 0, 0].tolist() == [20, 41]


def test_a_constant_stays_constant_in_every_size() -> None:
    for value in (0, 1, 127, 255):
        images = torch.full((1, 1, 37, 23), value, dtype=torch.uint8)
        for size in (5, 23, 64):
            for interpolation in resampling.KERNELS:
                assert (views.Resize(size, interpolation)(images) == value).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest-exact"])
@pytest.mark.parametrize("size", [(16, 16), (9, 40), (50, 50), (31, 33)])
def test_resizing_is_torchvisions(interpolation: str, size: tuple[int, int]) -> None:
    images = noise(2, 32, 32)
    expected = TF.resize(images, list(size), InterpolationMode(interpolation), antialias=True)
    shown = views.Resize(size, interpolation.removesuffix("-exact"))(images)
    off = (shown.int() - expected.int()).abs()
    assert off.max() <= {"nearest-exact": 0, "bilinear": 1, "bicubic": 2}[interpolation]
    assert (off > 1).float().mean() < 1e-3  # a first rounding that fell the other way, under a weight above 1


@pytest.mark.parametrize("size", [(16, 16), (9, 20), (50, 50)])
def test_resizing_is_pillows(size: tuple[int, int]) -> None:
    image = noise(1, 32, 32)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    assert (views.Resize(size)(image)[0].int() - torch.from_numpy(np.array(picture)).permute(2, 0, 1).int()).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_floats_is_torchvisions(interpolation: str) -> None:
    images = noise(2, 30, 25) / 255
    expected = TF.resize(images, [12, 40], InterpolationMode(interpolation), antialias=True).clamp(0, 1)
    assert (views.Resize((12, 40), interpolation)(images) - expected).abs().max() < 2e-6  # theirs sums float32 products


def test_a_window_is_resized_as_if_it_were_cut_out() -> None:
    images, view = noise(6, 20, 24), views.RandomResizedCrop(12)
    top, left, tall, wide = view.boxes(keys(6), 20, 24)
    shown = view(images, keys(6))
    for row, (t, l, h, w) in enumerate(zip(top.tolist(), left.tolist(), tall.tolist(), wide.tolist())):
        assert torch.equal(shown[row], views.Resize(12)(images[row : row + 1, :, t : t + h, l : l + w])[0])


def test_windows_keep_to_their_ranges() -> None:
    height, width, scale, ratio = 150, 160, (0.1, 0.3), (0.5, 2.0)
    top, left, tall, wide = views.RandomResizedCrop(8, scale, ratio).boxes(keys(4000), height, width)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()
    area, aspect = tall * wide / (height * width), wide / tall
    assert area.min() > scale[0] - 0.02  # whole pixels
    assert area.max() < scale[1] + 0.02
    assert aspect.min() > ratio[0] * 0.95
    assert aspect.max() < ratio[1] * 1.05
    assert aspect.log().mean().abs() < 0.05  # drawn evenly on the logarithm
    assert abs(area.mean() - 0.2) < 0.01


def test_a_window_that_never_fits_is_the_largest_one_in_the_middle() -> None:
    # of 40x10 px nothing of a tenth of the height's width has 90 % of the area; torchvision's way out is the middle
    top, left, tall, wide = views.RandomResizedCrop(8, (0.9, 1.0), (0.5, 2.0)).boxes(keys(5), 10, 40)
    assert [tall.unique().tolist(), wide.unique().tolist(), top.unique().tolist(), left.unique().tolist()] == [[10], [20], [0], [10]]
    top, left, tall, wide = views.RandomResizedCrop(8, (0.9, 1.0), (0.5, 2.0)).boxes(keys(5), 40, 10)
    assert [tall.unique().tolist(), wide.unique().tolist(), top.unique().tolist(), left.unique().tolist()] == [[20], [10], [10], [0]]


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.5), (5, 1.0), (9, 2.0)])
def test_blurring_is_torchvisions(size: int, sigma: float) -> None:
    images, view = noise(2, 20, 17), views.GaussianBlur(size, (sigma, sigma), p=1.0)
    assert (view(images).int() - TF.gaussian_blur(images, [size, size], [sigma, sigma]).int()).abs().max() <= 1
    floats = images / 255
    assert (view(floats) - TF.gaussian_blur(floats, [size, size], [sigma, sigma])).abs().max() < 2e-6


def test_each_image_is_blurred_with_its_own_width() -> None:
    images, sigma = noise(4, 12, 12), torch.tensor([0.3, 0.8, 1.3, 1.8])
    shown = views.GaussianBlur(5).blurred(images, sigma)
    for row in range(4):
        expected = TF.gaussian_blur(images[row], [5, 5], [float(sigma[row])] * 2)
        assert (shown[row].int() - expected.int()).abs().max() <= 1


def test_a_blur_wider_than_the_image_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"gaussian_blur: 3x8 px cannot be reflected by 3 px\. Give a smaller `kernel_size`\."):
        views.GaussianBlur(7, p=1.0)(noise(1, 3, 8))


# --------------------------------------------------------------------------------------------------------------- turns, shifts, shears


def test_a_quarter_turn_by_hand() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    for interpolation in warps.INTERPOLATIONS:
        turned = views.Rotate((90, 90), interpolation)(image)
        assert turned[0, 0].tolist() == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]  # counter-clockwise, as torch.rot90
    assert torch.equal(views.Rotate((180, 180))(image), image.flip(2, 3))


def test_nothing_to_do_changes_nothing() -> None:
    images = noise(3, 9, 12)
    assert torch.equal(views.Affine()(images), images)
    assert torch.equal(views.Translate(0.0)(images), images)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("fill", [0.0, 0.4])
def test_affine_maps_are_torchvisions(interpolation: str, fill: float) -> None:
    images = noise(1, 21, 26)
    for turn, shear, scale, across, down in ((10.0, 0.0, 1.0, 0, 0), (-33.0, 12.0, 0.8, 3, -2), (71.0, -20.0, 1.3, -4, 5)):
        values = [torch.tensor([value], dtype=torch.float64) for value in (turn, shear, scale, across, down)]
        ours = warps.warp(images, warps.inverse_maps(values[0].deg2rad(), values[1].deg2rad(), *values[2:]), interpolation, fill)
        # torchvision's own `fill` fades the border twice, so what comes in from outside is taken off before and put back behind
        theirs = TF.affine(images - fill * 255.0, -turn, [across, down], scale, [shear, 0.0], InterpolationMode(interpolation)) + fill * 255
        off = (ours - theirs).abs()
        # a pixel whose source lies halfway between two may fall either way
        assert (off > 0.51).float().mean() < (0.005 if interpolation == "nearest" else 1e-9)


def test_a_shift_by_whole_pixels_keeps_them() -> None:
    images = noise(40, 10, 20)
    shown = views.Translate((0.25, 0.1), fill=1.0)(images, keys(40))
    found = set()
    for row in range(40):
        fits = []
        for across in range(-5, 6):
            for down in range(-1, 2):
                moved = torch.full((3, 10, 20), 255, dtype=torch.uint8)
                target = moved[:, max(0, down) : 10 + min(0, down), max(0, across) : 20 + min(0, across)]
                target.copy_(images[row, :, max(0, -down) : 10 + min(0, -down), max(0, -across) : 20 + min(0, -across)])
                fits += [(across, down)] if torch.equal(moved, shown[row]) else []
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) > 15


def test_translation_of_affine_is_in_whole_pixels() -> None:
    images = noise(8, 12, 12)
    shown = views.Affine(translate=0.3)(images, keys(8))
    assert all(set(shown[row].flatten().tolist()) <= {0, *images[row].flatten().tolist()} for row in range(8))


# --------------------------------------------------------------------------------------------------------------------- random erasing


def boxes(view: views.Erase, count: int, height: int, width: int) -> Tensor:
    """Draw where images are erased: (count, height, width)."""
    return view(torch.full((count, 1, height, width), 255, dtype=torch.uint8), keys(count))[:, 0] == 0


def test_an_erased_box_keeps_to_area_and_ratio() -> None:
    erased = boxes(views.Erase(1.0, area=(0.1, 0.3), ratio=(0.5, 2.0)), 500, 40, 60)
    area = erased.flatten(1).double().mean(1)
    tall, wide = erased.any(2).sum(1), erased.any(1).sum(1)
    assert torch.equal(tall * wide, erased.flatten(1).sum(1))  # a full box
    assert area.min() > 0.09
    assert area.max() < 0.32
    assert abs(area.mean() - 0.2) < 0.01
    assert (tall / wide).min() > 0.45
    assert (tall / wide).max() < 2.2
    assert (tall / wide).log().mean().abs() < 0.05
    assert erased.any(0).all()  # every pixel is hit now and then


def test_several_boxes_share_the_area() -> None:
    one, three = (boxes(views.Erase(1.0, area=(0.3, 0.3), count=count), 300, 40, 40).double().mean() for count in (1, 3))
    assert abs(one - 0.3) < 0.02
    assert 0.22 < three < 0.3  # they overlap


def test_what_is_painted() -> None:
    images = torch.full((50, 3, 16, 16), 7, dtype=torch.uint8)
    wide = {"area": (0.2, 0.4)}
    const = views.Erase(1.0, fill=(0.0, 1.0, 0.5), **wide)(images)
    for channel, value in enumerate((0, 255, 128)):
        assert set(const[:, channel].flatten().tolist()) == {7, value}
    colour = views.Erase(1.0, mode="rand", **wide)(images, keys(50))
    assert all(len(set(colour[row, channel].flatten().tolist())) <= 2 for row in range(50) for channel in range(3))
    pixel = views.Erase(1.0, mode="pixel", **wide)(images, keys(50))
    values = pixel[pixel != 7].double()
    assert abs(values.mean() - 127.5) < 2
    assert abs(values.std() - 256 / 12**0.5) < 2


def test_a_box_that_cannot_fit_erases_nothing() -> None:
    assert not boxes(views.Erase(1.0, area=(1.0, 1.0)), 5, 8, 8).any()


def test_noise_has_its_width() -> None:
    images = torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    change = (views.GaussianNoise(0.05)(images, keys(40)).double() - 128) / 255
    assert abs(change.mean()) < 0.002
    assert abs(change.std() - 0.05) < 0.002
    widths = ((views.GaussianNoise((0.0, 0.1))(images, keys(40)).double() - 128) / 255).flatten(1).std(1)
    assert widths.min() < 0.02
    assert widths.max() > 0.08
    assert views.GaussianNoise(0.5)(images / 255).min() >= 0


# ---------------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop(-1)", r"crop: `padding` must be a whole number of at least 0, got -1\. It is in pixels\."),
        ("crop(1.5)", r"crop: `padding` must be a whole number of at least 0, got 1\.5"),
        ("crop(4, 0)", r"crop: `size` must be one positive whole number of pixels or \(height, width\), got 0\."),
        ("crop(4, (3, 3, 3))", r"crop: `size` must be one positive whole number"),
        ('crop(4, mode="reflekt")', r'crop: no mode is called "reflekt"\. Did you mean reflect'),
        ("flip(1.5)", r"flip: `p` must be a number in \[0, 1\], got 1\.5\. It is the probability with which an image is changed\."),
        ('flip("often")', r"flip: `p` must be a number in \[0, 1\], got 'often'"),
        ('resize(8, "bilinea")', r'resize: no interpolation is called "bilinea"\. Did you mean bilinear'),
        ("random_resized_crop(8, 0.5)", r"`scale` must be a pair \(smallest, largest\), got 0\.5\. They are shares of the image's area\."),
        ("random_resized_crop(8, (0, 1))", r"`scale` must be a number in \(0, 1\], got 0\."),
        (
            "random_resized_crop(8, ratio=(2, 1))",
            r"`ratio` must be \(smallest, largest\) in this order, got \(2, 1\)\. They are width / height\.",
        ),
        (
            'random_resized_crop(8, interpolation="cubic")',
            r'random_resized_crop: no interpolation is called "cubic"\. Did you mean bicubic',
        ),
        ("gaussian_blur(4)", r"gaussian_blur: `kernel_size` must be odd, got 4\. Take 5\."),
        ("gaussian_blur(3, (0.0, 1.0))", r"gaussian_blur: `sigma` must be a number above 0, got 0\.0\. They are in pixels\."),
        ("gaussian_noise(-1)", r"gaussian_noise: `sigma` must be a number of at least 0, got -1\. It is in \[0, 1\] for bytes too"),
        ("rotate(400)", r"rotate: `degrees` must be a number in \[0, 360\], got 400\. It is in degrees, and stands for both directions\."),
        ("rotate((20, 10))", r"rotate: `degrees` must be \(smallest, largest\) in this order, got \(20, 10\)"),
        ("rotate(5, fill=128)", r"rotate: `fill` must be a number in \[0, 1\], got 128\. For bytes too: write 128 / 255 for 128\."),
        ('rotate(5, "bicubic")', r'rotate: no interpolation is called "bicubic"\. There is bilinear, nearest\.'),
        ("affine(shear=90)", r"affine: `shear` must be a number in \[0, 89\], got 90"),
        ("affine(scale=(0, 1))", r"affine: `scale` must be a number above 0, got 0\. They are factors: 2 doubles each side\."),
        ("translate(4)", r"translate: `share` must be a number in \[0, 1\], got 4\. It is a share of width and height"),
        ("erase(area=0.5)", r"erase: `area` must be a pair \(smallest, largest\), got 0\.5\. They are shares of the image\."),
        ("erase(ratio=(0, 1))", r"erase: `ratio` must be a number above 0, got 0\. They are height / width\."),
        ("erase(count=0)", r"erase: `count` must be a whole number of at least 1, got 0\. It is the number of boxes\."),
        ('erase(mode="noise")', r'erase: no mode is called "noise"'),
        ("erase(fill=255)", r"erase: `fill` must be numbers in \[0, 1\], one or one a channel, got 255\. For bytes too\."),
    ],
)
def test_arguments_that_cannot_work_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        views.parse(text)


def test_a_colour_of_too_many_channels_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"erase: `fill` has 2 numbers and the images have 3 channels\. Give one for each\."):
        views.Erase(1.0, fill=(0.1, 0.2))(noise(2, 8, 8))
