"""The same network with fresh weights: what a trained one is compared with."""

import copy

import torch
from torch import nn

from retinue.models.factory import create_model
from retinue.models.protocol import config


def untrained(model: nn.Module) -> nn.Module:
    """Build a network of the same kind with fresh weights.

    Args:
        model: one from `create_model` is built anew from torch's random numbers; of any other, a copy whose layers are initialised as
            torch initialises them, and whose other parameters are shuffled.
    """
    made = config(model)
    if made is not None:
        return create_model(made["name"], **{**made["arguments"], "pretrained": False})
    fresh = copy.deepcopy(model)
    for part in fresh.modules():
        forget(part)
    return fresh


def forget(part: nn.Module) -> None:
    """Initialise the parameters that belong to a layer itself: as its class does, or by shuffling them where it cannot."""
    if hasattr(part, "reset_parameters"):
        part.reset_parameters()  # type: ignore[operator]
        return
    with torch.no_grad():
        for parameter in part.parameters(recurse=False):
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel(), device=parameter.device)].view_as(parameter))
