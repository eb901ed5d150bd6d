"""Lottery tickets: train, prune the smallest weights, rewind the others to step k, and again (Frankle et al. 2019, arXiv 1903.01611).

`IMP` is the loop for any network and any training; `lottery_ticket` is the whole procedure on labelled images, with the controls (random
masks, new initial weights, one-shot pruning) and the stability of the subnetworks.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retinue.compress.masked_training import SpanTraining
from retinue.compress.masks import (
    SCOPES,
    Mask,
    Scope,
    apply_mask,
    cut_count,
    density,
    full_mask,
    magnitude_mask,
    prunable,
    random_mask_like,
    remaining,
)
from retinue.compress.sparse_checkpoint import save_sparse
from retinue.compress.stability import angle_deg, error_barrier, l2_distance
from retinue.data import Data
from retinue.engine import checkpoint, evaluate, stages
from retinue.engine.run import facts
from retinue.engine.seeds import mix
from retinue.errors import ArgumentError, unknown
from retinue.models import adapt

TrainFn = Callable[[nn.Module, Mapping[str, Tensor], int, int, int], float]
CONTROLS = ("one_shot", "reinit", "random", "random_global")
SETTINGS = [name for name in inspect.signature(SpanTraining).parameters if name not in ("data", "steps")]
NEW_WEIGHTS, NEW_MASK, NEW_ORDER = 1, 2, 3  # what is derived from the seed


@dataclass(frozen=True)
class Level:
    """A subnetwork after so many rounds of pruning.

    Attributes:
        density: share of prunable weights that remain.
        mask: which.
        accuracy: what `train_fn` returned when it had been trained.
        weights: all its tensors after training.
    """

    density: float
    mask: Mask
    accuracy: float
    weights: dict[str, Tensor]


class IMP:
    """Iterative magnitude pruning with rewinding to step k (algorithm 1).

    Args:
        model_fn: builds the network, with the same initial weights each time.
        train_fn: `train_fn(model, mask, start_step, end_step, seed)` trains in place, keeps removed weights at zero (`masked` does that)
            and returns the accuracy; see `SpanTraining`.
        steps: T, updates of a whole training.
        rewind_step: k, to which the surviving weights are rewound; 0 is the original lottery ticket.
        levels: N, rounds of pruning; 1 is one-shot pruning.
        fraction: p, share of the remaining weights that each round removes.
        scope: "global" ranks all weights together, "layer" those of each layer.
        ignore: names of weights that are never pruned.
        official_threshold: remove one more weight a round, as the authors' code does.
        seed: of the data order.
        run_dir: a killed run with the same folder goes on at its round; None keeps nothing.

    Raises:
        ArgumentError: if an argument cannot be, or the network has nothing to prune.
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        train_fn: TrainFn,
        *,
        steps: int,
        rewind_step: int = 0,
        levels: int = 20,
        fraction: float | Fraction = 0.2,
        scope: Scope = "global",
        ignore: Collection[str] = (),
        official_threshold: bool = False,
        seed: int = 0,
        run_dir: str | Path | None = None,
    ) -> None:
        if not 0 <= rewind_step <= steps:
            raise ArgumentError(
                f"lottery_ticket: `rewind_step` must lie between 0 and the {steps} steps of the training, got {rewind_step}. "
                "0 rewinds to the initial weights; the paper's late rewinding is 0.1 to 7 percent of the training."
            )
        if levels < 0:
            raise ArgumentError(f"lottery_ticket: `levels` must be 0 or more, got {levels}. It is the number of rounds of pruning.")
        cut_count(fraction, 1)
        if scope not in SCOPES:
            raise unknown("lottery_ticket", "`scope`", scope, SCOPES)
        self.model = model_fn()
        prunable(self.model, ignore)
        self.train_fn, self.steps, self.rewind_step, self.levels, self.seed = train_fn, steps, rewind_step, levels, seed
        self.pruning: dict[str, Any] = {
            "fraction": fraction, "scope": scope, "ignore": ignore, "official_threshold": official_threshold,
        }  # fmt: skip
        self.stages = stages(run_dir)
        self.initial = _tensors(self.model)
        self.rewound: dict[str, Tensor] = {}

    def run(self) -> list[Level]:
        """Train every level, from all weights (level 0) to the sparsest.

        Raises:
            ArgumentError: if a round would leave no weight.
        """
        self.rewound = self.stages("rewind-point", self._to_rewind_point)["weights"]
        mask = full_mask(self.model)
        found: list[Level] = []
        for number in range(self.levels + 1):
            if number:
                self.model.load_state_dict(found[-1].weights)  # trained magnitudes, not rewound ones
                mask = magnitude_mask(self.model, mask, **self.pruning)
            done = self.stages(f"level-{number:02d}", self.branch, mask, self.rewound, self.rewind_step)
            found.append(Level(density(mask), mask, done["accuracy"], done["weights"]))
        return found

    def _to_rewind_point(self) -> dict[str, Any]:
        self.model.load_state_dict(self.initial)
        if self.rewind_step:
            self.train_fn(self.model, full_mask(self.model), 0, self.rewind_step, self.seed)
        return {"weights": _tensors(self.model)}

    def branch(self, mask: Mapping[str, Tensor], weights: Mapping[str, Tensor], start_step: int, seed: int | None = None) -> dict[str, Any]:
        """Train a subnetwork to the end from any weights and buffers; return its "accuracy" and its "weights"."""
        self.model.load_state_dict(weights)
        apply_mask(self.model, mask)
        accuracy = self.train_fn(self.model, mask, start_step, self.steps, self.seed if seed is None else seed)
        return {"accuracy": accuracy, "weights": _tensors(self.model)}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def matching(levels: Sequence[Level], tolerance: float = 0.01) -> list[int]:
    """Return the levels whose accuracy is at most `tolerance` below that of the whole network, level 0."""
    return [number for number, level in enumerate(levels) if level.accuracy >= levels[0].accuracy - tolerance]


