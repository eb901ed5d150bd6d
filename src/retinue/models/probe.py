"""Images for a trial run of a network, and the comparison of two networks on them."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from retinue.errors import ArgumentError, RetinueError
from retinue.models.factory import image_size
from retinue.models.protocol import PROBE_SIDES

TOLERANCE = 1e-4  # of the largest output, or of 1 where all are smaller


class UnequalError(RetinueError):
    """Another form of a network does not compute what the network computes."""


def inference_copy(model: nn.Module) -> nn.Module:
    """Copy a network, in evaluation and without gradients; it need not be in evaluation itself."""
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in held}  # a pruned weight is a result, which deepcopy refuses
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def trial_images(
    model: nn.Module, input_size: int | tuple[int, int] | list[int] | None = None, *, where: str, batch: int = 3
) -> Float[Tensor, "batch channels height width"]:
    """Draw images that pass through a network.

    Args:
        model: the network, in evaluation.
        input_size: their side, or height and width; None: the size in the network's preprocessing or settings, or the first of the usual
            ones that passes.
        where: the function that asks, for the error.
        batch: how many.

    Raises:
        ArgumentError: if none passes.
    """
    size = image_size(input_size)
    pairs = [(channels, trial) for trial in ([size] if size else _sizes(model)) for channels in _channels(model)]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    trouble = ""
    for channels, (height, width) in pairs:
        images = torch.randn(batch, channels, height, width, generator=generator).to(like.device, like.dtype)
        try:
            with torch.no_grad():
                model(images)
            return images
        except Exception as error:  # any: a module of anyone's code refuses a wrong size in its own way
            trouble = trouble or " ".join(str(error).split())[:200]
    tried = ", ".join(dict.fromkeys(f"{c}x{h}x{w}" for c, (h, w) in pairs))
    raise ArgumentError(
        f"{where}: no trial image passed through {type(model).__name__} (tried {tried}; the first said: {trouble}). "
        f"Say which images it takes: {where}(..., input_size=(height, width))."
    )


def outputs(model: Callable[[Tensor], Any], images: Tensor) -> list[Tensor]:
    """Compute all tensors that a network returns for images, without gradient and, on a GPU, in full float32."""
    exact: Any = contextlib.nullcontext()
    if images.is_cuda:
        exact = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
    with torch.no_grad(), exact, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [value for value in tree_leaves(model(images)) if isinstance(value, Tensor)]


def check_equal(expected: list[Tensor], got: list[Tensor], who: str, advice: str) -> None:
    """Refuse a form of a network whose outputs are not those of the network.

    Args:
        expected: the network's outputs.
        got: the other form's.
        who: what the other form is called.
        advice: what the user can do.

    Raises:
        UnequalError: if a shape differs, or a number by more than 1e-4 of the largest output (of 1 where all are smaller); half precision
            is allowed eight roundings.
    """
    shapes = [[tuple(value.shape) for value in values] for values in (expected, got)]
    if shapes[0] != shapes[1]:
        raise UnequalError(f"{who} returns shapes {shapes[1]} where the network returns {shapes[0]}. {advice}")
    for a, b in zip(expected, got):
        tolerance = max(TOLERANCE, 8 * torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
        scale = max(1.0, float(a.abs().max())) if a.numel() else 1.0
        gap = float((a.double() - b.to(a.device).double()).abs().max()) if a.numel() else 0.0
        if not gap <= tolerance * scale:
            raise UnequalError(f"{who} differs from the network by {gap:.2g} where outputs reach {scale:.2g}. {advice}")


def _sizes(model: nn.Module) -> list[tuple[int, int]]:
    made: Any = getattr(model, "retinue_config", None) or {}
    cfg: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    stated = [
        getattr(getattr(model, "preprocessing", None), "input_size", None),
        made.get("arguments", {}).get("input_size"),
        getattr(getattr(model, "patch_embed", None), "img_size", None),
        (cfg.get("input_size") or [None])[-2:],
    ]
    known = [(int(size[0]), int(size[1])) for size in stated if size is not None and len(size) == 2]
    return list(dict.fromkeys([*known, *((side, side) for side in PROBE_SIDES)]))


def _channels(model: nn.Module) -> list[int]:
    stated = [getattr(getattr(model, "preprocessing", None), "channels", None), getattr(model, "in_chans", None)]
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    known = [int(channels) for channels in stated if channels] or ([first.in_channels] if first is not None else [3, 1])
    return list(dict.fromkeys(known))
