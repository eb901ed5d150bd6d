"""What an activation function becomes in an infinitely wide network, and which classifier in an infinitely deep one.

Radhakrishnan, Belkin and Uhler 2022, arXiv 2204.14126. For u, v ~ N(0, 1) with correlation xi the dual of phi is
phiv(xi) = E[phi(u) phi(v)] = sum_k a_k^2 xi^k, where a_k are phi's Hermite coefficients and E[phi(u)^2] = 1. Three numbers decide what
depth does: A = E[phi] = a_0, A' = E[phi'] = a_1 and B' = E[phi'^2] = phiv'(1).
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retinue.errors import ArgumentError, unknown
from retinue.models.wide_deep_network import FUNCTIONS, NAMES, check_squares, quadrature, singular_coefficients

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Regime = Literal["nearest", "singular", "majority", "undefined"]
NOTHING = 1e-8  # below which a coefficient from quadrature counts as 0, and a square of 1 as 1
COINCIDENT = 1 - 1e-14  # from which on two points count as one: rounding makes more of xi meaningless
PIECE = 1 << 15  # entries computed at a time, few enough to stay in the cache
UNDERFLOW = 1e-200  # below which kernels are computed again by their logarithms
ROUGH = 1e-2  # share of E[phi^2] that the series may miss


class DualActivation:
    """The dual phiv of an activation function, its tangent kernels of any depth, and the limit of infinite depth.

    Args:
        coef: Hermite coefficients a_0, a_1, ... of the activation, with squares that sum to 1.
        closed: phiv and phiv' as functions, where the series of `coef` is cut off too early to be exact.
        scale: by which the function was multiplied so that E[phi(u)^2] = 1.
        tail: share of E[phi(u)^2] that `coef` misses.

    Raises:
        ArgumentError: if the squares do not sum to 1.

    >>> phi = DualActivation([0, 0.5**0.5, 0, 0.5**0.5])
    >>> phi.regime, round(phi.alpha, 12), float(phi.dual(0.5)), float(phi.ntk(0.5, depth=1))
    ('singular', 2.0, 0.3125, 0.75)
    """

    def __init__(
        self,
        coef: Sequence[float],
        *,
        closed: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
        scale: float = 1.0,
        tail: float = 0.0,
    ) -> None:
        if closed is None:
            check_squares("DualActivation: `coef`", coef)
        self.coef = [float(a) for a in coef]
        self.closed, self.scale, self.tail = closed, scale, tail
        squares = np.trim_zeros(np.square(np.array(self.coef)), "b")
        self.squares: Array = squares if closed else squares / squares.sum()
        self.slopes: Array = self.squares[1:] * np.arange(1, len(self.squares)) if len(squares) > 1 else np.zeros(1)

    @classmethod
    def from_function(cls, phi: Callable[[Array], ArrayLike], order: int = 64) -> "DualActivation":
        """Expand a function by Gauss-Hermite quadrature with 200 nodes.

        The function is multiplied by `scale` so that E[phi(u)^2] = 1, which is logged where it changes anything.

        Args:
            phi: takes and returns arrays.
            order: number of coefficients.

        Raises:
            ArgumentError: if E[phi(u)^2] is 0 or infinite, or so rough a function needs more coefficients.

        >>> DualActivation.from_function(np.tanh).regime
        'singular'
        """
        u, weights = quadrature()
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.broadcast_to(np.asarray(phi(u), dtype=np.float64), u.shape)
            mean = float(weights @ values**2)
            fewer, theirs = quadrature(100)
            rough = float(theirs @ np.broadcast_to(np.asarray(phi(fewer), dtype=np.float64), fewer.shape) ** 2)
        if not math.isfinite(mean) or abs(mean - rough) > 0.05 * mean:  # grows with the outermost node
            raise ArgumentError(
                "DualActivation: E[phi(u)^2] over u ~ N(0, 1) must be finite, and for this function it is not: it grows too fast. "
                "Take one that stays below exp(u^2 / 4)."
            )
        if mean == 0:
            raise ArgumentError("DualActivation: the function is 0 everywhere. Give an activation function.")
        scale = 1 / math.sqrt(mean)
        if abs(scale - 1) > 1e-9:
            log.info("the activation function is multiplied by %.10g, so that E[phi(u)^2] = 1", scale)
        before, now = np.zeros_like(u), np.ones_like(u)
        coef = []
        for k in range(order):
            coef.append(float(weights @ (values * now)) * scale)
            before, now = now, (u * now - math.sqrt(k) * before) / math.sqrt(k + 1)
        covered = sum(a * a for a in coef)
        if covered < 1 - ROUGH:
            raise ArgumentError(
                f"DualActivation: {order} coefficients leave {1 - covered:.1%} of E[phi(u)^2] out, so the function jumps or bends too "
                "sharply for the series. Raise `order`, or give the coefficients of a smoother function."
            )
        exact = [a / math.sqrt(covered) if abs(a) > NOTHING else 0.0 for a in coef]  # what symmetry makes 0 is not left to rounding
        return cls(exact, scale=scale, tail=max(1 - covered, 0.0))

    @classmethod
    def relu(cls) -> "DualActivation":
        """Return sqrt(2) ReLU, in closed form: phiv = (sqrt(1 - xi^2) + xi (pi - arccos xi)) / pi."""
        hermite = [1.0, 0.0]  # He_k(0)
        for k in range(1, 62):
            hermite.append(-k * hermite[k - 1])
        coef = [1 / math.sqrt(math.pi), 1 / math.sqrt(2)]
        coef += [hermite[k - 2] / math.sqrt(math.pi * math.factorial(k)) for k in range(2, 64)]

        def dual(xi: Array) -> Array:
            return (np.sqrt(1 - xi * xi) + xi * (np.pi - np.arccos(xi))) / np.pi

        def ddual(xi: Array) -> Array:
            return 1 - np.arccos(xi) / np.pi

        return cls(coef, closed=(dual, ddual), scale=math.sqrt(2), tail=1 - sum(a * a for a in coef))

    @classmethod
    def named(cls, name: str, dim: float = 2.0) -> "DualActivation":
        """Return an activation by name.

        Args:
            name: "optimal", "relu", "erf", "sine", "cosine" (minus its mean), "gelu" or "tanh".
            dim: dimension of the data, for "optimal".

        Raises:
            ArgumentError: if there is none of this name.
        """
        import torch

        if name not in NAMES:
            raise unknown("DualActivation", "activation", name, NAMES)
        if name == "optimal":
            return optimal_activation(dim)
        return cls.relu() if name == "relu" else cls.from_function(lambda u: FUNCTIONS[name](torch.from_numpy(u)).numpy())

    @property
    def A(self) -> float:  # noqa: N802, the paper's name
        """E[phi(u)]."""
        return self.coef[0]

    @property
    def A1(self) -> float:  # noqa: N802
        """A' = E[phi'(u)]."""
        return self.coef[1] if len(self.coef) > 1 else 0.0

    @property
    def B1(self) -> float:  # noqa: N802
        """B' = E[phi'(u)^2]."""
        return float(self.closed[1](np.ones(1))[0]) if self.closed else float(self.slopes.sum())

    @property
    def alpha(self) -> float:
        """-4 log|A'| / log B': near a training point its weight grows like distance^-alpha; not a number outside the regime "singular"."""
        return -4 * math.log(abs(self.A1)) / math.log(self.B1) if self.regime == "singular" else math.nan

    @property
    def regime(self) -> Regime:
        """What infinite depth makes of it.

        "nearest": the nearest training point decides (A = A' = 0). "singular": training points vote with weights psi (A = 0, A' != 0).
        "majority": the most frequent class wins everywhere (A != 0, B' >= 1). "undefined": no limit (linear, or A != 0 and B' < 1).
        """
        if self.A != 0:
            return "majority" if self.B1 >= 1 - NOTHING else "undefined"
        if self.A1**2 < 1e-290:  # psi would be beyond all floats, and its largest value decides alone
            return "nearest"
        return "singular" if self.A1**2 < 1 - NOTHING else "undefined"

    def dual(self, xi: ArrayLike) -> Array:
        """Compute phiv(xi).

        Args:
            xi: correlations in [-1, 1].

        Raises:
            ArgumentError: if one lies outside.
        """
        values = _checked(xi, -1.0)
        return self._dual(values.reshape(-1)).reshape(values.shape)

    def ddual(self, xi: ArrayLike) -> Array:
        """Compute phiv'(xi); arguments and errors are those of `dual`."""
        values = _checked(xi, -1.0)
        return self._ddual(values.reshape(-1)).reshape(values.shape)

    def ntk(self, xi: ArrayLike, depth: float) -> Array:
        """Compute the tangent kernel K_L of a network with L hidden layers: S_l = phiv(S_(l-1)), K_l = S_l + K_(l-1) phiv'(S_(l-1)).

        Args:
            xi: inner products of unit vectors, in [-1, 1].
            depth: L, 0 or more; 0 is a linear model.

        Raises:
            ArgumentError: if a value lies outside, or the depth is no whole number of 0 or more.
        """
        values = _checked(xi, -1.0)
        S = values.reshape(-1)
        K = S.copy()
        for _ in range(check_depth("ntk", depth)):
            K *= self._ddual(S)
            S = self._dual(S)
            K += S
        return K.reshape(values.shape)

    def kernel(self, xi: ArrayLike, depth: float) -> Array:
        """Compute K_L(xi) / K_L(1), which stays in [0, 1] at any depth; tiny values become 0.

        Args:
            xi: inner products of unit vectors without negative entries, in [0, 1].
            depth: L, 0 or more.

        Raises:
            ArgumentError: as for `ntk`.
        """
        layers = check_depth("kernel", depth)
        return _in_pieces(_checked(xi, 0.0), lambda piece: self._kernel(piece, layers))

    def log_kernel(self, xi: ArrayLike, depth: float) -> Array:
        """Compute log K_L(xi) / K_L(1), also where the kernel itself is too small for a float; arguments and errors as for `kernel`."""
        layers = check_depth("log_kernel", depth)
        return _in_pieces(_checked(xi, 0.0), lambda piece: self._log_kernel(piece, layers))

    def psi(self, xi: ArrayLike) -> Array:
        """Compute the singular kernel: the limit of K_L / ((L + 1) A'^(2L)), the solution of psi(phiv(xi)) = A'^2 psi(xi), psi'(0) = 1.

        Args:
            xi: inner products of unit vectors without negative entries, in [0, 1]; at 1 the result is infinite.

        Raises:
            ArgumentError: if a value lies outside, or the activation is in another regime.
        """
        values = self.log_psi(xi)
        with np.errstate(over="ignore"):  # beyond the largest float it is infinite indeed
            return np.exp(values, out=values)

    def log_psi(self, xi: ArrayLike) -> Array:
        """Compute log psi(xi), also where psi is too large for a float; arguments and errors as for `psi`."""
        if self.regime != "singular":
            raise ArgumentError(
                f'psi: only activations of the regime "singular" have this limit (A = 0 and 0 < |A\'| < 1), got A={self.A:.4g}, '
                f"A'={self.A1:.4g}. Take optimal_activation(d), or an odd function."
            )
        return _in_pieces(_checked(xi, 0.0), self._log_psi)

    def _dual(self, xi: Array) -> Array:
        return self.closed[0](np.clip(xi, -1, 1)) if self.closed else horner(self.squares, xi)

    def _ddual(self, xi: Array) -> Array:
        return self.closed[1](np.clip(xi, -1, 1)) if self.closed else horner(self.slopes, xi)

    def _ratios(self, depth: int) -> list[tuple[float, float]]:
        """For each layer 1 / K_l(1) and K_(l-1)(1) / K_l(1), from K_l(1) = 1 + B' K_(l-1)(1), so that nothing grows."""
        inverse, ratios = 1.0, []
        for _ in range(depth):
            rest = 1 / (inverse + self.B1)
            inverse *= rest
            ratios.append((inverse, rest))
        return ratios

    def _kernel(self, xi: Array, depth: int) -> Array:
        S, k = xi.copy(), xi.copy()
        for inverse, rest in self._ratios(depth):
            k *= self._ddual(S)
            k *= rest
            S = np.minimum(self._dual(S), 1.0)  # 1 is a fixed point that repels: rounding above it would run away
            k += inverse * S
        k[xi >= COINCIDENT] = 1.0
        return k

    def _log_kernel(self, xi: Array, depth: int) -> Array:
        k = self._kernel(xi, depth)
        tiny = k < UNDERFLOW
        with np.errstate(divide="ignore"):
            k = np.log(k)
            if tiny.any():
                s = np.log(xi[tiny])
                lk = s.copy()
                for inverse, rest in self._ratios(depth):
                    lk += self._log(self.slopes, s, 1) + math.log(rest)
                    s = np.minimum(self._log(self.squares, s, 0), 0.0)
                    lk = np.logaddexp(lk, s + (math.log(inverse) if inverse else -math.inf))
                k[tiny] = lk
        return k

    def _log(self, series: Array, s: Array, derivative: int) -> Array:
        """Compute log phiv(e^s) or log phiv'(e^s): the lowest power by itself, which is all that is left where e^s underflows."""
        if self.closed:
            return np.log(self.closed[derivative](np.exp(s)))
        power = int(np.flatnonzero(series)[0])
        above = horner(series[power:] / series[power], np.exp(s))
        return (power * s if power else 0.0) + math.log(series[power]) + np.log(above)

    def _log_psi(self, xi: Array) -> Array:
        """Compute psi = xi prod_n phiv(S_n) / (A'^2 S_n), where S_0 = xi: a product of numbers that come to 1 from above.

        The factors are multiplied, and a logarithm is taken only before the product could overflow.
        """
        first = self.A1**2
        excess = np.concatenate([[0.0], self.squares[2:] / self.squares[1]])  # phiv(S) / (A'^2 S) - 1, a polynomial
        often = max(1, int(-600 / math.log(first)))  # each factor is 1 / A'^2 at most
        together = xi >= COINCIDENT
        S, product = np.where(together, 0.0, xi), np.ones_like(xi)
        with np.errstate(divide="ignore"):
            total = np.log(xi)
        for n in range(1, 1 << 62):
            terms = excess * S.max(initial=0.0) ** np.arange(len(excess))
            left = np.flatnonzero(terms > 1e-17 * (1 - first))  # the powers that can still be seen beside 1
            if not left.size:
                break
            factor = horner(excess[: left[-1] + 1], S)
            factor += 1
            product *= factor
            S *= factor
            S *= first
            if n % often == 0:
                total += np.log(product)
                product[:] = 1
        total += np.log(product)
        total[together] = np.inf
        return total


