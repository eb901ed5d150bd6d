"""inception-next: the four-way mixer trains faster than a dense 7x7 depthwise convolution in the same network, and is as accurate.

The page's measure of accuracy, cut to what two cores can train in minutes: 4 blocks instead of 10, widths of 32 to 128 instead of 40 to
160, 5,000 images instead of 10,000. gamma of the blocks begins with 1, since a millionth needs more epochs than these to grow.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models import InceptionDWConv2d, inception_next
from retinue.train import Supervised

RULE = (
    "(1) in the mean over seeds, a training step of the network (three stages of 2, 2 and 6 blocks, 32 px maps, batch 16, one thread, "
    "median processor time of 10 steps) takes at least 1.2 times as long with the 7x7 mixer as with the Inception mixer, and a step of "
    "the mixer alone (96 channels, 56 px, batch 16) at least 2 times as long; (2) on CIFAR-10 the mean test accuracy with the Inception "
    "mixer is below that with 7x7 by at most 1.5 points or twice the pooled standard error, whichever is more, and above that without "
    "any mixer by at least 3 points and twice the pooled standard error"
)
DATA = ("cifar10",)
EFFECTS = {
    "ms of a training step of the network, 7x7 - Inception": ("network_ms_dw7", "network_ms_inception"),
    "ms of a training step of the mixer, 7x7 - Inception": ("mixer_ms_dw7", "mixer_ms_inception"),
    "test accuracy, Inception - 7x7": ("top1_inception", "top1_dw7"),
    "test accuracy, Inception - no mixer": ("top1_inception", "top1_identity"),
}
MIXERS = ("inception", "dw7", "identity")
SHAPE: dict[str, Any] = {"band_kernel_size": 9, "branch_ratio": 0.25, "ls_init_value": 1.0}  # the page's mixer for 32 px


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: how much faster network and mixer train, and how accurate the three networks become."""
    width = budget.pick(laptop=1, smoke=4)  # the smoke run divides by it
    side = budget.pick(laptop=64, smoke=32)
    with own_randomness():
        seed_all(seed)
        sizes: dict[str, Any] = {"depths": [2, 2, 6], "dims": [40 // width, 80 // width, 160 // width], "stem_stride": 2}
        networks = [inception_next(input_size=side, num_classes=10, token_mixer=mixer, **sizes, **SHAPE) for mixer in ("dw7", "inception")]
        channels, places = 96 // width, 56 // width
        mixers = [nn.Conv2d(channels, channels, 7, padding=3, groups=channels), InceptionDWConv2d(channels)]
        steps = budget.pick(laptop=10, smoke=2)
        images, maps = torch.randn(16, 3, side, side), torch.randn(16, channels, places, places, requires_grad=True)
        figures: dict[str, Any] = {}
        for what, pair, x in (("network", networks, images), ("mixer", mixers, maps)):
            figures |= dict(zip((f"{what}_ms_dw7", f"{what}_ms_inception"), _milliseconds(pair, x, steps)))
    for mixer in MIXERS:
        figures |= _train(mixer, seed, budget)
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    ours, dense, none = (figures[f"top1_{mixer}"] for mixer in MIXERS)
    return {
        "it trains faster": bool(speedup(figures, "network").mean() >= 1.2 and speedup(figures, "mixer").mean() >= 2),
        "it is as accurate as 7x7": bool(dense.mean() - ours.mean() <= max(0.015, 2 * pooled_standard_error(dense, ours))),
        "it is better than no mixer": bool(ours.mean() - none.mean() >= max(0.03, 2 * pooled_standard_error(ours, none))),
    }


def speedup(figures: Figures, what: str) -> NDArray[np.float64]:
    """Return how many times as long a training step takes with 7x7, for each seed.

    Args:
        figures: what was measured.
        what: "network" or "mixer".
    """
    return figures[f"{what}_ms_dw7"] / figures[f"{what}_ms_inception"]


def _milliseconds(modules: list[nn.Module], x: torch.Tensor, steps: int) -> list[float]:
    """Return the median processor time of each module's forward and backward pass on one thread; they take turns, three to warm up."""
    threads, times = torch.get_num_threads(), torch.zeros(len(modules), 3 + steps, dtype=torch.float64)
    torch.set_num_threads(1)
    try:
        for step in range(3 + steps):
            for place, module in enumerate(modules):
                began = time.process_time()
                module(x).sum().backward()
                times[place, step] = time.process_time() - began
                module.zero_grad()
                x.grad = None
    finally:
        torch.set_num_threads(threads)
    return (1000 * times[:, 3:].quantile(0.5, dim=1)).tolist()


def _train(mixer: str, seed: int, budget: Budget) -> dict[str, float]:
    """Train one network, and return its accuracy on the test images and its seconds for each epoch."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=budget.pick(laptop=32, smoke=16), channels=3,
        train_images=budget.pick(laptop=5000, smoke=64), test_images=budget.pick(laptop=4000, smoke=64), seed=seed,
    )  # fmt: skip
    epochs = budget.pick(laptop=10, smoke=1)
    with own_randomness():
        seed_all(seed)
        dims = budget.pick(laptop=[32, 64, 128], smoke=[8, 16, 32])
        build = partial(inception_next, num_classes=10, depths=[1, 1, 2], dims=dims, **SHAPE)
        model = build(token_mixer=mixer, input_size=data.preprocessing.input_size)
    began = time.perf_counter()
    run = retinue.fit(
        model, Supervised(), data, epochs=epochs, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.05, warmup_epochs=1,
        views="crop(4), flip", eval_every=epochs, seed=seed, progress=False,
    )  # fmt: skip
    seconds = (time.perf_counter() - began) / epochs
    return {f"top1_{mixer}": retinue.evaluate(run.model, data.test)["top1"], f"seconds_per_epoch_{mixer}": seconds}


def draw(figures: Figures, folder: Path) -> None:
    """Draw how much faster network and mixer train, and accuracy against the seconds that an epoch takes."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 3.8), layout="constrained")
    speed, accuracy = picture.subplots(1, 2)
    for place, (name, needed) in enumerate((("network", 1.2), ("mixer", 2.0))):
        values = speedup(figures, name)
        speed.bar(place, values.mean(), color="tab:blue", alpha=0.4)
        speed.plot([place] * len(values), values, "o", color="tab:blue")
        speed.plot([place - 0.4, place + 0.4], [needed, needed], "k:", label=None if place else "needed")
    speed.axhline(1, color="grey", linewidth=0.8)
    speed.set(xticks=range(2), xticklabels=["whole network", "mixer alone"], ylabel="time with 7x7 / time with Inception")
    speed.set(title="(1) a training step")
    speed.legend()
    for mixer, name, color in zip(MIXERS, ("Inception", "7x7", "no mixer"), ("tab:blue", "tab:orange", "grey")):
        seconds, top1 = figures[f"seconds_per_epoch_{mixer}"], 100 * figures[f"top1_{mixer}"]
        accuracy.plot(seconds, top1, "o", color=color, alpha=0.5)
        accuracy.plot(
            seconds.mean(),
            top1.mean(),
            "D",
            color=color,
            markersize=9,
            label=name,
        )
    accuracy.set(xlabel="seconds for an epoch", ylabel="test accuracy, %", title="(2) the same network with three mixers")
    accuracy.legend()
    picture.savefig(folder / "inception-next.png", dpi=110)
