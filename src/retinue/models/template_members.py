"""A network at a fraction of its width, as MixtureGrowth trains it before growth (Pham et al. 2024, arXiv 2311.04251)."""

import copy
from typing import Any

from torch import nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.template_probe import LAYERS, NORMS, Place, grid


def narrowed(network: nn.Module, places: dict[str, Place], parts: int) -> nn.Module:
    """Copy a network at the width of one part; weights of its convolutions and linear layers are not set.

    Args:
        network: with timm's protocol.
        places: what `probe` found.
        parts: into how many parts widths are divided.

    Raises:
        ArgumentError: naming a parameter of no known layer that has more than one side.
    """
    thin: Any = copy.deepcopy(network)
    known = set()
    for name, place in places.items():
        layer: Any = thin.get_submodule(name)
        known.add(name)
        if isinstance(layer, LAYERS):
            _narrow_layer(layer, place, parts)
        elif place.owners is not None:
            _narrow_norm(name, layer, parts)
    for name, module in thin.named_modules():
        own = ("weight", "bias", "running_mean", "running_var") if isinstance(module, (*LAYERS, *NORMS)) else ()
        for key, parameter in list(module.named_parameters(recurse=False)):
            if key in own or parameter.numel() == 1:
                continue
            long = [side for side in parameter.shape if side > 1]
            if len(long) > 1 or long[0] % parts:
                raise ArgumentError(
                    f"convert: the parameter `{name}.{key}` of shape {tuple(parameter.shape)} belongs to no convolution, linear layer or "
                    "norm, and nobody can say which side of it to divide. Take a network of those layers."
                )
            shape = [side // parts if side > 1 else 1 for side in parameter.shape]
            setattr(module, key, nn.Parameter(parameter.detach().flatten()[: long[0] // parts].reshape(shape).clone()))
    for name in ("num_features", "head_hidden_size"):
        if isinstance(getattr(thin, name, None), int):
            setattr(thin, name, getattr(thin, name) // parts)
    info = getattr(thin, "feature_info", None) or []
    for tap in info if isinstance(info, list) else info.info:
        tap["num_chs"] //= parts
    thin.retinue_config = None
    return thin


def _narrow_layer(layer: Any, place: Place, parts: int) -> None:
    rows, columns = grid(layer, place, parts)
    shape = list(layer.weight.shape)
    layer.weight = nn.Parameter(layer.weight.detach().new_empty(shape[0] // rows, shape[1] // columns, *shape[2:]))
    if isinstance(layer, nn.Conv2d):
        layer.out_channels //= rows
        layer.in_channels //= 1 if place.owners is None else parts
        layer.groups = layer.groups if layer.groups == 1 else layer.groups // parts
    else:
        layer.out_features //= rows
        layer.in_features //= columns
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[: shape[0] // rows].clone())


def _narrow_norm(name: str, norm: Any, parts: int) -> None:
    if isinstance(norm, nn.LayerNorm):
        if len(norm.normalized_shape) != 1:
            raise ShapeError(f"convert: the norm `{name}` is over {tuple(norm.normalized_shape)}. Only norms over channels can be divided.")
        norm.normalized_shape = (norm.normalized_shape[0] // parts,)
    elif isinstance(norm, nn.GroupNorm):
        norm.num_channels //= parts
        norm.num_groups = norm.num_groups // parts if norm.num_groups % parts == 0 else norm.num_groups
    else:
        norm.num_features //= parts
    for key in ("weight", "bias"):
        if getattr(norm, key, None) is not None:
            setattr(norm, key, nn.Parameter(getattr(norm, key).detach()[: len(getattr(norm, key)) // parts].clone()))
    for key in ("running_mean", "running_var"):
        if getattr(norm, key, None) is not None:
            setattr(norm, key, getattr(norm, key)[: len(getattr(norm, key)) // parts].clone())
