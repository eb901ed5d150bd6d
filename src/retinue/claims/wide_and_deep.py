"""wide-and-deep: of all infinitely deep networks the one whose weights fall with the distance to the power -d classifies best, as claimed.

Consistency is tried on made-up labels with noise, uniform on the non-negative part of the sphere in three dimensions (d = 2), where the
Bayes risk is 0.2; without noise the nearest neighbour would be as good. The taxonomy is tried on the bundled digits, and the closed form
on finite networks of width 4,096 with ReLU: of the activations of third degree the kernels come to the same mean, but one network differs
so much from the next (phi_2 by 40 %, which is recorded too) that five of them say little.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.engine.seeds import own_randomness, seed_all
from retinue.models.wide_deep_network import WideDeepNetwork, empirical_kernel, singular_coefficients
from retinue.theory.dual_activation import DualActivation
from retinue.theory.wide_and_deep import WideDeepClassifier

RULE = (
    "over 3 seeds: (1) on digits, networks with A = A' = 0 agree with the nearest neighbour on 99.5 % of the test images at depth 10, and "
    "the accuracy of one with A != 0 and B' > 1 is below 0.25 at depth 50; (2) on noisy labels, the infinitely deep network with alpha = "
    "d has a lower risk than those with alpha = 1, 4 and 8 and the nearest neighbour, at 1,000 and at 4,000 training inputs, by more than "
    "the pooled standard error, and its risk falls from 250 to 4,000; (3) the tangent kernel of finite ReLU networks of depth 2 and width "
    "4,096, mean of 5, is within 5 % of the closed form at 10 pairs of inputs"
)
DATA = ("digits",)
BAYES, NOISE = 0.2, 0.8
SIZES, ALPHAS = (250, 1000, 4000), (1, 2, 4, 8)
DEPTHS = (1, 2, 5, 10, 20, 50)
ACTIVATIONS: dict[str, Any] = {
    "h2": [0, 0, 1],
    "h2h3": [0, 0, 0.5**0.5, 0.5**0.5],
    "phi2": singular_coefficients(2),
    "phi8": singular_coefficients(8),
    "biased": [0.2**0.5, 0.3**0.5, 0.5**0.5],
    "relu": "relu",
}
TITLES = {
    "h2": "$h_2$: nearest", "h2h3": "$(h_2+h_3)/\\sqrt{2}$: nearest", "phi2": "$\\phi_2$: singular, $\\alpha=2$",
    "phi8": "$\\phi_8$: singular, $\\alpha=8$", "biased": "$a^2=(.2,.3,.5)$: majority", "relu": "ReLU: majority",
}  # fmt: skip
RIVALS = ("alpha1", "alpha4", "alpha8", "nearest")
EFFECTS = {
    "risk at 4,000 inputs, alpha = 1 - alpha = d": ("risk_alpha1_4000", "risk_alpha2_4000"),
    "risk at 4,000 inputs, alpha = 4 - alpha = d": ("risk_alpha4_4000", "risk_alpha2_4000"),
    "risk at 4,000 inputs, alpha = 8 - alpha = d": ("risk_alpha8_4000", "risk_alpha2_4000"),
    "risk at 4,000 inputs, nearest neighbour - alpha = d": ("risk_nearest_4000", "risk_alpha2_4000"),
    "risk of alpha = d, 250 - 4,000 inputs": ("risk_alpha2_250", "risk_alpha2_4000"),
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: six activations at six depths on digits, the risk of five infinite classifiers, and finite networks' kernels."""
    return {**_taxonomy(seed, budget), **_consistency(seed, budget), **_twin(seed, budget)}


