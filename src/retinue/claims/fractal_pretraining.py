"""fractal-pretraining: a network that has seen generated fractals alone learns from few labels of real images better than a fresh one.

The page's measure: the multi-instance task on 50 systems at 32 px, then fine-tuning on 10 labels a class. The fresh network gets the same
images, updates and choice of learning rates. The paper's 92.7 to 98.1 % of ImageNet's accuracy needs ImageNet's weights and GPUs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data, few_labels
from retinue.engine import evaluate
from retinue.engine.seeds import own_randomness, seed_all
from retinue.pretrain.fractal import FractalDataset
from retinue.pretrain.fractal_data import fractals
from retinue.pretrain.fractal_objectives import FastHead, MultiInstance
from retinue.pretrain.fractal_render import render_ifs
from retinue.pretrain.fractal_systems import iterate_ifs, sample_ifs
from retinue.train.probe import features, linear

RULE = (
    "over 3 seeds: fine-tuned on 10 labels a class of MNIST, the network pre-trained on fractals alone is more accurate in the mean than "
    "the same network from scratch by more than the pooled standard error; and of systems drawn with the sigma-factor in its band the "
    "shares of lit pixels spread wider (5th to 95th percentile) than of systems with a factor of 0.8 times its most, while a factor of "
    "0.5 leaves under 0.5 % lit in the median; linear probes of the frozen features, on MNIST and CIFAR-10, are reported"
)
DATA = ("mnist", "cifar10")
SIDE, CLASSES, LABELS = 32, 50, 10
WIDTHS = (20, 20, 40, 40, 80, 80)  # 112,000 weights
RATES = ((0.1, 0.1), (0.03, 0.3), (0.03, 0.03), (0.01, 0.1))  # of the backbone and of the classifier, tried for both networks
HALF = (0.5, 0.5, 0.5)  # mean and deviation by which fractals are normalised, and so are the real images
EFFECTS = {
    "MNIST, fine-tuned on 10 labels a class: fractals - from scratch": ("mnist", "mnist_scratch"),
    "MNIST, linear probe of frozen features: fractals - untrained": ("mnist_linear", "mnist_linear_scratch"),
    "CIFAR-10, linear probe of frozen features: fractals - untrained": ("cifar10_linear", "cifar10_linear_scratch"),
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: how well the fractals are learned, accuracies on real images with few labels, and shares of lit pixels."""
    images = budget.pick(laptop=80_000, smoke=64)
    held_out = budget.pick(laptop=500, smoke=50)
    data = fractals(
        CLASSES, train_images=images, val_images=held_out, test_images=0, input_size=SIDE, n_points=20_000, seed=seed
    )  # fmt: skip
    model = network(CLASSES, seed)
    run = retinue.fit(
        model, MultiInstance(), data, epochs=1, batch_size=32, optimizer="adamw", lr=3e-3, weight_decay=0.01, schedule="onecycle",
        seed=seed, progress=False,
    )  # fmt: skip
    figures: dict[str, Any] = {"recall_fractals": run.metrics["recall"]}
    for name in DATA:
        real = target(name, seed, budget)
        for ending, weights in (("", run.model), ("_scratch", None)):
            figures[f"{name}_linear{ending}"] = probed(weights, real, seed)
            if name == "mnist":
                figures[f"{name}{ending}"] = fine_tuned(weights, real, seed, budget)
    for name, share in (("band", None), ("low", 0.5), ("high", 0.8)):
        figures[f"lit_{name}"] = np.percentile(lit_shares(name, share, seed, budget.pick(laptop=100, smoke=3)), (5, 50, 95)).tolist()
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    learned, scratch = figures["mnist"], figures["mnist_scratch"]
    better = learned.mean() - scratch.mean() > pooled_standard_error(learned, scratch)
    band, low, high = (figures[f"lit_{name}"].mean(0) for name in ("band", "low", "high"))
    return bool(better and band[2] - band[0] > high[2] - high[0] and low[1] < 0.005)


def network(classes: int, seed: int) -> nn.Module:
    """Build the network with fresh weights."""
    with own_randomness():
        seed_all(seed)
        return retinue.create_model("small_convnet", widths=WIDTHS, num_classes=classes, input_size=SIDE)


def backbone(weights: nn.Module | None, classes: int, seed: int) -> nn.Module:
    """Build the network with a new classifier, and the other weights of a trained one."""
    model: Any = network(CLASSES, seed)
    if weights is not None:
        model.load_state_dict(weights.state_dict())
    with own_randomness():
        seed_all(seed, classes)
        model.reset_classifier(classes)
    return model


