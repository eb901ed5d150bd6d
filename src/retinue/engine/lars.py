"""LARS as SimCLR has it: each tensor moves by a share of its own length (You et al. 2017, arXiv 1708.03888; official code of SimCLR).

timm's `Lars` differs in two places: it divides by ||g|| + wd ||w|| instead of the norm of g + wd w, and its momentum holds gradients, so
that a learning rate that changes reaches past steps too.
"""

from collections.abc import Callable, Iterable
from typing import Any

import timm.optim._optim_factory as factory
import torch
from torch import Tensor, nn

from retinue.errors import ArgumentError

NAME = "simclrlars"  # as fit(optimizer=...) knows it; timm reads only what stands behind the last "_" of a name
EXEMPT = "exempt_from_lars"  # an attribute of a parameter


def exempt(module: nn.Module) -> None:
    """Let `LARS` move a module's parameters as plain momentum does, without weight decay: a classifier that is trained on labels."""
    for parameter in module.parameters():
        setattr(parameter, EXEMPT, True)


def excluded(parameter: Tensor) -> bool:
    """Tell whether a parameter is a bias, a norm's scale, or exempt."""
    return parameter.ndim <= 1 or getattr(parameter, EXEMPT, False)


class LARS(torch.optim.Optimizer):
    """Momentum in which each tensor's step is scaled by r = eta ||w|| / ||g||.

    Of each tensor: g <- g + wd w; r = eta ||w|| / ||g|| if both norms are above 0, else 1; v <- m v + lr r g; w <- w - v. The learning rate
    is inside v. Excluded tensors have r = 1 and no weight decay.

    Args:
        params: parameters, or groups of them.
        lr: learning rate; large, since steps are shares of the weights: 0.1 sqrt(batch size) in SimCLRv2.
        momentum: m, in [0, 1).
        weight_decay: wd.
        trust_coefficient: eta.
        exclude: tells which tensors are excluded.

    Raises:
        ArgumentError: if a number lies outside its range.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = LARS([weight], lr=0.5, weight_decay=1e-4)
    >>> weight.grad = torch.tensor([[0.6, 0.8]])
    >>> optimizer.step()
    >>> weight.data
    tensor([[2.9985, 3.9980]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        exclude: Callable[[Tensor], bool] = excluded,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ArgumentError(f"LARS: `{name}` must be 0 or more, got {value}.")
        if not 0 <= momentum < 1:
            raise ArgumentError(f"LARS: `momentum` must lie in [0, 1), got {momentum}. SimCLR has 0.9.")
        if not trust_coefficient > 0:
            raise ArgumentError(f"LARS: `trust_coefficient` must be above 0, got {trust_coefficient}. SimCLR has 0.001.")
        self.exclude = exclude
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(weight)
                    velocity = state["momentum_buffer"].mul_(group["momentum"])
                    weight.sub_(velocity.add_(self._scaled(weight, group) * group["lr"]))
        return loss

    def _scaled(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        gradient: Tensor = weight.grad  # type: ignore[assignment]
        if self.exclude(weight):
            return gradient
        gradient = gradient.add(weight, alpha=group["weight_decay"])
        length, slope = weight.norm(), gradient.norm()
        trust = torch.where((length > 0) & (slope > 0), group["trust_coefficient"] * length / slope, torch.ones_like(length))
        return gradient * trust


factory.default_registry.register(
    factory.OptimInfo(
        name=NAME, opt_class=LARS, description="LARS with the learning rate inside the momentum, as in SimCLR", has_momentum=True
    )
)
