"""The one door to all networks: `create_model`, `list_models`, and `register` for those of our own.

A network of ours is a function that takes `num_classes`, `in_chans`, `input_size` and its own options, and returns an `nn.Module` with
timm's protocol (`models.network.Network` has it). `@register` puts it under its name here, and with timm as "retinue_<name>".
"""

import fnmatch
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.models import load_pretrained
from timm.models._features import FeatureGetterNet
from torch import nn

from retinue.errors import ArgumentError, unknown
from retinue.models.timm_networks import timm_network

Builder = Callable[..., nn.Module]
Convert = Callable[[dict[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]]

TIMM = "timm:"
COMMON = ("num_classes", "in_chans", "input_size")  # every network takes these
DEFAULT_CFG = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "first_conv": "stem.0.conv",
    "classifier": "head.fc",
}


class Entry(NamedTuple):
    """A registered network: the function, its image settings in timm's words, and whose published weights it can take."""

    build: Builder
    cfg: dict[str, Any]
    weights_of: str | None
    convert: Convert | None


_networks: dict[str, Entry] = {}


def register(
    build: Builder | None = None, *, cfg: Mapping[str, Any] | None = None, weights_of: str | None = None, convert: Convert | None = None
) -> Any:
    """Register a function that builds a network, under its name and with timm as "retinue_<name>"; used as a decorator.

    Args:
        build: the function; it must take `num_classes`, `in_chans` and `input_size`.
        cfg: entries of timm's `pretrained_cfg` in which the network differs from `DEFAULT_CFG`.
        weights_of: timm's name of the network whose published weights this one can take.
        convert: turns the published tensors into ours; called with them and the network.
    """
    if build is None:
        return lambda function: register(function, cfg=cfg, weights_of=weights_of, convert=convert)
    name = build.__name__
    missing = [argument for argument in COMMON if argument not in inspect.signature(build).parameters]
    if missing:
        raise TypeError(f"register: {name} must take {', '.join(missing)}")
    _networks[name] = Entry(build, {**DEFAULT_CFG, **(cfg or {})}, weights_of, convert)

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # timm hands these over to every entry point; the weights' own settings belong to `weights_of`
        overlay = {**(kwargs.pop("pretrained_cfg", None) or {}), **(kwargs.pop("pretrained_cfg_overlay", None) or {})}
        kwargs.pop("cache_dir", None)
        return _build(name, pretrained, overlay, kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = f"retinue_{name}"
    entrypoint.__doc__ = build.__doc__
    globals()[entrypoint.__name__] = entrypoint  # timm adds the name to this module's __all__
    timm.models.register_model(entrypoint)
    return build


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that `create_model` knows and that match a pattern, sorted.

    Args:
        pattern: with the wildcards `*` and `?`; one that begins with "timm:" lists timm's networks, any other lists ours.

    >>> list_models("resnet2*")
    ['resnet20']
    """
    if pattern.startswith(TIMM):
        return [TIMM + name for name in timm.list_models(pattern.removeprefix(TIMM)) if not name.startswith("retinue_")]
    return sorted(fnmatch.filter(_networks, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | list[int] | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by name, for images of a given size.

    Args:
        name: one of `list_models()`, or "timm:NAME" for any network of timm.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side of the images, or their height and width; small ones adapt the stem, and `model.adaptation` says how.
            None builds the network as it was published.
        pretrained: load the published weights (fetched through timm and the Hugging Face hub).
        kwargs: the network's own options; JSON values, so that a checkpoint can rebuild the network.

    Returns:
        The network. `model.retinue_config` is what rebuilds it.

    Raises:
        ArgumentError: if a name or a keyword is unknown, a value cannot work, or the network cannot take images of that size.

    >>> model = create_model("small_convnet", num_classes=10, in_chans=1, input_size=16)
    >>> model.num_classes
    10
    """
    size = image_size(input_size)
    _whole_number("num_classes", num_classes, least=0)
    _whole_number("in_chans", in_chans, least=1)
    _json_values(kwargs)
    arguments = {"num_classes": num_classes, "in_chans": in_chans, "input_size": None if size is None else list(size), **kwargs}
    if name.startswith(TIMM):
        short = name.removeprefix(TIMM)
        if not timm.is_model(short.split(".")[0]):
            raise unknown("create_model", "network of timm", short, timm.list_models(), 'All names: retinue.list_models("timm:*").')
        model: Any = timm_network(short, num_classes=num_classes, in_chans=in_chans, size=size, pretrained=pretrained, **kwargs)
    elif name in _networks:
        model = _build(name, pretrained, {}, {**arguments, "input_size": size})
    elif timm.is_model(name):
        raise ArgumentError(f'create_model: "{name}" is a network of timm, not ours. Write "{TIMM}{name}".')
    else:
        raise unknown("create_model", "network", name, [*_networks, *list_models(TIMM + "*")], "All names: retinue.list_models().")
    model.retinue_config = {"name": name, "arguments": arguments}
    return model


def image_size(input_size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    """Return height and width of a size given as one side, as a pair, or not at all.

    Raises:
        ArgumentError: if it is neither.

    >>> image_size(32)
    (32, 32)
    """
    if input_size is None:
        return None
    pair = tuple(input_size) if isinstance(input_size, list | tuple) else (input_size, input_size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise ArgumentError(f"`input_size` must be a positive side or a pair (height, width), got {input_size!r}. Channels are `in_chans`.")
    return pair


def _build(name: str, pretrained: bool, overlay: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """Build a network of ours with what both doors, `create_model` and `timm.create_model`, promise."""
    entry = _networks[name]
    features_only, out_indices = kwargs.pop("features_only", False), kwargs.pop("out_indices", None)
    accepted = inspect.signature(entry.build).parameters
    for keyword in kwargs:
        if keyword not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            raise unknown(name, "option", keyword, [*accepted, "features_only", "out_indices"])
    try:
        model: Any = entry.build(**kwargs)
    except TypeError as error:
        told = ", ".join(f"{option}={value!r}" for option, value in kwargs.items())
        raise ArgumentError(f"create_model: {name} cannot be built with {told}: {error}.") from error
    cfg = {**entry.cfg, "architecture": name, "num_classes": 1000, **overlay}
    if pretrained:
        _load_published(name, entry, model, cfg, overlay)
    model.pretrained_cfg = model.default_cfg = cfg
    if not features_only:
        return model
    taps: Any = FeatureGetterNet(model, out_indices=tuple(range(len(model.feature_info))) if out_indices is None else out_indices)
    taps.pretrained_cfg = taps.default_cfg = cfg
    taps.in_chans, taps.adaptation = model.in_chans, model.adaptation
    return taps


def _load_published(name: str, entry: Entry, model: Any, cfg: dict[str, Any], overlay: dict[str, Any]) -> None:
    """Fetch the weights through timm, turn their names into ours, and fit stem and classifier to the channels and classes asked for."""
    if entry.weights_of is None:
        have = ", ".join(other for other, e in _networks.items() if e.weights_of)
        raise ArgumentError(f"create_model: no weights were published for {name}. Use pretrained=False; weights exist for {have}.")
    published = timm.models.get_pretrained_cfg(entry.weights_of)
    if published is None:
        raise LookupError(f"register: timm has no settings of {entry.weights_of}, which {name} names")
    source = {**published.to_dict(), "first_conv": cfg["first_conv"], "classifier": cfg["classifier"], **overlay}
    load_pretrained(model, source, num_classes=model.num_classes, in_chans=model.in_chans, filter_fn=entry.convert)
    cfg.update(source)


def _whole_number(argument: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"create_model: `{argument}` must be a whole number of at least {least}, got {value!r}.")


def _json_values(kwargs: dict[str, Any]) -> None:
    for keyword, value in kwargs.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ArgumentError(
                f'create_model: `{keyword}` must be a JSON value (timm takes layers by name, such as "gelu"), got {value!r}: a checkpoint '
                "could not rebuild the network. Build it with timm.create_model and pass the network itself wherever a model is taken."
            ) from None
