"""The finite twin of an infinitely wide network: fully connected, without biases, in the scaling whose tangent kernel has a limit.

Radhakrishnan, Belkin and Uhler 2022, arXiv 2204.14126. Every weight begins as N(0, 1) and the scales stand in the forward pass, so the
learning rate does not depend on the width.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.factory import image_size, register

NODES = 200  # of the Gauss-Hermite quadrature
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "erf": torch.erf,
    "sine": torch.sin,
    "cosine": lambda u: torch.cos(u) - math.exp(-0.5),  # minus its mean
    "gelu": F.gelu,
    "tanh": torch.tanh,
}
NAMES = ("optimal", *FUNCTIONS)


def quadrature(nodes: int = NODES) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return places and weights that sum to 1, with which sums over places are means over u ~ N(0, 1)."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return places, weights / weights.sum()


def singular_coefficients(alpha: float) -> list[float]:
    """Choose Hermite coefficients with a_0 = 0 and B' = 2 whose infinitely deep network weighs neighbours by distance^-alpha.

    For alpha = d >= 2 these are the paper's optimal ones for data of dimension d, with a_1^2 = a_3^2 = 2^(-d/2) and the rest in a_2^2.
    Below 2 they are our own: a_1^2 = 2^(-alpha/2), and the rest in a_3^2 and in one higher odd order so that sum k a_k^2 = 2.

    Args:
        alpha: above 0.

    Raises:
        ArgumentError: if it is not.

    >>> [round(a, 10) for a in singular_coefficients(3)]
    [0.0, 0.5946035575, 0.5411961001, 0.5946035575]
    """
    if not 0 < alpha < math.inf:
        raise ArgumentError(f"singular_coefficients: `alpha` must be above 0 and finite, got {alpha}. The optimum is the data's dimension.")
    first = 2 ** (-alpha / 2)
    if alpha >= 2:
        squares = [0.0, first, max(1 - 2 * first, 0.0), first]
    else:
        order = (2 - first) / (1 - first)  # mean order of what is left
        high = 2 * math.ceil((order + 1) / 2) + 1  # an odd one, at least two above it
        share = (order - 3) / (high - 3)
        squares = [0.0] * (high + 1)
        squares[1], squares[3], squares[high] = first, (1 - first) * (1 - share), (1 - first) * share
    return [math.sqrt(square) for square in squares]


class HermiteActivation(nn.Module):
    """phi(u) = sum_k a_k h_k(u), with the normalised Hermite polynomials h_k = He_k / sqrt(k!) of probability.

    Args:
        coef: a_0, a_1, ...; E[phi(u)^2] = sum a_k^2 for u ~ N(0, 1).

    Raises:
        ArgumentError: if there is no coefficient.

    >>> HermiteActivation([0, 0, 1])(torch.tensor([1.0, 0.0])).tolist()  # (u^2 - 1) / sqrt(2)
    [0.0, -0.7071067690849304]
    """

    def __init__(self, coef: Sequence[float]) -> None:
        super().__init__()
        if not len(coef):
            raise ArgumentError("HermiteActivation: `coef` is empty. Give a_0, a_1, ... such as [0, 1] for the identity.")
        self.coef = tuple(float(a) for a in coef)

    def forward(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the activation, by the recurrence sqrt(k+1) h_(k+1) = u h_k - sqrt(k) h_(k-1)."""
        before, now = torch.zeros_like(u), torch.ones_like(u)
        y = self.coef[0] * now
        for k, a in enumerate(self.coef[1:]):
            before, now = now, (u * now - math.sqrt(k) * before) / math.sqrt(k + 1)
            y = torch.add(y, now, alpha=a) if a else y
        return y

    def extra_repr(self) -> str:
        """Name the coefficients."""
        return ", ".join(f"{a:.4g}" for a in self.coef)


class Normalised(nn.Module):
    """A named function times the number that makes E[phi(u)^2] = 1 for u ~ N(0, 1), such as sqrt(2) ReLU.

    Args:
        name: one of `FUNCTIONS`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in FUNCTIONS:
            raise unknown("wide_deep", "activation", name, NAMES)
        self.name = name
        places, weights = quadrature()
        values = FUNCTIONS[name](torch.from_numpy(places)).numpy()
        self.scale = float(1 / np.sqrt(weights @ values**2))

    def forward(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the activation."""
        return self.scale * FUNCTIONS[self.name](u)