def shown(figures: Figures) -> bool:
    """Judge by `RULE`: all three parts."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge the three parts of `RULE` one by one."""
    tenth, last = DEPTHS.index(10), DEPTHS.index(50)
    nearest = all(figures[f"nearest_{name}"][:, tenth].mean() >= 0.995 for name in ("h2", "h2h3"))
    best = all(
        figures[f"risk_{rival}_{n}"].mean() - figures[f"risk_alpha2_{n}"].mean()
        > pooled_standard_error(figures[f"risk_{rival}_{n}"], figures[f"risk_alpha2_{n}"])
        for rival in RIVALS
        for n in SIZES[1:]
    )
    falls = figures["risk_alpha2_250"].mean() > figures["risk_alpha2_4000"].mean()
    return {
        "the three limits": bool(nearest and figures["accuracy_biased"][:, last].mean() < 0.25),
        "consistency at alpha = d": bool(best and falls),
        "finite networks have this kernel": bool(figures["error_relu"].max() < 0.05),
    }


def _taxonomy(seed: int, budget: Budget) -> dict[str, Any]:
    """Measure accuracy at each depth, and agreement with the nearest neighbour by angle."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, test = order[: budget.pick(laptop=1000, smoke=80)], order[1000 : budget.pick(laptop=None, smoke=1060)]
    nearest = KNeighborsClassifier(1, metric="cosine").fit(images[train], labels[train]).predict(images[test])
    figures: dict[str, Any] = {}
    for name, activation in ACTIVATIONS.items():
        answers = [WideDeepClassifier(activation, depth=depth).fit(images[train], labels[train]).predict(images[test]) for depth in DEPTHS]
        figures[f"accuracy_{name}"] = [float((answer == labels[test]).mean()) for answer in answers]
        figures[f"nearest_{name}"] = [float((answer == nearest).mean()) for answer in answers]
    return figures


def made_up(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw points uniformly on the non-negative part of the sphere, and the probability of class 1 at each."""
    points = np.abs(rng.normal(size=(count, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points, np.where(np.sin(6 * points[:, 0]) * np.sin(6 * points[:, 1]) > 0, NOISE, 1 - NOISE)


def _consistency(seed: int, budget: Budget) -> dict[str, float]:
    """Compute the expected error on new points, given the probabilities that the labels were drawn with."""
    rng = np.random.default_rng([seed, 1])
    unseen, chance = made_up(budget.pick(laptop=1000, smoke=50), rng)
    figures = {}
    for n in SIZES:
        points, probability = made_up(n if budget.name == "laptop" else n // 25, rng)
        labels = (rng.random(len(points)) < probability).astype(int)
        rules: dict[str, Any] = {f"alpha{alpha}": WideDeepClassifier(singular_coefficients(alpha)) for alpha in ALPHAS}
        rules |= {"nearest": KNeighborsClassifier(1), "root": KNeighborsClassifier(round(math.sqrt(len(points))))}
        for name, rule in rules.items():
            answer = rule.fit(points, labels).predict(unseen)
            figures[f"risk_{name}_{n}"] = float(np.where(answer == 1, 1 - chance, chance).mean())
    return figures


def _twin(seed: int, budget: Budget) -> dict[str, Any]:
    """Compare the mean tangent kernel of finite networks with K_2 at 10 pairs; its largest relative error."""
    width, count = budget.pick(laptop=(4096, 5), smoke=(256, 2))
    points, _ = made_up(11, np.random.default_rng([seed, 2]))
    x = torch.from_numpy(points).float()
    figures: dict[str, Any] = {}
    for name in ("relu", "optimal"):
        kernels = []
        for i in range(count):
            with own_randomness():
                seed_all(seed, i)
                network = WideDeepNetwork(3, 1, width=width, depth=2, activation=name, dim=2)
            kernels.append(empirical_kernel(network, x)[0, 1:].double())
        limit = DualActivation.named(name, dim=2).ntk((points[:1] @ points[1:].T)[0], 2)
        finite = torch.stack(kernels).mean(0).numpy()
        figures |= {f"finite_{name}": finite.tolist(), f"limit_{name}": limit.tolist()}
        figures[f"error_{name}"] = float(np.abs(finite / limit - 1).max())
    return figures


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy against depth, the singular kernels, risk against the number of inputs, and finite against infinite kernels."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12.5, 7.4), layout="constrained")
    (taxonomy, kernels), (risks, twin) = picture.subplots(2, 2)
    for place, (name, title) in enumerate(TITLES.items()):
        curves = 100 - 100 * figures[f"accuracy_{name}"]
        style = "-" if place % 2 == 0 else "--"
        taxonomy.plot(DEPTHS, curves.mean(0), style, marker="o", markersize=3, color=f"C{place // 2}", label=title)
    taxonomy.set(xscale="log", xticks=DEPTHS, xticklabels=DEPTHS, xlabel="hidden layers", ylabel="errors on digits, %")
    taxonomy.set(yscale="log", yticks=(0.5, 1, 2, 5, 10, 20, 50, 90), yticklabels=("0.5", 1, 2, 5, 10, 20, 50, 90))
    taxonomy.minorticks_off()
    taxonomy.set_title("(1) what depth makes of six activations", loc="left", fontsize=10)
    taxonomy.legend(frameon=False, fontsize=8)
    distance = np.geomspace(1e-3, 1.2, 200)
    for place, alpha in enumerate(ALPHAS):
        psi = DualActivation(singular_coefficients(alpha)).psi(1 - distance**2 / 2)
        kernels.plot(distance, psi, color=f"C{place}", label=f"$\\alpha={alpha}$")
        kernels.plot(distance[:60], psi[30] * (distance[:60] / distance[30]) ** -alpha, ":", color="black", linewidth=1)
    kernels.set(xscale="log", yscale="log", xlabel="distance of two inputs", ylabel="weight $\\psi$ of a training input")
    kernels.set_title("the singular kernels; dotted: distance to the power $-\\alpha$", loc="left", fontsize=10)
    kernels.legend(frameon=False, fontsize=8)
    names = {
        **{f"alpha{alpha}": f"$\\alpha={alpha}$" for alpha in ALPHAS},
        "nearest": "nearest neighbour",
        "root": "$\\sqrt{n}$ neighbours",
    }
    for place, (name, title) in enumerate(names.items()):
        values = np.stack([figures[f"risk_{name}_{n}"] for n in SIZES], 1)
        color = f"C{place}" if name.startswith("alpha") else ("black" if name == "nearest" else "grey")
        width = 3 if name == "alpha2" else 1.3
        risks.plot(SIZES, values.mean(0), marker="o", color=color, linewidth=width, label=title + (" $=d$" if name == "alpha2" else ""))
        risks.plot(SIZES, values.T, ".", color=color, alpha=0.4)
    risks.axhline(BAYES, color="black", linestyle=":", linewidth=1)
    risks.set(xscale="log", xticks=SIZES, xticklabels=[f"{n:,}" for n in SIZES], xlabel="training inputs", ylabel="risk")
    risks.minorticks_off()
    risks.set_title("(2) noisy labels on the sphere, d = 2; dotted: the least possible", loc="left", fontsize=10)
    risks.legend(frameon=False, fontsize=8, ncols=2)
    for name, color, title in (("optimal", "tab:orange", "$\\phi_2$"), ("relu", "tab:blue", "ReLU")):
        error = f"{title}: largest error {100 * figures[f'error_{name}'].max():.1f} %"
        twin.plot(figures[f"limit_{name}"].ravel(), figures[f"finite_{name}"].ravel(), "o", color=color, alpha=0.6, label=error)
    twin.axline((1, 1), slope=1, color="black", linewidth=1)
    twin.set(xlabel="kernel in closed form", ylabel="mean kernel of 5 finite networks")
    twin.set_title("(3) finite networks of depth 2", loc="left", fontsize=10)
    twin.legend(frameon=False, fontsize=8)
    for axes in (taxonomy, kernels, risks, twin):
        axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(folder / "wide-and-deep.png", dpi=110)
