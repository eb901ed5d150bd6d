"""What MixtureGrowth costs: the plan of its phases, the multiply-adds of each, and the table of sizes (Pham et al. 2024, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retinue.errors import ArgumentError
from retinue.grow.mixture_growth import MixtureGrowthNet
from retinue.models import count_macs

PASSES = 3  # of a training step: forward, gradient of the activations, gradient of the weights
Twin = Literal["cost", "steps"] | None
TWINS = ("cost", "steps")


@dataclass(frozen=True)
class GrowthPlan:
    """How long each phase is trained, and how fast; defaults are the paper's for CIFAR.

    Attributes:
        member_epochs: of member 0 and member 1.
        grown_epochs: of the wide network; 0 does not train it.
        lr_member: peak learning rate of both members.
        lr_grown: peak learning rate of the wide network, which is much smaller.
        train_both: member 0 goes on learning beside member 1, and is paid for.

    Raises:
        ArgumentError: if a number cannot be.

    >>> GrowthPlan(member_epochs=(10, 5), grown_epochs=4).costs({"member": 1, "wide": 4}, images=100)
    {'member 0': 3000, 'member 1': 1500, 'growth': 4800, 'total': 9300}
    """

    member_epochs: tuple[float, float] = (200, 200)
    grown_epochs: float = 40
    lr_member: float = 0.1
    lr_grown: float = 1e-4
    train_both: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "member_epochs", tuple(self.member_epochs))
        if len(self.member_epochs) != 2 or not all(epochs > 0 for epochs in self.member_epochs) or not self.grown_epochs >= 0:
            raise ArgumentError(
                "GrowthPlan: `member_epochs` must be two numbers above 0 and `grown_epochs` 0 or more, got "
                f"{list(self.member_epochs)} and {self.grown_epochs}."
            )
        if not (self.lr_member > 0 and self.lr_grown > 0):
            raise ArgumentError(f"GrowthPlan: learning rates must be above 0, got {self.lr_member} and {self.lr_grown}.")

    def costs(self, macs: Mapping[str, float], images: int) -> dict[str, int]:
        """Compute the multiply-adds of training; a training step costs three times its forward pass, and mixing weights next to nothing.

        Args:
            macs: of one image, forward: "member" and "wide".
            images: of an epoch.
        """
        each = PASSES * images
        costs = {f"member {member}": round(each * macs["member"] * epochs) for member, epochs in enumerate(self.member_epochs)}
        if self.train_both:
            costs["member 1"] *= 2
        costs["growth"] = round(each * macs["wide"] * self.grown_epochs)
        return {**costs, "total": sum(costs.values())}

    def twin_epochs(self, macs: Mapping[str, float], twin: Twin) -> float:
        """Return the epochs of the twin from scratch: for the cost of all phases together, or as many as after growth."""
        return (self.costs(macs, 1)["total"] / (PASSES * macs["wide"])) if twin == "cost" else self.grown_epochs


def multiply_adds(model: MixtureGrowthNet, size: int | tuple[int, int]) -> dict[str, int]:
    """Count the multiply-adds of a forward pass of one image, of "member" and "wide", as ordinary networks.

    Args:
        model: a `MixtureGrowthNet`, before growth.
        size: side of the images, or height and width.
    """
    narrow, wide = (count_macs(model.plain(member), size, in_chans=model.in_chans) for member in (0, None))
    return {"member": narrow, "wide": wide}


def parameters(model: MixtureGrowthNet) -> dict[str, int]:
    """Count the parameters of "member" and "wide" as ordinary networks, and of "templates", of which both and growth are made.

    Args:
        model: a `MixtureGrowthNet`, before growth.
    """
    narrow, wide = (sum(p.numel() for p in model.plain(member).parameters()) for member in (0, None))
    return {"member": narrow, "wide": wide, "templates": sum(p.numel() for p in [*model.banks.parameters(), *model.weights.parameters()])}


def sizes(numbers: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Put the sizes that came out in a table: each beside its twin from scratch, with the multiply-adds of training of both.

    Args:
        numbers: what `train_mixture_growth` returned.

    Returns:
        A row for "member 0", "member 1" and "grown": "size", "parameters", "macs" (of one image), "top1", "cost" (of "grown" that of all
        phases together), and with a twin "twin_top1" and "twin_cost".
    """
    rows = []
    for size, kind, twin, cost in (
        ("member 0", "member", "narrow twin", "member 0"),
        ("member 1", "member", "narrow twin", "member 1"),
        ("grown", "wide", "twin", "total"),
    ):
        row: dict[str, Any] = {"size": size, "parameters": int(numbers["parameters"][kind]), "macs": int(numbers["macs"][kind])}
        row |= {"top1": numbers[size if size in numbers else "at growth"]["top1"], "cost": int(numbers["cost"][cost])}
        if twin in numbers:
            row |= {"twin_top1": numbers[twin]["top1"], "twin_cost": int(numbers["cost"][twin])}
        rows.append(row)
    return rows
