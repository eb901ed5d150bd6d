"""Heat maps laid over images."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError, near_misses
from retinue.plots.galleries import Picture, gallery, to_rgb

WEIGHT = 0.4  # of the colours, as in Bahrami & Albadvi 2023
GAP = 0.04  # white between an image and its overlay, as a share of the width


def overlay(
    image: Tensor | NDArray[Any], heat: Float[Tensor, "mapheight mapwidth"], weight: float = WEIGHT, colours: str = "turbo"
) -> Picture:
    """Lay a heat map over an image: (1 - weight) image + weight colours.

    Args:
        image: not normalised: bytes, or floats in [0, 1]; as in `galleries.to_rgb`.
        heat: values in [0, 1].
        weight: share of the colours, in [0, 1].
        colours: a colour map of matplotlib.

    Returns:
        Bytes (height, width, 3).

    Raises:
        ArgumentError: if `weight` lies outside [0, 1] or there is no such colour map.
        ShapeError: if the heat map is not of the image's size.
    """
    if not 0 <= weight <= 1:
        raise ArgumentError(f"overlay: `weight` must lie in [0, 1], got {weight}. It is the share of the colours; {WEIGHT} is usual.")
    if colours not in matplotlib.colormaps:
        close = ", ".join(near_misses(colours, list(matplotlib.colormaps))) or "turbo, inferno, viridis"
        raise ArgumentError(f'overlay: matplotlib has no colour map "{colours}". Did you mean {close}?')
    picture = to_rgb(image)
    if picture.shape[:2] != tuple(heat.shape):
        raise ShapeError(f"overlay: the heat map must be of the image's size {picture.shape[:2]}, got {tuple(heat.shape)}.")
    painted = matplotlib.colormaps[colours](heat.detach().cpu().numpy().clip(0, 1))[..., :3] * 255
    mixed: Picture = ((1 - weight) * picture + weight * painted).round().astype(np.uint8)
    return mixed


def side_by_side(*pictures: Picture) -> Picture:
    """Put pictures of one height beside each other, with a white gap.

    Raises:
        ShapeError: if their heights differ.
    """
    heights = [picture.shape[0] for picture in pictures]
    if len(set(heights)) > 1:
        raise ShapeError(f"side_by_side: pictures must be of one height, got {heights}.")
    gap = np.full((heights[0], max(1, round(GAP * pictures[0].shape[1])), 3), 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def explained(
    images: Sequence[Tensor] | Tensor,
    maps: Float[Tensor, "batch height width"],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    title: str = "",
    weight: float = WEIGHT,
) -> Figure:
    """Draw each image beside itself under its heat map.

    Args:
        images: not normalised, as in `overlay`.
        maps: their heat maps.
        captions: one for each image.
        columns: pairs in a row; None makes rows of at most 4.
        title: over all of them.
        weight: as in `overlay`.

    Raises:
        ArgumentError: if there is another number of maps or captions than of images.
        ShapeError: if a map is not of its image's size.
    """
    if len(images) != len(maps):
        raise ArgumentError(f"explained: there are {len(images)} images and {len(maps)} heat maps. Give one for each.")
    pairs = [side_by_side(to_rgb(image), overlay(image, heat, weight)) for image, heat in zip(images, maps)]
    return gallery(pairs, captions, columns=columns or min(4, len(pairs)), title=title, width=3.0)
