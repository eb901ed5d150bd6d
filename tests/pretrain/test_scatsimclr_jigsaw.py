"""scatsimclr: the jigsaw's orders and tiles, and what they refuse."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Batch
from retinue.errors import ArgumentError, ShapeError
from retinue.models import adapt, pooled_features, tiny
from retinue.pretrain.jigsaw import JigsawPretext, permutation_set, tiles_of

SMALL: dict[str, Any] = {"tile_dim": 8, "hidden_dim": 16}


def batch_of(images: torch.Tensor, first: int = 0) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(first, first + len(images)), (images,))


def backbone(kind: Any = "ours") -> Any:
    torch.manual_seed(0)
    return adapt(tiny(kind), input_size=32)


def distances(table: torch.Tensor) -> list[int]:
    return [int((a != b).sum()) for a, b in itertools.combinations(table, 2)]


def test_the_35_orders_of_the_paper_differ_at_seven_places_at_least() -> None:
    for seed in (0, 1):
        table = permutation_set(35, seed=seed)
        assert table.sort(1).values.tolist() == [list(range(9))] * 35
        assert min(distances(table)) == 7
        assert sum(distances(table)) / len(distances(table)) > 8
    assert torch.equal(permutation_set(35), permutation_set(35, seed=0))
    assert not torch.equal(permutation_set(35), permutation_set(35, seed=1))


def test_the_first_nine_have_no_place_in_common() -> None:
    table = permutation_set(9)
    assert min(distances(table)) == 9 or table[:, 0].unique().numel() >= 8


def test_all_orders_of_four_tiles_and_a_sample_of_sixteen() -> None:
    assert sorted(permutation_set(24, 4).tolist()) == [list(order) for order in itertools.permutations(range(4))]
    assert min(distances(permutation_set(2, 4))) == 4
    assert min(distances(permutation_set(6, 16))) >= 15


@settings(max_examples=10, deadline=None)
@given(row=st.integers(0, 34))
def test_an_order_and_its_inverse_restore_the_tiles(row: int) -> None:
    order = permutation_set(35)[row]
    tiles = tiles_of(torch.rand(2, 1, 9, 9))
    assert torch.equal(tiles[:, order][:, order.argsort()], tiles)


def test_tiles_run_row_by_row_and_leave_out_what_lies_on_a_border() -> None:
    image = torch.arange(81.0).view(1, 1, 9, 9)
    tiles = tiles_of(image)
    assert tiles.shape == (1, 9, 1, 9, 9)
    for number, (top, left) in enumerate(itertools.product((0, 3, 6), (0, 3, 6))):
        tile = image[..., top : top + 3, left : left + 3]
        assert torch.equal(tiles[:, number], nn.functional.interpolate(tile, (9, 9), mode="bilinear"))
    marked = torch.zeros(1, 1, 32, 32)
    marked[..., 10, :] = 1  # 32 / 3 = 10.67: the tiles are rows 0 to 9, 11 to 20 and 22 to 31
    marked[..., 21, :] = 1
    assert (tiles_of(marked) == 0).all()
    marked[..., 11, 11] = 1
    assert [number for number in range(9) if tiles_of(marked)[0, number].any()] == [4]


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_every_tile_passes_alone_and_the_head_sees_them_in_their_order(kind: Any) -> None:
    model = backbone(kind).eval()
    jigsaw = JigsawPretext(model, permutations=7, **SMALL).eval()
    images = torch.rand(2, 3, 32, 32)
    orders = jigsaw.orders(batch_of(images))
    tiles = tiles_of(images)
    rows = [
        torch.cat([jigsaw.tile(pooled_features(model, tiles[i : i + 1, t])) for t in jigsaw.table[order]], 1)
        for i, order in enumerate(orders)
    ]
    logits = jigsaw.head(torch.cat(rows))
    assert_close(jigsaw(model, batch_of(images))["loss"], nn.functional.cross_entropy(logits, orders))


def test_the_layers_of_the_paper() -> None:
    jigsaw = JigsawPretext(backbone())
    widths = [(layer.in_features, layer.out_features) for layer in jigsaw.modules() if isinstance(layer, nn.Linear)]
    assert widths == [(32, 512), (9 * 512, 4096), (4096, 35)]
    assert [layer.p for layer in jigsaw.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_the_order_is_saved_and_drawn_anew_in_training_alone() -> None:
    model = backbone()
    jigsaw = JigsawPretext(model, **SMALL)
    assert "table" in jigsaw.state_dict()
    images = torch.rand(64, 3, 32, 32)
    torch.manual_seed(0)
    first, second = jigsaw.orders(batch_of(images)), jigsaw.orders(batch_of(images))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(jigsaw.orders(batch_of(images)), first)
    jigsaw.eval()
    held_out = jigsaw.orders(batch_of(images))
    assert held_out.unique().numel() > 20
    assert torch.equal(jigsaw.orders(batch_of(images[9:], first=9)), held_out[9:]), "an image's order does not depend on the others"


def test_it_learns_to_order_the_tiles_of_one_picture() -> None:
    torch.manual_seed(0)
    model = retinue.create_model("small_convnet", widths=[8, 16], num_classes=0)
    jigsaw = JigsawPretext(model, grid=2, permutations=4, drop_rate=0.0, **SMALL)
    batch = batch_of(torch.rand(1, 3, 8, 8).expand(8, 3, 8, 8))
    optimizer = torch.optim.Adam([*model.parameters(), *jigsaw.parameters()], lr=0.01)
    for _ in range(60):
        numbers = jigsaw(model, batch)
        optimizer.zero_grad()
        numbers["loss"].backward()
        optimizer.step()
    assert numbers["jigsaw_accuracy"] == 1


def test_a_head_of_zeros_pays_the_logarithm_of_the_orders() -> None:
    model = backbone()
    jigsaw = JigsawPretext(model, permutations=12, **SMALL)
    nn.init.zeros_(jigsaw.head[-1].weight), nn.init.zeros_(jigsaw.head[-1].bias)
    assert jigsaw(model, batch_of(torch.rand(1, 3, 32, 32)))["loss"].item() == pytest.approx(math.log(12), abs=3e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, r"jigsaw: `grid` must be at least 2 tiles along each side, got 1\. The paper has 3\."),
        ({"permutations": 1}, r"`permutations` must be from 2 to 362880, as many as 9 tiles have, got 1\. The paper has 35\."),
        ({"grid": 2, "permutations": 25}, r"must be from 2 to 24, as many as 4 tiles have, got 25"),
        ({"grid": 4, "permutations": 362881}, r"of 16 tiles, 362880 orders are compared, got `permutations` 362881\. Take fewer\."),
        (
            {"grid": 2, "permutations": [[0, 1, 2, 3], [0, 1, 2, 2]]},
            r"row 1 of `permutations` must hold each of 0 to 3 once, got \[0, 1",
        ),
        ({"grid": 2, "permutations": [[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3]]}, r"row 2 of `permutations` repeats row 0, so nobody can"),
        ({"grid": 2, "permutations": [[0, 1, 2, 3]]}, r"`permutations` must hold two orders at least, got 1\. With one there is nothing"),
    ],
)
def test_orders_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        JigsawPretext(backbone(), **options)


def test_ones_own_orders_are_taken() -> None:
    assert JigsawPretext(backbone(), grid=2, permutations=[[3, 2, 1, 0], [0, 1, 2, 3]], **SMALL).table.tolist()[0] == [3, 2, 1, 0]


def test_images_too_small_to_be_cut_are_refused() -> None:
    message = r"images must have 9 px or more along each side to be cut into 3x3 tiles, got 8x12\. Open the data with input_size=9"
    with pytest.raises(ShapeError, match=message):
        tiles_of(torch.zeros(1, 1, 8, 12))
    model = tiny("ours", in_chans=1)
    data = retinue.data.open("digits", input_size=8, train_images=20, test_images=20)
    with pytest.raises(ShapeError, match=r"got 8x8"):
        retinue.fit(model, JigsawPretext(model, permutations=3, **SMALL), data, max_steps=1, progress=False)
