"""Copies: exact ones, near ones that were changed a little, and lookalikes that are none."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retinue.audit import duplicates
from retinue.audit.duplicates import correlation, find_duplicates, near_copies, unit
from retinue.audit.survey import survey
from retinue.data import from_arrays


def photographs(count: int, side: int = 32, seed: int = 0) -> Tensor:
    """Smooth random pictures in colour, each with a few details of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 5, 5, generator=generator), (side, side), mode="bilinear")
    fine = F.interpolate(torch.rand(count, 3, 16, 16, generator=generator), (side, side), mode="bilinear")
    return ((0.6 * coarse + 0.4 * fine) * 255).byte()


CHANGES: dict[str, Any] = {
    "brighter": lambda x: (x.float() * 0.8 + 30).byte(),
    "noisy": lambda x: (x.float() + 6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255).byte(),
    "scaled down and up": lambda x: F.interpolate(F.interpolate(x.float(), 24, mode="area"), 32, mode="bilinear").byte(),
    "slightly cut": lambda x: F.interpolate(x[..., 1:, 1:].float(), 32, mode="bilinear").byte(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(change: str) -> None:
    images = photographs(200)
    images[150:154] = CHANGES[change](images[20:24])
    found = near_copies(images)
    assert sorted((pair.a, pair.b) for pair in found) == [(20, 150), (21, 151), (22, 152), (23, 153)]
    assert all(0.9 <= pair.correlation <= 1 for pair in found)


def test_pictures_that_resemble_hundreds_are_hardly_ever_taken_for_copies() -> None:
    strokes, slants = torch.zeros(300, 1, 28, 28), torch.linspace(-0.3, 0.3, 300)
    for stroke, slant in zip(strokes, slants.tolist()):  # slanted lines, each much like the next
        for row in range(4, 24):
            middle = 14 + (row - 14) * slant + float(torch.randn(1)) / 3
            stroke[0, row] = 255 * (2 - (torch.arange(28) - middle).abs()).clamp(0, 1)
    strokes = strokes.byte()
    likeness = unit(strokes.float()) @ unit(strokes.float()).T
    assert float(likeness.fill_diagonal_(0).amax(1).median()) > 0.93
    assert len(near_copies(strokes)) <= 3  # of 300, which all have a neighbour above the bare threshold


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(90)
    images[80:84] = CHANGES["noisy"](images[10:14])
    whole = near_copies(images)
    monkeypatch.setattr(duplicates, "ROWS", 11)
    monkeypatch.setattr(duplicates, "BLOCK", 7000)
    again = near_copies(images)
    assert [(p.a, p.b) for p in again] == [(p.a, p.b) for p in whole]
    assert len(whole) == 4


def test_tiny_images_must_be_nearly_the_same() -> None:
    images = F.interpolate(photographs(60).float(), 8, mode="area").byte()
    images[50] = (images[5].float() + 8 * torch.randn(3, 8, 8)).clamp(0, 255).byte()
    images[51] = (images[6].float() * 0.9 + 5).byte()
    assert [(pair.a, pair.b) for pair in near_copies(images)] == [(6, 51)]


def test_correlation_by_hand_and_of_flat_images() -> None:
    x = torch.tensor([[0, 1, 2, 3], [10, 30, 50, 70], [3, 2, 1, 0], [9, 9, 9, 9]], dtype=torch.uint8).view(4, 1, 2, 2)
    a, b = torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3])
    assert correlation(x, a, b).tolist() == pytest.approx([1, -1, 0], abs=1e-6)


def test_exact_copies_leaks_and_clashes() -> None:
    images = photographs(40)
    labels = torch.arange(40) % 2
    images[30], images[31], images[36] = images[0], images[0], images[1]  # 30, 31 in val; 36 in test
    images[37] = CHANGES["noisy"](images[2:3])[0]
    labels[30], labels[31], labels[36], labels[37] = 0, 1, 1, 0
    split = ["train"] * 30 + ["val"] * 5 + ["test"] * 5
    found = find_duplicates(survey(from_arrays(images, labels, split=split)))
    assert [(p.a, p.b) for p in found.exact] == [(0, 30), (0, 31), (1, 36)]
    assert [(p.a, p.b) for p in found.near] == [(2, 37)]
    assert found.leaks == {"test in train": 2, "val in train": 2}
    assert [(p.a, p.b) for p in found.clashes] == [(0, 31)]


def test_a_near_copy_of_an_exact_copy_leaks_as_well() -> None:
    images = photographs(40)
    images[20] = images[0]  # 0 and 20 both in train
    images[39] = CHANGES["noisy"](images[:1])[0]
    found = find_duplicates(survey(from_arrays(images, torch.arange(40) % 2, split=["train"] * 30 + ["test"] * 10)))
    assert found.leaks == {"test in train": 1}


def test_nothing_is_found_among_unrelated_images_or_one() -> None:
    assert near_copies(photographs(300, seed=3)) == []
    assert near_copies(photographs(1)) == []
    assert near_copies(torch.full((5, 1, 16, 16), 7, dtype=torch.uint8)) == []  # flat images correlate with nothing


def test_what_is_kept_of_each_image() -> None:
    images = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    images[1] = 51
    images[2, 0] = 102
    images[3, :, :2] = 255
    seen = survey(from_arrays(images, [0, 1, 0, 1], split=["train", "train", "test", "test"]), resolution=2)
    assert seen.pixels.shape == (4, 3, 2, 2)
    assert seen.pixels[1].unique().tolist() == [255]  # each scaled to its maximum
    assert seen.brightness.tolist() == pytest.approx([0, 0.2, 0.4 / 3, 0.5])
    assert seen.contrast.tolist() == pytest.approx([0, 0, float(np.std([0.4, 0, 0])), 0.5], abs=1e-6)
    assert seen.coloured.tolist() == [False, False, True, False]
    assert seen.parts.tolist() == [0, 0, 2, 2]
    assert (seen.name(2), seen.label(3), seen.part(2)) == ("image 2", "1", "test")
    assert torch.equal(seen.picture(3), images[3])
    assert seen.moments["test"][0] == pytest.approx([0.45, 0.25, 0.25])
