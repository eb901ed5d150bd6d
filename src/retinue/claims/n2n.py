"""n2n: a policy learns which layers of a network can go, and finds a student four times smaller that is hardly worse."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.compress.n2n import N2N, CompressionResult
from retinue.compress.n2n_procedure import thirds
from retinue.engine import Supervised
from retinue.engine.seeds import own_randomness, seed_all

RULE = (
    "on digits, a teacher of six convolutions and two linear layers, 15 policy epochs of 5 students in removal and 10 of 5 in shrinking, "
    "each student trained for 2 epochs, over 3 seeds: the removal policy's mean reward in its last third of epochs - in its first third "
    "above the pooled standard error, and the student that was found, trained for 40 epochs, has at least 4 times fewer parameters than "
    "the teacher in every seed and a mean test accuracy at most 0.02 below the teacher's; random search, uniform width and shrinkage are "
    "reported"
)
DATA = ("digits",)
EFFECTS = {
    "removal, mean reward, last third - first third of epochs": ("removal_last", "removal_first"),
    "shrinkage, mean reward, last third - first third of epochs": ("shrinkage_last", "shrinkage_first"),
    "accuracy, student - teacher": ("student", "teacher"),
    "accuracy, student - uniform width of the same size": ("student", "uniform"),
    "best reward, policies - random search": ("reward", "random_reward"),
    "accuracy, student - random search's": ("student", "random"),
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: a teacher, both policies, random search with the same budget, and uniform width at the size that was found."""
    data = retinue.data.open("digits", val_fraction=0.25, train_images=budget.pick(laptop=None, smoke=80), seed=seed)
    with own_randomness():
        seed_all(seed)
        network = teacher(budget.pick(laptop=(32, 32, 48, 48, 64, 64), smoke=(16, 16, 24, 24, 32, 32)))
    trained = retinue.fit(
        network, Supervised(), data, epochs=budget.pick(laptop=20, smoke=2), batch_size=32, optimizer="adam", lr=2e-3, weight_decay=5e-4,
        seed=seed, progress=False,
    ).model  # fmt: skip
    epochs, rollouts = budget.pick(laptop=(15, 10), smoke=(1, 1)), budget.pick(laptop=5, smoke=6)
    settings: dict[str, Any] = {
        "student_fit": {"epochs": 2, "batch_size": 32, "lr": 2e-3},  # 68 updates, where the paper has thousands
        "final_fit": {"epochs": budget.pick(laptop=40, smoke=1), "batch_size": 32, "lr": 2e-3},
        "seed": seed, "progress": False,
    }  # fmt: skip
    search = N2N(trained, data, **settings)
    found = search.run(epochs, rollouts)
    lucky = N2N(trained, data, learn=False, **settings).run(epochs, rollouts)
    removal, shrinkage = (thirds(found, stage) for stage in ("removal", "shrinkage"))
    uniform = search.uniform(found.chosen["parameters"])[1]
    return {
        "teacher": found.teacher["top1"], "student": found.chosen["top1"], "random": lucky.chosen["top1"], "uniform": uniform["top1"],
        "compression": found.chosen["compression"], "random_compression": lucky.chosen["compression"],
        "reward": found.chosen["reward"], "random_reward": lucky.chosen["reward"],
        "removal_first": removal["first"], "removal_last": removal["last"], "removal_invalid": removal["invalid"],
        "shrinkage_first": shrinkage["first"], "shrinkage_last": shrinkage["last"],
        "random_invalid": thirds(lucky, "removal")["invalid"],
        "speed_up": found.chosen["speed_up"], "uniform_speed_up": uniform["speed_up"],
        "rewards": curve(found), "random_rewards": curve(lucky),
    }  # fmt: skip


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    first, last = figures["removal_first"], figures["removal_last"]
    return {
        "the removal policy's reward rises": bool(last.mean() - first.mean() > pooled_standard_error(last, first)),
        "four times fewer parameters in every seed": bool(figures["compression"].min() >= 4),
        "at most 2 points less accurate than the teacher": bool(figures["student"].mean() >= figures["teacher"].mean() - 0.02),
    }


def teacher(widths: tuple[int, ...]) -> nn.Module:
    """Build six 3x3 convolutions with norms, two pools, and two linear layers behind averages of 2x2 places, for images of one channel."""
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(zip((1, *widths), widths)):
        parts += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if i in (1, 3) else []
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 64), nn.ReLU(), nn.Linear(64, 10))


def curve(found: CompressionResult) -> list[float]:
    """Return the mean reward of each policy epoch, removal first."""
    means = []
    for stage in ("removal", "shrinkage"):
        rows = [row for row in found.table if row["stage"] == stage]
        for epoch in range(max(row["epoch"] for row in rows) + 1):
            means.append(float(np.mean([row["reward"] for row in rows if row["epoch"] == epoch])))
    return means


def draw(figures: Figures, folder: Path) -> None:
    """Draw the mean reward of each policy epoch beside random search, and accuracy against size."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 3.8), layout="constrained")
    rewards, sizes = picture.subplots(1, 2)
    for name, label, color in (("rewards", "policies", "tab:blue"), ("random_rewards", "random search", "grey")):
        values = figures[name]
        for row in values:
            rewards.plot(range(1, len(row) + 1), row, color=color, alpha=0.25, linewidth=1)
        rewards.plot(range(1, values.shape[1] + 1), values.mean(0), "o-", color=color, markersize=3, label=label)
    removal = figures["rewards"].shape[1] * 3 // 5
    rewards.axvline(removal + 0.5, color="black", linewidth=0.8, linestyle=":")
    rewards.set(xlabel="policy epoch (removal, then shrinking)", ylabel="mean reward of its students")
    rewards.legend()
    for name, size, label, color in (
        ("student", "compression", "policies", "tab:blue"),
        ("random", "random_compression", "random search", "grey"),
        ("uniform", "compression", "uniform width", "tab:orange"),
    ):
        sizes.plot(figures[size], 100 * figures[name], "o", color=color, label=label)
    sizes.axhline(100 * figures["teacher"].mean(), color="black", linewidth=0.8, linestyle=":", label="teacher")
    sizes.set(xlabel="times fewer parameters than the teacher", ylabel="test accuracy, %")
    sizes.legend()
    picture.savefig(folder / "n2n.png", dpi=110)
