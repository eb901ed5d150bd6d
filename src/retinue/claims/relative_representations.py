"""relative-representations: heads trained on similarities to the same anchors can be exchanged between networks; on features they cannot.

The page's measure, whole: four networks that differ in their first weights and in the order of their images, and a convolutional network
beside them.
"""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.explain.relative import Relative, compare_spaces, encode, stitch

RULE = (
    "on digits, in the mean over seeds, each of four networks with 100 anchors: (1) the mean accuracy of all exchanged heads is above 0.85 "
    "with similarities, and above that with features by more than 0.5; (2) a network's own accuracy with similarities is at most 0.05 "
    "below that with features; (3) a convolutional network with 48 features reaches more than 0.7 with the head of the perceptron with 32, "
    "which features cannot even be connected to"
)
DATA = ("digits",)
NETWORKS = 4
KINDS = ("absolute", "relative")
EFFECTS = {
    "accuracy of exchanged heads, similarities - features": ("stitched_relative", "stitched_absolute"),
    "own accuracy, similarities - features": ("own_relative", "own_absolute"),
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: four perceptrons on features, four on similarities, a convolutional network; all pairs of encoder and head."""
    data = retinue.data.open(
        "digits", test_fraction=500 / 1797, val_fraction=0.0, seed=seed, train_images=budget.pick(laptop=None, smoke=200)
    )
    figures: dict[str, Any] = {}
    for kind in KINDS:
        networks = [_train(_perceptron(), kind, data, NETWORKS * seed + i, seed, budget) for i in range(NETWORKS)]
        accuracy = stitch(networks, data.test)
        others = torch.stack([accuracy[i, j] for i, j in permutations(range(NETWORKS), 2)])
        figures |= {
            f"own_{kind}": accuracy.diagonal().mean().item(),
            f"stitched_{kind}": others.mean().item(),
            f"spread_{kind}": others.std().item(),
            f"least_{kind}": others.min().item(),
            f"matrix_{kind}": accuracy.flatten().tolist(),
        }
        one, two = (encode(network, data.test) for network in networks[:2])
        figures |= {f"{name}_{kind}": value for name, value in compare_spaces(one, two, k=5).items()}
    convolutional = _train(retinue.create_model("small_convnet", widths=[16, 48], **_shape()), "relative", data, seed, seed, budget)
    figures["stitched_convolutional"] = stitch([convolutional], data.test, networks).mean().item()
    figures["own_convolutional"] = stitch([convolutional], data.test).item()
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    mean = {name: float(values.mean()) for name, values in figures.items()}
    gain = mean["stitched_relative"] - mean["stitched_absolute"]
    return {
        "heads can be exchanged": mean["stitched_relative"] > 0.85 and gain > 0.5,
        "a network's own accuracy": mean["own_relative"] >= mean["own_absolute"] - 0.05,
        "another architecture": mean["stitched_convolutional"] > 0.7,
    }


def _shape() -> dict[str, Any]:
    return {"num_classes": 10, "in_chans": 1, "input_size": 8}


def _perceptron() -> nn.Module:
    """Build the page's 64-128-128-32 with GELU, and a classifier behind it, which is not used."""
    layers = nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 32), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def _train(network: nn.Module, kind: str, data: Data, weights: int, anchors: int, budget: Budget) -> nn.Module:
    """Train from weights and in an order that `weights` determines; the anchors are the same for all networks of a seed."""
    with own_randomness():
        seed_all(weights)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
    similarity = "cosine" if kind == "relative" else None
    objective = Relative(100, "uniform", anchors, similarity=similarity, head="mlp", hidden=64)  # type: ignore[arg-type]
    with own_randomness():
        seed_all(weights)
        return retinue.fit(
            network, objective, data, epochs=budget.pick(laptop=25, smoke=1), batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0,
            schedule="constant", seed=weights, progress=False,
        ).model  # fmt: skip


def draw(figures: Figures, folder: Path) -> None:
    """Draw the first seed's accuracies of encoder and head as maps, and the means of all seeds."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 3.8), layout="constrained")
    *maps, bars = picture.subplots(1, 3)
    for axes, kind in zip(maps, KINDS):
        matrix = figures[f"matrix_{kind}"][0].reshape(NETWORKS, NETWORKS)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
        for i, j in np.ndindex(*matrix.shape):
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color="white" if matrix[i, j] < 0.6 else "black")
        title = "heads on features" if kind == "absolute" else "heads on similarities to anchors"
        axes.set(xticks=range(NETWORKS), yticks=range(NETWORKS), xlabel="head of network", ylabel="encoder of network", title=title)
    names = {
        "own_absolute": "features,\nown head", "stitched_absolute": "features,\nother's head", "own_relative": "similarities,\nown head",
        "stitched_relative": "similarities,\nother's head", "stitched_convolutional": "CNN with\nMLP's head",
    }  # fmt: skip
    for place, name in enumerate(names):
        values = 100 * figures[name]
        bars.bar(place, values.mean(), color="grey" if "absolute" in name else "tab:blue", alpha=0.4)
        bars.plot([place] * len(values), values, "o", color="black", markersize=4)
    bars.axhline(10, color="grey", linestyle=":")
    bars.set(xticks=range(len(names)), ylabel="test accuracy, %", ylim=(0, 100), title="all seeds; dotted: chance")
    bars.set_xticklabels(names.values(), fontsize=7)
    picture.savefig(folder / "relative-representations.png", dpi=110)
