"""grad-cam: trained on labels alone, Grad-CAM points at the defect; on few images, a pre-trained network beats one trained from scratch.

The paper's photographs of buildings are unpublished, so a made-up defect stands in for theirs: canvases of four real digits in a 3x3 grid,
of which the label says only whether there is a "0". Its cell is the mask, which training never sees.

Few labels are tried on photographs, as the paper does: convolutions pre-trained on classes 1 to 9 of CIFAR-10 meet class 0. On digits there
is nothing to gain, as seeds 100 and 101, which are not among the claim's own, showed beforehand: from 80 canvases a new network learns to a
balanced accuracy of 0.93 to 0.97 from scratch, and one pre-trained on the digits 1 to 9 comes to between 0.75 and 0.89.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, UInt8
from sklearn.datasets import load_digits
from torch import Tensor, nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data, from_arrays
from retinue.engine.seeds import mix, own_randomness, seed_all
from retinue.explain import deletion_auc, energy_in_mask, heat_maps, pointing_game, sanity_check
from retinue.models import create_model
from retinue.plots.galleries import to_rgb
from retinue.plots.overlays import overlay
from retinue.train.transfer import TransferClassifier, WeightedCrossEntropy, measured, transfer

RULE = (
    "over 3 seeds: (1) Grad-CAM's pointing-game accuracy is above that of a random map, of the input's intensity and of Grad-CAM on an "
    "untrained network, each by more than the pooled standard error, and its deletion AUC is below that of the random order; (2) with 80 "
    "images of a class that pre-training did not have and of others, the fine-tuned network's balanced accuracy is above that of the one "
    "trained from scratch by more than the pooled standard error"
)
DATA = ("digits", "cifar10")
EFFECTS = {
    "pointing game, Grad-CAM - random map": ("pointing_gradcam", "pointing_random"),
    "pointing game, Grad-CAM - intensity": ("pointing_gradcam", "pointing_intensity"),
    "pointing game, Grad-CAM - untrained network": ("pointing_gradcam", "pointing_untrained"),
    "deletion AUC, random order - Grad-CAM": ("deletion_random", "deletion_gradcam"),
    "balanced accuracy, fine-tuned - from scratch": ("balanced_fine_tuned", "balanced_scratch"),
    "balanced accuracy, fine-tuned - head only": ("balanced_fine_tuned", "balanced_head"),
}
MAPS = {"gradcam": "Grad-CAM", "gradient": "input gradient", "untrained": "untrained net", "intensity": "intensity", "random": "random"}
CELL, CELLS = 12, 3  # pixels of a cell, cells of a side
SIDE = CELL * CELLS
EXAMPLES, GRID = 4, 12  # pictures that the plot shows, and the side at which their maps are recorded
FEW = 80  # labelled images of the second part
PHASES, RATES = (20, 20), (2e-3, 2e-4)  # epochs and learning rates of both phases; from scratch, all epochs at the first rate


class Canvases(NamedTuple):
    """Pictures of four digits, whether one of them is a zero, and where."""

    images: UInt8[Tensor, "count height width"]
    labels: Int[Tensor, " count"]
    masks: Bool[Tensor, "count height width"]


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: five heat maps measured against the masks and by deletion; then a new task of few labels, learned in three ways."""
    with own_randomness():
        seed_all(seed)
        return {**_localisation(seed, budget), **_few_labels(seed, budget)}


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: both parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge the two parts of `RULE` one by one."""

    def above(a: str, b: str) -> bool:
        gain = figures[a].mean() - figures[b].mean()
        return bool(gain > pooled_standard_error(figures[a], figures[b]))

    points = all(above("pointing_gradcam", f"pointing_{other}") for other in ("random", "intensity", "untrained"))
    deleted = bool(figures["deletion_gradcam"].mean() < figures["deletion_random"].mean())
    return {
        "localisation without masks": points and deleted,
        "two phases with few labels": above("balanced_fine_tuned", "balanced_scratch"),
    }


def digits(seed: int, part: str) -> tuple[UInt8[Tensor, "count height width"], Int[Tensor, " count"]]:
    """Return the digits of 12 px of which training or test canvases are made; no digit is in both."""
    bunch = load_digits()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(bunch.target)))
    own = order[:1300] if part == "train" else order[1300:]
    pixels = torch.from_numpy(bunch.images).float()[own, None] * (255 / 16)
    return F.interpolate(pixels, (CELL, CELL), mode="bilinear")[:, 0].round().byte(), torch.from_numpy(bunch.target)[own]


def canvases(seed: int, part: str, count: int) -> Canvases:
    """Draw canvases of four digits, half of them with one zero."""
    pixels, names = digits(seed, part)
    generator = torch.Generator().manual_seed(mix(seed, part == "train"))
    zeros, others = (names == 0).nonzero()[:, 0], (names > 0).nonzero()[:, 0]
    labels = torch.arange(count) % 2
    places = torch.rand(count, CELLS**2, generator=generator).argsort(1)[:, :4]
    chosen = others[torch.randint(len(others), (count, 4), generator=generator)]
    zero = zeros[torch.randint(len(zeros), (count,), generator=generator)]
    chosen[:, 0] = torch.where(labels == 1, zero, chosen[:, 0])
    cells = torch.zeros(count, CELLS**2, CELL, CELL, dtype=torch.uint8)
    cells[torch.arange(count)[:, None], places] = pixels[chosen]
    masks = torch.zeros(count, CELLS**2, dtype=torch.bool)
    masks[torch.arange(count), places[:, 0]] = labels == 1
    return Canvases(_laid_out(cells), labels, _laid_out(masks[:, :, None, None].expand(-1, -1, CELL, CELL)))


def _laid_out(cells: Tensor) -> Tensor:
    grid = cells.unflatten(1, (CELLS, CELLS))
    return grid.transpose(2, 3).reshape(len(cells), SIDE, SIDE)


def _data(seed: int, train: int, test: int) -> Data:
    seen, held_out = canvases(seed, "train", train), canvases(seed, "test", test)
    return from_arrays(
        torch.cat([seen.images, held_out.images]).numpy(),
        torch.cat([seen.labels, held_out.labels]),
        classes=["no zero", "a zero"],
        split=["train"] * train + ["test"] * test,
        val_fraction=0.0,
        name="canvases",
    )


def _localisation(seed: int, budget: Budget) -> dict[str, Any]:
    """Train on the canvases' labels, and measure five maps of the test canvases that have a zero."""
    count = budget.pick(laptop=400, smoke=16)
    data = _data(seed, budget.pick(laptop=2000, smoke=64), count)
    model, untrained = _network(1, 1, SIDE), _network(1, 1, SIDE)
    _train(model, data, budget.pick(laptop=8, smoke=1), seed)
    test = canvases(seed, "test", count)
    pixels, masks = test.images[test.labels == 1], test.masks[test.labels == 1]
    images = data.preprocessing.normalize(pixels[:, None])
    maps = {**_maps(model, untrained, images), "intensity": pixels / 255, "random": torch.rand(masks.shape)}
    black = float(data.preprocessing.normalize(torch.zeros(1, 1, 1, 1)))
    figures: dict[str, Any] = {"accuracy": measured(model, data.test)["top1"], "seed": seed}
    for name, heat in maps.items():
        figures[f"pointing_{name}"] = float(pointing_game(heat, masks, tolerance=0).mean())
        figures[f"energy_{name}"] = float(energy_in_mask(heat, masks).mean())
        figures[f"deletion_{name}"] = float(deletion_auc(model, images, heat, 1, steps=12, fill=black).mean())
    for name, explainer in (("gradcam", heat_maps), ("gradient", partial(heat_maps, variant="gradient"))):
        stages = sanity_check(model, explainer, images[:32], 1, stages=4, seed=seed)
        figures[f"sanity_{name}"] = [1.0, *(float(values.mean()) for values in stages.values())]
    shown = data.preprocessing.normalize(_examples(seed).images[:, None])
    for name, heat in _maps(model, untrained, shown).items():
        figures[f"example_{name}"] = F.adaptive_avg_pool2d(heat[:, None], GRID).mul(100).round().flatten().tolist()
    return figures


