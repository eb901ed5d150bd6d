"""Grad-CAM on timm's resnet18, 64 images of 64 px, beside captum's LayerGradCam and its interpolation: one image a call, or all in one."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from captum.attr import LayerGradCam
from torch import Tensor

from retinue.explain import GradCAM

IMAGES, SIDE, LAYER = 64, 64, "layer4"


def seconds(explain: Callable[[Tensor, Tensor], Tensor], images: Tensor, target: Tensor, batch_size: int) -> float:
    """Time heat maps of all images."""
    started = time.perf_counter()
    for some, classes in zip(images.split(batch_size), target.split(batch_size)):
        explain(some, classes)
    return time.perf_counter() - started


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure both in turn, with and without a batch; medians, as images a second."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    images, target = torch.randn(IMAGES, 3, SIDE, SIDE), torch.arange(IMAGES)
    theirs = LayerGradCam(model, model.get_submodule(LAYER))

    def captum(some: Tensor, classes: Tensor) -> Tensor:
        maps = theirs.attribute(some, classes, relu_attributions=True)
        return LayerGradCam.interpolate(maps / maps.amax((1, 2, 3), keepdim=True), (SIDE, SIDE), "bilinear")[:, 0]

    rows = []
    with GradCAM(model, LAYER) as ours:
        for name, batch_size in (("one image a call", 1), ("64 images in one call", IMAGES)):
            times: dict[str, list[float]] = {"ours": [], "peer": []}
            for number in range(2 if quick else 12):
                for who, explain in (("ours", ours), ("peer", captum)):
                    took = seconds(explain, images, target, batch_size)
                    if number:  # the first round is for warming up
                        times[who].append(took)
            rate = {who: IMAGES / statistics.median(values) for who, values in times.items()}
            rows.append({"name": f"Grad-CAM, {name}", **rate, "ratio": rate["ours"] / rate["peer"], "unit": "images/s", "target": 1.0})
    return rows
