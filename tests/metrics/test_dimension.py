"""The intrinsic dimension of points, beside the numbers of scikit-dimension 0.5.0 on the bundled digits."""

import pytest
import torch
from sklearn.datasets import load_digits

from retinue.metrics import intrinsic_dimension

DIGITS = torch.from_numpy(load_digits().data)


@pytest.mark.parametrize(
    ("method", "correction", "peer"),
    [
        ("mle", "k-1", 6.844815332043865),  # MLE(K=20).fit(x, n_neighbors=20, comb="mle")
        ("mle", "k-2", 6.484561893515242),  # MLE(K=20, unbiased=True)
        ("twonn", "k-2", 9.168199558506496),  # TwoNN(discard_fraction=1 / 1797)
    ],
)
def test_scikit_dimension_gives_the_same(method: str, correction: str, peer: float) -> None:
    assert intrinsic_dimension(DIGITS, method, k=20, correction=correction).value == pytest.approx(peer, rel=1e-9)  # type: ignore[arg-type]
