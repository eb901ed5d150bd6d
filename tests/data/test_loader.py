"""Batches: order from (seed, epoch) alone, positions that jump, rows that depend on themselves."""

import pytest
import torch
from engine.cases import digits
from hypothesis import given
from hypothesis import strategies as st

from retinue.data import Batch, Loader, views
from retinue.errors import ArgumentError

DATA = digits()


def indices(loader: Loader, epoch: int, start: int = 0) -> list[int]:
    return [int(i) for batch in loader.batches(epoch, start) for i in batch.indices]


def test_an_epoch_shows_every_image_once_and_each_epoch_another_order() -> None:
    loader = DATA.train.loader(16, shuffle=True, seed=1)
    assert len(loader) == 10
    assert sorted(indices(loader, 0)) == list(range(160))
    assert indices(loader, 0) != indices(loader, 1)
    assert indices(loader, 0) == indices(DATA.train.loader(16, shuffle=True, seed=1), 0)
    assert indices(loader, 0) != indices(DATA.train.loader(16, shuffle=True, seed=2), 0)


def test_an_incomplete_batch_is_dropped_in_training_and_kept_in_evaluation() -> None:
    assert len(DATA.train.loader(50, shuffle=True)) == 3
    assert [len(batch) for batch in DATA.train.loader(50).batches()] == [50, 50, 50, 10]
    assert [len(batch) for batch in DATA.train.loader(500, shuffle=True).batches()] == [160]


@given(st.integers(0, 9), st.integers(0, 3))
def test_a_position_jumps_and_replays_nothing(start: int, epoch: int) -> None:
    loader = DATA.train.loader(16, shuffle=True, views=views.parse("crop(2), flip"), seed=4)
    whole, jumped = list(loader.batches(epoch))[start:], list(loader.batches(epoch, start))
    assert all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(whole, jumped, strict=True))


@pytest.mark.parametrize("text", ["crop(2), flip", "mixup(0.4)", "crop(1), cutmix(1.0), erase(0.5)"])
def test_a_row_does_not_depend_on_the_batch(text: str) -> None:
    def rows(size: int) -> dict[int, tuple[torch.Tensor, torch.Tensor | None]]:
        found = {}
        for batch in DATA.train.loader(size, views=views.parse(text), seed=2).batches(3):
            for row, index in enumerate(batch.indices.tolist()):
                found[index] = batch.images[row], None if batch.targets is None else batch.targets[row]
        return found

    small, large = rows(7), rows(64)
    for index, (image, target) in small.items():
        assert torch.equal(image, large[index][0])
        assert (target is None and large[index][1] is None) or torch.equal(target, large[index][1])  # type: ignore[arg-type]


def test_mixed_targets_are_shares_of_the_classes_of_both_images() -> None:
    batch = next(iter(DATA.train.loader(32, views=views.parse("mixup(1.0)"), seed=0).batches()))
    assert batch.targets is not None
    assert torch.allclose(batch.targets.sum(1), torch.ones(32), atol=1e-6)
    assert ((batch.targets > 0).sum(1) <= 2).all()


def test_several_views_are_several_tensors() -> None:
    crop = views.parse("crop(2)")
    batch = next(iter(DATA.train.loader(8, views=[crop, crop]).batches()))
    assert len(batch.views) == 2
    assert torch.equal(batch.images, batch.views[0])
    assert not torch.equal(batch.views[0], batch.views[1]), "each view has draws of its own"


def test_processes_share_the_batch() -> None:
    whole = list(DATA.train.loader(16, shuffle=True, seed=3).batches(1))
    halves = [list(DATA.train.loader(8, shuffle=True, seed=3, rank=rank, world=2).batches(1)) for rank in (0, 1)]
    for one, a, b in zip(whole, *halves, strict=True):
        assert torch.equal(one.images, torch.cat([a.images, b.images]))


def test_a_batch_moves_as_one() -> None:
    batch = next(iter(DATA.train.loader(4).batches()))
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.labels.device.type, moved.indices.device.type} == {"meta"}
    assert isinstance(moved, Batch)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="`batch_size` must be at least 1, got 0"):
        DATA.train.loader(0)
    with pytest.raises(ArgumentError, match="`workers` must be 0 or more, got -1"):
        DATA.train.loader(1, workers=-1)


def test_a_subset_keeps_names_labels_and_images() -> None:
    part = DATA.train.subset([5, 3])
    assert torch.equal(part.images(), DATA.train.images([5, 3]))
    assert part.labels.tolist() == DATA.train.labels[[5, 3]].tolist()
    assert part.name(0) == DATA.train.name(5)
    assert part.fingerprint != DATA.train.fingerprint
