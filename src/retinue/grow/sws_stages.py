"""SWS from the teacher to networks of all depths, each beside its twin from scratch, and what it costs (arXiv 2404.16897, section 4)."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retinue.data import Data, Split
from retinue.engine import Objective, Stages, Supervised, fit
from retinue.engine.optim import exempt_from_decay
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.grow.sws import initialise_descendant, save_learngene, shared_network
from retinue.grow.sws_distillation import SoftDistillation, find_teacher
from retinue.models import adapt, config, count_macs
from retinue.models.untrained import untrained

PASSES = 3  # of a training step: forward, gradient of the activations, gradient of the weights
SETTINGS = [name for name in inspect.signature(fit).parameters if name not in ("model", "objective", "data", "run_dir", "progress", "seed")]
AUXILIARY: dict[str, Any] = {  # of Aux-S on ImageNet; the learning rate is 5e-4 for each 512 images of a batch
    "epochs": 150, "batch_size": 512, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05, "warmup_epochs": 5,
    "schedule": "cosine", "schedule_args": {"min_lr": 1e-5},
}  # fmt: skip
DESCENDANT: dict[str, Any] = {
    "epochs": 10, "batch_size": 512, "optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.05, "schedule": "cosine",
    "schedule_args": {"min_lr": 1e-6},
}  # fmt: skip


def train_sws(
    model: nn.Module,
    data: Data,
    *,
    teacher: str | nn.Module,
    teacher_args: Mapping[str, Any] | None = None,
    teacher_fit: Mapping[str, Any] | None = None,
    stages: Sequence[int] | None = None,
    alpha: float = 1.0,
    tau: float = 1.0,
    label_smoothing: float = 0.0,
    auxiliary_fit: Mapping[str, Any] | None = None,
    depths: Sequence[int | Sequence[int]] = (6, 8, 10, 12),
    descendant_fit: Mapping[str, Any] | None = None,
    scratch_fit: Mapping[str, Any] | None = None,
    scratch_lrs: Sequence[float] | None = None,
    views: str | Callable[..., Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train a teacher if need be, the auxiliary network, descendants of several depths, and their twins from scratch.

    Args:
        model: a network that shares weights, which is trained in place; or any other, which `share_stages` makes one of.
        data: labelled images.
        teacher: as in `SoftDistillation`.
        teacher_args: options of a teacher given by name.
        teacher_fit: arguments of `retinue.fit` with which the teacher is trained first; None takes it as it is.
        stages: layers of each stage, where the model does not share yet; see `share_stages`.
        alpha: weight of the teacher, as in `SoftDistillation`.
        tau: temperature, as there.
        label_smoothing: of labels, in all trainings but the teacher's.
        auxiliary_fit: what differs from `AUXILIARY`, the paper's arguments of `retinue.fit`.
        depths: of each descendant the layers, or those of each stage; as in `initialise_descendant`.
        descendant_fit: what differs from `DESCENDANT`.
        scratch_fit: what differs from the descendants' in the twins' training, such as {"epochs": 100}.
        scratch_lrs: learning rates that each twin tries; the best on the validation images counts. None is the descendants' alone.
        views: how training images are shown, in all stages.
        seed: of everything random.
        run_dir: the folder; `learngene.safetensors`, and the runs `teacher`, `auxiliary`, `depth-6`, `scratch-6-1`, ... which
            `retinue.load` reads. A finished stage is not computed again.
        progress: show a live bar.

    Returns:
        "teacher" and "auxiliary": the numbers of `retinue.evaluate` on the test images (on validation images where there are none), and of
        the auxiliary network "parameters" and "macs". Of each depth, as "depth 6": layers, parameters, macs (multiply-adds of one image),
        and top1 "untuned", "tuned" and "scratch", with the twin's "scratch_lr". "cost": multiply-adds of training, by "teacher" (0 if it
        was trained before), "auxiliary" (with the teacher's answers), "descendants", "total", and "scratch", of the twins that count.
        "stored": parameters of the "learngene", and of all "descendants" together.

    Raises:
        ArgumentError: if a setting cannot be, or the network repeats no blocks.
    """
    _check_settings(teacher_fit=teacher_fit, auxiliary_fit=auxiliary_fit, descendant_fit=descendant_fit, scratch_fit=scratch_fit)
    tune = {**DESCENDANT, **(descendant_fit or {})}
    twin = {**tune, **(scratch_fit or {})}
    rates = [twin["lr"]] if scratch_lrs is None else list(scratch_lrs)
    if not depths or not rates:
        raise ArgumentError("train_sws: `depths` and `scratch_lrs` must name one at least.")
    if len(rates) > 1 and not len(data.val):
        raise ArgumentError(
            "train_sws: among several `scratch_lrs` validation images choose, and there are none. Open the data with val_fraction=0.1."
        )
    held_out = data.test if len(data.test) else data.val
    if not len(held_out):
        raise ArgumentError("train_sws: there are no test and no validation images to measure on. Open the data with test_fraction=0.2.")
    SoftDistillation(nn.Identity(), alpha=alpha, tau=tau, label_smoothing=label_smoothing)  # refuses before anything is trained
    finished, size = Stages(run_dir), data.preprocessing.input_size
    auxiliary: Any = shared_network(model, data, stages)
    ways = {_name(depth): depth for depth in depths}
    for depth in ways.values():
        initialise_descendant(auxiliary, _layers(depth))  # so does this

    def trained(name: str, network: Any, objective: Objective, settings: Mapping[str, Any]) -> dict[str, Any]:
        def stage() -> dict[str, Any]:
            run = fit(
                exempt_from_decay(network), objective, data, **{"views": views, **settings}, seed=seed, run_dir=finished.folder(name),
                progress=progress,
            )  # fmt: skip
            epochs = run.steps / len(data.train.loader(settings.get("batch_size", 64), shuffle=True, world=settings.get("devices", 1)))
            val = _measured(run.model, data.val)
            return {"weights": dict(run.model.state_dict()), "test": _measured(run.model, held_out), "val": val, "epochs": epochs}

        done = finished(name, stage)
        network.load_state_dict(done["weights"])
        network.classes, network.preprocessing = data.classes, data.preprocessing
        return done

    def cost(network: nn.Module, epochs: float, passes: int = PASSES) -> float:
        return round(passes * count_macs(network, size) * len(data.train) * epochs)

    costs = {"teacher": 0.0}
    with own_randomness():
        seed_all(seed)
        judge: Any = adapt(find_teacher(teacher, data, teacher_args), input_size=size)
    if teacher_fit is not None:
        costs["teacher"] = cost(judge, trained("teacher", judge, Supervised(), teacher_fit)["epochs"])
    objective = SoftDistillation(judge, alpha=alpha, tau=tau, label_smoothing=label_smoothing)
    objective.check(auxiliary, data)
    done = trained("auxiliary", auxiliary, objective, {**AUXILIARY, **(auxiliary_fit or {})})
    costs["auxiliary"] = cost(auxiliary, done["epochs"]) + cost(judge, done["epochs"], passes=1)
    learngene = _parameters(auxiliary)
    numbers: dict[str, dict[str, float]] = {
        "teacher": _measured(judge, held_out),
        "auxiliary": {**done["test"], "parameters": learngene, "macs": count_macs(auxiliary, size)},
    }
    if run_dir is not None and config(auxiliary) is not None:
        save_learngene(auxiliary, Path(run_dir) / "learngene.safetensors")
    costs |= {"descendants": 0.0, "total": 0.0, "scratch": 0.0}
    stored = 0.0
    for name, depth in ways.items():
        descendant: Any = initialise_descendant(auxiliary, _layers(depth))
        facts = {"layers": float(depth if isinstance(depth, int) else sum(depth)), "parameters": _parameters(descendant)}
        fresh = _twins(descendant, rates, seed)
        before = _measured(descendant, held_out)
        done = trained(f"depth-{name}", descendant, Supervised(label_smoothing), tune)
        tries = [
            trained(f"scratch-{name}-{number}", network, Supervised(label_smoothing), {**twin, "lr": lr})
            for number, (network, lr) in enumerate(zip(fresh, rates), start=1)
        ]
        best = max(range(len(tries)), key=lambda i: tries[i]["val"].get("top1", 0.0))
        accuracy = {"untuned": before["top1"], "tuned": done["test"]["top1"], "scratch": tries[best]["test"]["top1"]}
        numbers[f"depth {name}"] = {**facts, "macs": count_macs(descendant, size), **accuracy, "scratch_lr": rates[best]}
        costs["descendants"] += cost(descendant, done["epochs"])
        costs["scratch"] += cost(descendant, tries[best]["epochs"])
        stored += facts["parameters"]
    costs["total"] = costs["teacher"] + costs["auxiliary"] + costs["descendants"]
    return {**numbers, "cost": costs, "stored": {"learngene": learngene, "descendants": stored}}


def _check_settings(**blocks: Mapping[str, Any] | None) -> None:
    for name, block in blocks.items():
        for key in block or ():
            if key not in SETTINGS:
                raise unknown("train_sws", f"setting of `{name}`", key, SETTINGS)


def _twins(descendant: nn.Module, rates: Sequence[float], seed: int) -> list[Any]:
    """Build networks of the same kind from scratch, all with the same first weights."""
    with own_randomness():
        seed_all(seed, 1)
        fresh = untrained(descendant)
    return [fresh, *(copy.deepcopy(fresh) for _ in rates[1:])]


def _layers(depth: int | Sequence[int]) -> int | list[int]:
    return depth if isinstance(depth, int) else list(depth)


def _name(depth: int | Sequence[int]) -> str:
    return str(depth) if isinstance(depth, int) else "-".join(map(str, depth))


def _parameters(network: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in network.parameters()))


def _measured(network: nn.Module, split: Split) -> dict[str, float]:
    device = next(network.parameters(), torch.empty(0)).device
    return Supervised().evaluate(network, split.loader(256, device=device)) if len(split) else {}
