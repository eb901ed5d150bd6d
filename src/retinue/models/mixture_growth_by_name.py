"""MixtureGrowth on networks that exist: conversion, growth, ordinary networks, and what `create_model` builds (arXiv 2311.04251)."""

import copy
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from retinue.errors import ArgumentError
from retinue.models.factory import create_model, image_size, register
from retinue.models.mixture_growth import MixtureGrowthNet, Templates
from retinue.models.mixture_growth_layers import MemberBatchNorm2d, MemberLayer, member_layers
from retinue.models.template_weights import SETS, Init, OrthogonalMode, TemplateInit

log = logging.getLogger(__name__)
CFG: dict[str, Any] = {"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": None, "classifier": None}
Growing = TypeVar("Growing", bound=nn.Module)


def convert(
    module: nn.Module,
    *,
    templates: Templates = 2,
    member_frac: float = 0.5,
    share: bool = False,
    template_init: TemplateInit = "member",
    input_size: int | tuple[int, int] | None = None,
) -> MixtureGrowthNet:
    """Build the template form of any network of convolutions, linear layers and norms; its own weights are not used, and it stays as it is.

    Args:
        module: the wide network.
        templates: K of each layer, as in `MixtureGrowthNet`.
        member_frac: width of a member, 1/2, 1/3, ... of the network's.
        share: let layers whose templates have the same shape share them.
        template_init: how templates are drawn, as in `MixtureGrowthNet`.
        input_size: side of the images, or height and width; None asks the network, or tries the usual ones.

    Raises:
        ArgumentError: if an option cannot be; naming the layer, if a width cannot be divided or the parts get mixed (by attention, say).

    >>> from retinue.models import tiny
    >>> model = convert(tiny("timm_cnn"))
    >>> bool(model.grown), bool(model.grow("zero").grown)
    (False, True)
    """
    return MixtureGrowthNet(
        module, templates=templates, member_frac=member_frac, share=share, template_init=template_init, input_size=input_size
    )


@torch.no_grad()
def grow(
    model: Growing,
    init: Init = "orthogonal",
    scale: float = 1.0,
    noise: float = 0.0,
    orthogonal_mode: OrthogonalMode = "exact",
) -> Growing:
    """Turn the two members into the wide network, in place.

    Args:
        model: a `MixtureGrowthNet`, or a network built of `TemplateConv2d`, `TemplateLinear` and `MemberBatchNorm2d`.
        init: of the new coefficients: "orthogonal", "copy", "zero" (the sum of the members' logits, exactly), "random" or "none".
        scale: of the new coefficients.
        noise: standard deviation of what is added to "copy".
        orthogonal_mode: "exact", or "reference" for the released code's.

    Raises:
        ArgumentError: if `model` is neither or has grown already, or an option cannot be.

    >>> from retinue.models.mixture_growth_layers import TemplateConv2d
    >>> layers = nn.Sequential(TemplateConv2d(3, 8, 3, fixed_in=True), MemberBatchNorm2d(8), nn.ReLU(), TemplateConv2d(8, 4, 1))
    >>> grow(layers)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 4, 3, 3])
    """
    if isinstance(model, MixtureGrowthNet):
        model.grow(init, scale, noise, orthogonal_mode)
        return model
    layers = member_layers(model)
    if not layers:
        raise ArgumentError(f"grow: `model` must be a MixtureGrowthNet, got {type(model).__name__}. Build one: convert(model).")
    if any(bool(layer.grown) for layer in layers):
        raise ArgumentError("grow: this network has grown already. Build it anew to grow it in another way.")
    norms = [layer for layer in layers if isinstance(layer, MemberBatchNorm2d)]
    untrained = [str(member) for member in range(SETS) if any(not int(norm.members[member].num_batches_tracked) for norm in norms)]  # type: ignore[arg-type]
    if untrained:
        log.warning("grow: not trained: member %s. That part of what is grown is as it was drawn.", " and ".join(untrained))
    for layer in layers:
        layer.grow(init, scale, noise, orthogonal_mode)
    return model


@torch.no_grad()
def materialise(model: nn.Module, member: int | None = None) -> nn.Module:
    """Build an ordinary network, without templates, that computes the same.

    Args:
        model: a `MixtureGrowthNet`, or a network built of `TemplateConv2d`, `TemplateLinear` and `MemberBatchNorm2d`.
        member: 0 or 1, before growth; None is the network that runs: after growth, the wide one.

    Returns:
        A copy of the network that was converted (with its class and name), or of it at a member's width.

    Raises:
        ArgumentError: if `model` is neither, or there is no such member.
    """
    if isinstance(model, MixtureGrowthNet):
        return model.plain(model.running_member(member))
    if isinstance(model, MemberLayer):
        return model.plain(model.running(member))
    if not member_layers(model):
        raise ArgumentError(f"materialise: `model` must be a MixtureGrowthNet, got {type(model).__name__}. Build one: convert(model).")
    ordinary = copy.deepcopy(model)
    for name, layer in list(ordinary.named_modules()):
        if isinstance(layer, MemberLayer):
            ordinary.set_submodule(name, layer.plain(layer.running(member)).train(layer.training))
    return ordinary


@register(cfg=CFG)
def mixture_growth(
    backbone: str = "wide_resnet",
    backbone_args: Mapping[str, Any] | None = None,
    templates: Templates = 2,
    member_frac: float = 0.5,
    share: bool = False,
    template_init: TemplateInit = "member",
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> MixtureGrowthNet:
    """Build a `MixtureGrowthNet` around a network by name.

    Args:
        backbone: a name that `create_model` knows, of the wide network.
        backbone_args: its own options.
        templates: K of each layer, as in `MixtureGrowthNet`.
        member_frac: width of a member, 1/2, 1/3, ... of the network's.
        share: let layers whose templates have the same shape share them.
        template_init: how templates are drawn, as in `MixtureGrowthNet`.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.
    """
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    wide = create_model(backbone, **{**(backbone_args or {}), **shape})
    size = image_size(input_size)
    return MixtureGrowthNet(wide, templates=templates, member_frac=member_frac, share=share, template_init=template_init, input_size=size)


@register(cfg=CFG)
def mixture_growth_member(
    backbone: str = "wide_resnet",
    backbone_args: Mapping[str, Any] | None = None,
    member_frac: float = 0.5,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build an ordinary network at a fraction of another's width, as `materialise` makes of a member.

    Args:
        backbone: a name that `create_model` knows, of the wide network.
        backbone_args: its own options.
        member_frac: 1/2, 1/3, ... of its width.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.
    """
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    return materialise(mixture_growth(backbone, backbone_args, member_frac=member_frac, **shape), 0)
