"""noprop: blocks trained one by one classify better than the same chain of blocks back-propagated end to end, in the memory of one block.

The page's measure. At the paper's scale NoProp equals back-propagation through a network of as many blocks; the weaker baseline here is the
very same stochastic chain at as few steps, and the deterministic network without the chain's noise is reported beside it.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models.noprop import NoPropDT
from retinue.train import Supervised
from retinue.train.noprop import NoProp, activation_bytes

RULE = (
    "(1) on digits, over 3 seeds, the mean test accuracy of NoProp-DT after 400 steps is at least 92 %; (2) it is above that of "
    "back-propagation through the same sampler at equal steps by more than their pooled standard error, and so it is on MNIST (3,000 "
    "images, 2 convolutions in each block); (3) on digits it is at most 3 points below back-propagation through the same blocks as a plain "
    "residual network; (4) what a step keeps for the backward pass is the same for 5, 10 and 20 blocks, and grows with them in "
    "back-propagation"
)
DATA = ("digits", "mnist")
METHODS = ("noprop", "chain", "plain")
DEPTHS = (5, 10, 20)
EFFECTS = {
    "digits, test accuracy, NoProp-DT - back-propagation through the chain": ("top1_digits_noprop", "top1_digits_chain"),
    "digits, test accuracy, NoProp-DT - plain residual network": ("top1_digits_noprop", "top1_digits_plain"),
    "MNIST, test accuracy, NoProp-DT - back-propagation through the chain": ("top1_mnist_noprop", "top1_mnist_chain"),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "digits": {"widths": (), "hidden": 96, "label_layers": 1},  # image 64-96, label 10-96, joint 192-96-10
    "mnist": {"widths": (8, 16), "hidden": 96, "label_layers": 1},
}


class Plain(nn.Module):
    """The same blocks without noise and without u^: z_t = z_{t-1} + f_t(z_{t-1}, x) from z_0 = 0."""

    def __init__(self, network: NoPropDT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        z = x.new_zeros(len(x), self.network.num_features)
        for block in self.network.blocks:
            z = z + block(z, block.image(x))  # type: ignore[operator]
        return self.network.readout(z, self.network.embedding.weight)


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: three trainings of the same blocks on two data sets, and what a step keeps at three depths."""
    figures: dict[str, Any] = {}
    for name in DATA:
        data = _data(name, seed, budget)
        for method in METHODS:
            steps = {"digits": budget.pick(laptop=400, smoke=3), "mnist": budget.pick(laptop=200, smoke=2)}[name]
            draws = _accuracies(method, _network(name, seed, data, 10 if budget.name == "laptop" else 3), data, seed, steps)
            figures |= {f"top1_{name}_{method}": float(draws.mean())}
            if method == "noprop":
                figures |= {f"spread_{name}_{method}": float(draws.std())}
    data = _data("digits", seed, budget)
    for depth in DEPTHS:
        figures |= _memory(_network("digits", seed, data, depth), data, depth)
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all four parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    noprop, plain = figures["top1_digits_noprop"], figures["top1_digits_plain"]

    def above(name: str) -> bool:
        ours, theirs = figures[f"top1_{name}_noprop"], figures[f"top1_{name}_chain"]
        return bool(ours.mean() - theirs.mean() > pooled_standard_error(ours, theirs))

    block, chain = ([figures[f"bytes_{kind}_{depth}"] for depth in DEPTHS] for kind in ("block", "chain"))
    return {
        "92 % on digits": bool(noprop.mean() >= 0.92),
        "better than back-propagation through the chain": above("digits") and above("mnist"),
        "at most 3 points below the plain network": bool(noprop.mean() >= plain.mean() - 0.03),
        "memory of one block": all((row == block[0]).all() for row in block) and all((a < b).all() for a, b in itertools.pairwise(chain)),
    }


