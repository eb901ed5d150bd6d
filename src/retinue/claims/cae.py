"""cae: an encoder that has guessed hidden patches of photographs has better features than an untrained one, and does not collapse.

The page's measure. Compared is a logistic regression on the mean of the patches' features; it is fitted to 50 labelled images a class, and
to all. That the alignment itself improves the features cannot be shown at this size: an encoder trained without it is reported beside.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data, few_labels
from retinue.engine.seeds import own_randomness, seed_all
from retinue.pretrain.cae import CAE
from retinue.train.probe import features, linear

RULE = (
    "on CIFAR-10 at 16 px with 32 of 64 patches hidden, over 3 seeds: tokens of hidden patches of test images are guessed right more than "
    "3 times as often as the most frequent token comes; a linear probe of the encoder with 50 labels a class is more accurate than one of "
    "the untrained encoder by more than the pooled standard error; and the squared error of the guessed features is below 0.4 of their "
    "variance, which stays above 0.05; the probe with all labels, and an encoder trained without alignment, are reported"
)
DATA = ("cifar10",)
EFFECTS = {
    "accuracy of the probe with 50 labels a class, pre-trained - untrained": ("probe", "probe_untrained"),
    "accuracy of the probe with all labels, pre-trained - untrained": ("probe_all", "probe_all_untrained"),
    "accuracy of the probe with 50 labels a class, with alignment - without": ("probe", "probe_unaligned"),
}
TIMES, RATIO, VARIANCE = 3, 0.4, 0.05  # of RULE


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: what is guessed of hidden patches, and probes of the encoder untrained, pre-trained, and pre-trained without alignment."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=16, channels=3,
        train_images=budget.pick(laptop=5000, smoke=300), test_images=budget.pick(laptop=3000, smoke=60), seed=seed,
    )  # fmt: skip
    labels = budget.pick(laptop=50, smoke=10)
    epochs = budget.pick(laptop=9, smoke=1)
    model, _ = fresh(data, seed, 2.0)
    before = probes(model, data, labels, seed)
    model, objective = pretrained(data, seed, 2.0, epochs)
    after = probes(model, data, labels, seed)
    told = objective.evaluate(model, data.test.loader(256))
    tokens = torch.cat([objective.targets(batch.images) for batch in data.test.loader(256).batches()])
    unaligned, _ = pretrained(data, seed, 0.0, epochs)
    without = probes(unaligned, data, labels, seed)
    return {
        "token_accuracy": told["token_accuracy"],
        "most_frequent": float(tokens.flatten().bincount().max() / tokens.numel()),
        "align_ratio": told["loss_align"] / told["target_variance"],
        "target_variance": told["target_variance"],
        "probe": after[0],
        "probe_untrained": before[0],
        "probe_unaligned": without[0],
        "probe_all": after[1],
        "probe_all_untrained": before[1],
        "probe_all_unaligned": without[1],
    }


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part of `RULE`."""
    better = figures["probe"].mean() - figures["probe_untrained"].mean()
    return {
        "hidden tokens are guessed": bool(figures["token_accuracy"].mean() > TIMES * figures["most_frequent"].mean()),
        "the features are better": bool(better > pooled_standard_error(figures["probe"], figures["probe_untrained"])),
        "guesses align": bool(figures["align_ratio"].mean() < RATIO and figures["target_variance"].min() > VARIANCE),
    }


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    return all(parts(figures).values())


def fresh(data: Data, seed: int, align_weight: float) -> tuple[nn.Module, CAE]:
    """Return an untrained encoder, and the objective; the same of both whatever the weight of the alignment."""
    with own_randomness():
        seed_all(seed)
        encoder = retinue.create_model(
            "cae_vit", num_classes=0, input_size=16, patch_size=2, embed_dim=64, depth=3, num_heads=4, init_values=None
        )
        return encoder, CAE(
            encoder, data, tokenizer_args={"codes": 64, "contrast": False, "seed": seed}, mask="random", regressor_depth=2, decoder_depth=1,
            init_values=None, align_weight=align_weight,
        )  # fmt: skip


def pretrained(data: Data, seed: int, align_weight: float, epochs: int) -> tuple[nn.Module, CAE]:
    """Return the encoder and the objective after training."""
    encoder, objective = fresh(data, seed, align_weight)
    run = retinue.fit(
        encoder, objective, data, epochs=epochs, batch_size=128, optimizer="adamw", lr=2e-3, weight_decay=0.05, clip_grad=3.0,
        schedule="onecycle", eval_every=epochs, seed=seed, progress=False,
    )  # fmt: skip
    return run.model, objective


def probes(model: nn.Module, data: Data, per_class: int, seed: int) -> tuple[float, float]:
    """Return the accuracy on test images of a linear probe with few labels, and with all; its strength is chosen on validation images."""
    val, test = (features(model, split) for split in (data.val, data.test))
    scores = []
    for split in (few_labels(data, per_class=per_class, seed=seed).train, data.train):
        fitted = linear(features(model, split), split.labels, val, data.val.labels)
        scores.append(float(fitted.score(test.numpy(), data.test.labels.numpy())))
    return scores[0], scores[1]


def draw(figures: Figures, folder: Path) -> None:
    """Draw the probes' accuracies, and how much of the hidden patches is guessed."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 3.6), layout="constrained")
    probe, tokens, align = picture.subplots(1, 3, width_ratios=(3, 1.2, 1))
    kinds = {"_untrained": ("untrained", "grey"), "_unaligned": ("trained without alignment", "tab:orange"), "": ("trained", "tab:blue")}
    for i, (ending, (name, color)) in enumerate(kinds.items()):
        for j, labels in enumerate(("probe", "probe_all")):
            values = 100 * figures[labels + ending]
            probe.bar(j + 0.27 * (i - 1), values.mean(), 0.25, color=color, alpha=0.4, label=name if j == 0 else None)
            probe.plot(np.full(len(values), j + 0.27 * (i - 1)), values, ".", color=color)
    probe.set(xticks=[0, 1], xticklabels=["50 labels a class", "all labels"], ylabel="accuracy of the probe, %", title="frozen features")
    probe.margins(y=0.4)
    probe.legend(loc="upper left", fontsize="small")
    for i, (name, told) in enumerate((("most_frequent", "commonest"), ("token_accuracy", "guessed"))):
        tokens.bar(i, 100 * figures[name].mean(), color="tab:blue" if i else "grey", alpha=0.4, label=told)
        tokens.plot([i] * len(figures[name]), 100 * figures[name], ".", color="tab:blue" if i else "grey")
    tokens.axhline(100 * TIMES * figures["most_frequent"].mean(), color="grey", linestyle=":")
    tokens.set(xticks=[0, 1], xticklabels=["commonest", "guessed"], ylabel="hidden tokens, %", title="test images")
    align.bar(0, figures["align_ratio"].mean(), color="tab:blue", alpha=0.4)
    align.plot([0] * len(figures["align_ratio"]), figures["align_ratio"], ".", color="tab:blue")
    align.axhline(RATIO, color="grey", linestyle=":")
    align.set(xticks=[], xlim=(-1, 1), ylabel="squared error / variance", title="guesses")
    picture.savefig(folder / "cae.png", dpi=110)
