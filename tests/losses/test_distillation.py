"""Losses against another network's answers: closed forms, the limit of high temperature, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError
from retinue.losses import distillation_kl, soft_cross_entropy

seeds = st.integers(0, 2**31)


def logits(seed: int, rows: int = 4, classes: int = 5) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_cross_entropy_by_hand() -> None:
    z = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)  # softmax (3/4, 1/4)
    t = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert float(soft_cross_entropy(z, t)) == pytest.approx(-0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4), abs=1e-12)


def test_divergence_by_hand() -> None:
    student, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    expected = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert float(distillation_kl(student, teacher)) == pytest.approx(expected, abs=1e-12)
    # at T = 2 the teacher has (sqrt 3, 1) / (1 + sqrt 3), and the factor is 4
    p = 3**0.5 / (1 + 3**0.5)
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert float(distillation_kl(student, teacher, 2.0)) == pytest.approx(expected, abs=1e-12)


@given(seeds, st.floats(0.5, 20))
def test_the_divergence_is_zero_for_equals_and_positive_otherwise(seed: int, temperature: float) -> None:
    z, v = logits(seed), logits(seed + 1)
    assert float(distillation_kl(z, z + 3, temperature)) == pytest.approx(0, abs=1e-10)  # softmax does not see a constant
    assert distillation_kl(z, v, temperature) > 0


@given(seeds)
def test_at_temperature_1_it_is_the_soft_cross_entropy_less_the_teachers_entropy(seed: int) -> None:
    z, v = logits(seed), logits(seed + 1)
    shares = v.softmax(-1)
    assert float(distillation_kl(z, v)) == pytest.approx(float(soft_cross_entropy(z, shares) - soft_cross_entropy(v, shares)), abs=1e-12)


def test_at_a_high_temperature_the_gradient_matches_centred_logits() -> None:
    z, v = logits(0, rows=1).requires_grad_(), logits(1, rows=1)
    distillation_kl(z, v, temperature=1e4).backward()
    centred = (z - z.mean()) - (v - v.mean())
    torch.testing.assert_close(z.grad, centred.detach() / 5, rtol=1e-3, atol=1e-5)  # equation 4 holds up to terms of order 1/T


def test_no_gradient_reaches_the_teacher() -> None:
    z, v = logits(0).requires_grad_(), logits(1).requires_grad_()
    distillation_kl(z, v, 4.0).backward()
    assert z.grad is not None
    assert v.grad is None


def test_hard_targets_are_the_cross_entropy_on_labels() -> None:
    z, labels = logits(2), torch.tensor([0, 4, 2, 2])
    assert float(soft_cross_entropy(z, F.one_hot(labels, 5).double())) == pytest.approx(float(F.cross_entropy(z, labels)), abs=1e-12)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ArgumentError, match=r"`temperature` must be above 0, got .*The paper used 1 to 20"):
        distillation_kl(logits(0), logits(1), temperature)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"soft_cross_entropy: both need one row an image and one column a class, got \(4, 5\) and"):
        soft_cross_entropy(logits(0), logits(0, classes=6))
    with pytest.raises(ShapeError, match=r"distillation_kl: both need"):
        distillation_kl(logits(0), logits(0, rows=3))
