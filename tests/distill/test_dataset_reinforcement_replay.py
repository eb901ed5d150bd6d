"""Augmentations that are written down: the same bits again, in another process too; torchvision's numbers; and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, autoaugment

from retinue.data import views
from retinue.distill.replayable import RECIPES, KeyedViews, ReplayableTransform, described, recipe
from retinue.distill.replayable_layout import OPERATIONS
from retinue.errors import ArgumentError, DataError, ShapeError


def pictures(count: int, height: int = 20, width: int = 24, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with edges, on which every operation shows."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=random)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255).byte()


def keys_of(count: int, seed: int = 0) -> torch.Tensor:
    return views.keys(seed, 0, torch.arange(count))


@pytest.mark.parametrize("name", RECIPES)
def test_a_thousand_draws_are_carried_out_again_bit_for_bit(name: str) -> None:
    transform, images = recipe(name, 16), pictures(1000)
    partners = images.flip(0) if transform.mixes else None
    shown, drawn = transform.sample(images, keys_of(1000), partners)
    assert shown.shape == (1000, 3, 16, 16)
    assert 0 <= shown.min() <= shown.max() <= 1
    packed = transform.pack(drawn)
    assert packed.shape == (1000, transform.width)
    for again in (drawn, transform.unpack(packed), transform.unpack(packed.numpy().tobytes())):
        assert torch.equal(transform.replay(images, again, partners), shown)
    some = torch.tensor([3, 999, 500])  # a row does not depend on the others
    row = transform.replay_packed(images[some], packed[some], None if partners is None else partners[some])
    assert torch.equal(row, shown[some])
    other, _ = transform.sample(images, keys_of(1000, seed=1), partners)
    assert not torch.equal(other, shown)


CHILD = """
import sys, torch
from retinue.data import views
from retinue.distill.replayable import recipe
transform, images = recipe("+m*+r*", 16), torch.load(sys.argv[1], weights_only=True)
shown = transform.replay(images, transform.unpack(open(sys.argv[2], "rb").read()), images.flip(0))
torch.save(shown, sys.argv[3])
"""


def test_another_process_shows_the_same_bits(tmp_path: Path) -> None:
    transform, images = recipe("+m*+r*", 16), pictures(64)
    shown, drawn = transform.sample(images, keys_of(64), images.flip(0))
    torch.save(images, tmp_path / "images")
    (tmp_path / "packed").write_bytes(transform.pack(drawn).numpy().tobytes())
    places = [str(tmp_path / name) for name in ("images", "packed", "shown")]
    subprocess.run([sys.executable, "-c", CHILD, *places], check=True)
    assert torch.equal(torch.load(tmp_path / "shown", weights_only=True), shown)


def test_numpy_alone_reads_a_record() -> None:
    transform = recipe("+m*+r*", 16)
    drawn = transform.parameters(keys_of(40), (20, 24), count=100)
    kind = np.dtype([(name, "<" + np.dtype(kind).str[1:], (count,)) for name, kind, count in transform.describe()["layout"]])
    assert kind.itemsize == transform.width == 74
    read = np.frombuffer(transform.pack(drawn).numpy().tobytes(), kind)
    for name, values in drawn.items():
        np.testing.assert_array_equal(read[name], values.numpy(), err_msg=name)


def test_mixing_is_as_the_page_says() -> None:
    transform = ReplayableTransform((8, 12), padding=0, flip=0.0, mixup=0.5, cutmix=0.5)
    images = torch.zeros(2000, 1, 8, 12, dtype=torch.uint8)
    shown, drawn = transform.sample(images, keys_of(2000), images + 255)
    mixed, cut = ~drawn["mixup"].isnan()[:, 0], ~drawn["cutmix"].isnan()[:, 0]
    assert mixed.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert (mixed & cut).float().mean().item() == pytest.approx(0.25, abs=0.04)
    share = drawn["mixup"][mixed, 0]
    assert share.max() < 0.5  # the partner weighs more
    assert share.mean().item() == pytest.approx(0.25, abs=0.02)  # Beta(1, 1) / 2
    only = mixed & ~cut
    torch.testing.assert_close(shown[only][:, 0, 0, 0], 1 - drawn["mixup"][only, 0])  # black image, white partner
    assert not shown[~mixed & ~cut].any()
    top, left, bottom, right = drawn["cutmix_box"][cut & ~mixed].unbind(1)
    assert torch.equal(shown[cut & ~mixed].sum((1, 2, 3)), ((bottom - top) * (right - left)).float())
    row = int((cut & ~mixed & (drawn["cutmix_box"][:, 0] > 0)).nonzero()[0])
    a, b, c, d = drawn["cutmix_box"][row].tolist()  # the first pair counts rows
    expected = torch.zeros(8, 12)
    expected[a:c, b:d] = 1
    assert torch.equal(shown[row, 0], expected)
    assert drawn["cutmix_box"].amin(0).tolist() == [0, 0, 0, 0]
    assert drawn["cutmix_box"].amax(0).tolist()[2:] == [8, 12]


def test_partners_come_from_all_images_and_none_where_nothing_is_mixed() -> None:
    transform = ReplayableTransform(8, mixup=0.5)
    drawn = transform.parameters(keys_of(500), (8, 8), count=7)
    partners = transform.partners(transform.pack(drawn), 7)
    assert partners is not None
    assert set(partners.tolist()) == set(range(-1, 7))
    assert torch.equal(partners == -1, drawn["mixup"].isnan()[:, 0])
    assert recipe("rrc", 8).partners(recipe("rrc", 8).draw(keys_of(3), (8, 8), 7), 7) is None


def test_erased_pixels_are_zero_before_the_normalisation() -> None:
    transform = ReplayableTransform(16, padding=0, flip=0.0, erase=0.5)
    shown, drawn = transform.sample(torch.full((600, 3, 16, 16), 255, dtype=torch.uint8), keys_of(600))
    area = drawn["erase"][:, 2] * drawn["erase"][:, 3]
    assert torch.equal((shown == 0).sum((1, 2, 3)), 3 * area)
    assert (area > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert area[area > 0].min() > 0.02 * 256 * 0.6
    assert area.max() < 1.2 / 3 * 256


def test_a_resized_crop_is_torchvisions_up_to_rounding() -> None:
    transform, images = ReplayableTransform(16, flip=0.0), pictures(30)
    shown, drawn = transform.sample(images, keys_of(30))
    for image, box, ours in zip(images, drawn["crop"].tolist(), shown):
        top, left, height, width = box
        theirs = TF.resized_crop(image, top, left, height, width, [16, 16], InterpolationMode.BILINEAR, antialias=True)
        off = (ours * 255 - theirs).abs()
        assert off.max() <= 2.001  # both round to bytes twice, with weights of 15 bits and more
        assert (off > 1.001).float().mean() < 0.01


def test_a_padded_crop_is_a_window_of_the_padded_image() -> None:
    transform, images = ReplayableTransform((20, 24), padding=3, flip=0.0), pictures(50)
    shown, drawn = transform.sample(images, keys_of(50))
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    assert drawn["crop"].amin(0).tolist() == [0, 0]
    assert drawn["crop"].amax(0).tolist() == [6, 6]
    for row, (top, left) in enumerate(drawn["crop"].tolist()):
        assert torch.equal(shown[row], padded[row, :, top : top + 20, left : left + 24].float().div(255))


@pytest.mark.parametrize("number", range(len(OPERATIONS)), ids=OPERATIONS)
def test_operations_and_magnitudes_are_torchvisions(number: int) -> None:
    transform, images = ReplayableTransform((20, 24), padding=0, flip=0.0, num_ops=1), pictures(6)
    drawn = transform.parameters(keys_of(400), (20, 24))
    rows = (drawn["ops"][:, 0] == number).nonzero()[:6, 0]
    magnitudes = drawn["magnitudes"][rows]
    given_ = {"crop": torch.zeros(len(rows), 2).long(), "ops": torch.full((len(rows), 1), number), "magnitudes": magnitudes}
    shown = transform.replay(images[: len(rows)], given_)
    space = autoaugment.RandAugment(num_magnitude_bins=31)._augmentation_space(31, (20, 24))
    for image, magnitude, ours in zip(images, magnitudes[:, 0].tolist(), shown):
        name = OPERATIONS[number]
        expected = float(space[name][0][9]) if space[name][0].ndim else 0.0
        assert abs(magnitude) == pytest.approx(expected, rel=1e-6)
        theirs = autoaugment._apply_op(image, name, magnitude, InterpolationMode.NEAREST, fill=None)
        off = (ours * 255 - theirs).abs() > 1.5
        assert off.float().mean() <= (0.06 if name in ("Rotate", "ShearX", "ShearY") else 0.0)  # pixels on the edge between two


def test_views_are_kept_as_their_keys() -> None:
    augmentation = KeyedViews("crop(2), color_jitter(0.4, 0.4, 0.4), mixup")
    assert augmentation.text == "crop(2), color_jitter(brightness=0.4, contrast=0.4, saturation=0.4), mixup()"
    images, keys = pictures(40), keys_of(40)
    packed = augmentation.draw(keys, (20, 24), 40)
    assert packed.shape == (40, 8)
    partners = augmentation.partners(packed, 40)
    assert partners is not None
    assert torch.equal(partners, views.partner_indices(keys, 40))
    shown = augmentation.replay_packed(images, packed, images[partners])
    assert torch.equal(shown, views.parse(augmentation.text).mix(images, images[partners], keys)[0])
    assert KeyedViews("flip").partners(packed, 40) is None
    some = packed[1:2]  # bytes that begin anywhere
    assert torch.equal(augmentation.replay_packed(images[1:2], some, images[partners][1:2]), shown[1:2])


@settings(max_examples=10, deadline=None)
@given(
    flip=st.sampled_from([0.0, 0.5]), num_ops=st.integers(0, 3), erase=st.sampled_from([0.0, 0.7]), mixup=st.sampled_from([0.0, 0.5]),
    cutmix=st.sampled_from([0.0, 1.0]), padding=st.sampled_from([None, 2]), seed=st.integers(0, 99), channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_any_transform_is_described_packed_and_replayed(seed: int, channels: int, **arguments: Any) -> None:
    transform = ReplayableTransform(12, **arguments)
    assert described(transform.describe()) == transform
    images = pictures(5, 14, 13, channels, seed)
    partners = images.roll(1, 0) if transform.mixes else None
    shown, drawn = transform.sample(images, keys_of(5, seed), partners)
    assert list(drawn) == transform.layout.names
    assert torch.equal(transform.replay_packed(images, transform.pack(drawn), partners), shown)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r'reinforcement: no recipe is called "\+RA"\. There is \+m\*, \+m\*\+r\*, \+ra/re, rrc'):
        recipe("+RA", 8)
    with pytest.raises(ArgumentError, match=r"`erase` is a probability in \[0, 1\], got 25"):
        ReplayableTransform(8, erase=25)
    with pytest.raises(ArgumentError, match=r"`num_ops` must be 0 or more and `mixup_div_by` 1 or more, got -1 and 2\.0\. The"):
        ReplayableTransform(8, num_ops=-1)
    with pytest.raises(ArgumentError, match=r'no interpolation is called "lanczos"'):
        ReplayableTransform(8, interpolation="lanczos")
    with pytest.raises(ShapeError, match=r"a window of \(32, 32\) px does not fit into 20x24 px padded by 2\. Give more `padding`"):
        ReplayableTransform(32, padding=2).sample(pictures(2))
    mixing, images = ReplayableTransform(8, mixup=1.0), pictures(2)
    with pytest.raises(ArgumentError, match=r"mix each image with another one\. Give `partners`"):
        mixing.replay(images, mixing.parameters(keys_of(2), (20, 24)))
    with pytest.raises(ShapeError, match=r"got 2 images and parameters of 3\. Give one row an image"):
        recipe("rrc", 8).replay(images, recipe("rrc", 8).parameters(keys_of(3), (20, 24)))
    with pytest.raises(DataError, match=r"the parameters lack ops, magnitudes, erase\. They are of a transform with other steps"):
        recipe("+ra/re", 8).replay(images, recipe("rrc", 8).parameters(keys_of(2), (20, 24)))
    with pytest.raises(DataError, match=r"a record of this transform has 9 bytes, got 10\. They were written by a"):
        recipe("rrc", 8).unpack(bytes(10))
    with pytest.raises(DataError, match=r"have format 0, and this version of retinue carries out format 1\. Build the store anew"):
        described({**KeyedViews("flip").describe(), "format": 0})
    with pytest.raises(DataError, match=r"description of its augmentations is not one that retinue wrote"):
        described({"kind": "magic", "format": 1})
