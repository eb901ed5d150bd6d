"""Which weights of a network stay: masks of any model, by magnitude or at random, and training that keeps the others at zero."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import register_optimizer_step_post_hook

from retinue.errors import ArgumentError, ShapeError, unknown

Mask = dict[str, Tensor]
Scope = Literal["global", "layer"]
SCOPES = ("global", "layer")
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of nn.MultiheadAttention, which are linear maps


def prunable(model: nn.Module, ignore: Collection[str] = ()) -> list[str]:
    """List the weights that may be pruned: those of convolutions, linear layers and attention; never biases and norms.

    Args:
        model: any network; a weight that several layers share is listed once.
        ignore: names that shall never be pruned.

    Raises:
        ArgumentError: if nothing is left to prune, or a name in `ignore` is none of a prunable weight.

    >>> prunable(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    ['0.weight']
    """
    names, seen = [], set()
    for place, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            own: tuple[str, ...] = ("weight",)
        else:
            own = ATTENTION if isinstance(module, nn.MultiheadAttention) else ()
        for name, parameter in module.named_parameters(recurse=False):
            if name in own and id(parameter) not in seen:
                seen.add(id(parameter))
                names.append(f"{place}.{name}" if place else name)
    for name in ignore:
        if name not in names:
            raise unknown("prunable", "prunable weight", name, names)
    left = [name for name in names if name not in set(ignore)]
    if not left:
        raise ArgumentError(
            f"prunable: {type(model).__name__} has no weight that could be pruned ({len(names)} of convolutions, linear layers and "
            f"attention, {len(set(ignore))} ignored). Ignore fewer, or take a network of such layers."
        )
    return left


def full_mask(model: nn.Module) -> Mask:
    """Return the mask that keeps every prunable weight."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    return {name: torch.ones(weights[name].shape, dtype=torch.bool) for name in prunable(model)}


def remaining(mask: Mapping[str, Tensor]) -> int:
    """Count the weights that stay."""
    return sum(int(kept.sum()) for kept in mask.values())


def density(mask: Mapping[str, Tensor]) -> float:
    """Return the share of weights that stay, in [0, 1]."""
    return remaining(mask) / sum(kept.numel() for kept in mask.values())


def check_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the weights that a mask is of.

    Raises:
        ArgumentError: if the mask names something else than the model's prunable weights, or is not binary.
        ShapeError: if a part has another shape than its weight.
    """
    weights, names = dict(model.named_parameters(remove_duplicate=False)), prunable(model)
    for name in mask:
        if name not in names:
            raise unknown("mask", "prunable weight of this model", name, names, "A mask fits only the network that it was made for.")
    for name in names:
        if name not in mask:
            raise ArgumentError(f'mask: the weight "{name}" is missing. Give every prunable weight a mask; full_mask(model) makes one.')
    check_binary(mask)
    for name in names:
        if mask[name].shape != weights[name].shape:
            raise ShapeError(
                f'mask: "{name}" has shape {tuple(mask[name].shape)} and its weight has {tuple(weights[name].shape)}. '
                "A mask fits only the network that it was made for."
            )
    return {name: weights[name] for name in names}


def check_binary(mask: Mapping[str, Tensor]) -> None:
    """Refuse masks with other values than 0 and 1.

    Raises:
        ArgumentError: naming the tensor.
    """
    for name, kept in mask.items():
        if kept.dtype != torch.bool and not bool(((kept == 0) | (kept == 1)).all()):
            raise ArgumentError(f'mask: "{name}" has values other than 0 and 1. Compare with a threshold first: values > t.')


def cut_count(fraction: float | Fraction, of: int) -> int:
    """Return ceil(fraction * of), with the fraction taken as the decimal that was written: 0.1 of 30 are 3.

    Raises:
        ArgumentError: if the fraction does not lie strictly between 0 and 1.
    """
    if isinstance(fraction, bool) or not 0 < fraction < 1:
        raise ArgumentError(
            f"lottery_ticket: `fraction` must lie strictly between 0 and 1, got {fraction}. It is the share of the remaining weights cut "
            "each round: for 20 percent write fraction=0.2."
        )
    return math.ceil(Fraction(str(fraction)) * of)


def magnitude_mask(
    model: nn.Module,
    mask: Mapping[str, Tensor],
    fraction: float | Fraction,
    scope: Scope = "global",
    ignore: Collection[str] = (),
    official_threshold: bool = False,
) -> Mask:
    """Remove the remaining weights of smallest magnitude.

    Args:
        model: with trained weights.
        mask: what remains so far; see `full_mask`.
        fraction: share of the remaining weights that is removed, rounded up; ignored weights count as remaining.
        scope: "global" ranks all weights together, "layer" those of each layer (of which the last weight always stays).
        ignore: names of weights that are never removed.
        official_threshold: keep what lies strictly above the weight at that rank, as the authors' code does: it removes one more.

    Returns:
        A new mask within `mask`; of equal magnitudes the first in the order of the network are removed.

    Raises:
        ArgumentError: if an argument cannot be, nothing would remain, or a weight is not finite.
        ShapeError: if the mask is of another network.
    """
    if scope not in SCOPES:
        raise unknown("magnitude_mask", "`scope`", scope, SCOPES)
    cut_count(fraction, 1)
    weights, candidates = check_mask(model, mask), prunable(model, ignore)
    result = {name: mask[name].detach().to("cpu", torch.bool, copy=True) for name in weights}
    sizes = {name: weights[name].detach().abs().cpu() for name in candidates}
    for name, size in sizes.items():
        if not bool(torch.isfinite(size).all()):
            raise ArgumentError(f'magnitude_mask: the weight "{name}" is not finite. Prune a network whose training went well.')
    if scope == "layer":
        for name in candidates:
            left = int(result[name].sum())
            _cut(result, sizes, [name], min(cut_count(fraction, left), max(left - 1, 0)), official_threshold)
        return result
    count = cut_count(fraction, remaining(result))
    left = sum(int(result[name].sum()) for name in candidates)
    if count + official_threshold >= left:
        raise ArgumentError(
            f"magnitude_mask: removing {count + official_threshold} of {left} weights that may be pruned would leave none. "
            "Take a smaller `fraction`, fewer levels, or ignore fewer weights."
        )
    _cut(result, sizes, candidates, count, official_threshold)
    return result


def _cut(mask: Mask, sizes: Mapping[str, Tensor], names: list[str], count: int, strict: bool) -> None:
    """Remove the `count` smallest of some weights from the mask, in place."""
    if count <= 0:
        return
    ranked, order = torch.cat([sizes[name][mask[name]] for name in names]).sort(stable=True)
    kept = torch.ones(len(order), dtype=torch.bool)
    kept[order[:count]] = False
    if strict and bool((ranked > ranked[min(count, len(ranked) - 1)]).any()):
        kept[order] = ranked > ranked[count]
    start = 0
    for name in names:
        inside = int(mask[name].sum())
        mask[name][mask[name].clone()] = kept[start : start + inside]
        start += inside


def random_mask_like(mask: Mapping[str, Tensor], per_layer: bool = True, seed: int = 0) -> Mask:
    """Shuffle a mask.

    Args:
        mask: what is shuffled.
        per_layer: keep the count of each layer; otherwise only the count of the whole network.
        seed: of the shuffling.

    Raises:
        ArgumentError: if the mask is not binary.
    """
    check_binary(mask)
    generator = torch.Generator().manual_seed(seed)

    def shuffled(flat: Tensor) -> Tensor:
        return flat[torch.randperm(len(flat), generator=generator)]

    plain = {name: kept.to("cpu", torch.bool) for name, kept in mask.items()}
    if per_layer:
        return {name: shuffled(kept.flatten()).view_as(kept) for name, kept in plain.items()}
    parts = shuffled(torch.cat([kept.flatten() for kept in plain.values()])).split([kept.numel() for kept in plain.values()])
    return {name: part.view_as(kept).clone() for part, (name, kept) in zip(parts, plain.items())}


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Set the weights that a mask removes to zero, in place.

    Raises:
        ArgumentError: if the mask is of another network or not binary.
        ShapeError: if a part has another shape than its weight.
    """
    for name, weight in check_mask(model, mask).items():
        weight.masked_fill_(~mask[name].to(weight.device, torch.bool), 0.0)


@contextmanager
def masked(model: nn.Module, mask: Mapping[str, Tensor]) -> Iterator[None]:
    """Keep removed weights at exactly zero while anything trains the model inside the `with`, such as `retinue.fit`.

    Their gradients are zero, so that momentum stays zero; what an optimiser moves all the same, by momentum from before or by mixing the
    gradients of a layer as Muon does, is set to zero again after its step.

    Raises:
        ArgumentError: if the mask is of another network or not binary.
        ShapeError: if a part has another shape than its weight.
    """
    apply_mask(model, mask)
    removed = {name: _Removed(weight, ~mask[name].to(torch.bool)) for name, weight in check_mask(model, mask).items()}

    def clear(*_: Any) -> None:
        for one in removed.values():
            one.clear()

    hooks: list[Any] = [register_optimizer_step_post_hook(clear)]
    for one in removed.values():
        if one.weight.grad is not None:  # left by a training before, to which the next backward pass would add
            one.weight.grad = one(one.weight.grad)
        if one.weight.requires_grad:
            hooks.append(one.weight.register_hook(one))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Removed:
    """Clears a weight and its gradient where it is removed; the mask follows the weight's device once."""

    def __init__(self, weight: nn.Parameter, where: Tensor) -> None:
        self.weight, self.where = weight, where

    def __call__(self, gradient: Any) -> Any:
        self.where = self.where.to(gradient.device)
        return gradient.masked_fill(self.where, 0.0)

    @torch.no_grad()
    def clear(self) -> None:
        self.where = self.where.to(self.weight.device)
        self.weight.masked_fill_(self.where, 0.0)
