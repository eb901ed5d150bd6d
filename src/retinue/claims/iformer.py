"""iformer: on few images, the Inception mixer is more accurate than attention alone in a network of as many parameters.

The page's measure, cut to what two cores can train in minutes: half its widths, 1, 1 and 2 blocks, 5,000 images, 8 epochs instead of 15.
Attention alone has other widths, so that all networks have the same number of parameters to one part in a thousand.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models import InceptionTransformer, iformer
from retinue.train import Supervised

RULE = (
    "on CIFAR-10 the test accuracy with the Inception mixer is above that with attention alone in every seed, and the means differ by more "
    "than their pooled standard error; the reversed ramp and the shares of high frequencies are reported, and gate nothing"
)
DATA = ("cifar10",)
EFFECTS = {
    "test accuracy, Inception mixer - attention alone": ("top1_inception", "top1_attention"),
    "test accuracy, growing - reversed share of attention": ("top1_inception", "top1_reversed"),
    "share of high frequencies, high path - low path": ("high_frequencies_high_path", "high_frequencies_low_path"),
}
LOW_HEADS = [1, 2, 5, 5]
NETWORKS: dict[str, dict[str, Any]] = {  # 363,626 parameters, 363,732 and 363,954
    "inception": {"embed_dims": [32, 64, 96], "low_heads": LOW_HEADS},
    "attention": {"embed_dims": [32, 68, 90], "low_heads": "all"},
    "reversed": {"embed_dims": [32, 64, 96], "low_heads": LOW_HEADS, "ramp": "down", "mlp_ratio": 4.25},
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: the accuracy of the three networks, and which frequencies the two paths of the first one carry."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=32, channels=3,
        train_images=budget.pick(laptop=5000, smoke=64), test_images=budget.pick(laptop=4000, smoke=64), seed=seed,
    )  # fmt: skip
    figures = {}
    for name in NETWORKS:
        epochs = budget.pick(laptop=8, smoke=1)
        run = retinue.fit(
            network(name, seed), Supervised(), data, epochs=epochs, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.05,
            warmup_epochs=1, views="crop(4), flip", eval_every=epochs, seed=seed, progress=False,
        )  # fmt: skip
        figures[f"top1_{name}"] = retinue.evaluate(run.model, data.test)["top1"]
        if name == "inception":
            high, low = _frequencies(run.model, data)
            figures |= {"high_frequencies_high_path": high, "high_frequencies_low_path": low}
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    inception, attention = figures["top1_inception"], figures["top1_attention"]
    larger = inception.mean() - attention.mean() > pooled_standard_error(inception, attention)
    return bool(larger and (inception > attention).all())


def network(name: str, seed: int) -> InceptionTransformer:
    """Build one of `NETWORKS` for images of 32 px, without layer scales."""
    with own_randomness():
        seed_all(seed)
        return iformer(
            num_classes=10, input_size=32, depths=[1, 1, 2], num_heads=[2, 4, 6], pools=[2, 1, 1], layer_scale=[None] * 3, **NETWORKS[name]
        )  # fmt: skip


@torch.no_grad()
def _frequencies(model: Any, data: Data) -> tuple[float, float]:
    """Return the share of energy beyond half of Nyquist's frequency in what the two paths of the first block leave, on 100 test images."""
    seen: dict[str, Tensor] = {}
    mixer = model.stages[0].blocks[0].attn

    def look(path: str) -> Any:
        return lambda _, args, out: seen.update({path: torch.cat(out, 1) if isinstance(out, tuple) else out})

    hooks = [mixer.high_mixer.register_forward_hook(look("high")), mixer.low_mixer.register_forward_hook(look("low"))]
    images = data.preprocessing.normalize(data.test.images(range(min(100, len(data.test)))))
    model.eval()(images.to(next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return high_share(seen["high"]), high_share(seen["low"])


def high_share(maps: Tensor) -> float:
    """Return the share of energy beyond half of Nyquist's frequency, of maps without their means; the mean over images and channels.

    Args:
        maps: of shape batch x channels x height x width.

    >>> board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    >>> high_share(board), high_share(torch.arange(8.0).mul(torch.pi / 4).cos().expand(1, 1, 8, 8))
    (1.0, 0.0)
    """
    energy = torch.fft.fft2((maps - maps.mean((2, 3), keepdim=True)).double()).abs().square()
    rows, columns = (torch.fft.fftfreq(side, device=maps.device) for side in maps.shape[2:])
    beyond = (rows[:, None].square() + columns.square()).sqrt() > 0.25  # cycles a pixel; Nyquist's is 0.5
    total = energy.sum((2, 3))
    shares = (energy * beyond).sum((2, 3))[total > 0] / total[total > 0]
    return round(float(shares.mean()), 9) if len(shares) else 0.0


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracies of each seed, and the share of high frequencies in both paths."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.8), layout="constrained")
    accuracy, shares = picture.subplots(1, 2, width_ratios=(3, 2))
    values = 100 * np.stack([figures[f"top1_{name}"] for name in NETWORKS])
    for place, (row, color) in enumerate(zip(values, ("tab:blue", "tab:orange", "grey"))):
        accuracy.bar(place, row.mean(), color=color, alpha=0.4)
    accuracy.plot(values, "o-", color="black", alpha=0.4, linewidth=0.8)  # a line for each seed
    accuracy.set(xticks=range(3), xticklabels=["Inception mixer", "attention alone", "shares reversed"], ylabel="test accuracy, %")
    accuracy.set(title="networks of as many parameters", ylim=(max(0, values.min() - 5), values.max() + 2))
    for place, path in enumerate(("high", "low")):
        row = figures[f"high_frequencies_{path}_path"]
        shares.bar(place, row.mean(), color="tab:green", alpha=0.4)
        shares.plot([place] * len(row), row, "o", color="tab:green")
    shares.set(xticks=range(2), xticklabels=["high path", "low path"], ylabel="share of energy", title="beyond half of Nyquist's frequency")
    picture.savefig(folder / "iformer.png", dpi=110)
