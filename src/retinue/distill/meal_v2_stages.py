"""MEAL V2 from beginning to end: teachers, a student that is trained on labels first, and the student taught by the teachers."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from retinue.data import Data
from retinue.distill.ensemble import EnsembleTeacher
from retinue.distill.meal_v2 import PLAYER, Adversarial, MEALv2, on_labels
from retinue.engine import Supervised, fit, load, stages
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.models import create_model

SETTINGS = [name for name in inspect.signature(fit).parameters if name not in ("model", "objective", "data", "run_dir", "progress")]
PAPER: dict[str, Any] = {
    "epochs": 180, "batch_size": 512, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0,
    "schedule": "step", "schedule_args": {"decay_epochs": 100, "decay_rate": 0.1},
}  # fmt: skip


def distill_ensemble(
    model: nn.Module,
    data: Data,
    *,
    teachers: Sequence[str],
    teacher_args: Mapping[str, Any] | None = None,
    teacher_fit: Mapping[str, Any] | None = None,
    init: str | None = None,
    student_fit: Mapping[str, Any] | None = None,
    student_images: int | None = None,
    distill_fit: Mapping[str, Any] | None = None,
    views: str | Callable[..., Any] | None = None,
    combine: Literal["mean", "random"] = "mean",
    resize: bool = False,
    adversarial: Adversarial = "reverse",
    discriminator_lr: float = 1e-4,
    cutmix: bool = False,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train what is not trained yet, then teach the student; a killed call goes on at its stage when it is given again.

    Args:
        model: the student; it is trained in place.
        data: labelled images; labels serve to train what is not trained yet, and to measure.
        teachers: folders of runs, or names of networks: with published weights, or, where `teacher_fit` is given, trained here.
        teacher_args: options of the networks that are trained here.
        teacher_fit: arguments of `retinue.fit` for these.
        init: folder of the run whose weights the student begins from; None leaves it to `student_fit`.
        student_fit: arguments of `retinue.fit` for a training of the student on labels before; None begins from the model as it is.
        student_images: how many of the training images the student sees; None is all.
        distill_fit: arguments of `retinue.fit` for the teaching; None are the paper's, `PAPER`.
        views: how training images are shown, in all stages.
        combine: "mean" or "random", of the teachers.
        resize: show a teacher that was made for another size the images at that size.
        adversarial: "reverse", "joint" or None; see `MEALv2`.
        discriminator_lr: learning rate of the discriminator.
        cutmix: see `MEALv2`.
        seed: of everything random.
        run_dir: the folder; runs stand in its `teacher-1`, ..., `student` and `distilled`.
        progress: show a live bar.

    Returns:
        top1, top5, ece and loss on the test images (validation images where there are none) of "student" and "distilled", and the mean
        of the "teachers".

    Raises:
        ArgumentError: if there is no teacher, or a setting cannot be.
        CheckpointError: if `init` is no run of such a network.
    """
    if not teachers or isinstance(teachers, str):
        raise ArgumentError(f"distill_ensemble: `teachers` must be a list of names or of runs' folders, got {teachers!r}.")
    if student_images is not None and not 1 <= student_images <= len(data.train):
        raise ArgumentError(
            f"distill_ensemble: `student_images` must lie between 1 and the {len(data.train)} training images, got {student_images}."
        )
    if init is not None and student_fit is not None:
        raise ArgumentError("distill_ensemble: `init` gives a student that is trained, and `student_fit` trains one. Leave one out.")
    for name, block in (("teacher_fit", teacher_fit), ("student_fit", student_fit), ("distill_fit", distill_fit)):
        for key in block or ():
            if key not in SETTINGS:
                raise unknown("distill_ensemble", f"setting of `{name}`", key, SETTINGS)
    finished = stages(run_dir)
    common: dict[str, Any] = {"views": views, "progress": progress, "seed": seed}
    own = data if student_images is None else replace(data, train=data.train.subset(_some(len(data.train), student_images, seed)))

    def labelled(name: str, network: nn.Module, some: Data, settings: Mapping[str, Any]) -> nn.Module:
        def stage() -> dict[str, Any]:
            run = fit(network, Supervised(), some, **{**common, **settings}, run_dir=finished.folder(name))
            return {"weights": dict(run.model.state_dict())}

        network.load_state_dict(_plain(network, finished(name, stage)["weights"]))
        return network

    models: list[Any] = []
    for number, name in enumerate(teachers, start=1):
        if teacher_fit is None or (Path(name) / "config.json").is_file():
            models.append(name)
            continue
        network = labelled(f"teacher-{number}", _network(name, data, teacher_args, seed + number), data, teacher_fit)
        network.preprocessing = data.preprocessing  # type: ignore[assignment]
        models.append(network)
    teacher = EnsembleTeacher(models, combine, resize, data.preprocessing.input_size)
    if init is not None:
        _begin_from(model, init)
    elif student_fit is not None:
        labelled("student", model, own, student_fit)
    before = _measured(model, data)
    with own_randomness():
        seed_all(seed)
        objective = MEALv2(teacher, data, adversarial=adversarial, cutmix=cutmix)

    def teach() -> dict[str, Any]:
        run = fit(
            model, objective, own,
            **{**common, "players": None if adversarial is None else {PLAYER: {"lr": discriminator_lr}}, **(distill_fit or PAPER)},
            run_dir=finished.folder("distilled"),
        )  # fmt: skip
        return {"weights": dict(run.model.state_dict())}

    model.load_state_dict(_plain(model, finished("distilled", teach)["weights"]))
    teacher.seeing(data.preprocessing, data.classes)
    answers = _Answers(teacher).to(next(model.parameters()).device)
    return {"student": before, "teachers": _measured(answers, data), "distilled": _measured(model, data)}


class _Answers(nn.Module):
    """The logarithm of an ensemble's probabilities, to be measured as a classifier's logits."""

    def __init__(self, teacher: EnsembleTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.teacher(x)[0].clamp_min(math.exp(-100)).log()


def _network(name: str, data: Data, options: Mapping[str, Any] | None, seed: int) -> nn.Module:
    seen = data.preprocessing
    shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
    with own_randomness():
        seed_all(seed)
        return create_model(name, **{**shape, **(options or {})})


def _begin_from(model: nn.Module, init: str) -> None:
    weights = load(init).state_dict()
    try:
        model.load_state_dict(_plain(model, weights))
    except RuntimeError as error:
        raise CheckpointError(f"distill_ensemble: {init} is no run of this student: {' '.join(str(error).split())[:200]}") from error


def _plain(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Take off the prefix that a module of the user's own has in a run (`adapt`), where this one has none."""
    names = set(model.state_dict())
    return {name if name in names else name.removeprefix("module."): value for name, value in weights.items()}


def _measured(model: nn.Module, data: Data) -> dict[str, float]:
    held_out = data.test if len(data.test) else data.val
    device = next(model.parameters()).device
    return on_labels(model, held_out.loader(256, device=device)) if len(held_out) else {}


def _some(count: int, chosen: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")[:chosen].sort().values
