"""The convolutional autoencoder of Prob-PSENN (Vadillo et al. 2024, arXiv 2403.13740): batch norms, LeakyReLU, and a tanh at the end."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError

GREY, COLOUR = (32, 32, 64, 256), (64, 128, 256, 512)
SLOPE = 0.2


def psenn_widths(in_chans: int, input_size: tuple[int, int]) -> tuple[int, ...]:
    """Return the channels for images of a size: as many halvings as leave no side longer than 7, and the layer that ends the map.

    >>> psenn_widths(1, (32, 32)), psenn_widths(3, (32, 32)), psenn_widths(1, (8, 8))
    ((32, 32, 64, 256), (64, 128, 256, 512), (64, 256))
    """
    plan = GREY if in_chans == 1 else COLOUR
    halvings = max(1, (max(input_size) // 4).bit_length() - 1)
    return (*plan[max(0, 3 - halvings) : 3], *[plan[2]] * (halvings - 3), plan[3])


class PSENNEncoder(nn.Module):
    """Convolutions 4x4 with stride 2, one as large as the map that is left, and one 1x1 that gives the code.

    Args:
        in_chans: channels of the images.
        input_size: height and width of the images; the paper's networks see 32 pixels.
        latent_dim: length of the code.
        widths: channels of each layer but the last; None takes the paper's, fewer or more of them by the size of the images.
        norm: batch norms behind all layers but the last.
        variational: give mean and logarithm of the variance of each number of the code, one behind the other.

    Raises:
        ArgumentError: if the layers do not fit the images.
    """

    def __init__(
        self,
        in_chans: int,
        input_size: tuple[int, int],
        latent_dim: int = 40,
        widths: Sequence[int] | None = None,
        norm: bool = True,
        variational: bool = False,
    ) -> None:
        super().__init__()
        widths, rest = planned(in_chans, input_size, widths)
        layers: list[nn.Module] = []
        for before, after in pairwise((in_chans, *widths[:-1])):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), *_after(after, norm)]
        layers += [nn.Conv2d(widths[-2], widths[-1], rest), *_after(widths[-1], norm)]
        layers += [nn.Conv2d(widths[-1], latent_dim * (2 if variational else 1), 1), nn.Flatten()]
        self.layers = nn.Sequential(*layers)
        self.latent_dim, self.image_shape = latent_dim, (in_chans, *input_size)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch numbers"]:
        """Compute the codes; of a variational encoder means and log-variances."""
        return self.layers(x)


class PSENNDecoder(nn.Module):
    """The mirror of `PSENNEncoder`, with a tanh at the end: it paints in [-1, 1].

    Args:
        in_chans: channels of the images.
        input_size: height and width of the images.
        latent_dim: length of the code.
        widths: as of the encoder, from the image inwards.
        norm: as of the encoder.

    Raises:
        ArgumentError: if the layers do not fit the images.
    """

    output = "tanh"

    def __init__(
        self, in_chans: int, input_size: tuple[int, int], latent_dim: int = 40, widths: Sequence[int] | None = None, norm: bool = True
    ) -> None:
        super().__init__()
        widths, rest = planned(in_chans, input_size, widths)
        layers: list[nn.Module] = [nn.Unflatten(1, (latent_dim, 1, 1))]
        layers += [nn.Conv2d(latent_dim, widths[-1], 1), *_after(widths[-1], norm)]
        layers += [nn.ConvTranspose2d(widths[-1], widths[-2], rest), *_after(widths[-2], norm)]
        sides = [input_size]
        for _ in widths[:-1]:
            sides.append((sides[-1][0] // 2, sides[-1][1] // 2))
        for number, (before, after) in enumerate(pairwise((*widths[-2::-1], in_chans)), start=2):
            small, large = sides[-number + 1], sides[-number]
            spare: Any = tuple(out - 2 * side for side, out in zip(small, large))
            last = after == in_chans and number == len(widths)
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, output_padding=spare)]
            layers += [nn.Tanh()] if last else _after(after, norm)
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Paint images."""
        return self.layers(z)


def planned(in_chans: int, input_size: tuple[int, int], widths: Sequence[int] | None) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return the channels of the layers, and height and width of the map that the last but one leaves.

    Raises:
        ArgumentError: if there are too few layers, or so many that nothing is left of the image.
    """
    chosen = psenn_widths(in_chans, input_size) if widths is None else tuple(widths)
    if len(chosen) < 2 or not all(isinstance(width, int) and width > 0 for width in chosen):
        raise ArgumentError(
            f"prob_psenn: `widths` must be two positive whole numbers at least, got {list(chosen)}. "
            "The paper has 32, 32, 64, 256 for grey images."
        )
    rest = tuple(side >> (len(chosen) - 1) for side in input_size)
    if not all(rest):
        raise ArgumentError(
            f"prob_psenn: {len(chosen) - 1} halvings leave nothing of images of {input_size[0]}x{input_size[1]} px. "
            "Give fewer `widths`, or larger images."
        )
    return chosen, (rest[0], rest[1])


def _after(channels: int, norm: bool) -> list[nn.Module]:
    # Keras' batch norm: eps 1e-3, and its momentum 0.99 is torch's 0.01
    return [*([nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)] if norm else []), nn.LeakyReLU(SLOPE)]