def optimal_activation(d: float) -> DualActivation:
    """Return the activation whose infinitely wide and deep network is Bayes-consistent on data of dimension d: A' = 2^(-d/4), B' = 2.

    For d >= 2 it is phi_d = 2^(-d/4) h_1 + sqrt(1 - 2^(1 - d/2)) h_2 + 2^(-d/4) h_3 (the paper's); for d = 1 our own.

    Args:
        d: dimension of the data on the sphere, 1 or more; the intrinsic one, where the data fill only a part.

    Raises:
        ArgumentError: if it is below 1.

    >>> [round(a, 10) for a in optimal_activation(8).coef]
    [0.0, 0.25, 0.9354143467, 0.25]
    """
    if not 1 <= d < math.inf:
        raise ArgumentError(
            f"optimal_activation: `d` must be 1 or more and finite, got {d}. It is the dimension of the data on the sphere."
        )
    return DualActivation(singular_coefficients(d))


def check_depth(where: str, depth: Any) -> int:
    """Return a depth as a whole number.

    Raises:
        ArgumentError: if it is none of 0 or more.
    """
    if not isinstance(depth, int | float | np.number) or not 0 <= depth < math.inf or depth != int(depth):
        raise ArgumentError(f"{where}: `depth` must be a whole number of 0 or more, got {depth}. It counts the hidden layers.")
    return int(depth)


def horner(series: Array, x: Array) -> Array:
    """Evaluate a polynomial with coefficients from the lowest power up; where none is negative it loses no relative accuracy."""
    y = np.full_like(x, series[-1])
    for c in series[-2::-1]:
        y *= x
        if c:
            y += c
    return y


def _checked(xi: ArrayLike, least: float) -> Array:
    values = np.asarray(xi, dtype=np.float64)
    if values.size and not (values.min() >= least - 1e-9 and values.max() <= 1 + 1e-9):
        raise ArgumentError(
            f"DualActivation: `xi` must lie in [{least:g}, 1], got {values.min():.6g} to {values.max():.6g}. "
            "It is the inner product of two vectors of norm 1" + (" without negative entries." if least == 0 else ".")
        )
    return np.asarray(np.clip(values, least, 1.0))


def _in_pieces(values: Array, function: Callable[[Array], Array]) -> Array:
    """Apply a function to as many entries at a time as stay in the processor's cache."""
    flat = values.reshape(-1)
    out = np.empty_like(flat)
    for start in range(0, len(flat), PIECE):
        out[start : start + PIECE] = function(flat[start : start + PIECE])
    return out.reshape(values.shape)
