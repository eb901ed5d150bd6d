"""Dual activations: the page's numbers, closed forms of other libraries' formulas, and the laws of the limits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import integrate

from retinue.errors import ArgumentError
from retinue.models.wide_deep_network import singular_coefficients
from retinue.theory.dual_activation import DualActivation, optimal_activation

PHI2 = optimal_activation(2)


def test_the_optimal_activation_for_the_plane_by_hand() -> None:
    assert_allclose(PHI2.squares, [0, 0.5, 0, 0.5], rtol=1e-15)
    assert_allclose([PHI2.dual(0.5), PHI2.ddual(0.5), PHI2.ntk(0.5, 1)], [0.3125, 0.875, 0.75], rtol=1e-15)
    assert_allclose(PHI2.ntk(0.5, 2), 0.65637207, rtol=0, atol=5e-9)
    psi = [0.2719623637, 0.7135991283, 5.5911637304, 60.0622281]
    assert_allclose(PHI2.psi([0.25, 0.5, 0.9, 0.99]), psi, rtol=1e-9)
    assert PHI2.psi(0.0) == 0
    assert PHI2.psi(1.0) == math.inf


def test_the_optimal_activations_of_dimension_three_and_eight() -> None:
    assert_allclose(optimal_activation(3).coef, [0, 0.5946035575, 0.5411961001, 0.5946035575], rtol=0, atol=5e-11)
    assert_allclose(optimal_activation(3).psi(0.5), 1.3523678464, rtol=1e-10)
    assert_allclose(optimal_activation(8).coef, [0, 0.25, 0.9354143467, 0.25], rtol=0, atol=5e-11)
    assert_allclose(optimal_activation(8).psi(0.5), 45.60946291, rtol=1e-9)


def test_the_optimal_activation_for_the_line() -> None:
    squares = optimal_activation(1).squares
    assert_allclose(squares[[1, 3, 7]], [2**-0.5, 0.1893398282, 0.1035533906], rtol=0, atol=5e-11)
    assert squares.sum() == pytest.approx(1, abs=1e-15)
    assert np.count_nonzero(squares) == 3


@pytest.mark.parametrize("d", [0.3, 1, 1.5, *range(2, 21)])
def test_alpha_is_the_dimension(d: float) -> None:
    phi = optimal_activation(d) if d >= 1 else DualActivation(singular_coefficients(d))
    assert phi.regime == "singular"
    assert phi.A == 0
    assert_allclose([phi.A1, phi.B1, phi.alpha], [2 ** (-d / 4), 2, d], rtol=1e-12)


def test_near_a_training_point_psi_falls_with_distance_to_the_power_alpha() -> None:
    far, near = PHI2.log_psi([1 - 1e-5, 1 - 1e-6])
    assert (near - far) / (0.5 * math.log(0.1)) == pytest.approx(-2.00001, abs=5e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.3, 40), st.floats(0, 0.999))
def test_psi_solves_its_equation(alpha: float, xi: float) -> None:
    phi = DualActivation(singular_coefficients(alpha))
    assert_allclose(phi.psi(phi.dual(xi)), phi.A1**2 * phi.psi(xi), rtol=1e-10, atol=1e-300)


def test_psi_of_a_dimension_whose_weights_are_beyond_all_floats() -> None:
    phi = optimal_activation(783)
    xi = np.array([0.2, 0.6, 0.99])
    assert (phi.log_psi(xi)[1:] > 710).all()
    assert_allclose(phi.log_psi(phi.dual(xi)), phi.log_psi(xi) + 2 * math.log(phi.A1), rtol=1e-13)
    assert optimal_activation(5000).regime == "nearest"


def test_the_kernel_comes_to_psi_as_slowly_as_one_over_depth() -> None:
    reached = [PHI2.ntk(0.5, depth) / ((depth + 1) * PHI2.A1 ** (2 * depth)) for depth in (5, 20, 80)]
    assert_allclose(reached, [0.84957, 0.75295, 0.72380], rtol=0, atol=5e-6)


def test_relu() -> None:
    relu = DualActivation.relu()
    assert_allclose([relu.A, relu.A1, relu.B1], [0.5641896, 2**-0.5, 1], rtol=0, atol=5e-8)
    assert relu.regime == "majority"
    depths = (1, 2, 3, 10, 100, 1000)
    known = [0.47116556, 0.45049319, 0.43446117, 0.37348650, 0.27766772, 0.25380245]
    assert_allclose([relu.ntk(0.5, depth) / (depth + 1) for depth in depths], known, rtol=0, atol=5e-9)
    assert [float(relu.ntk(1.0, depth)) / (depth + 1) for depth in depths] == [1] * 6
    # the series of its coefficients, by another route: quadrature of the function
    assert_allclose(DualActivation.from_function(lambda u: np.maximum(u, 0)).dual([0, 0.3, 0.7]), relu.dual([0, 0.3, 0.7]), rtol=5e-3)
    assert_allclose(np.square(relu.coef[:5]), [1 / np.pi, 0.5, 1 / (2 * np.pi), 0, 1 / (24 * np.pi)], rtol=1e-14)


XI = np.array([-0.9, -0.2, 0.0, 0.4, 0.95, 1.0])
CLOSED = {  # the formulas that other libraries evaluate, made to give 1 at 1
    "erf": lambda xi: np.arcsin(2 * xi / 3) / np.arcsin(2 / 3),
    "sine": lambda xi: np.sinh(xi) / np.sinh(1),
    "cosine": lambda xi: (np.cosh(xi) - 1) / (np.cosh(1) - 1),
}


@pytest.mark.parametrize("name", CLOSED)
def test_quadrature_agrees_with_closed_forms(name: str) -> None:
    phi = DualActivation.named(name)
    assert_allclose(phi.dual(XI), CLOSED[name](XI), rtol=0, atol=2e-12)
    step = 1e-6
    slope = (CLOSED[name](XI[:-1] + step) - CLOSED[name](XI[:-1] - step)) / (2 * step)
    assert_allclose(phi.ddual(XI[:-1]), slope, rtol=0, atol=2e-8)


def test_the_dual_is_the_mean_over_two_correlated_normals() -> None:
    xi, phi = 0.6, DualActivation.named("tanh")

    def density(v: float, u: float) -> float:
        return math.exp(-(u * u - 2 * xi * u * v + v * v) / (2 * (1 - xi * xi))) / (2 * math.pi * math.sqrt(1 - xi * xi))

    mean, _ = integrate.dblquad(lambda v, u: math.tanh(u) * math.tanh(v) * density(v, u), -8, 8, -8, 8, epsabs=1e-7)
    assert_allclose(phi.dual(xi), phi.scale**2 * mean, rtol=0, atol=1e-6)


def test_the_regimes_of_known_functions() -> None:
    regimes = {name: DualActivation.named(name).regime for name in ("erf", "tanh", "sine", "gelu", "cosine", "relu", "optimal")}
    odd = dict.fromkeys(("erf", "tanh", "sine", "optimal"), "singular")
    assert regimes == {**odd, "gelu": "majority", "cosine": "nearest", "relu": "majority"}
    assert DualActivation([0, 0, 1]).regime == "nearest"
    assert DualActivation([0, 1]).regime == "undefined"
    assert DualActivation([0.8, 0.6]).regime == "undefined"  # B' = 0.36
    assert DualActivation([0.2**0.5, 0.3**0.5, 0.5**0.5]).regime == "majority"
    assert math.isnan(DualActivation.relu().alpha)


def test_a_function_is_normalised_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        phi = DualActivation.from_function(lambda u: 3 * u**2 - 3)
    assert phi.scale == pytest.approx(1 / (3 * math.sqrt(2)))
    assert_allclose(phi.coef[:4], [0, 0, 1, 0], atol=1e-12)
    assert "multiplied by 0.235702" in caplog.text


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["optimal", "relu", "erf", "cosine"]), st.integers(0, 12), st.integers(0, 1000))
def test_the_normalised_kernel_is_the_kernel(name: str, depth: int, seed: int) -> None:
    phi, xi = DualActivation.named(name), np.random.default_rng(seed).random(50)
    whole = phi.ntk(xi, depth) / phi.ntk(1.0, depth)
    assert_allclose(phi.kernel(xi, depth), whole, rtol=1e-10, atol=1e-300)
    seen = whole > 1e-290
    assert_allclose(phi.log_kernel(xi, depth)[seen], np.log(whole[seen]), rtol=1e-9, atol=1e-9)


def test_logarithms_go_on_where_the_kernel_underflows() -> None:
    # h_2: S_l = xi^(2^l), and K_l = S_l + 2 K_(l-1) S_(l-1) is led by its last product 2^l xi^(2^l)
    h2, xi = DualActivation([0, 0, 1]), np.array([0.5, 0.9])
    depth = 12
    exact = np.log(2**13 - 1) + 2**depth * np.log(xi) - np.log(2**13 - 1)
    assert_allclose(h2.log_kernel(xi, depth), exact, rtol=1e-12)
    assert h2.kernel(0.5, depth) == 0
    assert h2.log_kernel(0.0, depth) == -math.inf
    assert h2.log_kernel(1.0, 50) == 0  # B'^50 does not magnify a rounding
    assert np.isfinite(PHI2.log_kernel([0.3, 0.9], 5000)).all()


def test_the_kernel_of_h2_by_hand() -> None:
    # K_l = sum over j of the products; with S_l = xi^(2^l) each is 2^j xi^(2^l): K_l = (2^(l+1) - 1) xi^(2^l)
    assert_allclose(DualActivation([0, 0, 1]).ntk([0.5, -0.5], 3), 15 * 0.5**8, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: DualActivation([0, 0.5, 0.5]), r"`coef` needs squares that sum to 1, got 0\.5\. Divide the coefficients by 0\.707107\."),
        (lambda: DualActivation([0, 0]), r"needs finite coefficients that are not all 0, got \[0, 0\]"),
        (lambda: DualActivation.from_function(lambda u: np.exp(u * u / 2)), r"must be finite, and for this function it is not"),
        (lambda: DualActivation.from_function(lambda u: np.exp(u * u / 4)), r"grows too fast\. Take one that stays below exp\(u\^2 / 4\)"),
        (lambda: DualActivation.from_function(lambda u: 0 * u), r"the function is 0 everywhere"),
        (lambda: DualActivation.from_function(np.sign), r"64 coefficients leave \d+\.\d% of E\[phi\(u\)\^2\] out"),
        (lambda: DualActivation.named("rellu"), r'no activation is called "rellu"\. Did you mean relu'),
        (lambda: optimal_activation(0.5), r"`d` must be 1 or more and finite, got 0\.5"),
        (lambda: singular_coefficients(0), r"`alpha` must be above 0 and finite, got 0"),
        (lambda: PHI2.dual(1.5), r"`xi` must lie in \[-1, 1\], got 1\.5 to 1\.5"),
        (lambda: PHI2.psi(-0.5), r"`xi` must lie in \[0, 1\], got -0\.5 to -0\.5.*without negative entries"),
        (lambda: PHI2.ntk(0.5, -1), r"ntk: `depth` must be a whole number of 0 or more, got -1"),
        (lambda: PHI2.kernel(0.5, 1.5), r"kernel: `depth` must be a whole number of 0 or more, got 1\.5"),
        (lambda: DualActivation.relu().psi(0.5), r'only activations of the regime "singular".*A=0\.5642, A\'=0\.7071'),
    ],
)
def test_what_is_refused(call: object, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()  # type: ignore[operator]
