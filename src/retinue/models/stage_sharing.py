"""Layers of any network that share their weights stage by stage, and networks of other depths made of them (arXiv 2404.16897, section 3).

A stage is a number of successive residual blocks of one shape. In the shared network all layers of a stage have the same parameters; each
keeps what is not a parameter: its drop-path rate, its running statistics, the shift of its window. A descendant has parameters of its own.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.modes import evaluating
from retinue.models.protocol import config
from retinue.models.stage_resizing import Run, layers_of, resize
from retinue.models.stage_search import find_runs, trial_images

LAYERS_A_STAGE = 3  # of the paper: 16 layers in 5 stages


def stage_counts(depth: int, stages: int) -> list[int]:
    """Return how many layers each stage gets: as many each, and one more to the first ones where a rest remains.

    Args:
        depth: layers, at least one for each stage.
        stages: how many.

    Raises:
        ArgumentError: if there are more stages than layers.

    >>> stage_counts(12, 5)
    [3, 3, 2, 2, 2]
    """
    if stages < 1:
        raise ArgumentError(f"stage_map: there must be one stage at least, got {stages}.")
    if depth < stages:
        raise ArgumentError(
            f"stage_map: {depth} layers cannot hold one layer of each of the {stages} stages. Take `depth` {stages} or more, or say which "
            "stage each layer comes from: `layer_map`, such as [0, 2]."
        )
    each, rest = divmod(depth, stages)
    return [each + (stage < rest) for stage in range(stages)]


def stage_map(depth: int, stages: int | Sequence[int]) -> list[int]:
    """Return for each layer of a network which stage it comes from; for 12 layers of 5 stages the official map.

    Args:
        depth: layers of the network.
        stages: how many stages, or how many layers each of them has in the shared network.

    Raises:
        ArgumentError: if there are more stages than layers.

    >>> stage_map(12, 5)
    [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    """
    counts = stage_counts(depth, stages if isinstance(stages, int) else len(stages))
    return [stage for stage, count in enumerate(counts) for _ in range(count)]


def share_stages(model: nn.Module, stages: Sequence[int] | None = None, *, input_size: int | tuple[int, int] | None = None) -> nn.Module:
    """Copy a network in such a way that the layers of each stage have one set of parameters.

    Args:
        model: any network with two successive residual blocks of one shape: a vision transformer, MLP-Mixer, ConvNeXt, Swin, ResNet, ...
        stages: how many layers each stage has, in the order of the network; each run of equal blocks must be used up. None cuts each run
            into stages of about 3 layers.
        input_size: side of the images, or height and width; None asks the network, or tries the usual ones.

    Returns:
        The network, of the same class; `stage_plan` says what is shared. Its tensors stand once in `state_dict`.

    Raises:
        ArgumentError: if the network has no such blocks, or `stages` does not fit.

    >>> from retinue.models import tiny
    >>> shared = share_stages(tiny("timm_vit"))  # two blocks
    >>> len(shared.blocks), shared.blocks[0].mlp.fc1.weight is shared.blocks[1].mlp.fc1.weight
    (2, True)
    """
    made = config(model)
    shared: Any = copy.deepcopy(model)
    found = [Run(*run) for run in find_runs(shared, trial_images(shared, input_size))]
    if not found:
        kind = type(getattr(model, "module", model)).__name__
        raise ArgumentError(
            f"share_stages: {kind} has no two successive residual blocks of the same shape, so there are no layers to share weights among. "
            "Take a network whose stages repeat a block: a vision transformer, MLP-Mixer, ConvNeXt, or a Swin or ResNet of more layers."
        )
    tie(shared, cut(found, stages))
    if made is not None:
        shared.retinue_config = _named("stage_shared", made, {"plan": shared.stage_plan})
    return shared


def cut(runs: Sequence[Run], stages: Sequence[int] | None) -> list[Run]:
    """Cut runs into stages.

    Args:
        runs: such as `find_runs` gives.
        stages: layers of each stage; None is about 3 each.

    Raises:
        ArgumentError: if the stages do not fill the runs.

    >>> cut([Run("blocks", 0, [7])], [3, 4])
    [Run(container='blocks', first=0, stages=[3, 4])]
    """
    lengths = [sum(run.stages) for run in runs]
    if stages is None:
        return [run._replace(stages=stage_counts(n, max(1, round(n / LAYERS_A_STAGE)))) for run, n in zip(runs, lengths)]
    left = list(stages)
    filled = []
    for run, length in zip(runs, lengths):
        own: list[int] = []
        while left and left[0] > 0 and sum(own) < length:
            own.append(left.pop(0))
        if sum(own) != length:
            break
        filled.append(run._replace(stages=own))
    if left or len(filled) != len(runs):
        places = ", ".join(f"{length} in {run.container or 'the network'}" for run, length in zip(runs, lengths))
        raise ArgumentError(f"share_stages: `stages` must cut the runs of equal blocks ({places}), none across two, got {list(stages)}.")
    return filled


def tie(model: nn.Module, plan: Sequence[Run]) -> None:
    """Let all layers of each stage have the parameters of its first, in place.

    Args:
        model: is given the attribute `stage_plan`; its `state_dict` has each tensor once from now on.
        plan: its runs.
    """
    model.stage_plan = [run._asdict() for run in plan]  # type: ignore[assignment]
    _tie(model)
    model.register_state_dict_post_hook(_once)
    model.register_load_state_dict_post_hook(_tie_again)


def plan_of(model: nn.Module) -> list[Run]:
    """Return what is shared in a network.

    Raises:
        ArgumentError: if nothing is.
    """
    if not hasattr(model, "stage_plan"):
        raise ArgumentError(
            f"this {type(model).__name__} shares no weights, so it has no learngene. Make a network that does: share_stages(model), or "
            'create_model("stage_shared_vit").'
        )
    return [Run(**run) for run in model.stage_plan]  # type: ignore[union-attr]


def descend(
    model: nn.Module,
    depths: int | Sequence[int] | None = None,
    layer_map: Sequence[int] | None = None,
    *,
    any_order: bool = False,
    **options: Any,
) -> nn.Module:
    """Make an ordinary network of another depth, each of whose layers begins as a copy of the weights of a stage (section 3.3).

    Args:
        model: from `share_stages`, or a `StageSharedViT`; it stays as it is.
        depths: layers of all stages together, which `stage_map` hands out; or of each stage. None keeps the depth.
        layer_map: instead, the stage of each layer, never falling; stages may be left out.
        any_order: let stages stand in any order within a run, as a control.
        options: of a vision transformer's descendant: official_pooling, drop_rate, drop_path_rate.

    Raises:
        ArgumentError: if nothing is shared, the depth or the map cannot be, or the network does not run the layers it is given.
    """
    plan = plan_of(model)
    stages = [count for run in plan for count in run.stages]
    maps = _by_run(plan, _checked_map(depths, layer_map, stages, any_order), any_order)
    network: Any = copy.deepcopy(model)
    _forget(network)
    layers = resize(network, plan, [len(own) for own in maps])
    for run, own, new in zip(plan, maps, layers):
        old = [layer for _, layer in layers_of(model, run)]
        for place, (layer, stage) in enumerate(zip(new, own)):
            nth = own[:place].count(stage)  # running statistics come from the layer at this place of the stage
            source = sum(run.stages[:stage]) + min(nth, run.stages[stage] - 1)
            layer.load_state_dict(old[source].state_dict())
    if hasattr(model, "as_descendant"):
        return model.as_descendant(network, **options)  # type: ignore[operator]
    if options:
        raise unknown("descend", f"option for a {type(model).__name__}", next(iter(options)), ("depths", "layer_map"))
    _check_all_run(network, [layer for new in layers for layer in new])
    made = config(model)
    if made is not None and made["name"] == "stage_shared":
        arguments = {name: value for name, value in made["arguments"].items() if name not in ("stages", "plan")}
        lengths = [len(own) for own in maps]
        network.retinue_config = {
            "name": "stage_descendant",
            "arguments": {**arguments, "plan": [run._asdict() for run in plan], "depths": lengths},
        }
    return network


def _checked_map(depths: int | Sequence[int] | None, layer_map: Sequence[int] | None, stages: list[int], any_order: bool) -> list[int]:
    """Return the stage of each layer."""
    if layer_map is not None:
        layers = list(layer_map)
        if isinstance(depths, int) and depths != len(layers):
            raise ArgumentError(f"descend: `layer_map` has {len(layers)} layers and the depth is {depths}. Leave one of them out.")
        if not layers or not all(isinstance(stage, int) and 0 <= stage < len(stages) for stage in layers):
            raise ArgumentError(f"descend: `layer_map` must name stages from 0 to {len(stages) - 1}, got {layers}.")
        if not any_order and layers != sorted(layers):
            raise ArgumentError(f"descend: the stages of `layer_map` must stand in their order, got {layers}. Sort it: {sorted(layers)}.")
        return layers
    if isinstance(depths, int):
        return stage_map(depths, len(stages))
    counts = stages if depths is None else list(depths)
    if len(counts) != len(stages) or not all(isinstance(count, int) and count >= 1 for count in counts):
        raise ArgumentError(
            f"descend: `depths` must be the number of layers of each of the {len(stages)} stages, at least 1, or their sum, got {counts}."
        )
    return [stage for stage, count in enumerate(counts) for _ in range(count)]


def _by_run(plan: Sequence[Run], layers: list[int], any_order: bool) -> list[list[int]]:
    """Sort layers into runs, with their stages counted from the first of the run."""
    owner = [number for number, run in enumerate(plan) for _ in run.stages]
    starts = [owner.index(number) for number in range(len(plan))]
    runs = [owner[stage] for stage in layers]
    if any_order and runs != sorted(runs):
        raise ArgumentError(f"descend: stages of different runs differ in shape and must keep their order, got the map {layers}.")
    return [[stage - start for stage in layers if owner[stage] == number] for number, start in enumerate(starts)]


def _check_all_run(network: nn.Module, layers: list[nn.Module]) -> None:
    """Make sure that a network runs each of its new layers."""
    ran: list[nn.Module] = []
    images = trial_images(network)
    hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in layers]
    try:
        with torch.no_grad(), evaluating(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if [id(layer) for layer in ran] != [id(layer) for layer in layers]:
        raise ArgumentError(
            f"descend: {type(network).__name__} does not run its blocks from a list one after the other, so its depth cannot change. Put "
            "them in an nn.Sequential."
        )


def _tied_names(model: nn.Module) -> list[str]:
    """Return the names under which shared parameters stand once more."""
    names = []
    for run in plan_of(model):
        layers, start = layers_of(model, run), 0
        for count in run.stages:
            names += [f"{path}.{name}" for path, layer in layers[start + 1 : start + count] for name, _ in layer.named_parameters()]
            start += count
    return names


def _tie(model: nn.Module) -> None:
    for run in plan_of(model):
        layers, start = [layer for _, layer in layers_of(model, run)], 0
        for count in run.stages:
            for name, parameter in layers[start].named_parameters():
                owner, _, leaf = name.rpartition(".")
                for layer in layers[start + 1 : start + count]:
                    layer.get_submodule(owner)._parameters[leaf] = parameter
            start += count


def _once(model: nn.Module, tensors: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Leave each shared tensor in the state once: copies would be stored, averaged and counted as many times."""
    for name in _tied_names(model):
        tensors.pop(prefix + name, None)


def _tie_again(model: nn.Module, keys: Any) -> None:
    """Accept a state in which shared tensors stand once."""
    names = _tied_names(model)
    keys.missing_keys[:] = [key for key in keys.missing_keys if not any(key == name or key.endswith("." + name) for name in names)]
    _tie(model)


def _forget(model: nn.Module) -> None:
    """Make a network one that shares nothing (its layers still have the same tensors)."""
    del model.stage_plan
    for hooks in (model._state_dict_hooks, model._load_state_dict_post_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_once, _tie_again)]:
            del hooks[key]
    if hasattr(model, "retinue_config"):
        del model.retinue_config


def _named(name: str, made: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Note what rebuilds a network around one that `create_model` made."""
    arguments = copy.deepcopy(made["arguments"])
    common = {key: arguments.pop(key) for key in ("num_classes", "in_chans", "input_size")}
    return {"name": name, "arguments": {"backbone": made["name"], "backbone_args": arguments, **own, **common}}
