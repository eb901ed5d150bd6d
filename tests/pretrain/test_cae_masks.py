"""cae: masks hide the same number of patches of every image, in rectangles or anywhere, as a function of each row's key alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinue.data import views
from retinue.errors import ArgumentError, ShapeError
from retinue.pretrain.cae_masks import BlockMask, RandomMask, places_of


def keys(count: int, seed: int = 0) -> Tensor:
    return views.keys(seed, 0, torch.arange(count))


def test_a_thousand_block_masks_hide_98_patches_each() -> None:
    masks = BlockMask((14, 14), 98, min_area=16)(keys(1000))
    assert masks.dtype == torch.bool
    assert masks.shape == (1000, 196)
    assert masks.sum(1).unique().tolist() == [98]
    assert len(masks.unique(dim=0)) == 1000


def test_about_six_rectangles_make_a_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    plain = BlockMask._rectangle

    def counted(self: BlockMask, *arguments: Any) -> int:
        nonlocal count
        new = plain(self, *arguments)
        count += new > 0
        return new

    masks = BlockMask((14, 14), 98, min_area=16)
    monkeypatch.setattr(BlockMask, "_rectangle", counted)
    masks(keys(200))
    assert 5 < count / 200 < 8


def test_hidden_patches_of_blocks_are_neighbours_more_often_than_random_ones() -> None:
    def together(masks: Tensor) -> float:
        grid = masks.view(-1, 14, 14)
        return float((grid[:, :, 1:] & grid[:, :, :-1]).float().mean())

    assert together(RandomMask((14, 14), 98)(keys(200))) == pytest.approx(98 / 196 * 97 / 195, abs=0.01)
    assert together(BlockMask((14, 14), 98)(keys(200))) > 0.38


def test_every_patch_is_hidden_equally_often_by_random_masks() -> None:
    shares = RandomMask((4, 4), 4)(keys(4000)).float().mean(0)
    assert float((shares - 0.25).abs().max()) < 4 * (0.25 * 0.75 / 4000) ** 0.5


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([BlockMask, RandomMask]),
    rows=st.integers(3, 9),
    columns=st.integers(3, 9),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_a_row_depends_on_its_own_key_alone(kind: Any, rows: int, columns: int, share: float, seed: int) -> None:
    count = max(1, round(share * rows * columns))
    draw = kind((rows, columns), count, **({"min_area": 1} if kind is BlockMask else {}))
    masks = draw(keys(5, seed))
    assert masks.sum(1).tolist() == [count] * 5
    assert torch.equal(draw(keys(5, seed)[3:4])[0], masks[3])
    assert torch.equal(draw(keys(5, seed).flip(0)).flip(0), masks)
    assert draw(keys(0)).shape == (0, rows * columns)


def test_half_is_hidden_and_small_grids_have_small_rectangles_by_default() -> None:
    assert BlockMask((8, 8)).masked == RandomMask((8, 8)).masked == 32
    assert (BlockMask((8, 8)).min_area, BlockMask((14, 14)).min_area, BlockMask((4, 4), 1).min_area) == (5, 16, 1)


def test_places_are_listed_row_by_row() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert places_of(mask).tolist() == [[0, 2], [1, 2]]
    with pytest.raises(ShapeError, match=r"as many hidden patches, got 1 to 2\. Draw the masks with BlockMask or RandomMask"):
        places_of(torch.tensor([[True, False, True], [False, True, False]]))


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ((4, 4), {"masked": 0}, r"`masked` must be at least 1 and less than all 16 patches, got 0\. The paper hides half: 8"),
        ((4, 4), {"masked": 16}, r"less than all 16 patches, got 16"),
        (
            (14, 14),
            {"masked": 10, "min_area": 16},
            r"`min_area` must lie between 1 and the 10 hidden patches, got 16\. The paper has 16 of 98",
        ),
        ((4, 4), {"aspect": (2.0, 1.0)}, r"`aspect` must be a smallest and a largest height / width above 0, got \(2\.0, 1\.0\)"),
        ((2, 3), {"masked": 5, "min_area": 4}, r"no rectangles of these areas and aspects hide 5 of 2x3 patches\. Lower `min_area`"),
    ],
)
def test_masks_that_cannot_be_are_refused(grid: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        BlockMask(grid, **options)


def test_random_masks_hide_something_but_not_everything() -> None:
    for count in (0, 16):
        with pytest.raises(ArgumentError, match=rf"less than all 16 patches, got {count}"):
            RandomMask((4, 4), count)
