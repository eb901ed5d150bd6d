"""dataset-reinforcement: a student learns more from 100 images with stored answers of strong teachers than from their labels.

The page's measure: three CNNs that saw 1,297 digits answer 40 stored affine views of each of 100 of them, and an MLP learns from these
answers alone, at the cost of plain training. With teachers that saw no more than the student, the page warns, nothing is gained.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data, few_labels, views
from retinue.distill.dataset_reinforcement import Reinforced, ReinforcedDataset, ReinforcementBuilder
from retinue.engine import Objective, evaluating
from retinue.engine.seeds import own_randomness, seed_all
from retinue.train import Supervised

RULE = (
    "on digits, 100 images with N = 40 and K = 3, over 5 seeds: the mean accuracy on 500 test images is above that of the same network "
    "trained on labels and fresh views by more than the pooled standard error, the mean NLL is below it by more than its own, and the "
    "accuracy on warped test images is not lower by more than the pooled standard error; ECE and the time of a step are reported"
)
DATA = ("digits",)
SEEDS = (0, 1, 2, 3, 4)
AFFINE = "affine(degrees=15, translate=0.125, scale=(0.9, 1.1), shear=10)"
WARPED = "affine(degrees=25, translate=0.125, scale=(0.8, 1.2), shear=15)"
MEASURES = {"top1": "test accuracy", "nll": "NLL", "warped": "accuracy on warped test images", "ece": "ECE"}
EFFECTS = {f"{words}, stored answers - labels": (f"{name}_stored", f"{name}_labels") for name, words in MEASURES.items()}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: the student on stored answers, and on labels; each on plain and on warped test images."""
    data = retinue.data.open("digits", val_fraction=0.0, test_fraction=500 / 1797, seed=seed)
    teachers = [_teacher(data, seed, number, budget) for number in range(budget.pick(laptop=3, smoke=2))]
    few = few_labels(data, per_class=10, seed=seed)
    steps, figures = budget.pick(laptop=800, smoke=4), {}
    figures["top1_teachers"] = retinue.evaluate(_Mean(teachers), data.test)["top1"]
    with tempfile.TemporaryDirectory() as folder:
        ReinforcementBuilder(few, teachers, AFFINE, num_samples=budget.pick(laptop=40, smoke=4), topk=3, seed=seed).build(folder)
        plus = ReinforcedDataset(few, folder)
        figures["bytes_per_image"] = plus.bytes_per_image
        del teachers
        for name, objective, shown, augmented in (("stored", Reinforced(plus), plus.data, None), ("labels", Supervised(), few, AFFINE)):
            figures |= {f"{key}_{name}": value for key, value in _student(objective, shown, augmented, data, seed, steps).items()}
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge accuracy, NLL and accuracy under warps."""
    gain, error = {}, {}
    for name in ("top1", "nll", "warped"):
        stored, labels = figures[f"{name}_stored"], figures[f"{name}_labels"]
        gain[name], error[name] = stored.mean() - labels.mean(), pooled_standard_error(stored, labels)
    return {
        "more accurate": bool(gain["top1"] > error["top1"]),
        "lower NLL": bool(-gain["nll"] > error["nll"]),
        "not less accurate on warped images": bool(gain["warped"] >= -error["warped"]),
    }


def _student(objective: Objective, data: Data, augmented: str | None, whole: Data, seed: int, steps: int) -> dict[str, float]:
    """Train the page's MLP, and measure it: accuracy, NLL, ECE, accuracy on warped images, milliseconds of a step."""
    with own_randomness():
        seed_all(seed)
        model = retinue.create_model("mlp", widths=[64, 64], num_classes=10, in_chans=1, input_size=(8, 8))
    started = time.perf_counter()
    run = retinue.fit(
        model, objective, data, max_steps=steps, batch_size=64, optimizer="momentum", momentum=0.9, lr=0.05, weight_decay=0.0,
        views=augmented, seed=seed, progress=False,
    )  # fmt: skip
    took = (time.perf_counter() - started) / steps
    found = retinue.evaluate(run.model, whole.test)
    return {
        "top1": found["top1"],
        "nll": found["loss"],
        "ece": found["ece"],
        "warped": _warped(run.model, whole),
        "step_ms": 1e3 * took,
    }


def _teacher(data: Data, seed: int, number: int, budget: Budget) -> nn.Module:
    """Train a CNN of 16 channels on all training images with affine views."""
    with own_randomness():
        seed_all(seed, number)
        model = retinue.create_model("small_convnet", widths=[16, 16, 16], num_classes=10, in_chans=1, input_size=(8, 8))
    run = retinue.fit(
        model, Supervised(), data, max_steps=budget.pick(laptop=450, smoke=4), batch_size=64, optimizer="adam", lr=3e-3,
        weight_decay=0.0, views=AFFINE, seed=seed + number, progress=False,
    )  # fmt: skip
    return run.model


class _Mean(nn.Module):
    """The logarithm of the teachers' mean shares."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Average the shares."""
        return torch.stack([network(images).softmax(-1) for network in self.networks]).mean(0).log()


@torch.no_grad()
def _warped(model: nn.Module, data: Data) -> float:
    """Return the accuracy on test images, each warped ten times; the same warps for every network."""
    right, split, view = [], data.test, views.parse(WARPED)
    indices = torch.arange(len(split))
    with evaluating(model):
        for number in range(10):
            images = view(split.images(), views.keys(0, number, indices))
            right.append(model(split.preprocessing.normalize(images)).argmax(-1) == split.labels)
    return float(torch.cat(right).float().mean())


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy, NLL and accuracy under warps of each seed, learned from labels and from stored answers."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (name, words) in zip(picture.subplots(1, len(MEASURES)), MEASURES.items()):
        for place, (kind, color) in enumerate((("labels", "grey"), ("stored", "tab:blue"))):
            values = figures[f"{name}_{kind}"]
            axes.plot([place] * len(values), values, "o", color=color, alpha=0.5)
            axes.plot([place - 0.2, place + 0.2], [values.mean()] * 2, color=color, linewidth=3)
        axes.set(xticks=[0, 1], xticklabels=["labels", "stored"], xlim=(-0.5, 1.5), title=words)
    picture.savefig(folder / "dataset-reinforcement.png", dpi=110)
