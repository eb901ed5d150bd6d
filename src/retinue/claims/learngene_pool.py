"""learngene-pool: blocks and stitches that a trained network has taught make better networks of every size than fresh or separate ones.

Arms with as many steps of joint training on digits: (A) distilled instances with stitches turned round out of the distillation's maps;
(B) instances trained from scratch for as many steps as distillation had, with stitches by least squares, as in SN-Net; (C) random. Beside
them, distilled instances with the maps' pseudo-inverse and with least squares: what of a difference is the stitches'.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor, nn

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.data import Data
from retinue.engine.seeds import own_randomness, seed_all
from retinue.grow.learngene_pool import PoolTraining, distil_instance
from retinue.models.learngene_pool import How, LearngenePool
from retinue.train import Supervised

RULE = (
    "on digits, three seeds, mean test accuracy over the 9 configurations after as many steps of joint training: (1) that of the distilled "
    "pool (A) is above the random one's (C) by more than 3 pooled standard errors; (2) it is not below the separately trained one's (B) by "
    "a pooled standard error; (3) in two seeds of three at least, accuracy rises with parameters in A (Spearman above 0)"
)
DATA = ("digits",)
ARMS: dict[str, tuple[str, How, str]] = {  # how instances are prepared, how stitches begin, and the name in the picture
    "distilled": ("distilled", "distilled", "A: distilled, maps transposed"),
    "separate": ("separate", "least_squares", "B: separate, least squares"),
    "random": ("random", "random", "C: random"),
    "inverse": ("distilled", "pseudo_inverse", "distilled, maps' pseudo-inverse"),
    "fitted": ("distilled", "least_squares", "distilled, least squares"),
}
EFFECTS = {
    "mean accuracy of 9 configurations, distilled - random": ("distilled", "random"),
    "mean accuracy of 9 configurations, distilled - separate": ("distilled", "separate"),
    "mean accuracy before joint training, distilled - separate": ("distilled_before", "separate_before"),
    "mean accuracy of distilled instances, maps' pseudo-inverse - transposed": ("inverse", "distilled"),
    "mean accuracy of distilled instances, least squares - transposed": ("fitted", "distilled"),
}
NARROW, WIDE, DEPTH = 32, 96, 3
LR = 3e-3  # of ancestry, distillation and training from scratch
LR_POOL = (1e-3, 3e-3)  # of joint training; each arm has the one that is better for it on validation images
BATCH, EPOCHS, JOINT_EPOCHS = 32, 15, 3
POINTS = ("front", "middle", "end")  # of both instances: their blocks 0, 1, 2 beside 1, 3, 5 of the ancestry


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: the ancestry, and all arms with each configuration's accuracy after joint training, in percent."""
    data = retinue.data.open(
        "digits", seed=seed, val_fraction=0.1, test_fraction=0.3, train_images=budget.pick(laptop=None, smoke=64),
        test_images=budget.pick(laptop=None, smoke=60),
    )  # fmt: skip
    epochs = budget.pick(laptop=EPOCHS, smoke=1)
    ancestry = supervised(vit(WIDE, 2 * DEPTH, seed, 0), data, epochs, seed)
    figures: dict[str, Any] = {"ancestry": 100 * retinue.evaluate(ancestry, data.test)["top1"]}
    fresh = [vit(width, DEPTH, seed, 1 + i) for i, width in enumerate((NARROW, WIDE))]
    prepared = {way: taught(way, fresh, ancestry, data, epochs, seed) for way in ("distilled", "separate", "random")}
    some = data.preprocessing.normalize(data.train.images(range(min(100, len(data.train)))))
    for arm, (way, how, _) in ARMS.items():
        instances, maps = prepared[way]
        with own_randomness():
            seed_all(seed, 3)
            pool = LearngenePool(copy.deepcopy(instances)).init_stitches(how, maps, some)
        figures[f"{arm}_before"] = accuracies(pool, data.test).mean()
        rates = budget.pick(laptop=LR_POOL, smoke=LR_POOL[:1])
        rivals = [joint(pool, ancestry, data, rate, budget.pick(laptop=JOINT_EPOCHS, smoke=1), seed) for rate in rates]
        best = max(rivals, key=lambda trained: accuracies(trained, data.val).mean())
        each = accuracies(best, data.test)
        figures |= {arm: each.mean(), f"{arm}_each": each.tolist(), f"{arm}_lr": LR_POOL[rivals.index(best)]}
    params = [float(pool.num_params(config)) for config in pool.configs]
    rises = {arm: float(spearmanr(params, figures[f"{arm}_each"]).statistic) for arm in ARMS}
    return {**figures, "params": params, **{f"{arm}_rises": 0.0 if np.isnan(value) else value for arm, value in rises.items()}}


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge each part."""
    a, b, c = (figures[arm] for arm in ("distilled", "separate", "random"))
    rising = int((figures["distilled_rises"] > 0).sum())
    return {
        "ahead of random": bool(a.mean() - c.mean() > 3 * pooled_standard_error(a, c)),
        "not behind separate training": bool(a.mean() - b.mean() > -pooled_standard_error(a, b)),
        "accuracy rises with parameters": 3 * rising >= 2 * len(a),
    }


def vit(width: int, depth: int, seed: int, place: int) -> nn.Module:
    """Build a vision transformer for digits in patches of 2: 16 tokens and a class token.

    Its layers begin with the spread of their widths ("jax"): the usual normal of deviation 0.02 learns slowly at so small a width.
    """
    with own_randomness():
        seed_all(seed, place)
        return retinue.create_model(
            "timm:vit_tiny_patch16_224", embed_dim=width, depth=depth, num_heads=width // 16, mlp_ratio=2, patch_size=2,
            weight_init="jax", num_classes=10, in_chans=1, input_size=8,
        )  # fmt: skip


def settings(epochs: float, lr: float, seed: int) -> dict[str, Any]:
    """Return what all trainings share; without validation the last step is kept."""
    return {"epochs": epochs, "lr": lr, "batch_size": BATCH, "eval_every": 1 << 20, "seed": seed, "progress": False}


def supervised(network: nn.Module, data: Data, epochs: float, seed: int) -> nn.Module:
    """Train a network from labels."""
    return retinue.fit(network, Supervised(), data, **settings(epochs, LR, seed)).model


def taught(
    way: str, fresh: list[nn.Module], ancestry: nn.Module, data: Data, epochs: float, seed: int
) -> tuple[list[nn.Module], dict[int, list[Tensor]]]:
    """Prepare instances in one of three ways, from the same first weights and in the same steps, and the maps of distillation."""
    instances, maps = [], {}
    for i, network in enumerate(copy.deepcopy(fresh)):
        if way == "distilled":
            network, learned = distil_instance(copy.deepcopy(ancestry), network, data, points=POINTS, **settings(epochs, LR, seed))
            maps[i] = learned["block"]
        elif way == "separate":
            network = supervised(network, data, epochs, seed)
        instances.append(network)
    return instances, maps


def joint(pool: LearngenePool, ancestry: nn.Module, data: Data, lr: float, epochs: float, seed: int) -> Any:
    """Train a copy of a pool, with one configuration a step and the ancestry's answers."""
    objective = PoolTraining(copy.deepcopy(ancestry), seed=seed)
    return retinue.fit(copy.deepcopy(pool), objective, data, **settings(epochs, lr, seed)).model


