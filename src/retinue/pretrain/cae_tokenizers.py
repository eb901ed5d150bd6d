"""What each hidden patch is to be recognised as: a code of a tokenizer that is frozen, or its own pixels (CAE, arXiv 2202.03026).

A tokenizer is a module with `tokenizer(images) -> Int[batch, places]` of normalised images, and the attribute `codes`, the number of codes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from retinue.data import Data
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.pretrain.cae_dvae import train_dvae

TOKENIZERS = ("patch-kmeans", "dvae")
EXAMPLES = 50_000  # patches at most, to which k-means is fitted
FLAT = 0.01  # added to a patch's variance, of images of unit variance, so that noise in flat patches is not blown up
PIXEL_EPS = 1e-6  # the same for targets that are pixels, as in MAE (arXiv 2111.06377)


def patches(images: Float[Tensor, "batch channels height width"], patch: tuple[int, int]) -> Float[Tensor, "batch places numbers"]:
    """Cut images into patches, row by row, each flattened with its channels first.

    Args:
        images: of any range.
        patch: height and width of a patch, which divide those of the images.

    Raises:
        ShapeError: if they do not.

    >>> patches(torch.arange(8.0).view(1, 1, 2, 4), (2, 2))[0].tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    height, width = images.shape[-2:]
    if height % patch[0] or width % patch[1]:
        raise ShapeError(
            f"CAE: images of {height}x{width} px cannot be cut into patches of {patch[0]}x{patch[1]}. Choose sides that divide."
        )
    cut = images.unflatten(3, (-1, patch[1])).unflatten(2, (-1, patch[0]))  # batch, channels, rows, height, columns, width
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def normalised_patches(
    images: Float[Tensor, "batch channels height width"], patch: tuple[int, int], eps: float = PIXEL_EPS
) -> Float[Tensor, "batch places numbers"]:
    """Cut images into patches of mean 0 and variance 1 each: (x - mean) / sqrt(variance + eps), the variance with n - 1.

    Args:
        images: of any range.
        patch: height and width of a patch.
        eps: what keeps flat patches flat.
    """
    cut = patches(images, patch)
    variance = cut.var(-1, keepdim=True) if cut.shape[-1] > 1 else torch.zeros_like(cut)
    return (cut - cut.mean(-1, keepdim=True)) / (variance + eps).sqrt()


class PatchKMeans(nn.Module):
    """The number of the nearest of some typical patches.

    Args:
        centres: the typical patches, flattened as `patches` does.
        patch: height and width of a patch.
        contrast: remove each patch's mean and contrast first, so that a code is a pattern and not a brightness.
    """

    def __init__(self, centres: Float[Tensor, "codes numbers"], patch: tuple[int, int], contrast: bool = True) -> None:
        super().__init__()
        self.centres: Tensor
        self.register_buffer("centres", centres)
        self.patch, self.contrast, self.codes = patch, contrast, len(centres)

    @classmethod
    def fit(
        cls,
        images: Float[Tensor, "batch channels height width"],
        patch: tuple[int, int],
        *,
        codes: int = 64,
        contrast: bool = True,
        seed: int = 0,
    ) -> "PatchKMeans":
        """Find typical patches by k-means, of up to 50,000 patches drawn from the images.

        Args:
            images: normalised images.
            patch: height and width of a patch.
            codes: how many typical patches.
            contrast: remove each patch's mean and contrast first.
            seed: of the draw and of k-means.

        Raises:
            ArgumentError: if there are fewer than two codes, or fewer patches than codes.
        """
        rows = (normalised_patches(images, patch, FLAT) if contrast else patches(images, patch)).flatten(0, 1)
        if not 2 <= codes <= len(rows):
            raise ArgumentError(f"patch-kmeans: `codes` must lie between 2 and the number of patches, {len(rows)}, got {codes}.")
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
        found = MiniBatchKMeans(codes, batch_size=4096, n_init=1, random_state=seed).fit(rows[chosen].numpy())
        return cls(torch.from_numpy(found.cluster_centers_.astype(np.float32)), patch, contrast)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Int[Tensor, "batch places"]:
        """Compute the number of the nearest centre of every patch."""
        rows = normalised_patches(images, self.patch, FLAT) if self.contrast else patches(images, self.patch)
        # |x - c|^2 without |x|^2, which is the same for all centres
        return (self.centres.square().sum(1) - 2 * rows @ self.centres.T).argmin(-1)


def make_tokenizer(kind: str, data: Data | None, patch: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    """Train a tokenizer on the training images, and freeze it.

    Args:
        kind: "patch-kmeans" or "dvae".
        data: the images.
        patch: height and width of a patch.
        options: of `PatchKMeans.fit` or `train_dvae`.

    Raises:
        ArgumentError: if there is no such tokenizer or option, or no data.
    """
    if kind not in TOKENIZERS:
        raise unknown("CAE", "tokenizer", kind, (*TOKENIZERS, "pixels"), "A module of your own will do as well.")
    if data is None:
        raise ArgumentError(
            f'CAE: the tokenizer "{kind}" is trained on images: give them, CAE(model, data), or give a tokenizer of your own.'
        )
    try:
        if kind == "dvae":
            return train_dvae(data, patch, **options).requires_grad_(False).eval()
        places = data.preprocessing.input_size[0] * data.preprocessing.input_size[1] // (patch[0] * patch[1])
        step = max(1, len(data.train) * places // EXAMPLES)
        seen = data.preprocessing
        images = seen.normalize(seen.centre(data.train.images(range(0, len(data.train), step))))
        return PatchKMeans.fit(images, patch, **options)
    except TypeError as error:
        raise ArgumentError(f'CAE: the tokenizer "{kind}" does not take {sorted(options)}: {error}.') from error