class ScaledLinear(nn.Linear):
    """W h, or W h / sqrt(inputs), with W ~ N(0, 1) and no bias.

    Args:
        inputs: length of h.
        outputs: rows of W.
        divided: whether to divide by sqrt(inputs).
    """

    def __init__(self, inputs: int, outputs: int, divided: bool = True) -> None:
        self.factor = 1 / math.sqrt(inputs) if divided else 1.0
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.normal_(self.weight)

    def forward(self, input: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Multiply."""
        return self.factor * F.linear(input, self.weight)


class WideDeepNetwork(nn.Module):
    """phi(W_1 x), phi(W_l h / sqrt(width)) for each further layer, and a'h / sqrt(width), for x of norm 1.

    Its tangent kernel at the start comes to `DualActivation.ntk(xi, depth)` as the width grows. It has timm's protocol, so any objective
    trains it. Inputs are divided by their norm; to stay on the non-negative part of the sphere, where the theory of infinite depth
    holds, open the data with mean=[0] and std=[1].

    Args:
        in_features: length of a flattened input.
        num_classes: outputs; 0 leaves the last layer out.
        width: units of each hidden layer.
        depth: hidden layers, at least one.
        activation: "optimal", "relu", "erf", "sine", "cosine", "gelu", "tanh", or Hermite coefficients whose squares sum to 1.
        dim: dimension of the data, for "optimal".

    Raises:
        ArgumentError: if a number is below 1 or the activation is unknown.

    >>> sum(p.numel() for p in WideDeepNetwork(64, 10, width=32, depth=3).parameters()) == 64 * 32 + 2 * 32**2 + 32 * 10
    True
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        width: int = 1024,
        depth: int = 2,
        activation: str | Sequence[float] = "optimal",
        dim: float = 2.0,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("width", width), ("depth", depth)):
            if value < 1:
                raise ArgumentError(f"wide_deep: `{name}` must be at least 1, got {value}. Infinite ones are for WideDeepClassifier.")
        self.in_features, self.num_classes, self.in_chans = in_features, num_classes, 1
        self.num_features = self.head_hidden_size = width
        self.adaptation: list[str] = []
        self.layers = nn.ModuleList(ScaledLinear(width if i else in_features, width, divided=i > 0) for i in range(depth))
        self.activation = activation_module(activation, dim)
        self.head: nn.Module = ScaledLinear(width, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new last layer in place of the old one; 0 leaves it out."""
        like = next(self.layers.parameters())
        self.num_classes = num_classes
        head = ScaledLinear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(like.device, like.dtype)

    def forward_features(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        """Compute the last hidden layer.

        Raises:
            ShapeError: if an input has not `in_features` values.
        """
        h = self.on_sphere(x)
        for layer in self.layers:
            h = self.activation(layer(h))
        return h

    def forward_head(self, x: Float[Tensor, "batch width"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Compute the outputs of the last hidden layer, or return it as it is where `pre_logits`."""
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch out"]:
        """Compute the outputs."""
        return self.forward_head(self.forward_features(x))

    def on_sphere(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """Flatten inputs and divide each by its norm."""
        flat = x.flatten(1)
        if flat.shape[1] != self.in_features:
            raise ShapeError(
                f"wide_deep: inputs must have {self.in_features} values, got {flat.shape[1]} in shape {tuple(x.shape[1:])}. "
                "Build the network with this `input_size` and `in_chans`."
            )
        return F.normalize(flat)


def activation_module(activation: str | Sequence[float], dim: float) -> nn.Module:
    """Return an activation with E[phi(u)^2] = 1 by its name or its Hermite coefficients.

    Raises:
        ArgumentError: if there is no such name, or the squares of the coefficients do not sum to 1.
    """
    if isinstance(activation, str):
        return HermiteActivation(singular_coefficients(dim)) if activation == "optimal" else Normalised(activation)
    check_squares("wide_deep: `activation`", activation)
    return HermiteActivation(activation)


def check_squares(what: str, coef: Sequence[float]) -> None:
    """Refuse Hermite coefficients whose squares do not sum to 1: every layer would then scale its signal."""
    total = sum(float(a) ** 2 for a in coef)
    if not abs(total - 1) < 1e-6:
        raise ArgumentError(
            f"{what} needs squares that sum to 1, got {total:.6g}. Divide the coefficients by {math.sqrt(total):.6g}."
            if 0 < total < math.inf
            else f"{what} needs finite coefficients that are not all 0, got {list(coef)}."
        )


def empirical_kernel(network: WideDeepNetwork, x: Float[Tensor, "batch ..."], output: int = 0) -> Float[Tensor, "batch batch"]:
    """Compute the tangent kernel of one output, the products of the gradients by all weights, without building the gradients.

    Args:
        network: with a last layer.
        x: inputs.
        output: which one.
    """
    h = network.on_sphere(x)
    inputs, sums = [], []
    with torch.enable_grad():
        for layer in network.layers:
            inputs.append(h)
            sums.append(layer(h).requires_grad_())
            h = network.activation(sums[-1])
        signals = torch.autograd.grad(network.head(h)[:, output].sum(), sums)
    head: ScaledLinear = network.head  # type: ignore[assignment]
    kernel = head.factor**2 * (h @ h.T)
    for layer, entered, signal in zip(network.layers, inputs, signals):
        kernel = kernel + layer.factor**2 * (entered @ entered.T) * (signal @ signal.T)  # type: ignore[operator]
    return kernel.detach()


@register(cfg={"input_size": (1, 28, 28), "crop_pct": 1.0, "mean": (0.0,), "std": (1.0,), "first_conv": None, "classifier": "head"})
def wide_deep(
    width: int = 1024,
    depth: int = 2,
    activation: str | Sequence[float] = "optimal",
    dim: float = 2.0,
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    input_size: int | tuple[int, int] | None = None,
) -> WideDeepNetwork:
    """Build a `WideDeepNetwork` for images.

    Args:
        width: units of each hidden layer.
        depth: hidden layers.
        activation: "optimal", another name, or Hermite coefficients.
        dim: dimension of the data, for "optimal".
        num_classes: outputs.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 28.
    """
    height, side = image_size(input_size) or (28, 28)
    network = WideDeepNetwork(in_chans * height * side, num_classes, width, depth, activation, dim)
    network.in_chans = in_chans
    return network
