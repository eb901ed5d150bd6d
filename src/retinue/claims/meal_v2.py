"""meal-v2: a trained student gets better from the averaged answers of stronger teachers, where more training on its labels does not help.

The page's measure: the teachers saw all training images and the student 100 of them, as teachers must know more than the student's data
gives. ImageNet's two to three points, of teachers that are larger and trained longer, cannot be shown small.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.distill.meal_v2 import MEALv2
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models import create_model
from retinue.train import Supervised

RULE = (
    "on digits, over 5 seeds, the mean test accuracy of the student taught by the ensemble and the discriminator is above that of the "
    "same student trained on with labels by more than their pooled standard error, and its mean negative log-likelihood is lower; the soft "
    "labels alone, and with labels beside, are reported and gate nothing"
)
DATA = ("digits",)
SEEDS = (0, 1, 2, 3, 4)
WAYS = ("labels", "soft", "soft_and_hard", "meal")
EFFECTS = {
    "test accuracy, ensemble and discriminator - labels": ("top1_meal", "top1_labels"),
    "negative log-likelihood, ensemble and discriminator - labels": ("nll_meal", "nll_labels"),
    "test accuracy, ensemble and discriminator - ensemble alone": ("top1_meal", "top1_soft"),
    "test accuracy, ensemble alone - ensemble and labels": ("top1_soft", "top1_soft_and_hard"),
}
VIEWS = "affine(10, translate=0.1, scale=(0.9, 1.1))"
SETTINGS: dict[str, Any] = {
    "batch_size": 64, "optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "weight_decay": 0.0, "schedule": "cosine", "views": VIEWS,
    "progress": False,
}  # fmt: skip


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: three teachers, a student trained on 100 images, and four ways to train it on with the same crops."""
    data = retinue.data.open(
        "digits", test_fraction=500 / 1797, val_fraction=0.0, seed=seed, train_images=budget.pick(laptop=None, smoke=200)
    )  # fmt: skip
    few = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:100]
    mine = replace(data, train=data.train.subset(few))
    teachers = [
        _fit(_network("small_convnet", seed, number, widths=[12, 12, 12]), Supervised(), data, budget.pick(laptop=350, smoke=2), seed)
        for number in (1, 2, 3)
    ]
    student = _fit(_network("mlp", seed, 0, widths=[64, 64]), Supervised(), mine, budget.pick(laptop=200, smoke=2), seed)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    figures = {"top1_teacher": float(np.mean([retinue.evaluate(teacher, data.test)["top1"] for teacher in teachers]))}
    figures |= {"top1_before": retinue.evaluate(student, data.test)["top1"]}
    for way in WAYS:
        student.load_state_dict(weights)
        trained = _fit(student, _objective(way, teachers, seed), mine, budget.pick(laptop=700, smoke=2), seed)
        numbers = retinue.evaluate(trained, data.test)
        figures |= {f"top1_{way}": numbers["top1"], f"nll_{way}": numbers["loss"]}
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge accuracy and likelihood."""
    ours, theirs = figures["top1_meal"], figures["top1_labels"]
    return {
        "more accurate than by labels": bool(ours.mean() - theirs.mean() > pooled_standard_error(ours, theirs)),
        "more likely than by labels": bool(figures["nll_meal"].mean() < figures["nll_labels"].mean()),
    }


def _objective(way: str, teachers: list[nn.Module], seed: int) -> retinue.engine.Objective:
    if way == "labels":
        return Supervised()
    with own_randomness():
        seed_all(seed, 9)
        return MEALv2(teachers, adversarial="reverse" if way == "meal" else None, hard_label_weight=float(way == "soft_and_hard"))


def _network(name: str, seed: int, number: int, **options: Any) -> nn.Module:
    with own_randomness():
        seed_all(seed, number)
        return create_model(name, num_classes=10, in_chans=1, input_size=8, **options)


def _fit(model: nn.Module, objective: retinue.engine.Objective, data: Data, steps: int, seed: int) -> nn.Module:
    """Train as in the page's measure; the discriminator's rate is 1e-3."""
    players = {"discriminator": {"lr": 1e-3}} if getattr(objective, "discriminator", None) is not None else None
    return retinue.fit(model, objective, data, max_steps=steps, seed=seed, players=players, **SETTINGS).model


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy and likelihood of each seed."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 3.8), layout="constrained")
    labels = ("labels", "soft", "soft\nand labels", "soft and dis-\ncriminator")
    for axes, (name, scale, title) in zip(
        picture.subplots(1, 2), (("top1", 100, "test accuracy, %"), ("nll", 1, "negative log-likelihood, nats"))
    ):
        values = scale * np.stack([figures[f"{name}_{way}"] for way in WAYS])
        for place, (row, color) in enumerate(zip(values, ("grey", "tab:green", "tab:orange", "tab:blue"))):
            axes.bar(place, row.mean(), color=color, alpha=0.4)
        axes.plot(values, "o-", color="black", alpha=0.4, linewidth=0.8)  # a line for each seed
        axes.set(xticks=range(4), xticklabels=labels, ylabel=title)
        axes.set(ylim=(max(0, values.min() * 0.95), values.max() * 1.02))
    picture.savefig(folder / "meal-v2.png", dpi=110)