def _maps(model: nn.Module, untrained: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {
        "gradcam": heat_maps(model, images, 1),
        "gradient": heat_maps(model, images, 1, variant="gradient"),
        "untrained": heat_maps(untrained, images, 1),
    }


def _examples(seed: int) -> Canvases:
    drawn = canvases(seed, "test", 2 * EXAMPLES)
    return Canvases(*(values[drawn.labels == 1] for values in drawn))


def _few_labels(seed: int, budget: Budget) -> dict[str, float]:
    """Learn class 0 against the others from few images, with convolutions that know classes 1 to 9, and from scratch."""
    name, pool, held_out = budget.pick(laptop=("cifar10", 5000, 2000), smoke=("digits", 600, 60))
    source = retinue.data.open(
        name, input_size=budget.pick(laptop=32, smoke=12), channels=3, train_images=pool, test_images=held_out, val_fraction=0.0, seed=seed
    )
    labels, pixels = source.train.labels, source.train.images()
    order = torch.randperm(len(labels))
    news, known = order[labels[order] == 0], order[labels[order] > 0]
    few, known = torch.cat([news[: FEW // 2], known[: FEW // 2]]), known[FEW // 2 :]
    task = from_arrays(
        torch.cat([pixels[few], source.test.images()]),
        torch.cat([labels[few] == 0, source.test.labels == 0]).long(),
        classes=["another", source.classes[0]],
        split=["train"] * FEW + ["test"] * len(source.test),
        val_fraction=0.0,
        name=f"{name}, class 0",
    )
    before = from_arrays(pixels[known], labels[known] - 1, val_fraction=0.0, test_fraction=0.0, name=f"{name}, classes 1 to 9")
    side = source.preprocessing.input_size[0]
    pretrained, model, scratch = _network(9, 3, side), _network(1, 3, side), _network(1, 3, side)
    _train(pretrained, before, budget.pick(laptop=6, smoke=1), seed)
    model.backbone.load_state_dict(pretrained.backbone.state_dict())
    epochs = budget.pick(laptop=PHASES, smoke=(1, 1))
    numbers = transfer(model, task, unfreeze=0.5, epochs=epochs, lr=RATES, l2=0.0, batch_size=16, seed=seed, progress=False)
    _train(scratch, task, sum(epochs), seed, batch_size=16)
    return {
        "balanced_head": numbers["head"]["balanced_accuracy"],
        "balanced_fine_tuned": numbers["fine-tuned"]["balanced_accuracy"],
        "balanced_scratch": measured(scratch, task.test)["balanced_accuracy"],
    }


def _network(num_classes: int, in_chans: int, side: int) -> TransferClassifier:
    convs = create_model("small_convnet", widths=[16, 32, 64, 64], num_classes=0, in_chans=in_chans, input_size=side)
    return TransferClassifier(convs, num_classes=num_classes, dropout=0.0)


def _train(model: TransferClassifier, data: Data, epochs: int, seed: int, batch_size: int = 32) -> None:
    retinue.fit(
        model, WeightedCrossEntropy(), data, epochs=epochs, batch_size=batch_size, optimizer="adam", lr=RATES[0], weight_decay=0.0,
        schedule="constant", seed=seed, progress=False,
    )  # fmt: skip


def draw(figures: Figures, folder: Path) -> None:
    """Draw canvases with their masks and maps, the measures of the five maps, the sanity check, and the three ways with few labels."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12.5, 7.6), layout="constrained")
    halves: Any = picture.subfigures(2, 1, height_ratios=[1.15, 1])
    top, bottom = halves
    examples = _examples(int(figures["seed"][0]))
    names = ("gradcam", "gradient", "untrained")
    axes = top.subplots(2, 2 * EXAMPLES).reshape(2, EXAMPLES, 2)
    for place in range(EXAMPLES):
        four = axes[:, place].ravel()
        four[0].imshow(to_rgb(examples.images[place]))
        four[0].contour(examples.masks[place].float(), levels=[0.5], colors="lime", linewidths=1.5)
        four[0].set_title("mask of the zero", fontsize=8)
        for axis, name in zip(four[1:], names):
            small = torch.tensor(figures[f"example_{name}"][0]).view(EXAMPLES, GRID, GRID)[place].float() / 100
            heat = F.interpolate(small[None, None] / small.max().clamp(min=0.01), (SIDE, SIDE), mode="bilinear")[0, 0]
            axis.imshow(overlay(examples.images[place], heat))
            axis.set_title(MAPS[name], fontsize=8)
    for axis in axes.ravel():
        axis.set_axis_off()
    measures, sanity, few = bottom.subplots(1, 3, width_ratios=[2.2, 1, 1])
    for group, (measure_, label) in enumerate((("pointing", "pointing game"), ("energy", "energy in mask"), ("deletion", "deletion AUC"))):
        for place, (name, title) in enumerate(MAPS.items()):
            _bar(measures, 6 * group + place, figures[f"{measure_}_{name}"], f"C{place}", title if group == 0 else None)
        measures.text(6 * group + 2, -0.06, label, ha="center", va="top", transform=measures.get_xaxis_transform())
    measures.axhline(1 / CELLS**2, color="grey", linestyle=":", linewidth=1)
    measures.set(xticks=[], ylim=(0, 1.3))
    measures.set_title("(1) against the mask (dotted: its share of the area), and by deletion", fontsize=10)
    measures.legend(ncols=5, fontsize=8, loc="upper center", handlelength=1, columnspacing=1)
    for name, color in (("gradcam", "C0"), ("gradient", "C1")):
        sanity.plot(figures[f"sanity_{name}"].T, color=color, alpha=0.35, linewidth=1)
        sanity.plot(figures[f"sanity_{name}"].mean(0), color=color, linewidth=2, label=MAPS[name])
    sanity.axhline(0, color="grey", linewidth=0.8)
    sanity.set(xlabel="quarters of the layers made anew", ylabel="rank correlation", xticks=range(5))
    sanity.set_title("do the maps follow the weights?", fontsize=10)
    sanity.legend(fontsize=8)
    for place, (name, title) in enumerate((("scratch", "scratch"), ("head", "head only"), ("fine_tuned", "fine-tuned"))):
        _bar(few, place, figures[f"balanced_{name}"], "tab:green", None)
        few.text(place, 0.512, title, ha="center", fontsize=9)
    few.set(xticks=[], ylim=(0.5, 1), ylabel="balanced accuracy")
    few.set_title(f"(2) a new class from {FEW} images", fontsize=10)
    picture.savefig(folder / "grad-cam.png", dpi=110)


def _bar(axis: Any, place: int, values: Any, color: str, label: str | None) -> None:
    axis.bar(place, values.mean(), color=color, alpha=0.45, label=label)
    axis.plot([place] * len(values), values, "o", color=color, markersize=4)
