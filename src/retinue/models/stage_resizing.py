"""Other numbers of blocks where a network repeats one."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from timm.layers import DropPath
from torch import nn

from retinue.models.stage_search import children_of, numbered


class Run(NamedTuple):
    """Successive blocks of one shape: in which module, the place of the first among its children, and how many layers each stage has."""

    container: str
    first: int
    stages: list[int]


def layers_of(model: nn.Module, run: Run) -> list[tuple[str, nn.Module]]:
    """Return the layers of a run, with their names in the network."""
    prefix = run.container + "." if run.container else ""
    return [(prefix + name, layer) for name, layer in children_of(model, run.container)[run.first : run.first + sum(run.stages)]]


def resize(model: nn.Module, plan: Sequence[Run], lengths: Sequence[int]) -> list[list[nn.Module]]:
    """Give runs of blocks other lengths, in place; where kinds of block alternate (windows of Swin), they go on alternating.

    Args:
        model: shares nothing.
        plan: its runs.
        lengths: layers of each run. Drop-path rates are spread over them as before.

    Returns:
        The new layers of each run; they are copies, and their weights are up to the caller.
    """
    layers = []
    for run, length in reversed(list(zip(plan, lengths))):  # from behind, so that places before do not move
        blocks = [block for _, block in layers_of(model, run)]
        kinds = [_kind(block) for block in blocks]
        period = next(p for p in range(1, len(kinds) + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))
        new = []
        for j in range(length):
            like = max(i for i in range(len(blocks)) if i % period == j % period)  # the last one: it has drop-path where any has
            block = copy.deepcopy(blocks[like])
            at = j * (len(blocks) - 1) / max(length - 1, 1)
            for name, part in block.named_modules():
                if isinstance(part, DropPath):
                    rates = [getattr(dict(other.named_modules()).get(name), "drop_prob", 0.0) for other in blocks]
                    part.drop_prob = float(np.interp(at, range(len(rates)), rates))
            new.append(block)
        _refill(model, run, new)
        layers.append(new)
    return layers[::-1]


def _refill(model: nn.Module, run: Run, new: list[nn.Module]) -> None:
    """Replace the blocks of a run; what stands behind is numbered anew."""
    container = model.get_submodule(run.container)
    children = list(container.named_children())
    before, old, after = children[: run.first], children[run.first : run.first + sum(run.stages)], children[run.first + sum(run.stages) :]
    prefix, start = numbered(old[0][0])
    taps = getattr(model, "feature_info", None)
    for name, _ in children:
        delattr(container, name)
    for name, block in before:
        container.add_module(name, block)
    for i, block in enumerate(new):
        container.add_module(f"{prefix}{start + i}", block)
    for name, block in after:
        letters, number = numbered(name)
        container.add_module(f"{letters}{number + len(new) - len(old)}" if letters == prefix and number >= 0 else name, block)
    path = run.container + "." if run.container else ""
    inside = [path + name for name, _ in old]
    if isinstance(taps, list) and len([tap for tap in taps if tap["module"] in inside]) == len(old):
        at = next(i for i, tap in enumerate(taps) if tap["module"] in inside)
        fresh = [{**taps[at], "module": f"{path}{prefix}{start + i}"} for i in range(len(new))]
        model.feature_info = [*taps[:at], *fresh, *taps[at + len(old) :]]  # type: ignore[assignment]


def _kind(block: nn.Module) -> list[tuple[Any, ...]]:
    """Describe a block: its parts and their settings, without what is dropped in training."""
    plain = (int, float, str, bool, tuple, type(None))
    parts = [(name, part) for name, part in block.named_modules() if not isinstance(part, DropPath | nn.Identity)]
    return [
        (name, type(part), sorted((k, str(v)) for k, v in vars(part).items() if k != "training" and "drop" not in k and type(v) in plain))
        for name, part in parts
    ]
