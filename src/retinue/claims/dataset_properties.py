"""dataset-properties: the higher the dimension of the images, the higher the test loss; the sharper the labels, the more an attack hurts.

Eight binary tasks on grey images of 32 px, each scaled to a maximum of 255: pairs of digits, pairs of photographs, real against generated
photographs, and magnetic tiles without and with a defect, an industrial set that stands in for the radiology sets of the paper. The tasks
differ in more than these two numbers; that the exponent is 1/d, and the gap between natural and medical images, cannot be shown so small.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from scipy.stats import spearmanr
from torch import Tensor

import retinue
from retinue.audit.adversarial import attacked
from retinue.audit.dataset_properties import intrinsic_dimension, label_sharpness, scaled
from retinue.audit.learning_curve import small_network
from retinue.claims.harness import Budget, Figures
from retinue.data import Data, from_arrays
from retinue.engine.seeds import mix, own_randomness, seed_all

RULE = (
    "over 3 seeds, each with its own images and networks: (1) the mean of Spearman's correlation of intrinsic dimension and log test loss "
    "over eight tasks is at least 0.5; (2) so is that of label sharpness and the accuracy lost to FGSM with eps = 2 of 255; (3) in every "
    "seed every pair of digits has a lower dimension than every pair of photographs of CIFAR-10; (4) on the mean over the seeds, magnetic "
    "tiles have the lowest dimension and yet a higher test loss than every pair of digits, the highest label sharpness, and lose most"
)
DATA = ("mnist", "cifar10", "cifake", "magnetic-tile")
TRAIN, TEST, EPS = 1000, 400, 2.0


class Task(NamedTuple):
    """A name, a source, and the classes that are told apart: the second against the first; all but the first, where it is None."""

    name: str
    source: str
    first: str
    second: str | None


TASKS = (
    Task("digits 0, 1", "mnist", "0", "1"),
    Task("digits 4, 9", "mnist", "4", "9"),
    Task("digits 3, 8", "mnist", "3", "8"),
    Task("airplane, automobile", "cifar10", "airplane", "automobile"),
    Task("cat, dog", "cifar10", "cat", "dog"),
    Task("automobile, truck", "cifar10", "automobile", "truck"),
    Task("real, generated", "cifake", "real", "fake"),
    Task("tile, defect", "magnetic-tile", "free", None),
)
DIGITS, PHOTOGRAPHS, TILES = slice(0, 3), slice(3, 6), 7


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: dimension and label sharpness of eight tasks, and of a small network on each the test loss and what an attack costs."""
    figures: dict[str, Any] = {"dimension": [], "sharpness": [], "mean_ratio": [], "log_loss": [], "accuracy": [], "drop": []}
    opened: dict[str, Data] = {}
    for number, task in enumerate(TASKS):
        data = binary(task, number, opened, seed, budget)
        sharp = label_sharpness(data.train, max_samples=TRAIN)
        figures["dimension"].append(intrinsic_dimension(data.train).value)
        figures["sharpness"].append(sharp.value)
        figures["mean_ratio"].append(sharp.mean_ratio)
        with own_randomness():
            seed_all(seed, number)
            network = small_network(2, 1)
        run = retinue.fit(
            network, retinue.train.Supervised(), data, epochs=budget.pick(laptop=15, smoke=1), batch_size=50, optimizer="adam", lr=1e-3,
            weight_decay=1e-4, schedule="constant", seed=seed, progress=False,
        )  # fmt: skip
        table = attacked(run.model, data.test, (EPS,))
        figures["log_loss"].append(float(np.log(table[0.0]["loss"])))
        figures["accuracy"].append(table[0.0]["top1"])
        figures["drop"].append(table[0.0]["top1"] - table[EPS]["top1"])
    figures["rank_correlation_loss"] = float(spearmanr(figures["dimension"], figures["log_loss"]).statistic)
    figures["rank_correlation_drop"] = float(spearmanr(figures["sharpness"], figures["drop"]).statistic)
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all four parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge the four parts of `RULE` one by one."""
    dimension, sharpness, loss, drop = (figures[name].mean(0) for name in ("dimension", "sharpness", "log_loss", "drop"))
    each = figures["dimension"]
    return {
        "dimension and test loss": bool(figures["rank_correlation_loss"].mean() >= 0.5),
        "label sharpness and attack": bool(figures["rank_correlation_drop"].mean() >= 0.5),
        "digits below photographs": bool((each[:, DIGITS].max(1) < each[:, PHOTOGRAPHS].min(1)).all()),
        "tiles stand out": bool(
            dimension.argmin() == TILES and loss[TILES] > loss[DIGITS].max() and sharpness.argmax() == TILES and drop.argmax() == TILES
        ),
    }


def binary(task: Task, number: int, opened: dict[str, Data], seed: int, budget: Budget) -> Data:
    """Draw the images of a task: 1,000 to train and 400 to test; of the tiles, which are fewer, 776 and 300."""
    if budget.name == "smoke":  # the bundled digits in the place of everything
        opened.setdefault("digits", retinue.data.open("digits", splits="drawn", val_fraction=0.0))
        source, first, second, train, test = opened["digits"], number, (number + 1) % 10, 100, 40
    else:
        if task.source not in opened:
            few: dict[str, Any] = {} if task.source == "magnetic-tile" else {"train_images": 10_000, "test_images": 2000}
            drawn: dict[str, Any] = {"splits": "drawn", "test_fraction": 300 / 1076} if task.source == "magnetic-tile" else {}
            opened[task.source] = retinue.data.open(
                task.source, input_size=32, channels=1, resize="stretch", val_fraction=0.0, seed=seed, **few, **drawn
            )  # fmt: skip
        source = opened[task.source]
        first, second = source.classes.index(task.first), -1 if task.second is None else source.classes.index(task.second)
        train, test = (TRAIN, TEST) if task.second else (776, 300)
    random = np.random.default_rng(mix(seed, number))
    seen = _drawn(source, "train", first, second, train, random)
    held_out = _drawn(source, "test", first, second, test, random)
    return from_arrays(
        torch.cat([seen[0], held_out[0]]),
        torch.cat([seen[1], held_out[1]]),
        classes=["first", "second"],
        split=["train"] * len(seen[1]) + ["test"] * len(held_out[1]),
        val_fraction=0.0,
        name=task.name,
    )


def _drawn(
    source: Data, part: str, first: int, second: int, count: int, random: np.random.Generator
) -> tuple[UInt8[Tensor, "images 1 height width"], Int[Tensor, " images"]]:
    split = getattr(source, part)
    labels = split.labels.numpy()
    able = np.flatnonzero((labels == first) | (labels == second) if second >= 0 else labels >= 0)
    chosen = torch.from_numpy(random.permutation(able)[:count])
    images = scaled(split.images(chosen)).round().byte()
    return images, (split.labels[chosen] != first).long()


def draw(figures: Figures, folder: Path) -> None:
    """Draw test loss against dimension, and what the attack costs against label sharpness: a dot for each task and seed."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 5), layout="constrained")
    left, right = picture.subplots(1, 2)
    for axes, x, y, rank in ((left, "dimension", "log_loss", "loss"), (right, "sharpness", "drop", "drop")):
        for place, task in enumerate(TASKS):
            color, marker = f"C{DATA.index(task.source)}", "osD^"[DATA.index(task.source)]
            across, up = figures[x][:, place], figures[y][:, place]
            axes.plot(across, up, marker, color=color, alpha=0.45, markersize=5)
            axes.plot(across.mean(), up.mean(), marker, color=color, markersize=9)
            axes.annotate(task.name, (across.mean(), up.mean()), xytext=(7, 6), textcoords="offset points", fontsize=8)
        axes.set_title(f"rank correlation {figures[f'rank_correlation_{rank}'].mean():.2f}, mean over seeds", fontsize=10)
    left.set(xlabel="intrinsic dimension of the images (maximum likelihood, k = 20)", ylabel="log test loss")
    right.set(xlabel="label sharpness, pixels in [0, 255]", ylabel="accuracy lost to FGSM, eps = 2 of 255", xscale="log")
    picture.savefig(folder / "dataset-properties.png", dpi=110)