def accuracies(pool: LearngenePool, split: Any) -> Any:
    """Measure every configuration, in percent."""
    return 100 * np.array([retinue.evaluate(pool.network(config), split)["top1"] for config in pool.configs])


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy against parameters of all configurations, and each arm's mean before and after joint training."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    params = figures["params"][0] / 1000
    order = np.argsort(params)
    for arm, colour in zip(ARMS, ("tab:blue", "tab:orange", "grey", "tab:cyan", "tab:green")):
        each = figures[f"{arm}_each"]
        left.plot(params[order], each.mean(0)[order], "o-", color=colour, label=ARMS[arm][2])
        left.fill_between(params[order], each.min(0)[order], each.max(0)[order], color=colour, alpha=0.15)
        before, after = figures[f"{arm}_before"], figures[arm]
        right.plot([0, 1], np.stack([before, after]), "o-", color=colour, alpha=0.3, markersize=3)
        right.plot([0, 1], [before.mean(), after.mean()], "o-", color=colour, label=ARMS[arm][2])
    left.set(xlabel="parameters, thousands", ylabel="test accuracy, %", title=f"9 networks out of one pool, {JOINT_EPOCHS} epochs together")
    left.axhline(figures["ancestry"].mean(), color="black", linestyle=":", label="ancestry")
    left.legend(fontsize=8)
    right.set(xticks=[0, 1], ylabel="mean of 9 test accuracies, %", title="what joint training adds")
    right.set_xticklabels(["stitched", "trained together"])
    picture.savefig(folder / "learngene-pool.png", dpi=110)
