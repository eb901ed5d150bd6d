"""lottery-ticket: a subnetwork found by magnitude learns where the same mask with new weights, or a random one, does not.

The page's measure decides, on digits with LeNet-300-100. A residual network on CIFAR-10 is measured beside it with and without rewinding;
the page requires no direction of that at this scale, where trainings last a few hundred steps.
"""

from pathlib import Path
from typing import Any

import retinue
from retinue.claims.harness import Budget, Figures, pooled_standard_error
from retinue.compress.lottery_ticket import lottery_ticket
from retinue.engine.seeds import own_randomness, seed_all

RULE = (
    "on digits with LeNet-300-100, 200 steps and 20 rounds of 20 percent (density at most 0.02), rewound to step 10, mean test accuracies "
    "over 3 seeds: ticket - same mask with new weights above 0.02 and above the pooled standard error, ticket - random mask with the same "
    "layer counts above 0.3, and ticket at most 0.03 below the whole network; rewinding to step 0, and a residual network of depth 8 "
    "on CIFAR-10 (with and without rewinding), are reported"
)
DATA = ("digits", "cifar10")
EFFECTS = {
    "digits, accuracy, ticket - new weights": ("ticket", "reinit"),
    "digits, accuracy, ticket - random mask": ("ticket", "random"),
    "digits, accuracy, ticket - whole network": ("ticket", "dense"),
    "digits, accuracy, rewound to step 10 - step 0": ("ticket", "ticket_k0"),
    "CIFAR-10, accuracy of the sparsest, rewound to step 20 - step 0": ("cifar_ticket_last", "cifar_ticket_last_k0"),
    "CIFAR-10, error barrier of the sparsest, rewound to step 20 - step 0": ("cifar_barrier", "cifar_barrier_k0"),
}
SOME = [2, 4, 6]  # levels of the residual network that have controls


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: digits rewound to steps 10 and 0, then the residual network rewound to steps 20 and 0."""
    late, early = (digits(seed, budget, k) for k in (10, 0))
    last = str(len(late["ticket"]) - 1)
    figures: dict[str, Any] = {
        "density": late["density"][-1], "dense": late["ticket"][0], "ticket": late["ticket"][-1], "reinit": late["reinit"][last],
        "random": late["random"][last], "ticket_k0": early["ticket"][-1], "order_l2": late["stability"][last]["order_l2"],
        "order_l2_k0": early["stability"][last]["order_l2"], "digits_density": late["density"], "digits_curve": late["ticket"],
    }  # fmt: skip
    for ending, k in (("", 20), ("_k0", 0)):
        found = cifar(seed, budget, k)
        stable = found["stability"]["6"]
        figures |= {
            f"cifar_density{ending}": found["density"], f"cifar_curve{ending}": found["ticket"],
            f"cifar_ticket_last{ending}": found["ticket"][-1], f"cifar_order_l2{ending}": stable["order_l2"],
            f"cifar_barrier{ending}": stable["barrier"], f"cifar_line{ending}": stable["errors"],
        }  # fmt: skip
        if k:
            for control in ("one_shot", "reinit", "random"):
                figures[f"cifar_{control}"] = [found[control][str(level)] for level in SOME]
    return figures


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    ticket, reinit = figures["ticket"], figures["reinit"]
    gain = ticket.mean() - reinit.mean()
    return bool(
        figures["density"].max() <= 0.02
        and gain > 0.02
        and gain > pooled_standard_error(ticket, reinit)
        and ticket.mean() - figures["random"].mean() > 0.3
        and ticket.mean() >= figures["dense"].mean() - 0.03
    )


def digits(seed: int, budget: Budget, rewind_step: int) -> dict[str, Any]:
    """Find tickets of LeNet-300-100 on digits; the controls are those of the sparsest level."""
    data = retinue.data.open("digits", test_fraction=0.33, val_fraction=0.0, seed=seed)
    steps, levels = budget.pick(laptop=(200, 20), smoke=(12, 2))
    return lottery_ticket(
        _network("mlp", seed, widths=[300, 100], in_chans=1, input_size=8), data, steps=steps, rewind_step=rewind_step, levels=levels,
        controls=("reinit", "random"), control_levels=[levels], points=2,
        fit_args={"batch_size": 64, "lr": 0.1, "weight_decay": 0.0}, seed=seed,
    )  # fmt: skip


def cifar(seed: int, budget: Budget, rewind_step: int) -> dict[str, Any]:
    """Find tickets of a residual network on CIFAR-10 at 16 px; each round is two of 20 percent in one."""
    data = retinue.data.open(
        budget.pick(laptop="cifar10", smoke="digits"), input_size=16, channels=3,
        train_images=budget.pick(laptop=5000, smoke=100), test_images=budget.pick(laptop=1000, smoke=50), val_fraction=0.0, seed=seed,
    )  # fmt: skip
    return lottery_ticket(
        _network("cifar_resnet", seed, depth=8, width=8, input_size=16), data, steps=budget.pick(laptop=400, smoke=24),
        rewind_step=rewind_step, levels=6, fraction=0.36, controls=("one_shot", "reinit", "random") if rewind_step else (),
        control_levels=SOME, points=11,
        fit_args={
            "batch_size": 64, "lr": 0.1, "weight_decay": 1e-4, "views": "crop(2), flip", "schedule": "cosine",
        }, seed=seed,
    )  # fmt: skip


def _network(name: str, seed: int, **options: Any) -> Any:
    with own_randomness():
        seed_all(seed)
        return retinue.create_model(name, num_classes=10, **options)


def draw(figures: Figures, folder: Path) -> None:
    """Draw accuracy against remaining weights on both data sets with the controls, and the error between two data orders."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(13, 3.8), layout="constrained")
    small, large, line = picture.subplots(1, 3)
    remain = 100 * figures["digits_density"].mean(0)
    small.plot(remain, 100 * figures["digits_curve"].mean(0), "o-", color="tab:blue", markersize=3, label="tickets, k = 10")
    for name, label, color in (("reinit", "same mask, new weights", "tab:orange"), ("random", "random mask", "grey")):
        small.plot([remain[-1]] * len(figures[name]), 100 * figures[name], "x", color=color, label=label)
    small.set_title("digits, LeNet-300-100")
    remain = 100 * figures["cifar_density"].mean(0)
    for ending, label, color in (("", "tickets, k = 20", "tab:blue"), ("_k0", "tickets, k = 0", "tab:cyan")):
        large.plot(remain, 100 * figures[f"cifar_curve{ending}"].mean(0), "o-", color=color, markersize=3, label=label)
        errors = 100 * figures[f"cifar_line{ending}"]
        line.plot([i / (errors.shape[1] - 1) for i in range(errors.shape[1])], errors.mean(0), "o-", color=color, markersize=3, label=label)
    for control, label, color in (
        ("one_shot", "one-shot", "tab:green"),
        ("reinit", "same mask, new weights", "tab:orange"),
        ("random", "random mask", "grey"),
    ):
        large.plot(remain[SOME], 100 * figures[f"cifar_{control}"].mean(0), "s--", color=color, markersize=3, label=label)
    large.set_title("CIFAR-10 at 16 px, residual network")
    for axes in (small, large):
        axes.set(xscale="log", xlabel="remaining weights, %", ylabel="test accuracy, %")
        axes.invert_xaxis()
        axes.legend(fontsize=7)
    line.set(xlabel="from one data order to another", ylabel="test error, %", title=f"sparsest tickets ({remain[-1]:.0f} % remain)")
    line.legend(fontsize=7)
    picture.savefig(folder / "lottery-ticket.png", dpi=110)
