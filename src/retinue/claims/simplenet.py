"""simplenet: a plain stack of convolutions is as accurate as a residual network of as many parameters, and worse if it pools early.

The page's measure, cut to what two cores can train in minutes: 2,500 images instead of 10,000, its 12 epochs, in batches of 32 so that
they are 936 updates. Images keep their 32 px: at less than that, the last map has one place, which sees one of the nine taps of the last
kernel, and as many parameters no longer mean the same. SimpleNet-310K has 312,362 parameters, ResNet-20 has 272,474; both train with the
same optimiser, views and epochs. The third network is the first one with its four pools behind its first four layers, one behind each.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models import resnet20
from retinue.models.simplenet import PRESETS, simplenet
from retinue.train import Supervised

RULE = (
    "on CIFAR-10, (1) the mean test accuracy of SimpleNet-310K is at least that of ResNet-20 minus 1.5 points, and (2) the mean accuracy "
    "of the same list with all pools moved to the front is at least 2 points below that of SimpleNet-310K"
)
DATA = ("cifar10",)
EFFECTS = {
    "test accuracy, SimpleNet - ResNet-20": ("top1_simplenet", "top1_resnet20"),
    "test accuracy, SimpleNet - early pooling": ("top1_simplenet", "top1_early_pooling"),
    "seconds for an epoch, SimpleNet - ResNet-20": ("seconds_per_epoch_simplenet", "seconds_per_epoch_resnet20"),
}
NETWORKS = {"simplenet": "SimpleNet-310K", "resnet20": "ResNet-20", "early_pooling": "early pooling"}
LAYERS = PRESETS["cifar_310k"]


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: accuracy on the test images, and seconds for an epoch, of the three networks."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=budget.pick(laptop=32, smoke=16), channels=3,
        train_images=budget.pick(laptop=2500, smoke=64), test_images=budget.pick(laptop=4000, smoke=64), seed=seed,
    )  # fmt: skip
    epochs = budget.pick(laptop=12, smoke=1)
    figures: dict[str, Any] = {}
    for name in NETWORKS:
        began = time.perf_counter()
        run = retinue.fit(
            network(name, seed), Supervised(), data, epochs=epochs, batch_size=32, optimizer="sgd", lr=0.1, weight_decay=5e-4,
            channels_last=True, views="crop(4), flip", eval_every=epochs, seed=seed, progress=False,
        )  # fmt: skip
        seconds = (time.perf_counter() - began) / epochs
        figures |= {f"top1_{name}": retinue.evaluate(run.model, data.test)["top1"], f"seconds_per_epoch_{name}": seconds}
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    plain, residual, early = (figures[f"top1_{name}"].mean() for name in NETWORKS)
    return {
        "it is as accurate as a residual network": bool(plain >= residual - 0.015),
        "early pooling costs accuracy": bool(plain - early >= 0.02),
    }


def network(name: str, seed: int) -> nn.Module:
    """Build one of `NETWORKS` for ten classes, without dropout, for which the training is too short."""
    with own_randomness():
        seed_all(seed)
        if name == "resnet20":
            return resnet20(num_classes=10)
        return simplenet(num_classes=10, layers=LAYERS if name == "simplenet" else pooled_early(LAYERS), drop_rates=0.0)


def pooled_early(layers: str) -> str:
    """Move the pools of a list of SimpleNet to the front: one behind each of the first convolutions.

    >>> pooled_early("64 64 p 128 p 128k 64")
    '64 p 64 p 128 128k 64'
    """
    convolutions, pools = [token for token in layers.split() if token != "p"], layers.split().count("p")
    return " ".join(token + " p" * (i < pools) for i, token in enumerate(convolutions))


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy against the seconds that an epoch takes, and the differences between the networks for each seed."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.8), layout="constrained")
    cost, gaps = picture.subplots(1, 2)
    for (name, title), color in zip(NETWORKS.items(), ("tab:blue", "tab:orange", "grey")):
        seconds, top1 = figures[f"seconds_per_epoch_{name}"], 100 * figures[f"top1_{name}"]
        cost.plot(seconds, top1, "o", color=color, alpha=0.5)
        cost.plot(seconds.mean(), top1.mean(), "D", color=color, markersize=9, label=title)
    cost.set(xlabel="seconds for an epoch", ylabel="test accuracy, %", title="the same training, as many parameters")
    cost.legend()
    for place, (other, needed) in enumerate((("resnet20", -1.5), ("early_pooling", 2.0))):
        gap = 100 * (figures["top1_simplenet"] - figures[f"top1_{other}"])
        gaps.bar(place, np.mean(gap), color="tab:blue", alpha=0.4)
        gaps.plot([place] * len(gap), gap, "o", color="tab:blue")
        gaps.plot([place - 0.4, place + 0.4], [needed, needed], "k:", label=None if place else "needed")
    gaps.axhline(0, color="grey", linewidth=0.8)
    gaps.set(
        xticks=range(2), xticklabels=["minus ResNet-20", "minus early pooling"], ylabel="points of test accuracy", title="SimpleNet-310K"
    )
    gaps.legend()
    picture.savefig(folder / "simplenet.png", dpi=110)
