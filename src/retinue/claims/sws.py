"""sws: networks of three depths that begin with the layers of one compact network are ahead of fresh ones after two epochs.

Beside it: the same layers in a random order, and how many epochs a fresh network takes to the same accuracy.
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
from retinue.engine.optim import exempt_from_decay
from retinue.engine.seeds import mix, own_randomness, seed_all
from retinue.grow.sws import SoftDistillation
from retinue.models.stage_sharing import descend
from retinue.models.untrained import untrained
from retinue.train import Supervised

RULE = (
    "on digits, 1,200 training and 597 test images, three seeds: (1) for each depth of 4, 6 and 8, after 2 epochs the descendant is more "
    "accurate than a fresh network of its kind after 2 epochs at the best of three learning rates, in the mean by more than the pooled "
    "standard error; (2) in the mean over depths and seeds, after 2 epochs descendants by the stage map are more accurate than descendants "
    "whose layers come from random stages. Epochs of a fresh network to the same accuracy are reported"
)
DATA = ("digits",)
DEPTHS, STAGES, RATES = (4, 6, 8), 4, (5e-4, 1e-3, 2e-3)
EFFECTS = {
    **{f"accuracy after 2 epochs, depth {depth}, descendant - fresh": (f"tuned_{depth}", f"scratch_{depth}") for depth in DEPTHS},
    **{f"accuracy after 2 epochs, depth {depth}, stage map - random map": (f"tuned_{depth}", f"random_{depth}") for depth in DEPTHS},
}
VIT = {"patch_size": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "init": "torch"}
LONG = 40  # epochs, at most, of the fresh network that is to catch up
LR = 5e-4


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: a teacher, the auxiliary network, and per depth the descendant, a fresh network and one of random stages."""
    data = retinue.data.open(
        "digits", test_fraction=597 / 1797, val_fraction=0.0, seed=seed, train_images=budget.pick(laptop=None, smoke=128)
    )
    teacher = train(
        build("small_convnet", seed, widths=[16, 16, 32, 32]), Supervised(), data, seed, epochs=budget.pick(laptop=15, smoke=1), lr=3e-3
    )
    auxiliary = train(
        build("stage_shared_vit", seed, stages=[2] * STAGES, **VIT), SoftDistillation(teacher), data, seed,
        steps=budget.pick(laptop=400, smoke=2), lr=3e-3,
    )  # fmt: skip
    figures: dict[str, Any] = {"teacher": accuracy(teacher, data), "auxiliary": accuracy(auxiliary, data)}
    epochs = budget.pick(laptop=2, smoke=1)
    for depth in DEPTHS:
        descendant = descend(auxiliary, depth)
        figures[f"untuned_{depth}"] = accuracy(descendant, data)
        fresh = [accuracy(train(twin(descendant, seed), Supervised(), data, seed, epochs=epochs, lr=lr), data) for lr in RATES]
        figures |= {f"scratch_{depth}": max(fresh), f"scratch_lr_{depth}": RATES[int(np.argmax(fresh))]}
        order = torch.randint(STAGES, (depth,), generator=torch.Generator().manual_seed(mix(seed, depth))).tolist()
        shuffled = descend(auxiliary, layer_map=order, any_order=True)
        figures[f"random_untuned_{depth}"] = accuracy(shuffled, data)
        figures[f"random_{depth}"] = accuracy(train(shuffled, Supervised(), data, seed, epochs=epochs, lr=LR), data)
        figures[f"tuned_{depth}"] = accuracy(train(descendant, Supervised(), data, seed, epochs=epochs, lr=LR), data)
    return figures | catching_up(auxiliary, data, seed, figures["tuned_6"], budget)


