"""nasnet: the cells that the paper found on CIFAR-10 make a tiny network that is no worse than a plain ResNet of equal size.

NASNet-A 2@192 (110,562 parameters) against ResNet-20 of 10 channels (107,060), both trained alike. What this does not show: the search.
Nothing here proposes, trains or ranks a cell; that a controller beats random search, and that cells found on one data set serve another,
is for the search to show. Equal are parameters, images and epochs, not time: the cells' many small convolutions take several times as long
on a processor, which the figures say.
"""

import time
from pathlib import Path
from typing import Any

from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures
from retinue.engine.seeds import own_randomness, seed_all
from retinue.train import Supervised

RULE = (
    "on CIFAR-10 (2,500 training images at 16 px, 20 epochs), in the mean over seeds, the test accuracy of NASNet-A 2@192 is at most 2 "
    "points below that of a ResNet-20 of the same number of parameters (within 5 percent), trained with the same settings"
)
DATA = ("cifar10",)
EFFECTS = {
    "test accuracy, NASNet-A - ResNet-20": ("top1_nasnet", "top1_resnet"),
    "seconds for an epoch, NASNet-A - ResNet-20": ("seconds_per_epoch_nasnet", "seconds_per_epoch_resnet"),
}
NETWORKS: dict[str, dict[str, Any]] = {"nasnet": {"name": "nasnet_a_tiny"}, "resnet": {"name": "cifar_resnet", "depth": 20, "width": 10}}
LR = 0.1  # the best of 0.05, 0.1 and 0.2 for the ResNet on seed 100, which is not among the claim's own
MARGIN = 0.02


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: accuracy, parameters and seconds for an epoch of both networks."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=16, channels=3, train_images=budget.pick(laptop=2500, smoke=64),
        test_images=budget.pick(laptop=4000, smoke=64), seed=seed,
    )  # fmt: skip
    epochs = budget.pick(laptop=20, smoke=2)
    figures: dict[str, float] = {}
    for kind, network in NETWORKS.items():
        with own_randomness():
            seed_all(seed)
            model: nn.Module = retinue.create_model(num_classes=len(data.classes), input_size=16, **network)
        began = time.perf_counter()
        run = retinue.fit(
            model, Supervised(), data, epochs=epochs, batch_size=64, optimizer="momentum", lr=LR, momentum=0.9, weight_decay=5e-4,
            warmup_epochs=1, clip_grad=5.0, views="crop(2), flip", channels_last=True, eval_every=10**6, seed=seed, progress=False,
        )  # fmt: skip
        figures |= {
            f"seconds_per_epoch_{kind}": (time.perf_counter() - began) / epochs,
            f"top1_{kind}": retinue.evaluate(run.model, data.test)["top1"],
            f"parameters_{kind}": sum(parameter.numel() for parameter in model.parameters()),
        }
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    ours, plain = figures["parameters_nasnet"], figures["parameters_resnet"]
    alike = bool((abs(ours / plain - 1) < 0.05).all())
    return alike and bool(figures["top1_nasnet"].mean() >= figures["top1_resnet"].mean() - MARGIN)


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracy of both networks, against the seconds that an epoch takes: a dot for each seed, a diamond for their mean."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6, 3.8), layout="constrained")
    axes = picture.subplots()
    for kind, name, color in (("nasnet", "NASNet-A 2@192", "tab:blue"), ("resnet", "ResNet-20, 10 channels", "tab:orange")):
        seconds, top1 = figures[f"seconds_per_epoch_{kind}"], 100 * figures[f"top1_{kind}"]
        axes.plot(seconds, top1, "o", color=color, alpha=0.5)
        axes.plot(seconds.mean(), top1.mean(), "D", color=color, markersize=9, label=f"{name}: {figures[f'parameters_{kind}'][0]:,.0f}")
    axes.axhline(
        100 * (figures["top1_resnet"].mean() - MARGIN), color="grey", linestyle=":", label="the least that the rule asks of NASNet"
    )
    axes.set(xlabel="seconds for an epoch", ylabel="test accuracy, %", xlim=(0, None), title="two networks of equal size (parameters)")
    axes.legend()
    picture.savefig(folder / "nasnet.png", dpi=110)
