"""The test loss of one kind of network on more and more of the images: what the law of `scaling` is fitted to."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from retinue.audit.adversarial import attacked
from retinue.audit.dataset_properties import intrinsic_dimension, label_sharpness
from retinue.audit.scaling import ScalingFit, ScalingRecord, fit_scaling
from retinue.data import Data
from retinue.data.splits import thinned
from retinue.engine import Supervised, evaluate, fit, stages
from retinue.errors import ArgumentError
from retinue.models.layers import conv_norm_act

WIDTHS = (16, 32, 64)


def small_network(num_classes: int, in_chans: int) -> nn.Sequential:
    """Build the probe: three 3x3 convolutions of stride 2 with batch norm and ReLU, global average, a linear layer."""
    chain = (in_chans, *WIDTHS)
    convs = [conv_norm_act(a, b, 3, stride=2) for a, b in zip(chain, WIDTHS)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], num_classes))


def part_of(data: Data, images: int, seed: int = 0) -> Data:
    """Take so many training images, each class in its share, and no validation images; a larger part holds the smaller ones."""
    chosen = thinned(np.arange(len(data.train)), data.train.labels.numpy(), images, seed, "sizes")
    return dataclasses.replace(data, train=data.train.subset(torch.from_numpy(chosen)), val=data.val.subset([]), opened_with=None)


def learning_curve(
    model: nn.Module,
    data: Data,
    *,
    sizes: Sequence[int] = (250, 500, 1000),
    epochs: float = 15,
    batch_size: int = 50,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    k: int = 20,
    max_samples: int | None = 1000,
    eps: float = 2.0,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train copies of a network on parts of the images with Adam, as the paper does, and fit how the test loss falls (section 4).

    Args:
        model: the network; every part starts from its weights, and it is not changed.
        data: labelled images with a test split.
        sizes: training images of each part, drawn class by class; larger parts hold the smaller ones.
        epochs: passes over a part, without augmentation.
        batch_size: images of an update.
        lr: learning rate of Adam, constant.
        weight_decay: of the weights.
        k: neighbours of the intrinsic dimension.
        max_samples: images among which label sharpness is measured.
        eps: how far pixels in [0, 255] are moved against the network.
        seed: of the draws and of the training.
        run_dir: the folder; what has finished is not computed again.
        progress: show a live bar.

    Returns:
        For each part, such as "1,000 images": "images", "dimension", "sharpness", test "loss" and "top1", and "attacked" top-1. Under
        "fit", where there are two parts: "rate" and "r2" of the law, and the "exponent" of N beside the law's "bound" -1/d.

    Raises:
        ArgumentError: if there are fewer than two classes or no test images, or a size cannot be.
    """
    if len(data.classes) < 2 or not len(data.test):
        raise ArgumentError(
            f"learning_curve: {data.name} has {len(data.classes)} classes and {len(data.test)} test images. Give labelled images with both."
        )
    if not sizes or not all(1 < size <= len(data.train) for size in sizes):
        raise ArgumentError(
            f"learning_curve: `sizes` must lie between 2 and the {len(data.train)} training images that there are, got {list(sizes)}."
        )
    finished = stages(run_dir)
    table: dict[str, dict[str, float]] = {}
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
    settings |= {"seed": seed, "progress": progress}

    def part(size: int) -> dict[str, float]:
        few = part_of(data, size, seed)
        return {
            "images": float(size),
            "dimension": intrinsic_dimension(few, k=min(k, size - 1)).value,
            "sharpness": label_sharpness(few, max_samples=max_samples, seed=seed).value,
            **trained(model, few, eps, **settings),
        }

    for size in sorted(set(sizes)):
        table[f"{size:,} images"] = finished(f"{size} images", part, size)
    if len(table) > 1:
        last = list(table.values())[-1]
        fitted = one_data_set(list(table.values()), last["dimension"])
        table["fit"] = {"rate": fitted.rate, "r2": fitted.r2, "exponent": -fitted.rate / last["dimension"], "bound": -1 / last["dimension"]}
    return table


def trained(
    model: nn.Module, data: Data, eps: float, *, epochs: float, batch_size: int, lr: float, weight_decay: float, seed: int, progress: bool
) -> dict[str, float]:
    """Train a copy of a network, and measure it on the test images: "loss", "top1", and "attacked", its top-1 after FGSM."""
    run = fit(
        copy.deepcopy(model), Supervised(), data, epochs=epochs, batch_size=min(batch_size, len(data.train)), optimizer="adam", lr=lr,
        weight_decay=weight_decay, schedule="constant", seed=seed, progress=progress,
    )  # fmt: skip
    numbers = evaluate(run.model, data.test)
    return {"loss": numbers["loss"], "top1": numbers["top1"], "attacked": attacked(run.model, data.test, (eps,))[eps]["top1"]}


def one_data_set(rows: Sequence[dict[str, Any]], dimension: float) -> ScalingFit:
    """Fit the law to parts of one data set, all under the dimension of the largest: what is estimated from few images is too low."""
    return fit_scaling([ScalingRecord(int(row["images"]), max(row["loss"], math.ulp(1.0)), dimension, 1.0) for row in rows])
