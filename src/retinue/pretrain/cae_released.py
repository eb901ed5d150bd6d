"""A tokenizer of somebody else, such as the published discrete autoencoder of DALL-E with its 8192 codes, behind our interface.

Nothing is downloaded: you load the network with its own library, and hand it over. CAE's paper shows it each image at half the side, shrunk
by Lanczos' filter, with pixels squeezed into [0.1, 0.9].
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Data
from retinue.errors import ShapeError
from retinue.models.factory import image_size

LOBES = 3  # of Lanczos' filter
SQUEEZE = 0.1  # of DALL-E's `map_pixels`


def squeeze_pixels(pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Map pixels of [0, 1] into [0.1, 0.9], as the published autoencoder of DALL-E expects them.

    >>> squeeze_pixels(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)).flatten().tolist()
    [0.10000000149011612, 0.5, 0.9000000357627869]
    """
    return (1 - 2 * SQUEEZE) * pixels + SQUEEZE


class PluggedTokenizer(nn.Module):
    """Tokens from any network that returns scores of codes as a map, or codes; it is frozen.

    Args:
        network: such as the `encoder` of the package `dall_e`; takes what `pixels` makes of images in [0, 1].
        codes: how many codes there are.
        data: whose normalisation is undone first.
        input_size: side, or height and width, to which images are brought by Lanczos' filter; 112 in CAE, for a stride of 8 and 14x14
            codes. None leaves them.
        pixels: what the network wants done to pixels in [0, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        codes: int,
        data: Data,
        input_size: int | tuple[int, int] | None = 112,
        pixels: Callable[[Tensor], Tensor] = squeeze_pixels,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.codes, self.input_size, self.pixels = codes, image_size(input_size), pixels
        self.preprocessing = data.preprocessing

    def train(self, mode: bool = True) -> "PluggedTokenizer":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Int[Tensor, "batch places"]:
        """Compute the code of every place of the network's map, row by row.

        Raises:
            ShapeError: if the network returns neither scores of its codes as a map nor one code a place.
        """
        shown = self.preprocessing.denormalize(images)
        if self.input_size is not None:
            shown = lanczos(shown, self.input_size)
        found: Any = self.network(self.pixels(shown.clamp(0, 1)))
        if found.ndim == 4 and found.shape[1] == self.codes:
            return found.argmax(1).flatten(1)
        if found.ndim in (2, 3) and not found.is_floating_point():
            return found.flatten(1)
        raise ShapeError(
            f"PluggedTokenizer: the network must return scores (batch, {self.codes}, rows, columns) or whole numbers (batch, places), got "
            f"{found.dtype} of shape {tuple(found.shape)}. Give the part of it that encodes, and its number of `codes`."
        )


def lanczos(
    images: Float[Tensor, "batch channels height width"], size: tuple[int, int]
) -> Float[Tensor, "batch channels newheight newwidth"]:
    """Resize by Lanczos' filter of three lobes, which widens with the factor of shrinking, as Pillow does; values may leave their range.

    Args:
        images: of any range.
        size: the new height and width.
    """
    rows, columns = (_weights(old, new).to(images) for old, new in zip(images.shape[-2:], size))
    return rows @ images @ columns.T


@functools.lru_cache(maxsize=8)
def _weights(old: int, new: int) -> Float[Tensor, "{new} {old}"]:
    """Return what each old pixel gives to each new one."""
    scale = old / new
    wide = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    away = (torch.arange(old, dtype=torch.float64) + 0.5 - centres[:, None]) / wide
    # Pillow looks at the pixels whose index lies within the filter's reach, rounded
    first, last = (centres - LOBES * wide + 0.5).long().clamp(min=0), (centres + LOBES * wide + 0.5).long().clamp(max=old)
    places = torch.arange(old)
    inside = (places >= first[:, None]) & (places < last[:, None]) & (away.abs() < LOBES)
    weights = torch.where(inside, torch.sinc(away) * torch.sinc(away / LOBES), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()
