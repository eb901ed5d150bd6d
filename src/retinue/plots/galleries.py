"""Pictures in a grid with captions, and any image as bytes for the screen."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError

Picture = NDArray[np.uint8]


def to_rgb(image: Tensor | NDArray[Any]) -> Picture:
    """Turn an image into bytes (height, width, 3).

    Args:
        image: a tensor (channels, height, width) or (height, width), or an array (height, width, channels) or (height, width); grey, RGB or
            RGBA (of which the alpha is left out); bytes, or floats in [0, 1], of which those outside are clipped.

    Raises:
        ShapeError: if it has another shape.

    >>> to_rgb(torch.ones(1, 2, 2))[0, 0].tolist()
    [255, 255, 255]
    """
    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))
    if isinstance(image, Tensor) and pixels.ndim == 3:
        pixels = pixels.permute(1, 2, 0)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise ShapeError(
            f"to_rgb: an image must have 1, 3 or 4 channels, first in a tensor and last in an array, got {type(image).__name__} of shape "
            f"{tuple(image.shape)}."
        )
    if pixels.is_floating_point():
        pixels = pixels.float().nan_to_num().clamp(0, 1).mul(255).round()
    elif pixels.dtype == torch.bool:
        pixels = pixels.byte() * 255
    pixels = pixels.byte()
    colours: Picture = (pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels[..., :3]).contiguous().numpy()
    return colours


def gallery(
    pictures: Sequence[Tensor | NDArray[Any]],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    title: str = "",
    width: float = 1.6,
) -> Figure:
    """Draw pictures in a grid, row by row, each with its caption below.

    Args:
        pictures: as in `to_rgb`; their sizes may differ.
        captions: one for each picture, lines parted by newlines; None leaves them out.
        columns: pictures in a row; None makes rows of at most 8, as even as can be.
        title: over all of them.
        width: of one picture, in inches.

    Raises:
        ArgumentError: if there is no picture, or another number of captions.
    """
    if not len(pictures):
        raise ArgumentError("gallery: there is no picture to show.")
    if captions is not None and len(captions) != len(pictures):
        raise ArgumentError(f"gallery: `captions` must be one for each of {len(pictures)} pictures, got {len(captions)}.")
    shown = [to_rgb(picture) for picture in pictures]
    rows = -(-len(shown) // (columns or 8))
    columns = columns or -(-len(shown) // rows)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0) if captions else 0
    tallest = max(picture.shape[0] / picture.shape[1] for picture in shown)
    figure = Figure(
        figsize=(columns * width + 0.2, rows * (width * tallest + 0.17 * lines + 0.08) + (0.35 if title else 0.05)), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.04, wspace=0.02, hspace=0.02)  # type: ignore[call-arg, union-attr]
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, axis in enumerate(axes):
        axis.set_axis_off()
        if place < len(shown):
            axis.imshow(shown[place], interpolation="nearest")
            if captions:
                axis.text(0.5, -0.03, captions[place], transform=axis.transAxes, ha="center", va="top", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
