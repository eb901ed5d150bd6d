"""st-protopnet: support prototypes draw together, trivial ones keep apart, and both together classify as well as twice as many of one kind.

The page's trial, whole: digits, two convolutions from scratch, three prototypes a class and branch, 15 joint epochs without warm
stage, then a push. For localisation each digit, three times as large, is pasted at a random place of a 64x64 canvas of noise.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.data.dataset import from_arrays
from retinue.engine.seeds import own_randomness, seed_all
from retinue.explain.st_protopnet import PartPrototypes, between, class_pairs
from retinue.explain.st_protopnet_localisation import class_heat, localisation
from retinue.explain.st_protopnet_push import push
from retinue.models.protopnet import ProtoPNet

RULE = (
    "on digits, 3 seeds, trained alike: (a) the mean over class pairs of the smallest similarity of their prototypes is larger in the "
    "support branch than in the trivial branch by at least 0.2, in every seed; (b) the mean accuracy of the summed logits of both "
    "branches with 3 prototypes a class each is at least that of one trivial branch with 6, minus the pooled standard error; (c) the push "
    "changes the accuracy of the two branches by less than 0.03, in every seed; (d) on digits pasted on noise, heat outside over inside is "
    "below 1 and the heat inside is above the mean heat of the canvas, in the mean over seeds"
)
DATA = ("digits",)
EFFECTS = {
    "accuracy, both branches - one": ("accuracy", "accuracy_single"),
    "smallest similarity of classes, support - trivial": ("smallest_support", "smallest_trivial"),
    "heat inside - mean heat": ("heat_inside", "heat_mean"),
}
CANVAS, LARGER, NOISE = 64, 3, 128  # pixels; factor by which a digit is enlarged before it is pasted; the noise is uniform below this byte
BOTH = ("trivial", "support")


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: both branches and a single one before and after the push, and where the prototypes look on canvases."""
    data = retinue.data.open(
        "digits", test_fraction=497 / 1797, val_fraction=0.0, seed=seed, train_images=budget.pick(laptop=None, smoke=100)
    )
    epochs = budget.pick(laptop=15, smoke=1)
    figures: dict[str, Any] = {}
    for end, branches, count in (("", BOTH, 3), ("_single", ("trivial",), 6)):
        network = _train(_backbone(), branches, count, data, epochs, seed)
        figures[f"accuracy{end}"] = retinue.evaluate(network, data.test)["top1"]
        for kind, branch in network.branches.items():
            for word, of in (("smallest", "amin"), ("largest", "amax")):
                table = class_pairs(branch.prototypes.detach(), branch.owner, network.num_classes, of)  # type: ignore[arg-type]
                figures[f"{word}_{kind}{end}"] = float(between(table))
        push(network, data.train)
        figures[f"accuracy_pushed{end}"] = retinue.evaluate(network, data.test)["top1"]
    pasted, boxes = canvases(data, seed)
    layers: dict[str, Any] = {"widths": [16, 16, 32, 32, 64, 64], "num_classes": 10, "in_chans": 1, "input_size": CANVAS}
    with own_randomness():
        seed_all(seed)
        backbone = retinue.create_model("small_convnet", **layers)
    network = _train(backbone, BOTH, 3, pasted, budget.pick(laptop=12, smoke=1), seed, batch_size=16)
    push(network, pasted.train)
    few = slice(0, budget.pick(laptop=200, smoke=8))
    images, labels = pasted.preprocessing.normalize(pasted.test.images()[few]), pasted.test.labels[few]
    found = localisation(network, images, labels, boxes[few])
    return {
        **figures,
        "accuracy_canvas": retinue.evaluate(network, pasted.test)["top1"],
        "heat_inside": found["CH"],
        "heat_mean": float(class_heat(network, images, labels).mean()),
        "outside_inside": found["OIRR"],
        "iou": found["IoU"],
        "deletion": found["DAUC"],
    }


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all four parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    error = pooled_standard_error(figures["accuracy"], figures["accuracy_single"])
    return {
        "support prototypes draw together": bool((figures["smallest_support"] - figures["smallest_trivial"] >= 0.2).all()),
        "accuracy of both": bool(figures["accuracy"].mean() >= figures["accuracy_single"].mean() - error),
        "the push costs little": bool((np.abs(figures["accuracy_pushed"] - figures["accuracy"]) < 0.03).all()),
        "prototypes look at the digit": bool(
            figures["outside_inside"].mean() < 1 and figures["heat_inside"].mean() > figures["heat_mean"].mean()
        ),
    }


