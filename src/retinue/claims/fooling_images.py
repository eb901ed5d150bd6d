"""fooling-images: a classifier of digits is certain of images that are no digits, and training against such images does not help.

The images are found in three ways. The opposite finding on ImageNet, where training with a class of fooling images did help, cannot be
shown at this size.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import retinue
from retinue.claims.harness import Budget, Figures
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.explain.fooling import FoolingResult, fool
from retinue.explain.fooling_pictures import percent
from retinue.explain.fooling_retraining import retrain_with_fooling

RULE = (
    "in the mean over 3 seeds: (1) the median confidence in the ten images found is at least 0.999 with evolved pixels, with evolved "
    "graphs (200 generations each) and by gradient; (2) after each of two trainings with the fooling images as a further class the median "
    "is at least 0.95 again within 200 generations, while accuracy on the digits drops by less than 2 points; (3) they are no digits: of "
    "each of the three kinds, the median distance to the nearest training digit of the class is above the 99th percentile of test digits' "
    "distances"
)
DATA = ("digits",)
KINDS = {"direct": "pixels", "cppn": "graphs", "gradient": "gradient"}
ROUNDS = 2
EFFECTS = {
    "median confidence, evolved pixels - random pixels": ("median_direct", "random_direct"),
    "median confidence after the last retraining, evolved - random pixels": ("median_round2", "random_round2"),
    "accuracy, before - after retraining": ("top1_round0", "top1_round2"),
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: a convolutional network, fooled in three ways, and trained again twice."""
    data = retinue.data.open("digits", seed=seed, val_fraction=0.0, train_images=budget.pick(laptop=None, smoke=200))
    generations = budget.pick(laptop=200, smoke=2)
    with own_randomness():
        seed_all(seed)
        model = retinue.create_model("small_convnet", widths=[32, 32, 64, 64], num_classes=10, in_chans=1, input_size=8)
    fit_args: dict[str, Any] = {
        "epochs": budget.pick(laptop=60, smoke=1), "batch_size": 64, "optimizer": "adamw", "lr": 3e-3, "schedule": "cosine",
    }  # fmt: skip
    trained = _trained(model, data, fit_args, seed)
    real = _distances(data.test.images().float() / 255, data.test.labels, data)
    figures: dict[str, Any] = {"distance_real": float(np.quantile(real.numpy(), 0.99))}
    for kind in KINDS:
        length = budget.pick(laptop=300, smoke=2) if kind == "gradient" else generations
        population = budget.pick(laptop=200, smoke=10)
        found = fool(trained, kind, generations=length, population=population, seed=seed, preprocessing=data.preprocessing)  # type: ignore[arg-type]
        away = _distances(found.images, torch.tensor(found.classes), data)
        figures |= {
            f"median_{kind}": found.median,
            f"random_{kind}": float(found.history[0].median()),
            f"least_{kind}": float(found.confidence.min()),
            f"distance_{kind}": float(away.median()),
            f"beyond_{kind}": float((away > figures["distance_real"]).float().mean()),
            f"curve_{kind}": _medians(found),
            f"image_{kind}": found.images.mul(255).round().flatten().tolist(),
            f"confidence_{kind}": found.confidence.tolist(),
        }
    rounds = retrain_with_fooling(
        model, data, rounds=ROUNDS, per_round=budget.pick(laptop=50, smoke=10), generations=generations,
        population=budget.pick(laptop=200, smoke=10), fit_args=fit_args, seed=seed, progress=False,
    )  # fmt: skip
    for number in range(ROUNDS + 1):
        for name, value in rounds[f"round {number}"].items():
            figures[f"{name}_round{number}"] = value
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge the three parts of `RULE` one by one."""
    mean = {name: float(values.mean()) for name, values in figures.items()}
    again = all(
        mean[f"median_round{number}"] >= 0.95 and mean["top1_round0"] - mean[f"top1_round{number}"] < 0.02
        for number in range(1, ROUNDS + 1)
    )
    return {
        "certain of nothing": all(mean[f"median_{kind}"] >= 0.999 for kind in KINDS),
        "training against it does not help": again,
        "they are no digits": all(mean[f"distance_{kind}"] > mean["distance_real"] for kind in KINDS),
    }


def _trained(model: nn.Module, data: Data, fit_args: dict[str, Any], seed: int) -> nn.Module:
    return retinue.fit(copy.deepcopy(model), retinue.train.Supervised(), data, seed=seed, progress=False, **fit_args).model


def _distances(images: Tensor, classes: Tensor, data: Data) -> Tensor:
    """Measure the distance of each image to the nearest training image of its class, in pixels."""
    train, labels = data.train.images().float().flatten(1) / 255, data.train.labels
    apart = torch.cdist(images.flatten(1), train)
    return apart.masked_fill(classes[:, None] != labels, torch.inf).min(1).values


def _medians(found: FoolingResult) -> list[float]:
    return [float(value) for value in np.median(found.history.numpy(), axis=1)]


def draw(figures: Figures, folder: Path) -> None:
    """Draw the first seed's images with the confidences, how the median grew, and what training against them did."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 7.2), layout="constrained")
    halves: Any = picture.subfigures(2, 1, height_ratios=[1.15, 1])
    axes = halves[0].subplots(len(KINDS), 10)
    for row, (kind, title) in zip(axes, KINDS.items()):
        images = figures[f"image_{kind}"][0].reshape(10, 8, 8)
        for digit, axis in enumerate(row):
            axis.imshow(images[digit], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            sure = figures[f"confidence_{kind}"][0][digit]
            axis.set_title(f'"{digit}" {percent(sure)}', fontsize=8, pad=3)
        row[0].set_ylabel(title, fontsize=9)
    halves[0].suptitle("ten images of which the network is certain, found in three ways (first seed)", fontsize=10)
    curves, defence, apart = halves[1].subplots(1, 3)
    for place, (kind, title) in enumerate(KINDS.items()):
        missing = 1 - figures[f"curve_{kind}"].clip(max=1 - 1e-7)
        curves.plot(missing.T, color=f"C{place}", alpha=0.3, linewidth=1)
        curves.plot(missing.mean(0), color=f"C{place}", label=title)
    marks = [0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6]
    curves.set(
        yscale="log", ylim=(1, 5e-8), yticks=marks, yticklabels=["50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"]
    )
    curves.minorticks_off()
    curves.axhline(1e-3, color="grey", linestyle=":", linewidth=1)
    curves.set(xlabel="generations, or steps of the gradient")
    curves.set_title("(1) median confidence", loc="left", fontsize=10)
    curves.legend(frameon=False, fontsize=8, loc="lower right")
    for number in range(ROUNDS + 1):
        bars = (
            ("random", "lightgrey", "random images"),
            ("median", "tab:blue", "evolved images"),
            ("top1", "tab:green", "digits: accuracy"),
        )
        for place, (name, color, title) in enumerate(bars):
            values = 100 * figures[f"{name}_round{number}"]
            at = 4 * number + place
            defence.bar(at, values.mean(), color=color, label=title if number == 0 else None)
            defence.plot([at] * len(values), values, "o", color="black", markersize=3)
    defence.set(xticks=[4 * number + 1 for number in range(ROUNDS + 1)], ylim=(0, 128), yticks=range(0, 101, 20), ylabel="%")
    defence.set_xticklabels(
        ["as trained", *(f"trained with\n{number} round{'s' * (number > 1)}" for number in range(1, ROUNDS + 1))], fontsize=8
    )
    defence.set_title("(2) confidence and accuracy", loc="left", fontsize=10)
    defence.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", columnspacing=0.8, handlelength=1)
    for place, kind in enumerate(KINDS):
        values = figures[f"distance_{kind}"]
        apart.bar(place, values.mean(), color=f"C{place}", alpha=0.6)
        apart.plot([place] * len(values), values, "o", color="black", markersize=3)
    apart.axhline(figures["distance_real"].mean(), color="black", linestyle="--", linewidth=1, label="99 % of test digits lie below")
    apart.set(xticks=range(len(KINDS)), xticklabels=KINDS.values(), ylim=(0, None))
    apart.set_title("(3) distance to the nearest training digit", loc="left", fontsize=10)
    apart.legend(frameon=False, fontsize=8, loc="lower right")
    for axis in (curves, defence, apart):
        axis.spines[["top", "right"]].set_visible(False)
    picture.savefig(folder / "fooling-images.png", dpi=110)
