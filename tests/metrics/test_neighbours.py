"""Nearest neighbours by blocks: the same as the whole matrix of distances, and exact where float32 is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from retinue.errors import ArgumentError
from retinue.metrics import neighbours
from retinue.metrics.neighbours import distance, groups, nearest


def test_neighbours_on_a_line_by_hand() -> None:
    found = nearest(torch.tensor([[0.0], [1.0], [3.0], [7.0]]), 2)
    assert found.distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]
    assert found.indices.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]


@given(st.integers(0, 1000), st.integers(12, 90), st.integers(1, 8), st.booleans())
@settings(max_examples=20)
def test_blocks_give_what_scikit_learn_gives(seed: int, count: int, features: int, bytes_: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (count, features), generator=generator, dtype=torch.uint8) if bytes_ else torch.randn(count, features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", 10 * features)
        patch.setattr(neighbours, "ANCHORS", 7)
        found = nearest(x, 5)
    expected = (
        NearestNeighbors(n_neighbors=5).fit(x.double().numpy()).kneighbors()[0]
    )  # without arguments, a point is not its own neighbour
    assert torch.allclose(found.distances, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)  # differences in float32
    assert (found.indices != torch.arange(count)[:, None]).all()


def test_anchors_alone_are_measured_among_all() -> None:
    x = torch.randn(50, 3)
    whole, some = nearest(x, 4), nearest(x, 4, torch.tensor([7, 3]))
    assert torch.equal(some.distances, whole.distances[[7, 3]])
    assert torch.equal(some.indices, whole.indices[[7, 3]])


def test_small_distances_far_from_the_origin_are_exact() -> None:
    x = torch.randn(200, 30, dtype=torch.float64) * 100 + 1e7
    x[150] = x[20] + 1e-5
    found = nearest(x, 1, torch.tensor([20]))
    assert found.indices.tolist() == [[150]]
    assert float(found.distances) == pytest.approx(float((x[20] - x[150]).norm()), rel=1e-12)
    assert distance(x, torch.tensor([20]), torch.tensor([150])).tolist() == found.distances[0].tolist()


def test_a_copy_is_a_neighbour_at_distance_zero() -> None:
    x = torch.tensor([[5.0], [5.0], [9.0]])
    assert nearest(x, 1).distances.flatten().tolist() == [0, 0, 4]
    assert groups(x) == [[0, 1]]


def test_as_many_neighbours_as_points_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"nearest: `k` must lie between 1 and 2, one less than there are points, got 3"):
        nearest(torch.zeros(3, 1), 3)
