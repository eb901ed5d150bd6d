"""Sparse targets: the page's numbers, laws of both ways, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.errors import ArgumentError, ShapeError
from retinue.losses.sparse_targets import METHODS, Densify, densify, sparsify, spread

KEPT = (torch.tensor([0.7, 0.2]), torch.tensor([3, 1]))


def shares(rows: int, classes: int, seed: int) -> torch.Tensor:
    return (3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def test_smooth_spreads_what_is_missing_over_the_other_classes() -> None:
    target = densify(*KEPT, classes=10)
    expected = [0.0125] * 10
    expected[3], expected[1] = 0.7, 0.2
    assert target.tolist() == pytest.approx(expected, abs=2e-8)
    divergence = F.kl_div(torch.full((1, 10), -math.log(10)), target[None], reduction="batchmean")
    assert divergence.item() == pytest.approx(1.2928, abs=5e-5)  # the page
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 8 * 0.0125 * math.log(0.0125))
    assert divergence.item() == pytest.approx(math.log(10) - entropy, abs=1e-6)


def test_zeros_and_the_official_quirk() -> None:
    zeros = densify(*KEPT, classes=10, method="zeros")
    assert zeros[[3, 1]].tolist() == pytest.approx([7 / 9, 2 / 9], abs=1e-7)
    quirk = densify(*KEPT, classes=10, method="zeros_reference")
    assert quirk[[3, 1]].tolist() == pytest.approx([0.6225, 0.3775], abs=5e-5)  # softmax(0.7, 0.2)
    others = [0, 2, 4, 5, 6, 7, 8, 9]
    assert not zeros[others].any()
    assert not quirk[others].any()


def test_equal_shares_are_kept_by_class_number() -> None:
    values, ids = sparsify(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]]), 2)
    assert ids.tolist() == [[0, 1], [1, 3]]
    assert values.tolist() == [[0.25, 0.25], [pytest.approx(0.4), pytest.approx(0.4)]]


def test_all_classes_kept_come_back() -> None:
    p = shares(50, 12, 0)
    for method in ("smooth", "zeros"):
        torch.testing.assert_close(densify(*sparsify(p, 12), classes=12, method=method), p, rtol=0, atol=1e-7)


def test_shares_that_were_rounded_up_are_brought_back_to_one() -> None:
    target = densify(torch.tensor([0.75, 0.2502]), torch.tensor([0, 2]), classes=4)
    assert target.sum().item() == pytest.approx(1, abs=1e-6)
    assert target[[1, 3]].tolist() == [0, 0]


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(2, 20), kept=st.integers(1, 20), seed=st.integers(0, 99), method=st.sampled_from(METHODS), half=st.booleans())
def test_a_target_is_a_distribution_that_keeps_the_order(classes: int, kept: int, seed: int, method: Densify, half: bool) -> None:
    p = shares(4, classes, seed)
    values, ids = sparsify(p, min(kept, classes))
    assert torch.equal(values, p.gather(1, ids))
    assert (values[:, -1:] >= p.scatter(1, ids, 0)).all()  # nothing larger was left out
    target = densify(values.half() if half else values, ids, classes, method)
    assert (target >= 0).all()
    torch.testing.assert_close(target.sum(1), torch.ones(4), rtol=0, atol=1e-6)
    assert torch.equal(target.argmax(1), ids[:, 0])
    turned = torch.arange(ids.shape[1] - 1, -1, -1)
    torch.testing.assert_close(densify(values[:, turned], ids[:, turned], classes, method), spread(values, ids, classes, method))


def test_rows_may_have_any_shape() -> None:
    p = shares(6, 5, 1).view(2, 3, 5)
    values, ids = sparsify(p, 2)
    assert values.shape == ids.shape == (2, 3, 2)
    assert torch.equal(densify(values, ids, 5)[1, 2], densify(values[1, 2], ids[1, 2], 5))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`k` must lie between 1 and the number of classes \(3\), got 4\. The paper keeps 10 of 1,000"):
        sparsify(torch.full((2, 3), 1 / 3), 4)
    with pytest.raises(ArgumentError, match=r"`k` must lie between 1 and the number of classes \(3\), got 0"):
        sparsify(torch.full((2, 3), 1 / 3), 0)
    with pytest.raises(ArgumentError, match=r'no `method` is called "smoth"\. Did you mean smooth\?'):
        densify(*KEPT, classes=10, method="smoth")  # type: ignore[arg-type]
    with pytest.raises(
        ShapeError, match=r"must have one shape, with 1 to 10 shares in a row \(the number of classes\), got \(2,\) and \(1,\)"
    ):
        densify(KEPT[0], KEPT[1][:1], classes=10)
    with pytest.raises(ShapeError, match=r"with 1 to 1 shares in a row"):
        densify(*KEPT, classes=1)
    with pytest.raises(ArgumentError, match=r"`ids` must lie between 0 and 2, as there are 3 classes; got 1 to 3"):
        densify(*KEPT, classes=3)
    for wrong in ([1.2, 0.1], [-0.1, 0.5], [0.0, 0.0], [math.nan, 0.5]):
        with pytest.raises(
            ArgumentError, match=r"`values` must be shares in \[0, 1\], not all 0 in a row\. Give probabilities, not logits"
        ):
            densify(torch.tensor(wrong), KEPT[1], classes=10)
