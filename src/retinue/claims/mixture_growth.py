"""mixture-growth: a network grown of two trained narrow ones is ahead of a fresh one after the same short training.

Beside it: other ways to fill the new coefficients, growth of one trained member and fresh templates, and a fresh network that may spend as
many multiply-adds as members and growth together.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.grow.mixture_growth import MixtureGrowth, MixtureGrowthNet, grow
from retinue.grow.mixture_growth_costs import multiply_adds
from retinue.models.template_weights import Init
from retinue.train import Supervised

RULE = (
    "on digits, 400 training images, five seeds: (1) after 40 steps, the network grown with orthogonal coefficients is more accurate than "
    "a fresh one of its size after 40 steps, by more than the pooled standard error; (2) in every seed, grown with zero coefficients it "
    "gives the sum of the members' logits, to 1e-5 of the largest; (3) in the mean, after 160 steps it is at least as accurate as the mean "
    "of its members"
)
DATA = ("digits",)
SEEDS = (0, 1, 2, 3, 4)
STEPS = (10, 40, 160)
WAYS: tuple[Init, ...] = ("orthogonal", "zero", "random", "copy")
EFFECTS = {
    "accuracy after 40 steps, grown - fresh": ("orthogonal_40", "fresh_40"),
    "accuracy after 160 steps, grown - members' mean": ("orthogonal_160", "members"),
    "accuracy, grown after 160 steps - fresh at the same total cost": ("orthogonal_160", "fresh_same_cost"),
    "accuracy after 160 steps, orthogonal - zero": ("orthogonal_160", "zero_160"),
    "accuracy after 40 steps, of two members - of one and fresh templates": ("orthogonal_40", "one_member_40"),
}
LR, LR_GROWN = 0.05, 0.01


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: two members, what grows of them in four ways and of one in one, and a fresh network at the same steps and cost."""
    data = retinue.data.open(
        "digits", test_fraction=500 / 1797, val_fraction=0.0, seed=seed, train_images=budget.pick(laptop=400, smoke=100)
    )
    steps = budget.pick(laptop=250, smoke=3)
    network: Any = build("mixture_growth", seed, backbone="mlp", backbone_args={"widths": [48, 48, 48]})
    figures: dict[str, Any] = {}
    for member in (0, 1):
        network = train(network, MixtureGrowth(member), data, steps, LR, seed)
        figures[f"member_{member}"] = 100 * retinue.evaluate(network, data.test)["top1"]
        if member == 0:
            half = copy.deepcopy(network)
            half.trained.fill_(True)  # its member 1 is as it was drawn, on purpose
    figures["members"] = (figures["member_0"] + figures["member_1"]) / 2
    figures |= sum_of_logits(network, data)
    for way in WAYS:
        with own_randomness():
            seed_all(seed, 1)
            grown = grow(copy.deepcopy(network), way)
        figures |= course(grown, MixtureGrowth(None), data, way, LR_GROWN, seed, budget)
    with own_randomness():
        seed_all(seed, 1)
        grow(half, "orthogonal")
    figures |= course(half, MixtureGrowth(None), data, "one_member", LR_GROWN, seed, budget)
    fresh = build("mlp", seed, widths=[48, 48, 48])
    figures |= course(fresh, Supervised(), data, "fresh", LR, seed, budget)
    macs = multiply_adds(network, 8)
    figures["cost_ratio"] = macs["member"] / macs["wide"]
    same = round(2 * steps * figures["cost_ratio"]) + budget.pick(laptop=STEPS[-1], smoke=1)
    figures["fresh_same_cost"] = 100 * retinue.evaluate(train(fresh, Supervised(), data, same, LR, seed), data.test)["top1"]
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    grown, fresh = figures["orthogonal_40"], figures["fresh_40"]
    return {
        "ahead of a fresh network": bool(grown.mean() - fresh.mean() > pooled_standard_error(grown, fresh)),
        "zero is the sum of logits": bool((figures["zero_gap"] < 1e-5).all()),
        "no worse than its members": bool(figures["orthogonal_160"].mean() >= figures["members"].mean()),
    }


def build(name: str, seed: int, **options: Any) -> nn.Module:
    """Build a network whose first weights the seed determines."""
    with own_randomness():
        seed_all(seed)
        return retinue.create_model(name, num_classes=10, in_chans=1, input_size=8, **options)


def train(network: nn.Module, objective: Any, data: Data, steps: int, lr: float, seed: int) -> Any:
    """Train a copy of a network by SGD with momentum, at a constant learning rate."""
    return retinue.fit(
        copy.deepcopy(network), objective, data, max_steps=steps, epochs=steps, batch_size=50, optimizer="sgd", lr=lr, weight_decay=0.0,
        schedule="constant", eval_every=1 << 20, seed=seed, progress=False,
    ).model  # fmt: skip


def course(network: nn.Module, objective: Any, data: Data, name: str, lr: float, seed: int, budget: Budget) -> dict[str, float]:
    """Measure the test accuracy at once and after some steps of training, in percent."""
    found = {f"{name}_0": 100 * retinue.evaluate(network, data.test)["top1"]}
    for steps in STEPS:
        trained = train(network, objective, data, budget.pick(laptop=steps, smoke=1), lr, seed)
        found[f"{name}_{steps}"] = 100 * retinue.evaluate(trained, data.test)["top1"]
    return found


@torch.no_grad()
def sum_of_logits(network: MixtureGrowthNet, data: Data) -> dict[str, float]:
    """Measure how far the network grown with zeros is from the sum of its members' logits, as a share of the largest; and its loss."""
    images = data.test.preprocessing.normalize(data.test.images())
    together = network(images, member=0) + network(images, member=1)
    grown = grow(copy.deepcopy(network), "zero")
    gap = (grown(images) - together).abs().max() / together.abs().max()
    return {"zero_gap": float(gap), "zero_loss": retinue.evaluate(grown, data.test)["loss"]}


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy over steps after growth of each way and of a fresh network, and what the same cost buys."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(2, 1))
    places = np.arange(len(STEPS) + 1)
    named = {"one_member": "one member and fresh templates", "fresh": "fresh network"}
    colours = ("tab:blue", "tab:green", "tab:orange", "tab:red", "tab:purple", "grey")
    for name, colour in zip((*WAYS, *named), colours, strict=True):
        curves = np.stack([figures[f"{name}_{steps}"] for steps in (0, *STEPS)], 1)
        left.plot(places, curves.mean(0), "-o", color=colour, label=named.get(name, f"grown, {name}"))
        left.fill_between(places, curves.min(0), curves.max(0), color=colour, alpha=0.12)
    left.axhline(figures["members"].mean(), color="black", linestyle=":", label="mean of the members")
    left.set(
        xticks=places, xlabel="training steps after growth (fresh: from scratch)", ylabel="test accuracy, %", title="digits, 400 images"
    )
    left.set_xticklabels(["0", *map(str, STEPS)])
    left.legend(fontsize=8)
    bars = {"members": "members", "grown\n160 steps": "orthogonal_160", "sum of\nlogits": "zero_0", "fresh,\nsame cost": "fresh_same_cost"}
    for place, name in enumerate(bars.values()):
        right.bar(place, figures[name].mean(), color="tab:blue" if name == "orthogonal_160" else "grey", alpha=0.5)
        right.plot([place] * len(figures[name]), figures[name], "o", color="black", markersize=3)
    right.set(xticks=np.arange(len(bars)), ylim=(80, 100), title="at the end, all costs counted")
    right.set_xticklabels(bars, fontsize=8)
    picture.savefig(folder / "mixture-growth.png", dpi=110)