def canvases(data: Data, seed: int) -> tuple[Data, Tensor]:
    """Paste each image, enlarged, at a random place of a canvas of noise.

    Returns:
        The canvases in the same splits, and where the digits of the test split are, as bool (images, height, width).
    """
    random = np.random.default_rng(seed)
    pixels, labels, split, masks = [], [], [], []
    for name in ("train", "test"):
        part = getattr(data, name)
        images = F.interpolate(part.images().float(), scale_factor=LARGER, mode="nearest").byte().numpy()[:, 0]
        side = images.shape[-1]
        for image in images:
            canvas = random.integers(0, NOISE, (CANVAS, CANVAS), dtype=np.uint8)
            top, left = random.integers(0, CANVAS - side + 1, 2)
            canvas[top : top + side, left : left + side] = image
            pixels.append(canvas)
            if name == "test":
                mask = np.zeros((CANVAS, CANVAS), dtype=bool)
                mask[top : top + side, left : left + side] = True
                masks.append(mask)
        labels += part.labels.tolist()
        split += [name] * len(part)
    made = from_arrays(np.stack(pixels), labels, classes=data.classes, split=split, name="digits on noise", val_fraction=0.0)
    return made, torch.from_numpy(np.stack(masks))


def _backbone() -> nn.Module:
    """Build the page's trial network, from scratch: convolution with 32 channels, pooling, convolution with 64."""
    first = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _train(
    backbone: nn.Module, branches: tuple[str, ...], count: int, data: Data, epochs: int, seed: int, batch_size: int = 64
) -> ProtoPNet:
    """Train the joint stage from weights that the seed determines."""
    size = data.preprocessing.input_size
    with own_randomness():
        seed_all(seed)
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        network = ProtoPNet(backbone, len(data.classes), count, 32, "cosine", branches, in_chans=1, input_size=size)
    players = {"backbone": {"lr": 1e-3}, "addon": {"lr": 3e-3}, "prototypes": {"lr": 3e-3, "weight_decay": 0.0}}
    retinue.fit(
        network, PartPrototypes(), data, epochs=epochs, batch_size=batch_size, optimizer="adam", weight_decay=1e-4, schedule="constant",
        players=players, seed=seed, progress=False,
    )  # fmt: skip
    return network


def draw(figures: Figures, folder: Path) -> None:
    """Draw how near classes come in each branch, the accuracies, and the heat inside and over all of the canvas."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 3.6), layout="constrained")
    near, accuracy, heat = picture.subplots(1, 3)
    _dots(
        near,
        {name: figures[name.replace(" ", "_")] for name in ("smallest trivial", "largest trivial", "smallest support", "largest support")},
    )
    near.set_title("similarity of prototypes of two classes")
    names = {"both": "accuracy", "both,\npushed": "accuracy_pushed", "one": "accuracy_single", "one,\npushed": "accuracy_pushed_single"}
    _dots(accuracy, {name: 100 * figures[key] for name, key in names.items()})
    accuracy.set_title("test accuracy, %")
    _dots(heat, {"inside the digit": figures["heat_inside"], "all of the canvas": figures["heat_mean"]})
    heat.set(title="mean heat of the class's prototypes", ylim=(0, 1))
    picture.savefig(folder / "st-protopnet.png", dpi=110)


def _dots(axes: Any, groups: dict[str, Any]) -> None:
    for place, values in enumerate(groups.values()):
        axes.plot([place] * len(values), values, "o", color="black", markersize=4)
        axes.plot([place - 0.25, place + 0.25], [values.mean()] * 2, color="tab:blue")
    axes.set_xticks(range(len(groups)), [name.replace(" ", "\n") for name in groups], fontsize=8)
    axes.margins(x=0.2)
