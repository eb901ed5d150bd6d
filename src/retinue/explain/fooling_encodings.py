"""How an image is written down for evolution: by its pixels, or by a graph that paints it (Nguyen et al. 2015, arXiv 1412.1897).

An encoding draws genomes, makes children of pairs of them, and renders them as images with values in [0, 1] in steps of 1/255.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray
from torch import Tensor

from retinue.errors import ArgumentError, unknown

Array = NDArray[Any]
Shape = tuple[int, int, int]


@runtime_checkable
class Encoding(Protocol):
    """What evolution asks of an encoding; a genome may be anything."""

    def random(self, count: int, rng: np.random.Generator) -> list[Any]:
        """Draw genomes."""

    def children(self, pairs: Sequence[tuple[Any, Any]], rng: np.random.Generator, generation: int) -> list[Any]:
        """Make two children of each pair of parents."""

    def render(self, genomes: Sequence[Any]) -> Float[Tensor, "count channels height width"]:
        """Paint the images."""

    def pack(self, genomes: Sequence[Any]) -> tuple[dict[str, Tensor], Any]:
        """Return tensors and JSON values from which `unpack` makes the same genomes."""

    def unpack(self, tensors: Mapping[str, Tensor], values: Any) -> list[Any]:
        """Return genomes."""


def polynomial_delta(u: Array, eta: float = 15.0) -> Array:
    """Turn u ~ U(0, 1) into a step in (-1, 1), most of them small: (2u)^(1/(eta+1)) - 1 below 0.5, its mirror image above (Deb 2001).

    >>> polynomial_delta(np.array([0.25, 0.5])).round(6).tolist()
    [-0.042397, 0.0]
    """
    power = 1 / (eta + 1)
    return np.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 * (1 - u)) ** power)


def mutated(genes: Array, rng: np.random.Generator, rate: float, eta: float) -> Array:
    """Return genes in [0, 1] of which each has taken a polynomial step with probability `rate`."""
    genes = genes.copy()
    chosen = rng.random(genes.shape) < rate
    steps = polynomial_delta(rng.random(int(chosen.sum())), eta)
    genes[chosen] = np.clip(genes[chosen] + steps, 0, 1).astype(genes.dtype)
    return genes


def sbx(a: Array, b: Array, r: Array, eta: float = 10.0) -> tuple[Array, Array]:
    """Cross genes in [0, 1] by simulated binary crossover (Deb and Agrawal 1995), within the bounds.

    Args:
        a: genes of one parent.
        b: those of the other.
        r: a draw from U(0, 1) for each gene; it serves both children.
        eta: the larger, the nearer children stay to their parents.

    Returns:
        The lower and the upper child; of genes that agree, the parents'.
    """
    low, high = np.minimum(a, b), np.maximum(a, b)
    apart = high - low > 1e-10
    gap = np.where(apart, high - low, 1.0)
    power = 1 / (eta + 1)

    def spread(room: Array) -> Array:
        alpha = 2 - (1 + 2 * room / gap) ** -(eta + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(r <= 1 / alpha, (r * alpha) ** power, (1 / (2 - r * alpha)) ** power)

    lower = np.clip(0.5 * (low + high - spread(low) * gap), 0, 1)
    upper = np.clip(0.5 * (low + high + spread(1 - high) * gap), 0, 1)
    return np.where(apart, lower, a), np.where(apart, upper, b)


@dataclass(frozen=True)
class DirectEncoding:
    """One gene a pixel and channel, uniform at the start: images that look like noise.

    Attributes:
        image_shape: channels (1 or 3), height and width.
        color: what the three channels are: "hsv", as in the paper, or "rgb".
        mutation_rate: probability with which a gene changes.
        eta_mutation: of `polynomial_delta`.
        crossover_rate: probability with which a pair is crossed; the others are copied.
        eta_crossover: of `sbx`.
        halve_every: generations after which the mutation rate is halved: 1,000 in the paper; None keeps it, as the official code does.

    Raises:
        ArgumentError: if a rate is no probability, or the shape is that of no image.
    """

    image_shape: Shape
    color: Literal["hsv", "rgb"] = "hsv"
    mutation_rate: float = 0.1
    eta_mutation: float = 15.0
    crossover_rate: float = 0.5
    eta_crossover: float = 10.0
    halve_every: int | None = None

    def __post_init__(self) -> None:
        check_shape(self.image_shape)
        for name in ("mutation_rate", "crossover_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"fool: `{name}` must lie in [0, 1], got {getattr(self, name)}. It is a probability.")
        if self.color not in ("hsv", "rgb"):
            raise unknown("fool", "`color`", self.color, ("hsv", "rgb"))
        if self.halve_every is not None and self.halve_every < 1:
            raise ArgumentError(f"fool: `halve_every` must be at least 1, got {self.halve_every}. None keeps the mutation rate.")

    def random(self, count: int, rng: np.random.Generator) -> list[Array]:
        """Draw every gene from U(0, 1)."""
        return list(rng.random((count, *self.image_shape), dtype=np.float32))

    def children(self, pairs: Sequence[tuple[Array, Array]], rng: np.random.Generator, generation: int) -> list[Array]:
        """Cross some pairs gene by gene, copy the others, and mutate all."""
        rate = self.mutation_rate * 0.5 ** (generation // self.halve_every if self.halve_every else 0)
        a, b = (np.stack(parents) for parents in zip(*pairs))
        crossed = rng.random(len(pairs)) < self.crossover_rate
        lower, upper = sbx(a[crossed], b[crossed], rng.random(a[crossed].shape), self.eta_crossover)
        swap = rng.random(lower.shape) < 0.5
        a[crossed], b[crossed] = np.where(swap, upper, lower), np.where(swap, lower, upper)
        return list(mutated(np.stack([a, b], 1).reshape(-1, *a.shape[1:]), rng, rate, self.eta_mutation))

    def render(self, genomes: Sequence[Array]) -> Float[Tensor, "count channels height width"]:
        """Turn genes into pixels, floor(255 gene) / 255."""
        images = np.stack(genomes)
        if len(images[0]) == 3 and self.color == "hsv":
            images = hsv_to_rgb(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        return stepped(images)

    def pack(self, genomes: Sequence[Array]) -> tuple[dict[str, Tensor], Any]:
        """Return the genes as one tensor."""
        return {"genes": torch.from_numpy(np.stack(genomes))}, None

    def unpack(self, tensors: Mapping[str, Tensor], values: Any) -> list[Array]:
        """Return the genomes of a tensor."""
        return list(tensors["genes"].numpy())


def hls_to_rgb(images: Float[np.ndarray, "count 3 height width"]) -> Float[np.ndarray, "count 3 height width"]:
    """Turn hue, lightness and saturation in [0, 1] into RGB; hue runs once around the circle."""
    hue, light, saturation = images[:, 0], images[:, 1], images[:, 2]
    reach = saturation * np.minimum(light, 1 - light)
    sextants = (np.array([0, 8, 4]).reshape(1, 3, 1, 1) + 12 * hue[:, None]) % 12
    return light[:, None] - reach[:, None] * np.clip(np.minimum(sextants - 3, 9 - sextants), -1, 1)


def stepped(images: Array) -> Float[Tensor, "count channels height width"]:
    """Round values in [0, 1] down to steps of 1/255, as an image file keeps them."""
    return torch.from_numpy(np.floor(255 * images).clip(0, 255).astype(np.float32)) / 255


def check_shape(shape: Sequence[int]) -> None:
    """Refuse what is no shape of an image."""
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise ArgumentError(f"fool: `image_shape` must be (channels, height, width) with 1 or 3 channels, got {tuple(shape)}.")