def catching_up(auxiliary: nn.Module, data: Data, seed: int, wanted: float, budget: Budget) -> dict[str, Any]:
    """Train a fresh network of depth 6 for long at a constant rate, and see after how many epochs it is as accurate as the descendant.

    Where it never is, one epoch more than it was trained is noted.
    """
    epochs = budget.pick(laptop=LONG, smoke=2)
    watched = replace(data, val=data.test)  # to draw the curve; nothing is chosen by it
    run = retinue.fit(
        exempt_from_decay(twin(descend(auxiliary, 6), seed)), Supervised(), watched, epochs=epochs, batch_size=64, lr=RATES[-1],
        schedule="constant", optimizer="adamw", seed=seed, progress=False,
    )  # fmt: skip
    curve = [100 * row["val/top1"] for row in run.history if "val/top1" in row]
    there = [epoch for epoch, value in enumerate(curve, start=1) if value >= wanted]
    return {"scratch_curve": curve, "epochs_to_same": float(there[0]) if there else len(curve) + 1.0}


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    ahead = [
        figures[f"tuned_{depth}"].mean() - figures[f"scratch_{depth}"].mean()
        > pooled_standard_error(figures[f"tuned_{depth}"], figures[f"scratch_{depth}"])
        for depth in DEPTHS
    ]
    ordered, random = (np.mean([figures[f"{name}_{depth}"].mean() for depth in DEPTHS]) for name in ("tuned", "random"))
    return {"ahead of fresh networks": bool(all(ahead)), "the order of stages matters": bool(random < ordered)}


def build(name: str, seed: int, **options: Any) -> nn.Module:
    """Build a network whose first weights the seed determines."""
    with own_randomness():
        seed_all(seed)
        return retinue.create_model(name, num_classes=10, in_chans=1, input_size=8, **options)


def twin(descendant: nn.Module, seed: int) -> nn.Module:
    """Build a network of the same kind from scratch."""
    with own_randomness():
        seed_all(seed, 1)
        return untrained(descendant)


def train(
    network: nn.Module, objective: Any, data: Data, seed: int, *, lr: float, epochs: float | None = None, steps: int | None = None
) -> nn.Module:
    """Train a network by AdamW, on a cosine, to the last step."""
    return retinue.fit(
        exempt_from_decay(network), objective, data, epochs=epochs, max_steps=steps, batch_size=64, optimizer="adamw", lr=lr,
        weight_decay=0.05, schedule="cosine", eval_every=1 << 20, seed=seed, progress=False,
    ).model  # fmt: skip


def accuracy(network: nn.Module, data: Data) -> float:
    """Measure on the test images, in percent."""
    return 100 * retinue.evaluate(network, data.test)["top1"]


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy against depth, and the course of a fresh network."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    lines = {
        "tuned": ("descendant, 2 epochs", "tab:blue", "-"), "untuned": ("descendant, untuned", "tab:blue", ":"),
        "random": ("random stages, 2 epochs", "tab:orange", "-"), "scratch": ("fresh, 2 epochs", "grey", "-"),
    }  # fmt: skip
    for name, (label, colour, style) in lines.items():
        rows = np.stack([figures[f"{name}_{depth}"] for depth in DEPTHS], 1)
        left.plot(DEPTHS, rows.mean(0), style, marker="o", color=colour, label=label)
        left.fill_between(DEPTHS, rows.min(0), rows.max(0), color=colour, alpha=0.12)
    left.axhline(figures["auxiliary"].mean(), color="black", linestyle="--", linewidth=1, label="auxiliary network")
    left.set(xticks=DEPTHS, xlabel="layers", ylabel="test accuracy, %", ylim=(0, 100), title="digits, 1,200 images")
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    curves = figures["scratch_curve"]
    right.plot(np.arange(1, curves.shape[1] + 1), curves.T, color="grey", alpha=0.3)
    right.plot(np.arange(1, curves.shape[1] + 1), curves.mean(0), color="grey", label="fresh")
    right.axhline(figures["tuned_6"].mean(), color="tab:blue", label="descendant, 2 epochs")
    right.set(xlabel="epochs", ylim=(0, 100), title="6 layers: how long a fresh network takes")
    right.legend(fontsize=8)
    picture.savefig(folder / "sws.png", dpi=110)
