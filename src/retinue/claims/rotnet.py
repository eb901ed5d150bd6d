"""rotnet: a network that has learned to guess how far photographs were turned has better features than an untrained one.

The page's measure. What is compared is a logistic regression on the 2x2-pooled map of each layer, fitted to 50 labelled images a class; the
untrained network's batch norms have seen the training images once, so that its features are as well scaled.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data, Split, few_labels
from retinue.engine import evaluating
from retinue.engine.seeds import own_randomness, seed_all
from retinue.pretrain import RotNet
from retinue.train import linear

RULE = (
    "on CIFAR-10 at 16 px, over 3 seeds: the mean accuracy at telling the four turns of test images is above 0.45, and a linear probe of "
    "the fourth convolution with 50 labels a class is more accurate than one of the same layer of the untrained network by more than the "
    "pooled standard error; the other layers are reported"
)
DATA = ("cifar10",)
LAYERS = (2, 4, 6)  # convolutions whose maps are probed
EFFECTS = {
    f"accuracy of the probe of layer {layer}, turned - untrained": (f"probe_{layer}", f"probe_{layer}_untrained") for layer in LAYERS
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: accuracy at turns of test images, and of the probes of three layers before and after."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=16, channels=3,
        train_images=budget.pick(laptop=5000, smoke=600), test_images=budget.pick(laptop=1000, smoke=60), seed=seed,
    )  # fmt: skip
    with own_randomness():
        seed_all(seed)
        model = retinue.create_model("small_convnet", num_classes=0, input_size=16)
        objective = RotNet(model)
    with torch.no_grad():
        for batch in data.train.loader(64).batches():
            model.train()(batch.images)
    labels = budget.pick(laptop=50, smoke=10)
    before = probes(model, data, labels, seed)
    run = retinue.fit(
        model, objective, data, epochs=budget.pick(laptop=5, smoke=1), batch_size=64, optimizer="nesterov", lr=0.1, weight_decay=5e-4,
        schedule="onecycle", views="crop(2), flip", seed=seed, progress=False,
    )  # fmt: skip
    after = probes(run.model, data, labels, seed)
    figures = {"turn_accuracy": turn_accuracy(run.model, objective, data.test)}
    for layer in LAYERS:
        figures |= {f"probe_{layer}": after[layer], f"probe_{layer}_untrained": before[layer]}
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    learned, untrained = figures["probe_4"], figures["probe_4_untrained"]
    better = learned.mean() - untrained.mean() > pooled_standard_error(learned, untrained)
    return bool(figures["turn_accuracy"].mean() > 0.45 and better)


def turn_accuracy(model: nn.Module, objective: RotNet, split: Split) -> float:
    """Return the share of turns of held-out images that are guessed right."""
    return objective.evaluate(model, split.loader(256))["turn_accuracy"]


def probes(model: nn.Module, data: Data, per_class: int, seed: int) -> dict[int, float]:
    """Return the accuracy on test images of a linear probe of each of `LAYERS`; its strength is chosen on the validation images."""
    few = few_labels(data, per_class=per_class, seed=seed).train
    maps = [_pooled(model, split) for split in (few, data.val, data.test)]
    scores = {}
    for layer in LAYERS:
        train, val, test = (part[layer] for part in maps)
        scores[layer] = float(linear(train, few.labels, val, data.val.labels).score(test.numpy(), data.test.labels.numpy()))
    return scores


@torch.no_grad()
def _pooled(model: Any, split: Split) -> dict[int, torch.Tensor]:
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    with evaluating(model):
        for batch in split.loader(256).batches():
            x = model.stem(batch.images)
            for number, stage in enumerate(model.stages, start=2):
                x = stage(x)
                if number in found:
                    found[number].append(F.adaptive_avg_pool2d(x, 2).flatten(1))
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def draw(figures: Figures, folder: Path) -> None:
    """Draw the probes' accuracies by layer, before and after, and the accuracy at turns."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 3.6), layout="constrained")
    layers, turns = picture.subplots(1, 2, width_ratios=(3, 1))
    for ending, name, color in (("", "trained on turns", "tab:blue"), ("_untrained", "untrained", "grey")):
        values = 100 * np.stack([figures[f"probe_{layer}{ending}"] for layer in LAYERS])
        layers.plot(LAYERS, values, color=color, alpha=0.35, linewidth=1)
        layers.plot(LAYERS, values.mean(1), "o-", color=color, label=name)
    layers.set(xticks=LAYERS, xlabel="convolution", ylabel="accuracy of the probe, %", title="50 labels a class, frozen features")
    layers.legend()
    turns.bar(0, 100 * figures["turn_accuracy"].mean(), color="tab:blue", alpha=0.4)
    turns.plot([0] * len(figures["turn_accuracy"]), 100 * figures["turn_accuracy"], "o", color="tab:blue")
    turns.axhline(25, color="grey", linestyle=":", label="chance")
    turns.set(xticks=[], ylabel="turns guessed right, %", title="test images", xlim=(-1, 1))
    turns.legend()
    picture.savefig(folder / "rotnet.png", dpi=110)
