"""What every view obeys: a row is a function of its image and its key, bit for bit; types and texts come back as they were."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinue import views
from retinue.data.views.base import Images, Keys, Viewed, registered
from retinue.errors import ArgumentError, ShapeError

EVERY = views.parse(
    """
    crop(4), crop(2, mode="reflect"), crop(3, size=(12, 15), mode="edge"), center_crop(9), flip, vertical_flip(0.3),
    resize((11, 20)), resize(24, "bicubic"), resize(7, interpolation="nearest"),
    random_resized_crop(12), random_resized_crop((9, 14), scale=(0.2, 0.4), interpolation="bicubic"),
    random_resized_crop(8, interpolation="nearest"),
    color_jitter(0.4, 0.4, 0.4, 0.1), color_jitter(brightness=(0.5, 0.6), hue=0.5, p=0.6), grayscale(0.5), solarize, solarize(0.2, p=1.0),
    gaussian_blur(5), gaussian_blur(3, sigma=(1.0, 1.0), p=1.0), gaussian_noise(0.1), gaussian_noise((0.0, 0.3), p=0.5),
    rotate(30, fill=0.5), rotate((10, 20), "nearest", p=0.5), affine(20, 0.1, (0.8, 1.2), 10),
    translate(0.2), translate((0.4, 0.0), fill=0.3, p=0.7),
    erase(0.6), erase(0.9, mode="pixel", count=2), erase(0.9, mode="rand", ratio=(1, 1)), erase(1.0, fill=0.7),
    randaugment, randaugment(3, 9, bins=11, std=0.5, p=0.5, interpolation="bilinear", fill=0.4), trivialaugment,
    mixup(0.2), mixup(1.0, p=0.5), cutmix, cutmix(0.3, p=0.7),
    choose([gaussian_blur(3), solarize(0.4)]), choose([mixup(0.8), cutmix(1.0), flip], weights=(1, 2, 3)),
    compose([crop(4), flip, mixup(0.4), color_jitter(0.4), cutmix(1), erase]), normalize(0.5, 0.25),
    compress, compress((20, 40), formats="webp", p=0.5), compose([crop(0, 16), quarter_turn(1.0)]), perturb(0.9)
    """
).views
NAMES = [repr(view) for view in EVERY]


def pictures(count: int, channels: int = 3, height: int = 18, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, channels, height // 3 + 1, width // 3 + 1), generator=generator, dtype=torch.uint8)
    fine = torch.randint(0, 40, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., :height, :width].clamp(max=215) + fine


def show(view: views.View, images: Tensor, partners: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    return view.mix(images, partners, keys)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: -0 is not 0."""
    if a.dtype != b.dtype:
        return False
    return torch.equal(a, b) if a.dtype == torch.uint8 else torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("view", EVERY, ids=NAMES)
@settings(max_examples=8)
@given(st.integers(0, 1 << 40), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 20), st.integers(1, 21))
def test_a_row_depends_on_its_image_and_its_key_alone(
    view: views.View, seed: int, channels: int, floats: bool, first: int, count: int
) -> None:
    images, partners = pictures(21, channels, seed=seed), pictures(21, channels, seed=seed + 1)
    if floats:
        images, partners = images / 255, partners / 255
    keys = views.keys(seed, 0, torch.arange(21))
    rows = slice(first, min(21, first + count))
    whole, part = show(view, images, partners, keys), show(view, images[rows], partners[rows], keys[rows])
    assert same(whole[0][rows], part[0])
    assert torch.equal(whole[1][rows], part[1])


@pytest.mark.parametrize("view", EVERY, ids=NAMES)
def test_the_order_of_the_rows_does_not_matter_nor_does_what_is_beside_them(view: views.View) -> None:
    images, keys, order = pictures(24), views.keys(3, 1, torch.arange(24)), torch.randperm(24)
    straight, turned = show(view, images, images, keys), show(view, images[order], images[order], keys[order])
    assert same(straight[0][order], turned[0])
    other = torch.where(torch.arange(24)[:, None, None, None] == 5, images, 255 - images)
    assert same(straight[0][5:6], show(view, other, other, keys)[0][5:6])


@pytest.mark.parametrize("view", EVERY, ids=NAMES)
def test_the_type_stays_and_the_images_given_are_left_alone(view: views.View) -> None:
    keys = views.keys(0, 0, torch.arange(6))
    for images in (
        pictures(6),
        pictures(6) / 255,
        (pictures(6) / 255).half(),
        (pictures(6) / 255).double(),
        pictures(6)[:0],
        pictures(6, 2),
    ):
        before = images.clone()
        shown, share = show(view, images, images.flip(0), keys[: len(images)])
        assert torch.equal(images, before)
        assert shown.dtype == (torch.float32 if view.name == "normalize" and images.dtype == torch.uint8 else images.dtype)
        assert len(shown) == len(images)
        assert share.shape == (len(images),)
        if shown.is_floating_point() and len(shown) and view.name != "normalize":
            assert shown.min() >= 0
            assert shown.max() <= 1 + 1e-6  # a sum of products of a share and its rest


