"""prototype-dl: a classifier by prototypes is as accurate as its encoder with a linear head, and its prototypes lie among images.

The page's measure, whole: with and without the two losses that keep prototypes and images together, and the encoder with a softmax head.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import retinue
from retinue.claims.harness import Budget, Figures
from retinue.data import Data, Split
from retinue.engine.seeds import own_randomness, seed_all
from retinue.explain.prototype_dl import ConvDecoder, ConvEncoder, PrototypeClassifier, PrototypeLoss, squared_distances
from retinue.train import Supervised

RULE = (
    "on digits, three seeds: (a) in the mean, test accuracy is less than 0.02 below that of the same encoder with a linear softmax head; "
    "(b) in every seed R1 and R2 make the mean squared distance of prototypes to their nearest training code at least 5 times smaller, and "
    "that of decoded prototypes to their nearest training image smaller; (c) in the mean, the reconstruction error is at most 1.5 times "
    "that without R1 and R2"
)
DATA = ("digits",)
EFFECTS = {
    "accuracy, prototypes - linear head": ("accuracy", "accuracy_black_box"),
    "pixel distance to the nearest image, with R1 and R2 - without": ("pixels", "pixels_without"),
    "reconstruction error, with R1 and R2 - without": ("reconstruction", "reconstruction_without"),
}
PROTOTYPES, LATENT, WIDTHS = 15, 16, (32, 32)


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: the network with all losses, the same without R1 and R2, and its encoder with a linear head."""
    data = retinue.data.open(
        "digits", test_fraction=497 / 1797, val_fraction=0.0, seed=seed, mean=(0.0,), std=(1.0,),
        train_images=budget.pick(laptop=None, smoke=200),
    )  # fmt: skip
    figures: dict[str, Any] = {}
    for suffix, weight in (("", 1.0), ("_without", 0.0)):
        network = train(prototype_network, PrototypeLoss(w_r1=weight, w_r2=weight), data, seed, budget)
        figures |= {f"{name}{suffix}": value for name, value in faithfulness(network, data.train).items()}
        numbers = PrototypeLoss().evaluate(network, data.test.loader(256))
        figures |= {f"accuracy{suffix}": numbers["top1"], f"reconstruction{suffix}": numbers["ae"]}
    black_box = train(linear_network, Supervised(), data, seed, budget)
    figures["accuracy_black_box"] = retinue.evaluate(black_box, data.test)["top1"]
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    accuracy = figures["accuracy_black_box"].mean() - figures["accuracy"].mean()
    nearer = (figures["codes_without"] >= 5 * figures["codes"]) & (figures["pixels"] < figures["pixels_without"])
    cost = figures["reconstruction"].mean() / figures["reconstruction_without"].mean()
    return {"as accurate": bool(accuracy < 0.02), "prototypes among images": bool(nearer.all()), "still reconstructs": bool(cost <= 1.5)}


def prototype_network() -> PrototypeClassifier:
    """Build the page's network for digits."""
    pair = ConvEncoder(1, (8, 8), WIDTHS, LATENT), ConvDecoder(1, (8, 8), WIDTHS, LATENT)
    return PrototypeClassifier(*pair, PROTOTYPES, 10)


def linear_network() -> nn.Module:
    """Build its encoder with a linear head."""
    return nn.Sequential(ConvEncoder(1, (8, 8), WIDTHS, LATENT), nn.Linear(LATENT, 10))


def train(build: Any, objective: Any, data: Data, seed: int, budget: Budget) -> Any:
    """Train a network whose first weights the seed determines; the budget is the same for all."""
    with own_randomness():
        seed_all(seed)
        network = build()
    return retinue.fit(
        network, objective, data, epochs=budget.pick(laptop=30, smoke=1), batch_size=100, optimizer="adam", lr=2e-3, weight_decay=0.0,
        schedule="constant", seed=seed, progress=False,
    ).model  # fmt: skip


@torch.no_grad()
def faithfulness(network: PrototypeClassifier, split: Split) -> dict[str, float]:
    """Measure how near prototypes are to training images: mean squared distance to the nearest code, and, decoded, to the nearest image."""
    images = split.preprocessing.normalize(split.images())
    codes = network.eval().forward_features(images)
    return {
        "codes": float(nearest(network.prototypes, codes).mean()),
        "pixels": float(
            nearest(network.decode_prototypes().flatten(1), network.pixels.unit(network.pixels.painted(images)).flatten(1)).mean()
        ),
    }


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Compute each point's squared distance to the nearest of the others."""
    return squared_distances(points, others).amin(1)


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracies, distances and errors, with and without the two losses."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 3.4), layout="constrained")
    panels: list[tuple[str, dict[str, str], float]] = [
        ("test accuracy, %", {"with R1, R2": "accuracy", "without": "accuracy_without", "linear head": "accuracy_black_box"}, 100),
        ("prototype to nearest code, squared", {"with R1, R2": "codes", "without": "codes_without"}, 1),
        ("decoded, to nearest image, squared", {"with R1, R2": "pixels", "without": "pixels_without"}, 1),
        ("reconstruction, squared error", {"with R1, R2": "reconstruction", "without": "reconstruction_without"}, 1),
    ]
    for axes, (title, bars, scale) in zip(picture.subplots(1, 4), panels):
        for place, name in enumerate(bars.values()):
            values = scale * figures[name]
            axes.bar(place, values.mean(), color="tab:blue" if place == 0 else "grey", alpha=0.4)
            axes.plot([place] * len(values), values, "o", color="black", markersize=4)
        axes.set(xticks=np.arange(len(bars)), title=title)
        axes.set_xticklabels(bars, fontsize=8)
        axes.title.set_fontsize(9)
    picture.axes[0].set_ylim(80, 100)
    picture.savefig(folder / "prototype-dl.png", dpi=110)
