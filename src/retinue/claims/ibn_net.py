"""ibn-net: instance norm in shallow layers keeps a network's accuracy on images of a look that it has not seen, at no cost on its own.

The page's experiment. The stem keeps one stride, as for images of 64 px, which takes a quarter of the time: the first stage has maps of
16x16. Nothing of the training changes colours; what the shifts do to the test images is not clipped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models.ibn_net import resnet_ibn
from retinue.models.ibn_net_shifts import appearance_shifts, evaluate_shifts
from retinue.train import Supervised

RULE = (
    "of three networks that differ in nothing but their norms, trained on CIFAR-10 without changes of colour: (1) the accuracy averaged "
    "over four shifts of the test images' appearance (a gain of 0.5 to 1.5 for each channel of each image, contrast x 0.4, brightness "
    "+ 0.3, gamma 2.5) is higher with IBN-b than with batch norm, in the mean over seeds by more than the pooled standard error; (2) the "
    "mean accuracy of IBN-a on the test images as they are is not lower than that of batch norm by more than 1.5 points"
)
DATA = ("cifar10",)
EFFECTS = {
    "accuracy under shifts, IBN-b - batch norm": ("shifted_b", "shifted_bn"),
    "accuracy under shifts, IBN-a - batch norm": ("shifted_a", "shifted_bn"),
    "accuracy on clean images, IBN-a - batch norm": ("clean_a", "clean_bn"),
    "accuracy on clean images, IBN-b - batch norm": ("clean_b", "clean_bn"),
}
VARIANTS: Mapping[str, Any] = {"bn": None, "a": "a", "b": "b"}
SHIFTS = ("channel_gain", "contrast", "brightness", "gamma")
WORST = 0.015  # what IBN-a may lose on clean images


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: accuracy of the three networks on clean and on shifted images."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=32, channels=3, train_images=budget.pick(laptop=10_000, smoke=64),
        test_images=budget.pick(laptop=4000, smoke=64), seed=seed,
    )  # fmt: skip
    shifts = appearance_shifts(contrast=0.4, brightness=0.3, gamma=2.5, gain=(0.5, 1.5))
    shifts = {name: shifts[name] for name in ("identity", *SHIFTS, "invert")}
    widths = budget.pick(laptop=(16, 24, 32, 48), smoke=(8, 8, 8, 8))
    epochs = budget.pick(laptop=10, smoke=1)
    figures: dict[str, float] = {}
    for name, variant in VARIANTS.items():
        with own_randomness():
            seed_all(seed)
            model = resnet_ibn(18, variant, num_classes=len(data.classes), input_size=64, widths=widths)
        run = retinue.fit(
            model, Supervised(), data, epochs=epochs, batch_size=128, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4,
            schedule="cosine", views="crop(4), flip", eval_every=epochs, seed=seed, progress=False,
        )  # fmt: skip
        found = evaluate_shifts(run.model, data.test, shifts, seed=seed)
        figures |= {f"clean_{name}": found["identity"], f"shifted_{name}": sum(found[shift] for shift in SHIFTS) / len(SHIFTS)}
        figures |= {f"{shift}_{name}": found[shift] for shift in (*SHIFTS, "invert")}
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    gain = figures["shifted_b"].mean() - figures["shifted_bn"].mean()
    return {
        "IBN-b bears other looks better": bool(gain > pooled_standard_error(figures["shifted_b"], figures["shifted_bn"])),
        "IBN-a loses nothing on clean images": bool(figures["clean_bn"].mean() - figures["clean_a"].mean() <= WORST),
    }


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracy of the three networks on clean images and under each shift, and what a shift costs."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 4), layout="constrained")
    each, mean = picture.subplots(1, 2, width_ratios=(3, 1.3))
    looks = {"clean": "clean", **{shift: shift.replace("_", " ") for shift in SHIFTS}, "invert": "invert\n(not of the rule)"}
    for place, (name, label, color) in enumerate((("bn", "BN", "grey"), ("a", "IBN-a", "tab:blue"), ("b", "IBN-b", "tab:orange"))):
        for spot, look in enumerate(looks):
            values = 100 * figures[f"{look}_{name}"]
            x = spot + 0.27 * (place - 1)
            each.bar(x, values.mean(), 0.25, color=color, alpha=0.45, label=None if spot else label)
            each.plot([x] * len(values), values, ".", color=color)
        clean, shifted = 100 * figures[f"clean_{name}"], 100 * figures[f"shifted_{name}"]
        mean.plot(clean, shifted, "o", color=color, alpha=0.5)
        mean.plot(clean.mean(), shifted.mean(), "D", color=color, markersize=9, label=label)
    each.set(xticks=range(len(looks)), xticklabels=list(looks.values()), ylabel="test accuracy, %", title="by look of the test images")
    each.legend()
    mean.set(xlabel="clean, %", ylabel="mean of the four shifts, %", title="both at once")
    mean.legend()
    picture.savefig(folder / "ibn-net.png", dpi=110)
