"""guidance: a deep fully connected network learns more from the same images while an untrained or a trained CNN guides its layers.

The page's measure: 20 hidden layers of 64 units with batch norm, and a residual CNN of five convolutions with 8 channels as guide. The
published figures are of networks of up to a billion parameters on ImageNet and cannot be shown small.
"""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.distill.guidance import Guidance
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models.cifar_resnet import BasicBlock
from retinue.models.guidance_targets import deep_fcn
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network
from retinue.train import Supervised

RULE = (
    "on digits, over 5 seeds, the mean test accuracy of the fully connected network with the untrained guide is above that without a guide "
    "by more than their pooled standard error, and so is that with the trained guide; the same on 2,000 CIFAR-10 images is reported, and "
    "gates nothing"
)
DATA = ("digits", "cifar10")
SEEDS = (0, 1, 2, 3, 4)
GUIDES = ("none", "untrained", "trained")
EFFECTS = {
    f"{name}, test accuracy, {guide} guide - no guide": (f"top1_{name}_{guide}", f"top1_{name}_none")
    for name in DATA
    for guide in GUIDES[1:]
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: the same network trained without a guide, with an untrained and with a trained one, on digits and on CIFAR-10."""
    figures: dict[str, Any] = {}
    for name in DATA:
        data = _data(name, seed, budget)
        for guide in GUIDES:
            objective = Supervised() if guide == "none" else Guidance(_guide(data, seed, guide == "trained", budget))
            model = _train(_target(data, seed), objective, data, seed, budget.pick(laptop=200, smoke=3))
            figures[f"top1_{name}_{guide}"] = retinue.evaluate(model, data.test)["top1"]
            if guide != "none":
                figures[f"similarity_{name}_{guide}"] = _similarity(objective, model, data)
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each guide."""
    alone = figures["top1_digits_none"]
    guided = {guide: figures[f"top1_digits_{guide}"] for guide in GUIDES[1:]}
    return {
        f"the {guide} guide helps": bool(top1.mean() - alone.mean() > pooled_standard_error(top1, alone)) for guide, top1 in guided.items()
    }


def _data(name: str, seed: int, budget: Budget) -> Data:
    """Digits in 1297 and 500, or 2,000 images of CIFAR-10 and 2,000 to test; without validation images, as nothing is chosen."""
    if name == "digits":
        given: dict[str, Any] = {"test_fraction": 500 / 1797, "train_images": budget.pick(laptop=None, smoke=130)}
    else:
        given = {"train_images": budget.pick(laptop=2000, smoke=130), "test_images": budget.pick(laptop=2000, smoke=64)}
        given |= budget.pick(laptop={}, smoke={"input_size": 32, "channels": 3})
        name = budget.pick(laptop=name, smoke="digits")
    return retinue.data.open(name, val_fraction=0.0, seed=seed, **given)


def _target(data: Data, seed: int) -> nn.Module:
    with own_randomness():
        seed_all(seed)
        return deep_fcn(depth=20, width=64, first_width=64, drop_rate=0.0, **_shape(data))


def _guide(data: Data, seed: int, trained: bool, budget: Budget) -> nn.Module:
    """A residual CNN of five convolutions with 8 channels, at its initial weights or trained for 120 updates."""
    with own_randomness():
        seed_all(seed, 1)
        blocks = nn.Sequential(*(BasicBlock(8, 8, 1, "projection") for _ in range(2)))
        shape = _shape(data)
        model = Network(
            nn.Sequential(conv_norm_act(shape["in_chans"], 8, 3)), nn.Sequential(blocks),
            taps=[{"num_chs": 8, "reduction": 1, "module": "stages.0"}],
            num_features=8, num_classes=shape["num_classes"], in_chans=shape["in_chans"],
        )  # fmt: skip
    return _train(model, Supervised(), data, seed, budget.pick(laptop=120, smoke=2)) if trained else model


def _shape(data: Data) -> dict[str, Any]:
    seen = data.preprocessing
    return {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}


def _train(model: nn.Module, objective: retinue.engine.Objective, data: Data, seed: int, steps: int) -> nn.Module:
    """Train by Adam, as the page's measure: rate 1e-3, no weight decay, batches of 64."""
    run = retinue.fit(
        model, objective, data, max_steps=steps, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0, schedule="constant", seed=seed,
        progress=False,
    )  # fmt: skip
    return run.model


def _similarity(objective: Any, model: nn.Module, data: Data) -> float:
    """Return the mean CKA over the pairs of layers, on test images in batches of 64."""
    numbers = objective.evaluate(model, data.test.loader(64))
    return float(np.mean([value for name, value in numbers.items() if name.startswith("similarity/")]))


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracies of each seed on both data sets."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, name in zip(picture.subplots(1, 2), DATA):
        values = 100 * np.stack([figures[f"top1_{name}_{guide}"] for guide in GUIDES])
        for place, (row, color) in enumerate(zip(values, ("grey", "tab:blue", "tab:orange"))):
            axes.bar(place, row.mean(), color=color, alpha=0.4)
        axes.plot(values, "o-", color="black", alpha=0.4, linewidth=0.8)  # a line for each seed
        axes.set(xticks=range(3), xticklabels=["no guide", "untrained guide", "trained guide"], ylabel="test accuracy, %", title=name)
        axes.set(ylim=(max(0, values.min() - 10), min(100, values.max() + 5)))
    picture.savefig(folder / "guidance.png", dpi=110)
