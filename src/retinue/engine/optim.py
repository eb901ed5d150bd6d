"""Optimisers and schedules by name, from timm's factories."""

from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch import nn

import retinue.engine.lars  # noqa: F401
from retinue.errors import ArgumentError, unknown

SCHEDULES = ("constant", "cosine", "multistep", "onecycle", "plateau", "poly", "step", "tanh")
EXEMPT = "exempt_from_decay"  # an attribute of a parameter
PLATEAU = {"decay_rate": "factor", "patience_epochs": "patience", "cooldown_epochs": "cooldown"}  # timm's words for torch's arguments
REMEMBERED = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")  # of ReduceLROnPlateau


def make_optimizer(
    name: str,
    parameters: list[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    **arguments: Any,
) -> torch.optim.Optimizer:
    """Build an optimiser of timm or torch by timm's name ("sgd", "adamw", "lars", "simclrlars", ...).

    Args:
        name: one of `timm.optim.list_optimizers()`; "sgd" has Nesterov's momentum as in timm, "momentum" is without.
        parameters: what it moves.
        lr: peak learning rate.
        weight_decay: for weights alone: parameters with fewer than two dimensions (biases, norms' scales) are not decayed
            unless `filter_bias_and_bn=False` is given, nor are those that `exempt_from_decay` marked.
        momentum: for those which have one.
        arguments: what else the optimiser takes (`betas`, `eps`, ...).

    Raises:
        ArgumentError: if there is no such optimiser, or it does not take one of the arguments or values.
    """
    if name not in timm.optim.list_optimizers(filter="", exclude_filters=[]):
        raise unknown("fit", "optimizer", name, map(str, timm.optim.list_optimizers()))
    facts = timm.optim.get_optimizer_info(name)
    for argument, taken in (("betas", facts.has_betas), ("eps", facts.has_eps)):  # timm drops these without a word
        if argument in arguments and not taken:
            raise ArgumentError(f'fit: the optimizer "{name}" does not take `{argument}`. Leave it out, or take another optimizer.')
    filtered = arguments.pop("filter_bias_and_bn", True)
    decayed = [(parameter.ndim > 1 or not filtered) and not getattr(parameter, EXEMPT, False) for parameter in parameters]
    weights = [parameter for parameter, yes in zip(parameters, decayed) if yes]
    others = [parameter for parameter, yes in zip(parameters, decayed) if not yes]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    try:
        return timm.optim.create_optimizer_v2(
            [group for group in groups if group["params"]],
            opt="momentum" if name == "sgd" and not momentum else name,  # without momentum there is no Nesterov's
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            **arguments,
        )
    except TypeError as error:
        raise ArgumentError(f'fit: the optimizer "{name}" does not take {sorted(arguments)}: {error}.') from error
    except ValueError as error:  # a negative learning rate, betas above 1, ...
        raise ArgumentError(f'fit: the optimizer "{name}" refuses its settings: {error}.') from error


def exempt_from_decay(model: nn.Module) -> nn.Module:
    """Mark the parameters that a network names in timm's `no_weight_decay()`, such as position embeddings, and return the network.

    Args:
        model: any network; one without that method has nothing to mark.
    """
    ask: Any = getattr(model, "no_weight_decay", None) or getattr(getattr(model, "module", None), "no_weight_decay", None)
    wanted = set(ask()) if callable(ask) else set()
    for name, parameter in model.named_parameters():
        if any(name == end or name.endswith("." + end) for end in wanted):
            setattr(parameter, EXEMPT, True)
    return model


class Schedule:
    """The learning rate as a function of the number of updates done; nothing to save but what "plateau" has seen.

    Args:
        optimizer: its groups' `lr` are set.
        name: one of `SCHEDULES`.
        steps: updates of the whole run.
        steps_per_epoch: updates of one epoch.
        warmup_epochs: epochs of linear warm-up from 0 (may be a fraction); "onecycle" has its own.
        arguments: of timm's `create_scheduler_v2` (`decay_rate`, `decay_epochs`, `decay_milestones`, `patience_epochs`, `min_lr`, ...;
            epochs are counted in epochs), or of torch's `OneCycleLR` for "onecycle" and `ReduceLROnPlateau` for "plateau".
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
        self.warmup_epochs, self.warmup_steps = warmup_epochs, warmup_epochs * steps_per_epoch
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.once: torch.optim.lr_scheduler.OneCycleLR | None = None
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        try:
            if name == "onecycle":
                self.once = torch.optim.lr_scheduler.OneCycleLR(
                    optimizer, max_lr=self.peaks, total_steps=max(steps + 1, 2), cycle_momentum=False, **arguments
                )
                self.once._get_lr_called_within_step = True  # `set` asks for the rate of any step, of which torch would warn
            elif name == "plateau":  # absolute: a relative threshold is no threshold for numbers below zero
                renamed = {PLATEAU.get(argument, argument): value for argument, value in arguments.items()}
                self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", threshold_mode="abs", **renamed)
            elif name != "constant" or warmup_epochs:
                counted: dict[str, Any] = {  # in epochs, which may be fractions here
                    "num_epochs": max(steps / steps_per_epoch, 1e-9),
                    "warmup_epochs": warmup_epochs,
                    "cooldown_epochs": 0,
                    **({"decay_milestones": []} if name == "constant" else {}),
                }
                self.scheduler, _ = timm.scheduler.create_scheduler_v2(
                    optimizer,
                    sched="multistep" if name == "constant" else name,
                    step_on_epochs=False,
                    updates_per_epoch=steps_per_epoch,
                    **{"warmup_lr": 0.0, "min_lr": 0.0, **counted, **arguments},
                )
        except TypeError as error:
            raise ArgumentError(f'fit: the schedule "{name}" does not take {sorted(arguments)}: {error}.') from error
        except ValueError as error:
            raise ArgumentError(f'fit: the schedule "{name}" refuses its settings: {error}.') from error

    def set(self, step: int) -> None:
        """Set the learning rate for the update after `step` finished ones."""
        if self.once is not None:
            self.once.last_epoch = step
            for group, lr in zip(self.optimizer.param_groups, self.once.get_lr(), strict=True):
                group["lr"] = lr
        elif self.scheduler is not None:
            self.scheduler.step_update(step)
        elif self.plateau is not None and step < self.warmup_steps + 1:
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * step / self.warmup_steps if step < self.warmup_steps else peak

    def evaluated(self, epoch: int, metric: float | None, mode: str = "max") -> None:
        """Tell "plateau" what an evaluation gave.

        Args:
            epoch: epochs done; those of the warm-up do not count.
            metric: the number that is watched.
            mode: "max" where larger is better, "min" where smaller is.
        """
        if self.plateau is not None and metric is not None and epoch >= self.warmup_epochs:
            self.plateau.step(metric if mode == "max" else -metric)

    def state_dict(self) -> dict[str, Any]:
        """Return what "plateau" remembers, as plain numbers; nothing for all others."""
        return {} if self.plateau is None else {name: getattr(self.plateau, name) for name in REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if self.plateau is not None:
            self.plateau.load_state_dict(state)
