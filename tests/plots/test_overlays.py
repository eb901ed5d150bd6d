"""Overlays and galleries: the colours by hand, and what a figure holds."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from retinue.errors import ArgumentError, ShapeError
from retinue.plots.galleries import gallery, to_rgb
from retinue.plots.overlays import explained, overlay, side_by_side


def test_an_image_is_turned_into_bytes() -> None:
    image = torch.tensor([[[0.0, 0.5, 1.0]], [[0.0, 0.0, 2.0]], [[0.2, 0.0, -1.0]]])
    assert to_rgb(image).tolist() == [[[0, 0, 51], [128, 0, 0], [255, 255, 0]]]
    assert to_rgb((image * 255).clamp(0, 255).round().byte()).tolist() == to_rgb(image).tolist()
    assert to_rgb(image.permute(1, 2, 0).numpy()).tolist() == to_rgb(image).tolist()
    assert to_rgb(image[0]).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert to_rgb(image[:1]).tolist() == to_rgb(image[0].numpy()).tolist() == to_rgb(image[0]).tolist()
    assert to_rgb(torch.cat([image, image[:1]])).tolist() == to_rgb(image).tolist()  # RGBA
    assert to_rgb(torch.tensor([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]
    assert to_rgb(torch.tensor([[torch.nan, 1]])).tolist() == [[[0] * 3, [255] * 3]]
    assert to_rgb(image.requires_grad_()).dtype == np.uint8


def test_the_overlay_by_hand() -> None:
    image, heat = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[0.0, 1.0]])
    cold, hot = (np.array(matplotlib.colormaps["gray"](value)[:3]) * 255 for value in (0.0, 1.0))
    assert (cold.tolist(), hot.tolist()) == ([0, 0, 0], [255, 255, 255])
    assert overlay(image, heat, colours="gray").tolist() == [[[0] * 3, [255] * 3]]
    assert overlay(image, 1 - heat, colours="gray").tolist() == [[[102] * 3, [153] * 3]]  # 0.4 and 0.6 of 255
    red = [round(0.6 * 255 + 0.4 * 255 * value) for value in matplotlib.colormaps["turbo"](1.0)[:3]]
    assert overlay(image, heat)[0, 1].tolist() == red


@given(st.integers(0, 1000), st.floats(0, 1))
def test_an_overlay_lies_between_the_image_and_the_colours(seed: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, heat = torch.rand(3, 4, 5, generator=generator), torch.rand(4, 5, generator=generator)
    ends = np.stack([overlay(image, heat, 0.0), overlay(image, heat, 1.0)]).astype(int)
    mixed = overlay(image, heat, weight).astype(int)
    assert (ends.min(0) - 1 <= mixed).all()
    assert (mixed <= ends.max(0) + 1).all()
    assert (overlay(image, heat, 0.0) == to_rgb(image)).all()


def test_pictures_stand_side_by_side_with_a_white_gap() -> None:
    left, right = np.zeros((2, 3, 3), np.uint8), np.full((2, 1, 3), 7, np.uint8)
    assert side_by_side(left, right)[0, :, 0].tolist() == [0, 0, 0, 255, 7]


def test_a_gallery_has_an_axis_for_each_picture_and_its_caption(tmp_path: Path) -> None:
    figure = gallery([torch.rand(3, 6, 4)] * 10, [f"image {i}\nb" for i in range(10)], title="ten")
    assert [len(axis.images) for axis in figure.axes] == [1] * 10  # two rows of five
    assert [axis.texts[0].get_text() for axis in figure.axes][9] == "image 9\nb"
    assert figure.get_suptitle() == "ten"
    assert not pyplot.get_fignums()  # nothing stays behind in pyplot
    figure.savefig(tmp_path / "ten.png")
    assert (tmp_path / "ten.png").stat().st_size > 1000
    assert [len(axis.images) for axis in gallery([torch.rand(1, 2, 2)] * 5, columns=3).axes] == [1] * 5 + [0]


def test_an_explanation_shows_image_and_overlay() -> None:
    images, maps = torch.rand(3, 1, 8, 8), torch.rand(3, 8, 8)
    figure = explained(images, maps, ["a", "b", "c"])
    shown = figure.axes[1].images[0].get_array()
    assert shown is not None
    assert np.array_equal(shown, side_by_side(to_rgb(images[1]), overlay(images[1], maps[1])))


def test_what_cannot_be_is_refused() -> None:
    image, heat = torch.rand(3, 4, 4), torch.rand(4, 4)
    with pytest.raises(
        ArgumentError, match=r"overlay: `weight` must lie in \[0, 1\], got 40\. It is the share of the colours; 0\.4 is usual\."
    ):
        overlay(image, heat, 40)
    with pytest.raises(ArgumentError, match=r'overlay: matplotlib has no colour map "inferna"\. Did you mean inferno'):
        overlay(image, heat, colours="inferna")
    with pytest.raises(ShapeError, match=r"the heat map must be of the image's size \(4, 4\), got \(2, 2\)\."):
        overlay(image, heat[:2, :2])
    with pytest.raises(
        ShapeError, match=r"must have 1, 3 or 4 channels, first in a tensor and last in an array, got Tensor of shape \(5, 4, 3\)\."
    ):
        to_rgb(torch.rand(5, 4, 3))
    with pytest.raises(ShapeError, match=r"got ndarray of shape \(3, 4, 5\)"):
        to_rgb(np.zeros((3, 4, 5)))
    with pytest.raises(ShapeError, match=r"pictures must be of one height, got \[2, 3\]\."):
        side_by_side(np.zeros((2, 3, 3), np.uint8), np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ArgumentError, match=r"gallery: there is no picture to show\."):
        gallery([])
    with pytest.raises(ArgumentError, match=r"gallery: `captions` must be one for each of 2 pictures, got 1\."):
        gallery([image, image], ["a"])
    with pytest.raises(ArgumentError, match=r"explained: there are 1 images and 2 heat maps\. Give one for each\."):
        explained(image[None], torch.stack([heat, heat]))
