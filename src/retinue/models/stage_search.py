"""Where a network repeats a residual block: found by watching one batch pass, not by the names of layers."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from retinue.errors import ArgumentError
from retinue.models.factory import image_size
from retinue.models.modes import evaluating
from retinue.models.protocol import PROBE_SIDES, config

FAILURES = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)


def find_runs(model: nn.Module, images: Tensor) -> list[tuple[str, int, list[int]]]:
    """Find all runs of two or more successive residual blocks with parameters of the same shapes.

    Blocks are successive if each takes what the one before gives, and nothing else. A block is residual if with all its parameters at 0 it
    gives back what it takes, so that it may be repeated or left out.

    Args:
        model: any network.
        images: a batch that it takes.

    Returns:
        For each run: the name of the module that the blocks are children of, the place of the first among them, and [how many].
    """
    calls = _watch(model, images)
    runs: list[tuple[str, int, list[int]]] = []
    inside: list[str] = []
    for name in [name for name, _ in model.named_modules()]:
        if any(name == taken or name.startswith(taken + ".") for taken in inside):
            continue
        children = children_of(model, name)
        first = 0
        while first < len(children):
            length = 1
            while first + length < len(children) and _follows(children[first + length - 1], children[first + length], calls):
                length += 1
            block = children[first][1]
            if length > 1 and _is_residual(block, calls[block][0][0]):
                runs.append((name, first, [length]))
                inside += [f"{name}.{child}" if name else child for child, _ in children[first : first + length]]
            first += length
    return runs


def trial_images(model: nn.Module, input_size: int | tuple[int, int] | None = None) -> Tensor:
    """Return two images that pass through a network.

    Args:
        model: any network.
        input_size: their side, or height and width; None asks the network, or tries the usual ones.

    Raises:
        ArgumentError: if none passes.
    """
    made, cfg = config(model), getattr(model, "default_cfg", None) or {}
    size = image_size(input_size or (made["arguments"].get("input_size") if made else None))
    sizes = [size] if size else [*([tuple(cfg["input_size"][-2:])] if "input_size" in cfg else []), *((side, side) for side in PROBE_SIDES)]
    like = next(model.parameters(), torch.empty(0))
    own = getattr(model, "in_chans", None)
    convolution = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    channels = [int(own)] if own else [convolution.in_channels] if convolution is not None else [3, 1]
    trouble: Exception | None = None
    for height, width in sizes:
        for count in channels:
            images = torch.randn(2, count, height, width, generator=torch.Generator().manual_seed(0)).to(like)
            try:
                with torch.no_grad(), evaluating(model):
                    model(images)
                return images
            except FAILURES as error:
                trouble = trouble or error
    said = " ".join(str(trouble).split())[:160]
    raise ArgumentError(
        f"share_stages: no trial image passed through {type(model).__name__} ({said}). Say which images it takes: `input_size`."
    )


def children_of(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the children of a part of a network, with their names."""
    return list(model.get_submodule(name).named_children())


def numbered(name: str) -> tuple[str, int]:
    """Cut a name into letters and the number at its end, -1 where there is none.

    >>> numbered("b12"), numbered("0"), numbered("norm")
    (('b', 12), ('', 0), ('norm', -1))
    """
    letters, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    return letters, int(digits) if digits else -1


def _watch(model: nn.Module, images: Tensor) -> dict[nn.Module, list[tuple[Any, Any]]]:
    """Run a network, and note for each part what it took (None if not one tensor) and what it gave."""
    calls: dict[nn.Module, list[tuple[Any, Any]]] = {}

    def note(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(part, []).append((args[0] if len(args) == 1 and not kwargs else None, output))

    hooks = [part.register_forward_hook(note, with_kwargs=True) for part in model.modules()]
    try:
        with torch.no_grad(), evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _follows(one: tuple[str, nn.Module], next_one: tuple[str, nn.Module], calls: dict[nn.Module, list[tuple[Any, Any]]]) -> bool:
    """Tell whether two children are blocks of the same shape of which the second takes what the first gives."""
    (name, a), (next_name, b) = one, next_one
    letters, number = numbered(name)
    if numbered(next_name) != (letters, number + 1) or number < 0 or type(a) is not type(b) or not any(True for _ in a.children()):
        return False
    if len(calls.get(a, [])) != 1 or len(calls.get(b, [])) != 1:
        return False
    (taken, given), (taken_next, given_next) = calls[a][0], calls[b][0]
    if not all(isinstance(x, Tensor) for x in (taken, given, given_next)) or taken_next is not given:
        return False
    return taken.shape == given.shape == given_next.shape and _shapes(a) == _shapes(b)


def _shapes(block: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in block.state_dict().items()]


def _is_residual(block: nn.Module, x: Tensor) -> bool:
    """Tell whether a block without weights gives back what it takes."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in block.named_parameters()}
    try:
        with torch.no_grad(), evaluating(block):
            y = functional_call(block, zeros, (x.clone(),))
    except FAILURES:
        return False
    return bool(zeros) and isinstance(y, Tensor) and torch.equal(y, x)
