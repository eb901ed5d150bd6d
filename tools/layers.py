"""Run two models on the same input and name the first layer whose output differs: `python tools/layers.py resnet18 timm:resnet18`."""

import argparse
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor, nn

import retinue
from retinue.errors import RetinueError


@dataclass
class Output:
    """What one layer without children returned, in the order of the calls."""

    name: str
    kind: str
    value: Tensor


@dataclass
class Pair:
    """The same position in both models; `difference` is the largest absolute one, infinite where shapes differ or one side ended."""

    first: Output | None
    second: Output | None
    difference: float

    def __str__(self) -> str:
        sides = [f"{one.name} ({one.kind}) {tuple(one.value.shape)}" if one else "(ended)" for one in (self.first, self.second)]
        return f"{self.difference:<10.3g} {sides[0]}" + (f"   |   {sides[1]}" if sides[0] != sides[1] else "")


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> list[Output]:
    """Return what each layer without children returned, in the order of the calls, in evaluation mode."""
    found: list[Output] = []
    names = {module: name for name, module in model.named_modules()}

    def keep(module: nn.Module, _: object, value: object) -> None:
        if isinstance(value, Tensor):
            found.append(Output(names[module], type(module).__name__, value.clone()))  # a copy: the next layer may work in place

    hooks = [module.register_forward_hook(keep) for module in model.modules() if not any(module.children())]
    try:
        result = model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, Output("(result)", type(model).__name__, result)]


def compare(first: nn.Module, second: nn.Module, images: Tensor, skip: tuple[str, ...] = ("Identity", "Dropout")) -> list[Pair]:
    """Pair the layers of two models in the order in which they are called.

    Args:
        first: one model.
        second: the other, with the weights that should make it equal.
        images: the input of both.
        skip: kinds of layers that are left out, since they change nothing in evaluation.
    """
    sides = [[one for one in outputs(model, images) if one.kind not in skip] for model in (first, second)]
    return [Pair(a, b, _difference(a, b)) for a, b in zip_longest(*sides)]


def first_difference(pairs: list[Pair], tolerance: float) -> int | None:
    """Return the position of the first pair which differs by more than `tolerance`."""
    return next((i for i, pair in enumerate(pairs) if not pair.difference <= tolerance), None)


def _difference(a: Output | None, b: Output | None) -> float:
    if a is None or b is None or a.value.shape != b.value.shape:
        return float("inf")
    return (a.value.double() - b.value.double()).abs().max().item() if a.value.numel() else 0.0


def _model(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return retinue.load(name) if Path(name).is_dir() else retinue.create_model(name)


def main() -> int:
    """Print the layers around the first difference; return 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("models", nargs=2, metavar="MODEL", help="a run's folder, or a name of retinue.create_model")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 224, 224), help="channels, height and width of the input")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest difference that is none")
    parser.add_argument("--copy", action="store_true", help="give the second model the weights of the first, entry by entry in order")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the input")
    options = parser.parse_args()
    try:
        first, second = (_model(name, options.seed) for name in options.models)
        if options.copy:
            entries = zip(second.state_dict(), first.state_dict().values(), strict=True)
            second.load_state_dict(dict(entries))
    except (RetinueError, ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    pairs = compare(first, second, torch.rand(2, *options.shape, generator=torch.Generator().manual_seed(options.seed)))
    place = first_difference(pairs, options.tolerance)
    if place is None:
        print(f"equal in all {len(pairs)} layers, largest difference {max(pair.difference for pair in pairs):.3g}")
        return 0
    print(f"first difference at layer {place + 1} of {len(pairs)} (largest absolute difference, layer):")
    print("\n".join(f"{'> ' if i == place else '  '}{pairs[i]}" for i in range(max(0, place - 2), min(len(pairs), place + 3))))
    return 1


if __name__ == "__main__":
    sys.exit(main())
