"""timm's networks, built for a given size of images."""

import inspect
import logging
import math
from typing import Any

import timm
import torch
from torch import nn

from retinue.errors import ArgumentError, unknown
from retinue.models.small_images import LEAST_SIDE, CannotAdaptError, adapt_strides

log = logging.getLogger(__name__)


def timm_network(name: str, *, num_classes: int, in_chans: int, size: tuple[int, int] | None, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build one of timm's networks; where its last map would be smaller than 4x4 at this size, adapt it and say how.

    Transformers get another `img_size`, patch and window; convolutional networks lose strides, beginning at the first (`small_images`).

    Args:
        name: timm's name, without the prefix.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        size: height and width of the images; None builds the network as it is.
        pretrained: load timm's weights.
        kwargs: options of the network.

    Returns:
        The network; `adaptation` lists what was changed.

    Raises:
        ArgumentError: if an option is unknown or the network cannot take such images.
    """
    native = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    if size is None:
        model = _create(name, pretrained, native)
        model.adaptation = []
        return model
    with torch.device("meta"):
        skeleton = _create(name, False, native)
    sizing, notes = _sizing_arguments(skeleton, name, size, native)
    model = _create(name, pretrained, {**native, **sizing})
    try:
        notes += adapt_strides(model, in_chans, size)
    except CannotAdaptError as reason:
        raise ArgumentError(
            f'create_model: "timm:{name}" cannot be adapted to images of {size[0]}x{size[1]} px: {reason}. '
            "Enlarge the images (a larger input_size), or take a network that is convolutional throughout."
        ) from reason
    model.adaptation = notes
    for note in notes:
        log.info("timm:%s at %dx%d px: %s", name, *size, note)
    return model


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except TypeError as error:
        keyword = str(error).rpartition("unexpected keyword argument ")[2].strip("'\"")
        if keyword not in kwargs:
            raise
        known = inspect.signature(type(timm.create_model(name)).__init__).parameters
        raise unknown(f"timm:{name}", "option", keyword, [p for p in known if p != "self"]) from None


def _sizing_arguments(skeleton: Any, name: str, size: tuple[int, int], native: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Choose `img_size`, `patch_size` and `window_size` for a network that is built for one size; nothing for any other.

    The patch is the largest that divides the sides and leaves 7x7 tokens (4x4 in the last stage, where the stages shrink).
    """
    embed = getattr(skeleton, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if not (skeleton.default_cfg.get("fixed_input_size") or _accepts(name, native, "img_size")):
        return {}, []
    arguments: dict[str, Any] = {"img_size": size}
    notes = []
    if patch is not None and "patch_size" not in native and _accepts(name, native, "patch_size"):
        patch = max(patch) if isinstance(patch, tuple) else patch
        info = getattr(skeleton, "feature_info", None)
        shrink = max(1, info[-1]["reduction"] // patch) if isinstance(info, list) and info else 1
        least = 7 if shrink == 1 else LEAST_SIDE * shrink
        fitting = [p for p in range(1, patch + 1) if all(side % p == 0 and side // p >= least for side in size)]
        new = max(fitting, default=1)
        if new != patch:
            arguments["patch_size"] = new
            notes.append(f"patch_size {patch} -> {new}: {size[0] // new}x{size[1] // new} tokens")
        notes += _window(skeleton, name, native, size, new, shrink, arguments)
    return arguments, [f"img_size -> {size[0]}x{size[1]}", *notes]


def _window(
    skeleton: Any, name: str, native: dict[str, Any], size: tuple[int, int], patch: int, shrink: int, arguments: dict[str, Any]
) -> list[str]:
    """Choose windows of attention that divide every stage's map, where the network has windows."""
    window = getattr(skeleton, "window_size", None) or next((m.window_size for m in skeleton.modules() if hasattr(m, "window_size")), None)
    if shrink == 1 or window is None or "window_size" in native or not _accepts(name, native, "window_size"):
        return []
    window = max(window) if isinstance(window, tuple) else window
    common = math.gcd(size[0] // (patch * shrink), size[1] // (patch * shrink))
    new = max(w for w in range(1, window + 1) if common % w == 0)
    if new == window or new < 2:
        return []
    arguments["window_size"] = new
    return [f"window_size {window} -> {new}"]


def _accepts(name: str, native: dict[str, Any], option: str) -> bool:
    """Tell whether the network's constructor has such an option."""
    with torch.device("meta"):
        kind = type(timm.create_model(name, **native))
    return option in inspect.signature(kind.__init__).parameters