def reinitialised(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return new initial tensors of a network: each parameter's values are shuffled, which keeps the distribution of any initialisation.

    Args:
        model: untrained; it is not changed.
        seed: of the shuffling.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = _tensors(model)
    for name, parameter in model.named_parameters():
        tensors[name] = tensors[name].flatten()[torch.randperm(parameter.numel(), generator=generator)].view_as(tensors[name])
    for name, parameter in model.named_parameters(remove_duplicate=False):  # tied weights stay tied
        first = next(other for other, one in model.named_parameters() if one is parameter)
        tensors[name] = tensors[first]
    return tensors


def lottery_ticket(
    model: nn.Module,
    data: Data,
    run_dir: str | Path | None = None,
    *,
    steps: int,
    rewind_step: int = 0,
    levels: int = 20,
    fraction: float = 0.2,
    scope: Scope = "global",
    ignore: Collection[str] = (),
    official_threshold: bool = False,
    controls: Collection[str] = CONTROLS,
    control_levels: Collection[int] | None = None,
    stability_levels: Collection[int] | None = None,
    points: int = 31,
    tolerance: float = 0.01,
    fit_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Find winning tickets, and tell with controls and measures of stability whether they are.

    Args:
        model: with its initial weights; it leaves as the chosen ticket, trained, with zeros in its weights.
        data: labelled images. Tickets are chosen on the validation images and reported on the test images.
        run_dir: a killed run goes on at its round. The chosen ticket stands in `ticket`, for `retinue.load`, and small in `sparse`.
        steps: T, updates of a whole training.
        rewind_step: k.
        levels: rounds of pruning.
        fraction: share of the remaining weights that each round removes.
        scope: "global" or "layer".
        ignore: names of weights that are never pruned.
        official_threshold: as in `magnitude_mask`.
        controls: of "one_shot" (as many weights removed at once), "reinit" (same mask, new initial weights, trained from step 0), "random"
            (random mask with the same count in each layer, from step k) and "random_global" (only the whole count is the same).
        control_levels: the levels that have controls; None: all but the whole network.
        stability_levels: the levels whose stability is measured; None: the last.
        points: places on the line of the error barrier.
        tolerance: how much less accurate than the whole network a matching ticket may be; the sparsest one is chosen, or else the last.
        fit_args: of `SpanTraining`: batch_size, optimizer, lr, weight_decay, momentum, schedule, schedule_args, views, warmup_epochs.
        seed: of everything random.

    Returns:
        "density", "ticket" (test accuracies) for each level; each control's name with {level: accuracy}; "stability" with, for each
        level, distances and angles to pruning and to data order, and the barrier; "matching", "chosen", and the sizes of both checkpoints.

    Raises:
        ArgumentError: if an argument cannot be, or a round would leave no weight.
    """
    for name in controls:
        if name not in CONTROLS:
            raise unknown("lottery_ticket", "control", name, CONTROLS)
    if tolerance < 0:
        raise ArgumentError(f"lottery_ticket: `tolerance` must be 0 or more, got {tolerance}. It is how much accuracy a ticket may lack.")
    if points < 2:
        raise ArgumentError(f"lottery_ticket: `points` must be 2 or more, got {points}. Both ends are points; the paper has 31.")
    for name in fit_args or ():
        if name not in SETTINGS:
            raise unknown("lottery_ticket", "setting of `fit_args`", name, SETTINGS)
    of_controls = sorted(set(range(1, levels + 1) if control_levels is None else control_levels))
    of_stability = sorted({levels} if stability_levels is None else set(stability_levels))
    for number in (*of_controls, *of_stability):
        if not 0 <= number <= levels:
            raise ArgumentError(f"lottery_ticket: there is no level {number}. Levels go from 0, the whole network, to {levels}.")
    model = adapt(model, input_size=data.preprocessing.input_size)
    training = SpanTraining(data, steps=steps, **(fit_args or {}))
    search = IMP(
        lambda: model, training, steps=steps, rewind_step=rewind_step, levels=levels, fraction=fraction, scope=scope, ignore=ignore,
        official_threshold=official_threshold, seed=seed, run_dir=run_dir,
    )  # fmt: skip
    fresh = reinitialised(model, mix(seed, NEW_WEIGHTS))
    test = data.test if len(data.test) else data.val

    def top1(weights: Mapping[str, Tensor]) -> float:
        model.load_state_dict(weights)
        return evaluate(model.eval(), test)["top1"]

    found = search.run()
    k, rewound = rewind_step, search.rewound
    result: dict[str, Any] = {"density": [one.density for one in found], "ticket": [top1(one.weights) for one in found]}
    for control in controls:
        result[control] = {}
        for number in of_controls:
            mask, weights, start = found[number].mask, rewound, k
            if control == "one_shot":
                mask = _one_shot(model, found[0], mask, scope, ignore)
            elif control == "reinit":
                weights, start = fresh, 0
            else:
                mask = random_mask_like(mask, control == "random", mix(seed, NEW_MASK, number))
            done = search.stages(f"{control}-{number:02d}", search.branch, mask, weights, start)
            result[control][str(number)] = top1(done["weights"])
    result["stability"] = {}
    for number in of_stability:
        level = found[number]
        other = search.stages(f"order-{number:02d}", search.branch, level.mask, rewound, k, mix(seed, NEW_ORDER))["weights"]
        barrier = error_barrier(level.weights, other, lambda weights: 1 - top1(weights), points)
        result["stability"][str(number)] = {
            "pruning_l2": l2_distance(found[0].weights, level.weights, level.mask),
            "pruning_angle": angle_deg(found[0].weights, level.weights, level.mask),
            "order_l2": l2_distance(level.weights, other, level.mask),
            "order_angle": angle_deg(level.weights, other, level.mask),
            "barrier": barrier.height, "stable": barrier.stable, "alphas": barrier.alphas, "errors": barrier.errors,
        }  # fmt: skip
    result["matching"] = matching(found, tolerance)
    chosen = max(result["matching"]) if max(result["matching"]) > 0 else levels
    result["chosen"] = chosen
    model.load_state_dict(found[chosen].weights)
    model.eval()
    if run_dir is not None:
        told = facts(model, data, steps, {"top1": found[chosen].accuracy})
        ordinary = Path(run_dir) / "ticket"
        checkpoint.save(ordinary, model.state_dict(), told)
        result["bytes"] = sum(path.stat().st_size for path in ordinary.iterdir())
        result["sparse_bytes"] = save_sparse(Path(run_dir) / "sparse", model, found[chosen].mask, told)
    return result


def _one_shot(model: nn.Module, dense: Level, like: Mask, scope: Scope, ignore: Collection[str]) -> Mask:
    """Prune the whole network's trained weights once, to as many as another mask keeps (in each layer, where layers are ranked alone)."""
    model.load_state_dict(dense.weights)
    mask = dense.mask
    for ranked in [[name] for name in like] if scope == "layer" else [list(like)]:
        removed = sum(int((~like[name]).sum()) for name in ranked)
        if removed:
            others = {*ignore, *mask} - {name for name in ranked if name not in ignore}
            mask = magnitude_mask(model, mask, Fraction(removed, remaining(mask)), ignore=others)
    return mask
