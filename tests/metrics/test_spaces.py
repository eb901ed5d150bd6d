import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError
from retinue.metrics import linear_cka
from retinue.metrics.spaces import affine_map, compare_spaces, jaccard, mean_reciprocal_rank, procrustes, ranks

R = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)


def points(seed: int, n: int = 30, width: int = 4) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_numbers_of_the_page() -> None:
    found = ranks(torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.6, 0.5], [0.2, 0.95, 0.9]], dtype=torch.float64))
    assert found.tolist() == [1, 2, 2]
    assert (1 / found).mean().item() == pytest.approx(0.66666667, abs=1e-8)
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [2], [0], [3]], dtype=torch.float64)
    assert linear_cka(x, y).item() == pytest.approx(0.15118579, abs=1e-8)
    assert linear_cka(x, 2 * x @ R + 5).item() == pytest.approx(1.0)
    z = torch.tensor([[1.0, 0], [0, 2], [1, 1]], dtype=torch.float64)
    assert torch.allclose(procrustes(z, z @ R), R)


def test_a_space_beside_itself_is_one() -> None:
    x = points(0)
    assert compare_spaces(x, x, k=5) == pytest.approx({"jaccard": 1, "mrr": 1, "cosine": 1, "cka": 1})


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_they_are_their_definitions(seed: int, k: int) -> None:
    a, b = points(seed), points(seed + 1)
    cross = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    own = torch.nn.functional.cosine_similarity(b[:, None], b[None], dim=-1)
    shares = []
    for i in range(len(a)):
        one, two = ({*row.argsort(descending=True)[:k].tolist()} for row in (cross[i], own[i]))
        shares.append(len(one & two) / len(one | two))
    assert jaccard(a, b, k) == pytest.approx(sum(shares) / len(shares))
    places = [1 + int((cross[i] > cross[i, i]).sum()) for i in range(len(a))]
    assert mean_reciprocal_rank(a, b) == pytest.approx(sum(1 / place for place in places) / len(places))
    assert mean_reciprocal_rank(a, b, top=k) == pytest.approx(sum(1 / place for place in places if place <= k) / len(places))


def test_many_rows_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = points(0, 50), points(1, 50)
    whole = compare_spaces(a, b)
    monkeypatch.setattr("retinue.metrics.spaces.ROWS", 7)
    assert compare_spaces(a, b) == pytest.approx(whole)


def test_maps_are_scipys_and_least_squares() -> None:
    x, y = points(0), points(1)
    assert torch.allclose(procrustes(x, y), torch.as_tensor(orthogonal_procrustes(x.numpy(), y.numpy())[0]))
    M, t = affine_map(x, y)
    design = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], 1)
    assert torch.allclose(torch.cat([M, t[None]]), torch.linalg.lstsq(design, y).solution)


def test_spaces_of_other_lengths_have_only_cka() -> None:
    told = compare_spaces(points(0), points(1, width=7))
    assert [name for name, value in told.items() if math.isnan(value)] == ["jaccard", "mrr", "cosine"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: compare_spaces(points(0), points(0, 20)), ShapeError, r"^compare_spaces: both spaces must hold the same images, one row"),
        (lambda: procrustes(points(0), points(0, width=3)), ShapeError, "the same images and be of one length"),
        (lambda: jaccard(points(0), points(0), 31), ArgumentError, r"`k` must lie between 1 and the number of images, 30, got 31\.$"),
        (lambda: mean_reciprocal_rank(points(0), points(0), 0), ArgumentError, r"`top` must be at least 1, got 0\.$"),
        (
            lambda: compare_spaces(points(0) * math.inf, points(0)),
            ArgumentError,
            r"^compare_spaces: the first space holds values that are not",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: Any, error: type[Exception], message: str, unchecked: None) -> None:
    with pytest.raises(error, match=message):
        call()
