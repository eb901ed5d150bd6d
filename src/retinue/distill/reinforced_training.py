"""Dataset reinforcement from nothing to a student, as one procedure: train teachers or take them, build the store, train on data+."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from retinue.data import Data, few_labels
from retinue.distill.dataset_reinforcement import Reinforced, ReinforcedDataset, ReinforcementBuilder
from retinue.engine import Supervised, evaluate, fit
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError
from retinue.losses.sparse_targets import Densify
from retinue.models import create_model


def reinforced_training(
    model: nn.Module,
    data: Data,
    run_dir: str | Path | None = None,
    *,
    teachers: Sequence[str],
    teacher_args: Mapping[str, Any] | None = None,
    teacher_fit: Mapping[str, Any] | None = None,
    per_class: int | None = None,
    recipe: str = "+RA/RE",
    num_samples: int = 50,
    topk: int | None = None,
    p: float = 0.99,
    densify: Densify = "smooth",
    views: str | None = None,
    fit_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a student on the stored answers of teachers, and measure it; the same call with the same `run_dir` goes on where it stopped.

    Args:
        model: the student.
        data: what teachers and student learn from.
        run_dir: holds the teachers' runs (`teacher-0`, ...), the `store` and the run `student`; None keeps nothing.
        teachers: folders of runs, names of networks with published weights, or, with `teacher_fit`, names of networks to be trained.
        teacher_args: options of the networks to be trained, such as {"widths": [16, 16, 16]}.
        teacher_fit: arguments of `retinue.fit` with which the teachers are trained on labels; None takes them as they are.
        per_class: the student has only so many images of each class; None: all.
        recipe: the augmentation; see `ReinforcementBuilder`.
        num_samples: N, stored augmentations of each image.
        topk: K, shares that are kept of each answer; None keeps 10, or all of fewer classes.
        p: probability with which a stored augmentation is shown; see `ReinforcedDataset`.
        densify: how targets are made of the kept shares.
        views: of images that are shown with their label.
        fit_args: arguments of `retinue.fit` for the student.
        seed: of the teachers' initial weights, the store and all training.
        progress: show live bars.

    Returns:
        "teachers" and "student" with the numbers of `retinue.evaluate` on the test images (means over the teachers), and "store" with its
        size.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    if not teachers:
        raise ArgumentError("reinforced_training: `teachers` is empty. Name one network or run at least.")
    if teacher_args and teacher_fit is None:
        raise ArgumentError("reinforced_training: `teacher_args` are for teachers that are trained here. Give `teacher_fit` too.")
    with tempfile.TemporaryDirectory() as scratch:
        keep, place = run_dir is not None, Path(run_dir or scratch)
        asked: list[nn.Module | str | Path] = list(teachers)
        if teacher_fit is not None:
            asked = []
            for number, name in enumerate(teachers):
                network, folder = _made(name, data, teacher_args or {}, seed, number), place / f"teacher-{number}" if keep else None
                settings = {"seed": seed + number, **teacher_fit, "run_dir": folder, "progress": progress}
                asked.append(fit(network, Supervised(), data, **settings).model)
        own = data if per_class is None else few_labels(data, per_class=per_class, seed=seed)
        builder = ReinforcementBuilder(own, asked, recipe, num_samples, topk, seed)
        builder.build(place / "store", tell=print if progress else lambda line: None)
        judged = [evaluate(teacher.network, data.test) for teacher in builder.teachers] if teacher_fit is not None else []
        plus = ReinforcedDataset(own, place / "store", p, densify, views)
        del builder, asked  # no teacher stays in memory
        settings = {"seed": seed, **(fit_args or {}), "run_dir": place / "student" if keep else None, "progress": progress}
        run = fit(model, Reinforced(plus), plus.data, **settings)
        result = {"student": evaluate(run.model, data.test), "store": {"bytes_per_image": plus.bytes_per_image, "samples": num_samples}}
        if judged:
            result["teachers"] = {name: sum(one[name] for one in judged) / len(judged) for name in judged[0]}
        return result


def _made(name: str, data: Data, options: Mapping[str, Any], seed: int, number: int) -> nn.Module:
    seen = data.preprocessing
    with own_randomness():
        seed_all(seed, number)
        shape = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
        return create_model(name, **{**shape, **options})