@pytest.mark.parametrize("view", EVERY, ids=NAMES)
def test_bytes_and_floats_are_shown_alike(view: views.View) -> None:
    keys = views.keys(1, 0, torch.arange(12))
    images = pictures(12)
    coarse, fine = show(view, images, images.flip(0), keys), show(view, images / 255, images.flip(0) / 255, keys)
    assert torch.equal(coarse[1], fine[1])
    as_float = coarse[0] / 255 if coarse[0].dtype == torch.uint8 else coarse[0]
    # a rounding of 1/510 at each step; a threshold or a histogram may fall on the other side for a few values
    assert ((as_float - fine[0]).abs() > 2.5 / 255).float().mean() < 0.02


@pytest.mark.parametrize("view", EVERY, ids=NAMES)
def test_a_view_is_read_back_from_its_text(view: views.View) -> None:
    assert views.parse(view.nested()).views == (view,)
    assert repr(views.parse(view.nested())) == view.nested()
    assert hash(view) == hash(views.parse(view.nested()).views[0])


def test_every_view_is_among_those_tested() -> None:
    ours = {name for name, kind in registered.items() if kind.__module__.startswith("retinue.")}
    assert ours == {view.name for given in EVERY for view in [given, *views.flat(given)]}
    assert ours <= {kind.name for kind in vars(views).values() if isinstance(kind, type) and issubclass(kind, views.View)}


@pytest.mark.parametrize(
    "text", ["flip", "vertical_flip", "gaussian_blur(3, (1, 1))", "color_jitter(0.4, 0.4)", "erase", "grayscale", "rotate(40)"]
)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_the_share_of_images_that_change(text: str, p: float) -> None:
    head, _, rest = text.partition("(")
    view = views.parse(f"{head}({rest.removesuffix(')') + ', ' if rest else ''}p={p})")
    images = pictures(600, height=6, width=6)
    changed = (view(images, views.keys(0, 0, torch.arange(600))) != images).flatten(1).any(1).double().mean()
    assert abs(changed - p) <= (0 if p in (0, 1) else 4 * (p * (1 - p) / 600) ** 0.5)


def test_without_keys_a_view_follows_torchs_seed() -> None:
    images, view = pictures(16), views.parse("crop(4), flip, erase")
    torch.manual_seed(3)
    first = view(images)
    torch.manual_seed(3)
    assert torch.equal(view(images), first)
    assert not torch.equal(view(images), first)


def test_layout_in_memory_does_not_matter() -> None:
    images, keys = pictures(8), views.keys(0, 0, torch.arange(8))
    for view in EVERY:
        assert same(show(view, images.contiguous(memory_format=torch.channels_last), images, keys)[0], show(view, images, images, keys)[0])


def test_settings_for_speed_do_not_change_a_bit() -> None:
    images, keys, view = pictures(8), views.keys(0, 0, torch.arange(8)), views.parse("random_resized_crop(12), gaussian_blur(3)")
    expected = view(images, keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(view(images, keys), expected)
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
        assert torch.equal(view(images, keys), expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"  # type: ignore[attr-defined]


def test_a_view_of_your_own_takes_part() -> None:
    @dataclass(frozen=True, repr=False)
    class Invert(views.View):
        name: ClassVar[str] = "invert"
        p: float = 1.0

        def _apply(self, images: Images, keys: Keys) -> Viewed:
            return 255 - images

    try:
        images = pictures(2)
        assert torch.equal(views.parse("flip(0), invert(p=0.5)")(images), 255 - images)
        assert repr(views.parse("invert(p=0.5)")) == "invert(p=0.5)"
    finally:
        del registered["invert"]


def test_images_that_cannot_be_shown_are_refused() -> None:
    view = views.Flip()
    with pytest.raises(
        ShapeError,
        match=r"must be \(batch, channels, height, width\), got the shape \(3, 8, 8\)\. One image is a batch of one: images\[None\]\.",
    ):
        view(torch.zeros(3, 8, 8))
    with pytest.raises(ShapeError, match=r"got the shape \(8, 8\)\. Views work on whole batches\."):
        view(torch.zeros(8, 8))
    with pytest.raises(
        ShapeError, match=r"must be uint8 or floats in \[0, 1\], got torch\.int64\. Convert them: images\.to\(torch\.uint8\)\."
    ):
        view(torch.zeros(2, 3, 8, 8, dtype=torch.int64))


def test_keys_that_do_not_fit_are_refused() -> None:
    message = (
        r"`keys` must be 2 int64 numbers, one a row, got \(3,\) of torch\.int64\. Make them with views\.keys\(seed, epoch, indices\)\."
    )
    with pytest.raises(ShapeError, match=message):
        views.Flip()(pictures(2), torch.arange(3))
    with pytest.raises(ShapeError, match=r"got \(2,\) of torch\.float32"):
        views.Flip()(pictures(2), torch.zeros(2))


def test_partners_that_do_not_fit_or_are_missing_are_refused() -> None:
    keys = torch.arange(2)
    with pytest.raises(ShapeError, match=r"`partners` must be like the images, \(2, 3, 18, 16\) of torch\.uint8, got \(1, 3, 18, 16\)"):
        views.Mixup()(pictures(2), keys, partners=pictures(1))
    with pytest.raises(ShapeError, match=r"of torch\.float32\. Take them as they are, before any view"):
        views.CutMix()(pictures(2), keys, partners=pictures(2) / 255)
    with pytest.raises(ArgumentError, match=r"mixup mixes each image with another one\. Give these: view\(images, keys, partners=others\)"):
        views.Mixup()(pictures(2), keys)
    with pytest.raises(ArgumentError, match=r"compose mixes each image"):
        views.parse("flip, cutmix")(pictures(2), keys)
