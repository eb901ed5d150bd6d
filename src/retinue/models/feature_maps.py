"""Any layer's output laid out as a map, whatever its layout: channels first or last, or tokens."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

PREFIXES = (0, 1, 2, 5)  # tokens before the patches: none, class, class and distillation, class and four registers


def as_map(
    output: Tensor, size: tuple[int, int], prefix_tokens: int | None = None, channels_last: bool = False
) -> Float[Tensor, "batch channels mapheight mapwidth"] | None:
    """Lay out what a layer gave as a map, or return None where it has no spatial extent.

    Maps may have the channels first or last (the layout in which height and width go with the image's is taken); tokens (batch, tokens,
    channels) become a grid in the image's proportions, and those that stand for no place are left out.

    Args:
        output: of one layer.
        size: height and width of the image.
        prefix_tokens: tokens before the patches, where the network says so; otherwise the usual numbers are tried.
        channels_last: which layout to take where both would do.

    >>> import torch
    >>> as_map(torch.zeros(2, 50, 8), (28, 28)).shape  # a class token and 7x7 patches
    torch.Size([2, 8, 7, 7])
    >>> as_map(torch.zeros(2, 10), (28, 28)) is None
    True
    """
    if output.ndim == 4:
        first, last = _fits(output.shape[2:4], size), _fits(output.shape[1:3], size)
        if last and (channels_last or not first):
            return output.permute(0, 3, 1, 2)
        return output if first else None
    if output.ndim == 3:
        prefixes = PREFIXES if prefix_tokens is None else (prefix_tokens, *PREFIXES)
        grids = [(prefix, grid) for prefix in prefixes if (grid := _grid(output.shape[1] - prefix, size)) is not None]
        if grids:  # the one of the best proportions; of equals, the first
            prefix, grid = min(grids, key=lambda one: abs(one[1][0] * size[1] - one[1][1] * size[0]))
            return output[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return None


def layout(model: nn.Module) -> dict[str, Any]:
    """Return what a network says of its own layers' layout: the last two arguments of `as_map`."""
    said = [part.num_prefix_tokens for part in model.modules() if hasattr(part, "num_prefix_tokens")]
    last = any("NHWC" in str(getattr(part, "output_fmt", "")) for part in model.modules())
    return {"prefix_tokens": said[0] if said else None, "channels_last": last}


def _fits(sides: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Tell whether height and width are those of a map of the image: the same proportions, up to a rounding of one."""
    height, width = sides
    return height * width > 1 and abs(height * size[1] - width * size[0]) < max(size)


def _grid(places: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Find the height and width of a grid of so many places in the image's proportions."""
    if places < 2:
        return None
    ideal = round((places * size[0] / size[1]) ** 0.5)
    for height in (ideal, ideal - 1, ideal + 1):
        if height > 0 and places % height == 0 and _fits((height, places // height), size):
            return height, places // height
    return None