def target(name: str, seed: int, budget: Budget) -> Data:
    """Open real images, and keep few labels."""
    source = budget.pick(laptop=name, smoke="digits")
    count = budget.pick(laptop=(2000, 2000), smoke=(200, 30))
    data = retinue.data.open(
        source, input_size=SIDE, channels=3, mean=HALF, std=HALF, splits="drawn", train_images=count[0], test_images=count[1],
        val_fraction=budget.pick(laptop=0.01, smoke=0.1), seed=seed,
    )  # fmt: skip
    return few_labels(data, per_class=budget.pick(laptop=LABELS, smoke=2), seed=seed)


def fine_tuned(weights: nn.Module | None, data: Data, seed: int, budget: Budget) -> float:
    """Fine-tune with each pair of `RATES`, choose on the validation images, and measure on the test images."""
    runs = []
    for lr, head_lr in RATES[: budget.pick(laptop=len(RATES), smoke=1)]:
        run = retinue.fit(
            backbone(weights, len(data.classes), seed), FastHead(), data, max_steps=budget.pick(laptop=150, smoke=2), batch_size=32,
            optimizer="nesterov", lr=lr, weight_decay=5e-5, players={"head": {"lr": head_lr, "weight_decay": 1e-4}}, schedule="onecycle",
            eval_every=1000, views="crop(3)", seed=seed, progress=False,
        )  # fmt: skip
        runs.append(run)
    return evaluate(max(runs, key=lambda run: run.metrics["top1"]).model, data.test)["top1"]


def probed(weights: nn.Module | None, data: Data, seed: int) -> float:
    """Fit a logistic regression to frozen features; batch norms have first seen the labelled images, of either network."""
    model = backbone(weights, len(data.classes), seed).train()
    with torch.no_grad():
        for epoch in range(20):
            for batch in data.train.loader(64, shuffle=True).batches(epoch):
                model(batch.images)
    train, val, test = (features(model, split) for split in (data.train, data.val, data.test))
    return float(linear(train, data.train.labels, val, data.val.labels).score(test.numpy(), data.test.labels.numpy()))


def lit_shares(name: str, share: float | None, seed: int, count: int) -> list[float]:
    """Return the shares of lit pixels, at 64 px and 20,000 points, of systems of 2 to 4 maps with a kind of sigma-factor."""
    random, shares = np.random.default_rng([seed, len(name)]), []
    for number in range(count):
        maps = 2 + number % 3
        alpha = share * 3 * maps if name == "high" and share is not None else share
        points = iterate_ifs(sample_ifs(maps, alpha, rng=random), 20_000, random)
        shares.append(float((render_ifs(points, 64) > 0).mean()))
    return shares


def gallery(mode: Any, rows: int, columns: int, side: int = 64) -> np.ndarray:
    """Return a sheet of fractals (height, width, 3); in "single" mode each row is a class."""
    dataset = FractalDataset(rows, columns, side, mode, n_points=30_000)
    sheet = dataset.images(range(len(dataset))).numpy().reshape(rows, columns, 3, side, side)
    return sheet.transpose(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)


def draw(figures: Figures, folder: Path) -> None:
    """Draw both kinds of images, the accuracies, and the shares of lit pixels by sigma-factor."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 7.2), layout="constrained")
    axes = picture.subplots(2, 2, height_ratios=(3, 2))
    for axis, mode, title in zip(axes[0], ("single", "multi"), ("one fractal an image, a class a row", "several: the pre-training task")):
        axis.imshow(gallery(mode, 6, 9))
        axis.set(title=title, xticks=[], yticks=[])
    names = {"mnist": "MNIST\nfine-tuned", "mnist_linear": "MNIST\nfrozen", "cifar10_linear": "CIFAR-10\nfrozen"}
    for place, name in enumerate(names):
        for ending, shift, color in (("", -0.2, "tab:blue"), ("_scratch", 0.2, "grey")):
            values = 100 * figures[f"{name}{ending}"]
            axes[1, 0].bar(place + shift, values.mean(), 0.38, color=color, alpha=0.4)
            axes[1, 0].plot([place + shift] * len(values), values, "o", color=color, markersize=4)
    axes[1, 0].set(xticks=range(len(names)), xticklabels=list(names.values()), ylabel="accuracy on test images, %")
    axes[1, 0].set_title(f"{LABELS} labels a class: fractals (blue), from scratch (grey)")
    for place, name in enumerate(("low", "band", "high")):
        few, median, many = 100 * figures[f"lit_{name}"].mean(0)
        axes[1, 1].plot([place, place], [few, many], color="tab:blue", linewidth=6, alpha=0.4)
        axes[1, 1].plot(place, median, "o", color="tab:blue")
    axes[1, 1].set(
        xticks=range(3), xticklabels=["sigma-factor 0.5", "in its band", "0.8 of its most"], ylabel="lit pixels, %", xlim=(-0.5, 2.5)
    )
    axes[1, 1].set_title("attractors: median, 5th to 95th percentile")
    picture.savefig(folder / "fractal-pretraining.png", dpi=110)
