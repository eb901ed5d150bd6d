"""Optimisers and schedules by name, from timm's factories."""

from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch import nn

from retinue.errors import ArgumentError, unknown

SCHEDULES = ("constant", "cosine", "multistep", "onecycle", "plateau", "poly", "step", "tanh")


def make_optimizer(
    name: str,
    parameters: list[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    **arguments: Any,
) -> torch.optim.Optimizer:
    """Build an optimiser of timm or torch by timm's name ("sgd", "adamw", "lars", "rmsproptf", ...).

    Args:
        name: one of `timm.optim.list_optimizers()`; "sgd" has Nesterov's momentum as in timm, "momentum" is without.
        parameters: what it moves.
        lr: peak learning rate.
        weight_decay: for weights alone: parameters with fewer than two dimensions (biases, norms' scales) are not decayed
            unless `filter_bias_and_bn=False` is given.
        momentum: for those which have one.
        arguments: what else the optimiser takes (`betas`, `eps`, ...).

    Raises:
        ArgumentError: if there is no such optimiser, or it does not take one of the arguments.
    """
    if name not in timm.optim.list_optimizers(filter="", exclude_filters=()):
        raise unknown("fit", "optimizer", name, timm.optim.list_optimizers())
    filtered = arguments.pop("filter_bias_and_bn", True)
    weights = [parameter for parameter in parameters if parameter.ndim > 1 or not filtered]
    others = [parameter for parameter in parameters if parameter.ndim <= 1 and filtered]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    try:
        return timm.optim.create_optimizer_v2(
            [group for group in groups if group["params"]], opt=name, lr=lr, weight_decay=weight_decay, momentum=momentum, **arguments
        )
    except TypeError as error:
        raise ArgumentError(f'fit: the optimizer "{name}" does not take {sorted(arguments)}: {error}.') from error


class Schedule:
    """The learning rate as a function of the number of updates done; nothing to save but what "plateau" has seen.

    Args:
        optimizer: its groups' `lr` are set.
        name: one of `SCHEDULES`.
        steps: updates of the whole run.
        steps_per_epoch: updates of one epoch.
        warmup_epochs: epochs of linear warm-up from 0 (may be a fraction).
        arguments: of timm's `create_scheduler_v2` (`decay_rate`, `decay_epochs`, `decay_milestones`, `min_lr`, ...), or of torch's
            `OneCycleLR` for "onecycle"; epochs are counted in epochs.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str,
        *,
        steps: int,
        steps_per_epoch: int,
        warmup_epochs: float = 0.0,
        **arguments: Any,
    ) -> None:
        if name not in SCHEDULES:
            raise unknown("fit", "schedule", name, SCHEDULES)
        self.name, self.optimizer, self.scheduler = name, optimizer, None
        self.once: torch.optim.lr_scheduler.OneCycleLR | None = None
        try:
            if name == "onecycle":
                peak = [group["lr"] for group in optimizer.param_groups]
                self.once = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=peak, total_steps=max(steps + 1, 2), cycle_momentum=False, **arguments
                )
            elif name != "constant" or warmup_epochs:
                if name == "constant":
                    name, arguments = "multistep", {"decay_milestones": [], **arguments}
                arguments = {"warmup_lr": 0.0, "min_lr": 0.0, **arguments}
                self.scheduler, _ = timm.scheduler.create_scheduler_v2(
                    optimizer,
                    sched=name,
                    num_epochs=max(steps / steps_per_epoch, 1e-9) if name != "plateau" else 1,
                    warmup_epochs=warmup_epochs,
                    cooldown_epochs=0,
                    step_on_epochs=name == "plateau",
                    updates_per_epoch=steps_per_epoch,
                    **arguments,
                )
        except TypeError as error:
            raise ArgumentError(f'fit: the schedule "{self.name}" does not take {sorted(arguments)}: {error}.') from error

    def set(self, step: int) -> None:
        """Set the learning rate for the update after `step` finished ones."""
        if self.once is not None:
            self.once.last_epoch = step
            for group, lr in zip(self.optimizer.param_groups, self.once.get_lr(), strict=True):
                group["lr"] = lr
        elif self.scheduler is not None and self.name != "plateau":
            self.scheduler.step_update(step)

    def evaluated(self, epoch: int, metric: float | None) -> None:
        """Tell "plateau" what an evaluation gave."""
        if self.name == "plateau" and self.scheduler is not None and metric is not None:
            self.scheduler.step(epoch, metric)

    def state_dict(self) -> dict[str, Any]:
        """Return what "plateau" remembers, as plain numbers; nothing for all others."""
        if self.name != "plateau" or self.scheduler is None:
            return {}
        return {key: value for key, value in self.scheduler.lr_scheduler.state_dict().items() if isinstance(value, int | float | str | list)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if state and self.scheduler is not None:
            self.scheduler.lr_scheduler.load_state_dict(state)
