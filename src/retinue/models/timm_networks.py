"""timm's networks, built for a given size of images."""

import inspect
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from retinue.errors import ArgumentError, unknown
from retinue.models.small_images import LEAST_SIDE, CannotAdaptError, adapt_strides

log = logging.getLogger(__name__)

TOKENS = 7  # a side of the grid of tokens, at least, where the patch can be chosen
FAILURES = (TypeError, ValueError, AssertionError, RuntimeError, KeyError, IndexError, AttributeError, ZeroDivisionError)


class Plan(NamedTuple):
    """One way to build a network for a size: more options for timm, what they change in words, and the size its maps are built for."""

    options: dict[str, Any]
    notes: list[str]
    built_for: tuple[int, int] | None


def timm_network(name: str, *, num_classes: int, in_chans: int, size: tuple[int, int] | None, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build one of timm's networks; where its last map would be smaller than 4x4 at this size, adapt it and say how.

    Transformers get another `img_size`, patch and window; convolutional networks lose strides, beginning at the first (`small_images`);
    those which are both are built for larger images and lose the strides by which theirs are smaller.

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
        ArgumentError: if an option is unknown or wrong, or the network cannot take such images.
    """
    native = {"num_classes": num_classes, "in_chans": in_chans, **kwargs}
    if size is None:
        model = _create(name, pretrained, native)
        model.adaptation = []
        return model
    skeleton = _skeleton(name, native)
    try:
        model = _fitted(name, native, skeleton, size, pretrained)
    except CannotAdaptError as reason:
        works = _smallest(name, native, skeleton, size)
        way_out = f"Enlarge them: input_size={works} works" if works else "Build it for its own size, without `input_size`"
        raise ArgumentError(
            f'create_model: "timm:{name}" cannot be adapted to images of {size[0]}x{size[1]} px: {reason}. '
            f"{way_out}, or take a network that is convolutional throughout."
        ) from reason
    for note in model.adaptation:
        log.info("timm:%s at %dx%d px: %s", name, *size, note)
    return model


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except FAILURES as error:
        keyword = str(error).rpartition("unexpected keyword argument ")[2].strip("'\"")
        if keyword in options:
            known = inspect.signature(type(_skeleton(name, {})).__init__).parameters
            raise unknown(f"timm:{name}", "option", keyword, [p for p in known if p != "self"]) from None
        told = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise ArgumentError(f'create_model: timm cannot build "{name}" with {told}: {" ".join(str(error).split())}.') from error


def _skeleton(name: str, native: dict[str, Any]) -> Any:
    """Build a network without its values, which costs next to nothing."""
    with torch.device("meta"):
        return _create(name, False, {option: value for option, value in native.items() if option not in ("features_only", "out_indices")})


def _fitted(name: str, native: dict[str, Any], skeleton: Any, size: tuple[int, int], pretrained: bool) -> Any:
    """Build a network by the first plan that works.

    Raises:
        CannotAdaptError: if none does.
    """
    plans = list(_plans(skeleton, size, native))
    trouble: CannotAdaptError | None = None
    for plan in plans:
        try:
            if len(plans) > 1:
                with torch.device("meta"):
                    _by_plan(name, native, plan, size, False)
            return _by_plan(name, native, plan, size, pretrained)
        except CannotAdaptError as reason:
            trouble = trouble or reason
    assert trouble is not None, "there is one plan at least"
    raise trouble


def _by_plan(name: str, native: dict[str, Any], plan: Plan, size: tuple[int, int], pretrained: bool) -> Any:
    try:
        model = _create(name, pretrained, {**native, **plan.options})
    except ArgumentError as error:
        if not plan.options:
            raise
        told = ", ".join(f"{option}={value}" for option, value in plan.options.items())
        raise CannotAdaptError(f"timm does not build it with {told} ({error.__cause__})") from error
    model.adaptation = plan.notes + adapt_strides(model, native["in_chans"], size, plan.built_for)
    return model


def _smallest(name: str, native: dict[str, Any], skeleton: Any, size: tuple[int, int]) -> int | None:
    """Find a larger side of image for which the network can be built, up to its own."""
    own = max(skeleton.default_cfg["input_size"][-2:])
    for side in sorted({32, 64, 128, own}):
        if max(size) < side <= own:
            try:
                with torch.device("meta"):
                    _fitted(name, native, skeleton, (side, side), False)
            except CannotAdaptError:
                continue
            return side
    return None


def _plans(skeleton: Any, size: tuple[int, int], native: dict[str, Any]) -> Iterator[Plan]:
    """Yield the ways to build a network for a size, best first."""
    if not _accepts(skeleton, "img_size") or "img_size" in native:
        yield Plan({}, [], None)
        return
    said = [] if size == tuple(skeleton.default_cfg["input_size"][-2:]) else [f"img_size -> {size[0]}x{size[1]}"]
    embed = getattr(skeleton, "patch_embed", getattr(skeleton, "stem", None))
    patch = getattr(embed, "patch_size", None)
    if patch is None or "patch_size" in native or not _accepts(skeleton, "patch_size"):
        yield from _enlarged(skeleton, size, said)
        return
    patch = max(patch) if isinstance(patch, tuple) else patch
    shrink = max(1, _reduction(skeleton) // patch)
    dividing = [p for p in range(patch, 0, -1) if size[0] % p == size[1] % p == 0]
    # the largest patch that leaves 7x7 tokens (4x4 in the last stage, where the stages shrink); where timm refuses it, larger ones first
    least = TOKENS if shrink == 1 else LEAST_SIDE * shrink
    fine = [p for p in dividing if min(size) // p >= least]
    coarse = [p for p in dividing if LEAST_SIDE * shrink <= min(size) // p < least]
    for p in [*fine[:1], *reversed(coarse), *fine[1:]] or [1]:
        tokens = [] if p == patch else [f"patch_size {patch} -> {p}: {size[0] // p}x{size[1] // p} tokens"]
        window = _window(skeleton, size, p, shrink, native)
        changed = {"patch_size": p} if tokens else {}
        yield Plan({"img_size": size, **changed, **window.options}, [*said, *tokens, *window.notes], size)


def _enlarged(skeleton: Any, size: tuple[int, int], said: list[str]) -> Iterator[Plan]:
    """Yield plans for a network whose strides are fixed: as it is, and if its attention is built for maps of one size, for larger images.

    These are 2, 4 or 8 times as large, so that its last map is 4x4 at least; `adapt_strides` then takes the factor away.
    """
    yield Plan({}, [], None)
    for k in (1, 2, 4, 8):
        if -(-min(size) * k // _reduction(skeleton)) >= LEAST_SIDE:
            larger = (size[0] * k, size[1] * k)
            yield Plan({"img_size": larger}, said if k == 1 else [f"built for {larger[0]}x{larger[1]} px, then:"], larger)


def _window(skeleton: Any, size: tuple[int, int], patch: int, shrink: int, native: dict[str, Any]) -> Plan:
    """Choose the largest window of attention that divides every stage's map or spans it, where the network has windows."""
    window = getattr(skeleton, "window_size", None) or next((m.window_size for m in skeleton.modules() if hasattr(m, "window_size")), None)
    if shrink == 1 or window is None or "window_size" in native or not _accepts(skeleton, "window_size"):
        return Plan({}, [], None)
    window = max(window) if isinstance(window, tuple) else window
    sides = {-(-side // (patch * stride)) for side in size for stride in (1, 2, 4, 8, 16, 32) if stride <= shrink}
    new = max(w for w in range(1, window + 1) if all(side % w == 0 or side <= w for side in sides))
    if new == window or new < 2:
        return Plan({}, [], None)
    return Plan({"window_size": new}, [f"window_size {window} -> {new}"], None)


def _reduction(skeleton: Any) -> int:
    """Return the stride of the last map."""
    info = getattr(skeleton, "feature_info", None)
    return int(info[-1]["reduction"]) if isinstance(info, list) and info else 1


def _accepts(skeleton: Any, option: str) -> bool:
    """Tell whether the network's constructor, or one that it hands its options on to, has such an option."""
    return any(option in inspect.signature(kind).parameters for kind in type(skeleton).__mro__ if issubclass(kind, nn.Module))
