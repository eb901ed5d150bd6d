"""scatsimclr: on a thousand photographs, contrast teaches more behind a fixed scattering transform than behind layers to be learned.

The page's measure. Both encoders have the same adapter and the same number of weights; before it stands the scattering transform, or two
convolutions that are learned. What is compared is a linear probe with the labels of the same images. The untrained encoders' batch norms
have seen the images, so that their features are as well scaled.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models.layers import conv_norm_act
from retinue.models.scatsimclr import scatsimclr
from retinue.pretrain.scatsimclr import ScatSimCLR
from retinue.train import linear
from retinue.train.probe import features

RULE = (
    "on 1,000 training images of CIFAR-10 at 16 px, over 3 seeds: after 450 steps of contrastive training, a linear probe of the encoder "
    "with the scattering transform is more accurate than one of an encoder with as many weights all of which are learned, by more than the "
    "pooled standard error; and more accurate than one of the same encoder untrained by more than 2 points and the pooled standard error. "
    "What rotation adds is reported"
)
DATA = ("cifar10",)
EFFECTS = {
    "probe's test accuracy, scattering - convolutions": ("scattering", "convolutions"),
    "probe's test accuracy, scattering trained - untrained": ("scattering", "scattering_untrained"),
    "probe's test accuracy, convolutions trained - untrained": ("convolutions", "convolutions_untrained"),
    "probe's test accuracy, scattering with rotation - without": ("rotation", "scattering"),
}
SIDE = 16
NETWORK: dict[str, Any] = {"J": 2, "L": 4, "stem_width": 32, "stages": ((32, 2), (64, 2)), "normalize_scattering": True}
OBJECTIVE: dict[str, Any] = {  # the temperature of small batches and few steps; the paper has 0.5
    "temperature": 0.2, "hidden_dim": 256, "out_dim": 64, "strength": 0.5, "crop_area": (0.3, 1.0), "blur": False,
}  # fmt: skip
WIDTH = 68  # channels of the first learned convolution: 190,452 weights in all, beside 190,646
LAST = 1 << 40  # epochs between evaluations: the last weights are kept


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: accuracies of the probes of both encoders before and after, and with rotation."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=SIDE, channels=3, seed=seed,
        train_images=budget.pick(laptop=1000, smoke=96), test_images=budget.pick(laptop=2000, smoke=60),
    )  # fmt: skip
    data = replace(data, val=data.val.subset(range(min(len(data.val), budget.pick(laptop=500, smoke=60)))))
    figures = {}
    for name, pretext in (("scattering", None), ("convolutions", None), ("rotation", "rotation")):
        with own_randomness():
            seed_all(seed)
            model = encoder(learned=name == "convolutions")
            objective = ScatSimCLR(model, data, pretext=pretext, **OBJECTIVE)  # type: ignore[arg-type]
        if pretext is None:
            figures[f"{name}_untrained"] = probe(seen_once(model, data), data)
        run = retinue.fit(
            model, objective, data, epochs=budget.pick(laptop=30, smoke=1), batch_size=64, optimizer="adam", lr=2e-3, weight_decay=0.0,
            schedule="onecycle", eval_every=LAST, eval_batch_size=64, seed=seed, progress=False,
        )  # fmt: skip
        figures[name] = probe(run.model, data)
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge the transform, and the training."""
    ours = figures["scattering"]

    def better(other: str, least: float) -> bool:
        gain = float(ours.mean() - figures[other].mean())
        return gain > max(least, pooled_standard_error(ours, figures[other]))

    return {"scattering beats convolutions": better("convolutions", 0.0), "trained beats untrained": better("scattering_untrained", 0.02)}


def encoder(learned: bool) -> nn.Module:
    """Build the encoder with the scattering transform, or with two convolutions of stride 2 in its place."""
    model = scatsimclr(8, 0, input_size=SIDE, **NETWORK)
    if learned:
        model.stem = nn.Sequential(conv_norm_act(3, WIDTH, 3, 2), conv_norm_act(WIDTH, NETWORK["stem_width"], 3, 2))
    return model


def probe(model: nn.Module, data: Data) -> float:
    """Return the accuracy on test images of a linear probe with all labels; its strength is chosen on validation images."""
    train, val, test = (features(model, split) for split in (data.train, data.val, data.test))
    return float(linear(train, data.train.labels, val, data.val.labels).score(test.numpy(), data.test.labels.numpy()))


@torch.no_grad()
def seen_once(model: nn.Module, data: Data) -> nn.Module:
    """Show an untrained network the training images, so that its batch norms know them."""
    for batch in data.train.loader(128).batches():
        model.train()(batch.images)
    return model


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracies of the probes of each encoder, before and after."""
    from matplotlib.figure import Figure

    names = {
        "convolutions_untrained": "convolutions,\nuntrained", "convolutions": "convolutions,\ncontrast",
        "scattering_untrained": "scattering,\nuntrained", "scattering": "scattering,\ncontrast", "rotation": "scattering,\nand rotation",
    }  # fmt: skip
    picture = Figure(figsize=(8, 3.8), layout="constrained")
    axes = picture.subplots()
    values = 100 * np.stack([figures[name] for name in names])
    colors = ["lightgrey", "tab:orange", "lightgrey", "tab:blue", "tab:green"]
    axes.bar(range(len(names)), values.mean(1), color=colors, alpha=0.5)
    for place, accuracies in enumerate(values):
        axes.plot([place] * len(accuracies), accuracies, "o", color="black", alpha=0.5, markersize=4)
    axes.set(xticks=range(len(names)), xticklabels=list(names.values()), ylabel="test accuracy of the probe, %", ylim=(0, None))
    axes.set_title("linear probe, 1,000 photographs with labels")
    picture.savefig(folder / "scatsimclr.png", dpi=110)