def _data(name: str, seed: int, budget: Budget) -> Data:
    """Digits in 1297 and 500, or 3,000 images of MNIST and 2,000 to test; without validation images, as nothing is chosen."""
    if name == "digits":
        given: dict[str, Any] = {"test_fraction": 500 / 1797, "train_images": budget.pick(laptop=None, smoke=256)}
    else:
        given = {"train_images": budget.pick(laptop=3000, smoke=256), "test_images": budget.pick(laptop=2000, smoke=64)}
        given |= budget.pick(laptop={}, smoke={"input_size": 28})
        name = budget.pick(laptop=name, smoke="digits")
    return retinue.data.open(name, val_fraction=0.0, seed=seed, **given)


def _network(name: str, seed: int, data: Data, blocks: int) -> NoPropDT:
    """Build a chain; of one seed, all methods begin with the same weights."""
    with own_randomness():
        seed_all(seed)
        return NoPropDT(len(data.classes), 1, data.preprocessing.input_size, num_blocks=blocks, **NETWORKS[name])


def _accuracies(method: str, network: NoPropDT, data: Data, seed: int, steps: int) -> Tensor:
    """Train, and return the test accuracies of eight draws of noise (of the one answer, where there is no noise)."""
    model: nn.Module = Plain(network) if method == "plain" else network
    objective = NoProp() if method == "noprop" else Supervised()
    run = retinue.fit(
        model, objective, data, max_steps=steps, batch_size=128, optimizer="adamw", lr=2e-3, weight_decay=1e-3, schedule="constant",
        seed=seed, progress=False,
    )  # fmt: skip
    if method == "plain":
        return torch.tensor([retinue.evaluate(run.model, data.test)["top1"]])
    images, labels = data.preprocessing.normalize(data.test.images()), data.test.labels
    device = next(network.parameters()).device
    with torch.no_grad():
        each = network.eval().predict(images.to(device), 8, torch.Generator(device).manual_seed(seed), spread=True)
    return (each.argmax(-1).cpu() == labels).double().mean(1)


def _memory(network: NoPropDT, data: Data, depth: int) -> dict[str, float]:
    """Count what the dearest block's step and back-propagation through the chain keep, for a batch of 128."""
    batch = next(iter(data.train.loader(128).batches()))
    network.train()
    block = max(activation_bytes(lambda: network.block_loss(t, batch.images, batch.labels), network) for t in range(1, depth + 1))  # noqa: B023
    chain = activation_bytes(lambda: F.cross_entropy(network(batch.images), batch.labels), network)
    return {f"bytes_block_{depth}": float(block), f"bytes_chain_{depth}": float(chain)}


def draw(figures: Figures, folder: Path) -> None:
    """Draw the accuracies of each seed on both data sets, and what a step keeps."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 3.8), layout="constrained")
    digits, mnist, memory = picture.subplots(1, 3)
    for axes, name in ((digits, "digits"), (mnist, "mnist")):
        values = 100 * np.stack([figures[f"top1_{name}_{method}"] for method in METHODS])
        for place, (row, color) in enumerate(zip(values, ("tab:blue", "tab:orange", "grey"))):
            axes.bar(place, row.mean(), color=color, alpha=0.4)
        axes.plot(values, "o-", color="black", alpha=0.4, linewidth=0.8)  # a line for each seed
        axes.set(xticks=range(3), xticklabels=["NoProp-DT", "through\nthe chain", "plain\nresidual"], ylabel="test accuracy, %", title=name)
        axes.set(ylim=(max(0, values.min() - 10), 100))
    for kind, label in (("block", "a block's step"), ("chain", "back-propagation")):
        memory.plot(DEPTHS, [figures[f"bytes_{kind}_{depth}"].mean() / 2**20 for depth in DEPTHS], "o-", label=label)
    memory.set(xticks=DEPTHS, xlabel="blocks", ylabel="MiB kept for the backward pass", title="memory", ylim=(0, None))
    memory.legend()
    picture.savefig(folder / "noprop.png", dpi=110)
