"""simclr-v2: with ten labels a class, a network that has first seen all images without labels is better than one that has not.

The page's measure: pre-train on 5,000 photographs, fine-tune on 100 of them with their labels, distil the result into a fresh network on
all. That fine-tuning from the head's first layer beats fine-tuning from the features shows with ImageNet alone: reported, not judged.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data, few_labels
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models import untrained
from retinue.models.projection import ProjectionHead
from retinue.pretrain.simclr_v2_stages import distill, finetune, pretrain
from retinue.train import linear
from retinue.train.probe import features

RULE = (
    "on CIFAR-10 at 16 px, 5,000 images of which 10 a class have labels, over 3 seeds, by more than the pooled standard error in the mean: "
    "the network pre-trained on all images and fine-tuned from the head's first layer is more accurate than one trained on the same labels "
    "from scratch; so is the student that it then teaches; and a linear probe of the pre-trained network with all labels is more accurate "
    "than one of the untrained network. Fine-tuning from the features, and student - teacher, are reported"
)
DATA = ("cifar10",)
EFFECTS = {
    "test accuracy, fine-tuned from layer 1 - scratch": ("layer_1", "scratch"),
    "test accuracy, distilled student - scratch": ("student", "scratch"),
    "test accuracy, distilled student - its teacher": ("student", "layer_1"),
    "test accuracy of a linear probe, pre-trained - untrained": ("probe", "probe_untrained"),
    "test accuracy, fine-tuned from layer 1 - from the features": ("layer_1", "layer_0"),
}
HEAD: dict[str, Any] = {"hidden_dim": 96, "out_dim": 64}
CROP = "random_resized_crop(16, scale=(0.3, 1.0), interpolation='bicubic'), flip"
LRS = (0.02, 0.05)  # of fine-tuning, chosen for each way alone on validation images
LAST = 1 << 40  # epochs between evaluations: the last weights are kept


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: accuracies of the probes, of fine-tuning from three beginnings, and of the student."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=16, channels=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), seed=seed,
        train_images=budget.pick(laptop=5000, smoke=400), test_images=budget.pick(laptop=1000, smoke=60),
    )  # fmt: skip
    data = replace(data, val=data.val.subset(range(min(len(data.val), 1000))))
    with own_randomness():
        seed_all(seed)
        model = retinue.create_model("small_convnet", num_classes=0, input_size=16)
        fresh, student = untrained(model), untrained(model)
        head = ProjectionHead(model.num_features, **HEAD)  # type: ignore[arg-type]
        student.reset_classifier(len(data.classes))  # type: ignore[operator]
    figures = {"probe_untrained": probe(seen_once(model, data), data)}
    run = pretrain(
        model, data, {"temperature": 0.2, "strength": 0.5, "crop_area": (0.3, 1.0), **HEAD}, seed, epochs=budget.pick(laptop=14, smoke=1),
        batch_size=128, optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="onecycle", progress=False,
    )  # fmt: skip
    trained: Any = run.objective
    figures |= {"probe": probe(model, data), "nt_xent": run.history[-1].get("val/loss", run.history[-1].get("train/loss", np.nan))}
    teacher = None
    for name, network, projection, layer in (
        ("scratch", fresh, head, 0), ("layer_0", model, trained.head, 0), ("layer_1", model, trained.head, 1),
    ):  # fmt: skip
        teacher = best_of(network, projection, data, layer, seed, budget.pick(laptop=100, smoke=3))
        figures[name] = retinue.evaluate(teacher, data.test)["top1"]
    taught = distill(
        teacher, student, data, temperature=0.1, seed=seed, epochs=budget.pick(laptop=6, smoke=1), batch_size=128,  # type: ignore[arg-type]
        optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="onecycle", views=CROP, eval_every=LAST, progress=False,
    )  # fmt: skip
    return {**figures, "student": retinue.evaluate(taught.model, data.test)["top1"]}


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge fine-tuning, distillation and the probe."""
    pairs = {
        "fine-tuned beats scratch": ("layer_1", "scratch"),
        "distilled beats scratch": ("student", "scratch"),
        "probe beats untrained": ("probe", "probe_untrained"),
    }
    return {
        name: bool(figures[a].mean() - figures[b].mean() > pooled_standard_error(figures[a], figures[b])) for name, (a, b) in pairs.items()
    }


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


def best_of(model: nn.Module, head: ProjectionHead, data: Data, from_layer: int, seed: int, steps: int) -> nn.Module:
    """Fine-tune on ten labels a class with each learning rate, and return what is most accurate on validation images."""
    few = few_labels(data, per_class=10, seed=seed)
    settings: dict[str, Any] = {"max_steps": steps, "batch_size": 100, "optimizer": "sgd", "weight_decay": 0.0, "views": CROP}
    settings |= {"eval_every": LAST, "seed": seed, "progress": False}
    tuned = [finetune(model, head, few, from_layer=from_layer, lr=lr, **settings) for lr in LRS]
    return max(tuned, key=lambda run: run.metrics["top1"]).model


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracies of each way with ten labels a class, and of the two probes."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.8), layout="constrained")
    few, probes = picture.subplots(1, 2, width_ratios=(2, 1))
    names = {"scratch": "from\nscratch", "layer_0": "fine-tuned from\nthe features", "layer_1": "fine-tuned from\nlayer 1"}
    names |= {"student": "distilled\nstudent"}
    _bars(few, figures, names, "10 labels a class")
    _bars(probes, figures, {"probe_untrained": "untrained", "probe": "pre-trained"}, "linear probe, all labels")
    picture.savefig(folder / "simclr-v2.png", dpi=110)


def _bars(axes: Any, figures: Figures, names: dict[str, str], title: str) -> None:
    values = 100 * np.stack([figures[name] for name in names])
    colors = ["grey", "tab:green", "tab:blue", "tab:orange"] if len(names) > 2 else ["grey", "tab:blue"]
    axes.bar(range(len(names)), values.mean(1), color=colors, alpha=0.4)
    axes.plot(values, "o-", color="black", alpha=0.4, linewidth=0.8)  # a line for each seed
    axes.axhline(10, color="grey", linestyle=":")  # chance
    axes.set(xticks=range(len(names)), xticklabels=list(names.values()), ylabel="test accuracy, %", title=title)
