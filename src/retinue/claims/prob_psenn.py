"""prob-psenn: random prototypes tell what the network does not know, at an accuracy near that of fixed ones.

The page's measure, whole: digits 0 to 7 are learned, 8 and 9 are never seen; what is unsure should be the unknown and the errors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

import retinue
from retinue.claims.harness import Budget, Figures
from retinue.data import Data, from_arrays
from retinue.engine.seeds import own_randomness, seed_all
from retinue.explain.prob_psenn import ProbPSENN, train_prob_psenn, training_distances
from retinue.explain.prototype_dl import PrototypeLoss, squared_distances

RULE = (
    "on digits with 8 and 9 held out, in the mean over seeds: (a) test accuracy on the known classes is at least 0.88 and at most "
    "0.08 below that of PrototypeDL with the same encoder; (b) the area under the ROC of unknown against known is above 0.8 by "
    "predictive entropy and above 0.6 by typicality; (c) that of errors against right answers is above 0.8 by predictive entropy; (d) "
    "decoded prototypes, encoded again, lie nearer to where they were than half the squared distance between class means"
)
DATA = ("digits",)
KNOWN = 8
EFFECTS = {
    "accuracy, random - fixed prototypes": ("accuracy", "accuracy_fixed"),
    "squared distance, decoded and encoded again - half that of class means": ("again", "half_between"),
}
SHAPE: dict[str, Any] = {"num_classes": KNOWN, "in_chans": 1, "input_size": 8, "widths": [32, 32], "latent_dim": 16}
SETTINGS: dict[str, Any] = {"batch_size": 50, "optimizer": "adam", "lr": 2e-3, "schedule": "constant", "progress": False}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: both networks on the known digits, and what the random one says of known and unknown ones."""
    known, unknown = digits(seed, budget)
    epochs = budget.pick(laptop=(10, 25), smoke=(1, 1))
    with own_randomness():
        seed_all(seed)
        network: Any = retinue.create_model("prob_psenn", encoder="prototype_dl", **SHAPE)
    train_prob_psenn(network, known, epochs=epochs, seed=seed, **SETTINGS)
    with own_randomness():
        seed_all(seed)
        fixed = retinue.create_model("prototype_dl", **SHAPE)
    fixed = retinue.fit(fixed, PrototypeLoss(), known, epochs=sum(epochs), weight_decay=0.0, seed=seed, **SETTINGS).model
    images = known.test.preprocessing.normalize(known.test.images())
    stats = training_distances(network, known.train)
    doubt, of_unknown = (network.uncertainty(some, 200, stats) for some in (images, unknown))
    wrong = network.predict(images).argmax(1) != known.test.labels
    figures = {
        "accuracy": 1 - float(wrong.float().mean()),
        "accuracy_fixed": retinue.evaluate(fixed, known.test)["top1"],
        "accuracy_modes": float((network.predict(images, mode=True).argmax(1) == known.test.labels).float().mean()),
        "errors_predictive": area(doubt["predictive"][~wrong], doubt["predictive"][wrong]),
        "mean_overlap": float(doubt["overlap"].mean()),
        "mean_overlap_unknown": float(of_unknown["overlap"].mean()),
    }
    figures |= {f"unknown_{name}": area(doubt[name], of_unknown[name]) for name in doubt}
    return {**figures, **decoded(network)}


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all four parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    mean = {name: float(values.mean()) for name, values in figures.items()}
    return {
        "accuracy": mean["accuracy"] >= 0.88 and mean["accuracy"] >= mean["accuracy_fixed"] - 0.08,
        "unknown classes": mean["unknown_predictive"] > 0.8 and mean["unknown_typicality"] > 0.6,
        "own errors": mean["errors_predictive"] > 0.8,
        "decoded prototypes": mean["again"] < mean["half_between"],
    }


def digits(seed: int, budget: Budget) -> tuple[Data, Tensor]:
    """Return data of the known digits, and the images of the unknown ones, in [0, 1]."""
    everything = load_digits()
    images, labels = everything.images / 16, everything.target
    chosen = np.flatnonzero(labels < KNOWN)
    few = chosen if budget.name == "laptop" else np.random.default_rng(seed).permutation(chosen)[:300]
    data = from_arrays(
        images[few], labels[few], name="digits 0 to 7", test_fraction=0.25, val_fraction=0.0, seed=seed, mean=(0.0,), std=(1.0,)
    )
    return data, torch.as_tensor(images[labels >= KNOWN], dtype=torch.float32)[:, None]


def area(low: Tensor, high: Tensor) -> float:
    """Compute the area under the ROC: how likely a number of `high` exceeds one of `low`; one half where there is nothing to compare."""
    if not len(low) or not len(high):
        return 0.5
    return float(roc_auc_score([0] * len(low) + [1] * len(high), torch.cat([low, high]).numpy()))


@torch.no_grad()
def decoded(network: ProbPSENN) -> dict[str, float]:
    """Measure how far samples of prototypes lie from themselves, decoded and encoded again, and half of how far class means lie apart."""
    samples = network.eval().sample_prototypes(200).flatten(0, 1)
    again = network.forward_features(network.pixels.normalized(network.decoder(samples)))
    modes = network.distributions.modes()
    between = squared_distances(modes, modes)[~torch.eye(len(modes), dtype=torch.bool)]
    return {"again": float((again - samples).square().sum(1).mean()), "half_between": float(between.mean() / 2)}


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracies, and how well each uncertainty tells the unknown and the errors."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = picture.subplots(1, 3, width_ratios=[1, 2, 0.8])
    panels: list[tuple[Any, str, dict[str, str], float]] = [
        (left, "test accuracy on known digits, %", {"random": "accuracy", "modes": "accuracy_modes", "fixed": "accuracy_fixed"}, 100),
        (
            middle,
            "area under the ROC; dotted: chance",
            {
                "unknown by\npredictive": "unknown_predictive", "unknown by\naleatoric": "unknown_aleatoric",
                "unknown by\nepistemic": "unknown_epistemic", "unknown by\ntypicality": "unknown_typicality",
                "unknown by\noverlap": "unknown_overlap", "errors by\npredictive": "errors_predictive",
            },
            1,
        ),
        (right, "squared distances of codes", {"decoded and\nencoded again": "again", "half between\nclass means": "half_between"}, 1),
    ]  # fmt: skip
    for axes, title, bars, scale in panels:
        for place, name in enumerate(bars.values()):
            values = scale * figures[name]
            axes.bar(place, values.mean(), color="tab:blue", alpha=0.4)
            axes.plot([place] * len(values), values, "o", color="black", markersize=4)
        axes.set(xticks=np.arange(len(bars)), title=title)
        axes.set_xticklabels(bars, fontsize=7)
        axes.title.set_fontsize(9)
    left.set_ylim(50, 100)
    middle.axhline(0.5, color="grey", linestyle=":")
    picture.savefig(folder / "prob-psenn.png", dpi=110)
