"""CKA: by hand, its invariances, and both estimates of independence. RSA, and the halves of both that losses are made of."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError
from retinue.metrics import hsic, linear_cka, minibatch_cka, rsa
from retinue.metrics.cka import aligned, correlated, cosines, linear_kernel

seeds = st.integers(0, 2**31)


def features(seed: int, images: int = 12, size: int = 6) -> Tensor:
    return torch.randn(images, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, size: int = 6) -> Tensor:
    return torch.linalg.qr(features(seed, size, size)).Q


def test_three_images_by_hand() -> None:
    # Centred: x (-1, 0, 1) and y ((-1, -1), (0, 2), (1, -1)). x'y = (2, 0), so |x'y|^2 = 4; |x'x| = 2; y'y = diag(2, 6), of norm sqrt(40).
    x = torch.tensor([[0.0], [1.0], [2.0]])
    y = torch.tensor([[1.0, 0.0], [2.0, 3.0], [3.0, 0.0]])
    assert float(linear_cka(x, y)) == pytest.approx(4 / (2 * 40**0.5), abs=1e-12)
    # HSIC is |x'y|^2 / (n - 1)^2
    assert float(hsic(x @ x.T, y @ y.T)) == pytest.approx(1.0, abs=1e-6)


def test_unrelated_directions_share_nothing() -> None:
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert linear_cka(x, y) == 0


def test_the_unbiased_estimate_is_the_mean_over_distinct_images() -> None:
    """Of four different images i, j, q, r: K_ij L_ij + K_ij L_qr - 2 K_ij L_iq, which is unbiased term by term."""
    x, y = features(1, images=6), features(2, images=6)
    K, L = x @ x.T, y @ y.T
    terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert float(hsic(K, L, unbiased=True)) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-10)


def test_the_biased_estimate_is_the_one_with_the_centring_matrix() -> None:
    x, y = features(1), features(2)
    H = torch.eye(12, dtype=torch.float64) - 1 / 12
    expected = torch.trace(x @ x.T @ H @ y @ y.T @ H) / 11**2
    assert float(hsic(x @ x.T, y @ y.T)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
@given(seed=seeds, scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_rotations_one_scale_and_a_shift_change_nothing(unbiased: bool, seed: int, scale: float, shift: float) -> None:
    x = features(seed)
    assert float(linear_cka(x, scale * x @ rotation(seed + 1) + shift, unbiased)) == pytest.approx(1, abs=1e-9)
    y = features(seed + 2) + x
    value = float(linear_cka(x, y, unbiased))
    assert float(linear_cka(x @ rotation(seed + 1), -scale * y, unbiased)) == pytest.approx(value, abs=1e-9)
    assert float(linear_cka(y, x, unbiased)) == pytest.approx(value, abs=1e-9)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    assert float(linear_cka(x[order], y[order], unbiased)) == pytest.approx(value, abs=1e-9)


@given(seeds)
def test_the_biased_form_lies_in_the_unit_interval(seed: int) -> None:
    assert 0 <= linear_cka(features(seed), features(seed + 1, size=3)) <= 1 + 1e-12


def test_another_scale_for_each_direction_does_change_it() -> None:
    x = features(0)
    assert linear_cka(x, x * torch.tensor([1, 1, 1, 10, 10, 10])) < 0.9


def test_unrelated_features_of_many_dimensions_look_alike_to_the_biased_form_alone() -> None:
    pairs = [(features(2 * i, 20, 500), features(2 * i + 1, 20, 500)) for i in range(30)]
    biased = torch.stack([linear_cka(x, y) for x, y in pairs]).mean()
    unbiased = torch.stack([linear_cka(x, y, unbiased=True) for x, y in pairs])
    assert biased > 0.9
    assert abs(float(unbiased.mean())) < 3 * float(unbiased.std()) / 30**0.5  # zero within three standard errors


def test_batches_are_averaged_before_they_are_divided() -> None:
    x, y = features(3, 20), features(4, 20) + features(3, 20)
    K = [(a @ a.T, b @ b.T) for a, b in zip(x.split(10), y.split(10))]
    top = sum(hsic(k, l, unbiased=True) for k, l in K)
    below = sum(hsic(k, k, unbiased=True) for k, _ in K), sum(hsic(l, l, unbiased=True) for _, l in K)
    expected = float(top / (below[0] * below[1]) ** 0.5)
    assert float(minibatch_cka(zip(x.split(10), y.split(10)))) == pytest.approx(expected, rel=1e-10)
    assert float(minibatch_cka([(x, y)])) == pytest.approx(float(linear_cka(x, y, unbiased=True)), rel=1e-12)


def test_small_batches_say_what_one_large_one_says() -> None:
    x = features(5, 1600, 8)
    y = x @ features(6, 8, 8) + 2 * features(7, 1600, 8)
    whole = float(linear_cka(x, y))
    assert float(minibatch_cka(zip(x.split(20), y.split(20)))) == pytest.approx(whole, abs=0.02)  # 80 batches; the error is about 0.01
    assert float(minibatch_cka(zip(x.split(20), y.split(20)), unbiased=False)) > whole + 0.05


def test_a_large_mean_costs_no_digits() -> None:
    x = features(8).float()
    assert float(linear_cka(x + 1000, x)) == pytest.approx(1, abs=1e-4)  # x + 1000 itself has lost the fifth digit of x


def test_features_that_are_all_the_same_have_no_likeness() -> None:
    assert linear_cka(torch.ones(5, 3), features(0, 5)).isnan()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_or_unequal_images_are_refused(count: int) -> None:
    with pytest.raises(ShapeError, match=rf"of the same images, at least 2 of them; got {count} and 5"):
        linear_cka(torch.zeros(count, 2), torch.zeros(5, 2))
    with pytest.raises(ShapeError, match=f"at least 4 of them; got {count} and {count}"):
        minibatch_cka([(torch.zeros(count, 2), torch.zeros(count, 2))])


def test_maps_and_nothing_at_all_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"got shape \(4, 2, 3, 3\)\. Flatten or pool maps: x\.flatten\(1\)"):
        linear_cka(torch.zeros(4, 2, 3, 3), torch.zeros(4, 2))
    with pytest.raises(ArgumentError, match="there was no batch"):
        minibatch_cka([])


def test_the_page_of_guidance_in_four_digits() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    y = torch.tensor([[1.0], [2.0], [3.0], [0.0]])
    # centred: x'x = ((2, -1), (-1, 1)), of norm sqrt(7); y'y = 5; x'y = (-2, 2), of squared norm 8
    assert float(linear_cka(x, y)) == pytest.approx(8 / (7**0.5 * 5), abs=1e-12)
    assert round(float(linear_cka(x, y)), 4) == 0.6047
    assert round(float(aligned(linear_kernel(x), linear_kernel(y))), 4) == 0.6047


def test_small_batches_flatter_the_biased_form() -> None:
    wide = [float(linear_cka(features(i, 32, 512), features(i + 50, 32, 512))) for i in range(4)]
    tall = [float(linear_cka(features(i, 512, 32), features(i + 50, 512, 32))) for i in range(4)]
    assert all(0.92 <= value <= 0.95 for value in wide)
    assert all(0.05 <= value <= 0.07 for value in tall)


@given(seeds)
def test_the_halves_of_cka_give_cka(seed: int) -> None:
    x, y = features(seed), features(seed + 1, size=3)
    assert float(aligned(linear_kernel(x), linear_kernel(y))) == pytest.approx(float(linear_cka(x, y)), abs=1e-12)
    both = aligned(linear_kernel(torch.stack([x, x])), linear_kernel(torch.stack([y, y @ rotation(seed, 3)])))
    assert both.tolist() == pytest.approx([float(linear_cka(x, y))] * 2, abs=1e-12)


def test_cka_has_a_gradient_that_finite_differences_confirm() -> None:
    y = linear_kernel(features(1, 5, 4))
    torch.autograd.gradcheck(lambda x: aligned(linear_kernel(x), y), features(2, 5, 3).requires_grad_())
    torch.autograd.gradcheck(lambda x: correlated(cosines(x), cosines(features(3, 5, 4))), features(2, 5, 3).requires_grad_())


@pytest.mark.parametrize("constant", [torch.zeros(6, 4), torch.full((6, 4), 1000.1), torch.arange(4.0).expand(6, 4)])
def test_constant_features_are_like_nothing_and_get_no_gradient(constant: Tensor) -> None:
    x = constant.clone().requires_grad_()
    other = features(0, 6, 4).float()
    for alike in (aligned(linear_kernel(x), linear_kernel(other)), correlated(cosines(x), cosines(other))):
        assert alike == 0
        alike.backward()
        assert x.grad is not None
        assert not x.grad.any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_very_small_and_very_large_features_neither_vanish_nor_overflow(scale: float) -> None:
    x, y = features(0).float(), features(1).float()
    assert float(aligned(linear_kernel(scale * x), linear_kernel(y))) == pytest.approx(float(linear_cka(x, y)), abs=1e-5)


def test_half_precision_is_left_for_the_products() -> None:
    x = 300 * features(0, 16, 512).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        K = linear_kernel(x.bfloat16())
        assert K.dtype == cosines(x.bfloat16()).dtype == torch.float32
        assert torch.equal(K, linear_kernel(x.bfloat16().float()))
    assert linear_kernel(x.half()).isfinite().all(), "the sums are beyond 65,504, the largest number in half precision"


def test_rsa_by_hand() -> None:
    # cosines of (1, 0), (0, 1), (1, 0): 1 on the diagonal and between the first and the last, else 0; of (1), (1), (-1): +-1
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    y = torch.tensor([[1.0], [3.0], [-1.0]])
    A = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1.0])
    B = np.array([1, 1, -1, 1, 1, -1, -1, -1, 1.0])
    assert float(rsa(x, y)) == pytest.approx(float(np.corrcoef(A, B)[0, 1]), abs=1e-12)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_rsa_is_blind_to_rotations_and_to_the_length_of_each_image(seed: int, scale: float) -> None:
    x, y = features(seed), features(seed + 1)
    lengths = scale * torch.rand(12, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    assert float(rsa(x, lengths * x @ rotation(seed))) == pytest.approx(1, abs=1e-9)
    assert float(rsa(x, y)) == pytest.approx(float(np.corrcoef(cosines(x).flatten(), cosines(y).flatten())[0, 1]), abs=1e-9)


def test_rsa_of_unequal_images_or_one_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least 2 of them; got 3 and 5"):
        rsa(torch.zeros(3, 2), torch.zeros(5, 2))
    with pytest.raises(ShapeError, match="at least 2 of them; got 1 and 1"):
        rsa(torch.zeros(1, 2), torch.zeros(1, 2))
