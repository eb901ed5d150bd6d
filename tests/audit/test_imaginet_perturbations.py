"""The perturbations: codecs as Pillow has them, rows that do not depend on each other, the stored test set, sweeps, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from retinue import views
from retinue.audit.imaginet_perturbations import SocialNetworkPerturbation, clean, resized, sweep
from retinue.data import decode
from retinue.data.annotations import Annotation, annotations, read_annotations
from retinue.data.views.perturbations import Compress, Perturb, QuarterTurn, calibration_views, recompressed, training_views
from retinue.errors import ArgumentError, DataError, ShapeError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_compression_is_pillows(format: str, channels: int) -> None:
    image = noise(channels, 20, 30)
    held = io.BytesIO()
    pixels = image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(held, format, quality=60)
    expected = np.array(Image.open(held).convert("L" if channels == 1 else "RGB")).reshape(20, 30, channels)
    assert np.array_equal(recompressed(image, format, 60).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_lower_quality_loses_more(format: str) -> None:
    image = noise(3, 32, 32)
    losses = [(recompressed(image, format, quality).float() - image).square().mean().item() for quality in (95, 70, 20)]
    assert 0 < losses[0] < losses[1] < losses[2]


SHOWN = [
    Compress(),
    Compress((1, 100), "webp", p=0.5),
    QuarterTurn(0.7),
    Perturb(),
    Perturb(1.0),
    training_views(16),
    calibration_views(16),
]


@pytest.mark.parametrize("view", SHOWN, ids=str)
@pytest.mark.parametrize("floats", [False, True])
def test_a_row_depends_on_its_image_and_key_alone(view: Any, floats: bool) -> None:
    images = noise(9, 3, 20, 20) if view in SHOWN[-2:] else noise(9, 3, 16, 16)
    images = images / 255 if floats else images
    keys = views.keys(3, 1, torch.arange(9))
    whole = view(images, keys)
    assert whole.dtype == images.dtype
    assert whole.shape == (9, 3, 16, 16)
    order = torch.tensor([5, 2, 8])
    assert torch.equal(view(images[order], keys[order]), whole[order])
    assert torch.equal(view(images[:1], keys[:1]), whole[:1])


def test_compression_chooses_format_and_quality_evenly() -> None:
    images = noise(1, 3, 8, 8).expand(400, 3, 8, 8)
    changed = Compress((50, 51))(images, views.keys(0, 0, torch.arange(400)))
    kinds = [recompressed(images[0], format, quality) for format in ("jpeg", "webp") for quality in (50, 51)]
    counts = [sum(torch.equal(image, kind) for image in changed) for kind in kinds]
    assert sum(counts) >= 400  # two qualities may give the same image
    assert all(count > 60 for count in counts)


def test_probabilities_are_what_they_say() -> None:
    images = noise(1, 3, 8, 8).expand(600, 3, 8, 8)
    keys = views.keys(0, 0, torch.arange(600))
    for view, expected in ((Compress(p=0.3), 0.3), (Perturb(0.5), 0.5), (QuarterTurn(0.4), 0.3), (Perturb(0.0), 0.0)):
        share = (view(images, keys) != images).flatten(1).any(1).float().mean().item()
        assert share == pytest.approx(expected, abs=0.07), view


def test_quarter_turns_move_pixels() -> None:
    images = noise(40, 3, 6, 6)
    turned = QuarterTurn(1.0)(images, views.keys(0, 0, torch.arange(40)))
    found = {next(k for k in range(4) if torch.equal(torch.rot90(image, k, (1, 2)), after)) for image, after in zip(images, turned)}
    assert found == {0, 1, 2, 3}


def test_views_read_as_text_and_back() -> None:
    assert (
        repr(views.parse("perturb(0.5), quarter_turn(0.33), compress([60, 100])"))
        == "perturb(), quarter_turn(), compress(quality=(60, 100))"
    )
    assert "perturb" not in repr(training_views(32, 0.0))
    assert "compress" not in repr(calibration_views(32, perturb=False))


def test_arguments_of_views_that_cannot_be_are_refused() -> None:
    for quality in (0, 101, (60, 50), (1, 2, 3), 50.5, True, "60"):
        with pytest.raises(ArgumentError, match=r"compress: `quality` must be a whole number from 1 to 100, or the pair"):
            Compress(quality)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"perturb: `quality` must be .* got 0"):
        Perturb(quality=0)
    with pytest.raises(ArgumentError, match=r'compress: no lossy format \(`formats`\) is called "png"\. Did you mean jpeg'):
        Compress(formats=("png",))
    with pytest.raises(ArgumentError, match=r"compress: `formats` is empty"):
        Compress(formats=())
    with pytest.raises(ArgumentError, match=r"quarter_turn: `p` must be a number in \[0, 1\], got 2"):
        QuarterTurn(2)
    with pytest.raises(ShapeError, match=r"images must be square, got 6x8 px\. Crop them first: crop\(0, 6\)"):
        QuarterTurn()(noise(1, 3, 6, 8))


def test_odd_numbers_of_channels_are_compressed_one_by_one() -> None:
    image = noise(2, 6, 8)
    assert torch.equal(recompressed(image, "jpeg", 50), torch.cat([recompressed(channel[None], "jpeg", 50) for channel in image]))


def test_the_clean_test_image_is_the_padded_middle() -> None:
    image = noise(3, 10, 14)
    assert torch.equal(clean(image, 8), image[:, 1:9, 3:11])
    assert clean(image, 12)[:, 1:11].equal(image[:, :, 1:13])


def test_without_compression_and_room_an_image_stays_as_it_is() -> None:
    image = noise(3, 16, 16)
    assert torch.equal(SocialNetworkPerturbation(16, 16, p=0)(image, 3), image)
    assert torch.equal(
        SocialNetworkPerturbation(16, 16, p=1, quality=(70, 70), formats=("webp",))(image, 3), recompressed(image, "webp", 70)
    )


def test_the_crop_is_resized_by_lanczos() -> None:
    image = noise(3, 24, 24)
    found = SocialNetworkPerturbation(24, 24, p=0, size=12)(image, 0)
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.LANCZOS)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(expected))
    assert torch.equal(resized(image, 24), image)


def test_sides_and_places_of_the_crop_cover_what_they_may() -> None:
    places = torch.arange(20 * 30).reshape(1, 20, 30)
    image = (places % 251).to(torch.uint8)
    network = SocialNetworkPerturbation(6, 12, p=0)
    corners: set[int] = set()

    def seen(cut: Tensor, size: int) -> Tensor:
        corners.add(cut.shape[-1])
        assert cut.shape[-1] == cut.shape[-2]
        return cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retinue.audit.imaginet_perturbations.resized", seen)
        for index in range(200):
            network(image, index)
    assert corners == set(range(6, 13))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.integers(0, 1000))
def test_what_becomes_of_an_image_depends_on_seed_and_number_alone(seed: int, index: int) -> None:
    image = noise(3, 20, 26)
    a, b = (SocialNetworkPerturbation(8, 16, seed=seed) for _ in range(2))
    a(noise(3, 9, 9), 5)
    assert torch.equal(a(image, index), b(image, index))


def test_small_images_are_padded_first() -> None:
    assert SocialNetworkPerturbation(16, 32)(noise(1, 5, 40), 0).shape == (1, 16, 16)
    assert SocialNetworkPerturbation(16, 32).all(noise(4, 3, 20, 20)).shape == (4, 3, 16, 16)


def test_the_set_is_stored_without_losses_and_the_same_each_time(tmp_path: Path) -> None:
    rows = [Annotation("real/a,b.jpg", 0, 0, 4, 8), Annotation("gan/x.png", 1, 2, 0, 1)]
    for number, row in enumerate(rows):
        (tmp_path / row.path).parent.mkdir(parents=True)
        Image.fromarray(noise(30, 40, 3, seed=number).numpy()).save(tmp_path / row.path)
    network = SocialNetworkPerturbation(16, 24, seed=7)
    made = network.build(tmp_path, annotations(rows), tmp_path / "out")
    assert made.paths == ["000000.png", "000001.png"]
    assert read_annotations(tmp_path / "out" / "annotations.txt", tmp_path / "out").rows() == made.rows()
    assert made.codes.tolist() == [[0, 0, 4, 8], [1, 2, 0, 1]]
    for number, row in enumerate(rows):
        assert torch.equal(decode(tmp_path / "out" / made.paths[number]), network(decode(tmp_path / row.path), number))
    before = [(tmp_path / "out" / path).read_bytes() for path in made.paths]
    network.build(tmp_path, annotations(rows), tmp_path / "out")
    assert [(tmp_path / "out" / path).read_bytes() for path in made.paths] == before
    (tmp_path / rows[0].path).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be used\. Mend or remove them:\n  real/a,b\.jpg: "):
        network.build(tmp_path, annotations(rows), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_sweeps_change_one_thing_at_a_time() -> None:
    images = torch.cat([noise(6, 3, 16, 16), noise(6, 3, 16, 1).expand(6, 3, 16, 16)])
    origin = torch.tensor([0] * 6 + [1] * 6)

    def smooth(images: Tensor) -> Tensor:
        return 20 - images.float().diff(dim=-1).abs().mean((1, 2, 3))

    found = sweep(smooth, images, origin, qualities=(100, 10), factors=(1.0, 0.25))
    assert found["jpeg"].keys() == {100, 10}
    assert found["resize"][1.0] == (1.0, 1.0, 12)
    assert found["resize"][0.25].auc <= 1.0
    assert sweep(lambda images: torch.zeros(12), images, origin, qualities=(50,), factors=())["jpeg"][50] == (0.5, 0.5, 12)
    with pytest.raises(ArgumentError, match=r"`factors` must be above 0, got \[0\]\. 0\.5 halves each side"):
        sweep(smooth, images, origin, factors=[0])
    with pytest.raises(ArgumentError, match=r"sweep: `quality` must be a whole number from 1 to 100.* got 101"):
        sweep(smooth, images, origin, qualities=[101])
    with pytest.raises(DataError, match=r"sweep: there must be real \(0\) and synthetic \(1\) images, got real only"):
        sweep(smooth, images, torch.zeros(12, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"min_side": 0}, r"`min_side` must lie between 1 and `max_side` \(1000\), got 0"),
        ({"min_side": 9, "max_side": 8}, r"`min_side` must lie between 1 and `max_side` \(8\), got 9"),
        ({"quality": (0, 100)}, r"`quality` must be a whole number from 1 to 100"),
        ({"p": 1.5}, r"`p` must lie in \[0, 1\], got 1\.5"),
        ({"size": -1}, r"`size` must be at least 1, got -1"),
        ({"formats": ("gif",)}, r'no lossy format \(`formats`\) is called "gif"'),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        SocialNetworkPerturbation(**arguments)
