"""`stage_shared` and `stage_descendant`: networks that share weights by stages, and those of other depths, by name for checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from retinue.errors import ArgumentError
from retinue.models.factory import create_model, register
from retinue.models.stage_resizing import Run, layers_of, resize
from retinue.models.stage_search import children_of
from retinue.models.stage_sharing import cut, share_stages, tie

CFG: dict[str, Any] = {"first_conv": None, "classifier": None}


@register(cfg=CFG)
def stage_shared(
    backbone: str = "timm:convnext_atto",
    backbone_args: Mapping[str, Any] | None = None,
    stages: Sequence[int] | None = None,
    plan: Sequence[Mapping[str, Any]] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build a network by name whose layers share their weights by stages, as `share_stages` does.

    Args:
        backbone: name of any network that repeats residual blocks.
        backbone_args: its own options.
        stages: layers of each stage; None is about 3 each.
        plan: instead, a network's `stage_plan`.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if the network has no such blocks, or `stages` or `plan` does not fit.
    """
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    made = {"name": backbone, **(backbone_args or {}), **shape}
    network = create_model(**made)
    runs = _looked_for(made, stages) if plan is None else _checked(network, plan)
    tie(network, runs)
    return network


@register(cfg=CFG)
def stage_descendant(
    backbone: str = "timm:convnext_atto",
    backbone_args: Mapping[str, Any] | None = None,
    plan: Sequence[Mapping[str, Any]] | None = None,
    depths: Sequence[int] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build a network by name whose runs of equal blocks have other lengths, with weights drawn at random.

    Args:
        backbone: name of any network that repeats residual blocks.
        backbone_args: its own options.
        plan: the `stage_plan` of the network that it descends from; None looks for runs.
        depths: layers of each run; None keeps them.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if the network has no such blocks, or `depths` or `plan` does not fit.
    """
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    made = {"name": backbone, **(backbone_args or {}), **shape}
    network = create_model(**made)
    runs = _looked_for(made, None) if plan is None else _checked(network, plan)
    lengths = [sum(run.stages) for run in runs] if depths is None else list(depths)
    if len(lengths) != len(runs) or not all(isinstance(length, int) and length >= 0 for length in lengths):
        raise ArgumentError(f"stage_descendant: `depths` must be the layers of each of the {len(runs)} runs, 0 or more, got {lengths}.")
    blocks = [[block for _, block in layers_of(network, run)] for run in runs]
    while any(len(own) < length for own, length in zip(blocks, lengths)):  # each layer begins as the network draws one
        other = create_model(**made)
        blocks = [[*own, *(block for _, block in layers_of(other, run))] for own, run in zip(blocks, runs)]
    for layers, own in zip(resize(network, runs, lengths), blocks):
        for layer, block in zip(layers, own):
            layer.load_state_dict(block.state_dict())
    return network


def _looked_for(made: dict[str, Any], stages: Sequence[int] | None) -> list[Run]:
    """Find the runs of a network by running one like it, also where the network itself has no values."""
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        like: Any = share_stages(create_model(**{**made, "pretrained": False}))
    runs = [Run(**run) for run in like.stage_plan]
    return runs if stages is None else cut(runs, stages)


def _checked(network: nn.Module, plan: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Read a plan.

    Raises:
        ArgumentError: if the network has no such blocks.
    """
    try:
        runs = [Run(**run) for run in plan]
        there = [len(children_of(network, run.container)) >= run.first + sum(run.stages) for run in runs]
    except (TypeError, AttributeError) as error:
        raise ArgumentError(f"stage_shared: `plan` must be a network's `stage_plan`, got {list(plan)} ({error}).") from error
    if not all(there):
        raise ArgumentError(
            f"stage_shared: `plan` names more blocks than {type(network).__name__} has. Give the options of its `backbone_args`."
        )
    return runs
