"""Everything that a training remembers from one step to the next, and how a checkpoint keeps it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from retinue.data import Data
from retinue.engine import checkpoint, distributed
from retinue.engine.logs import Logs, Progress, history
from retinue.engine.objective import Objective
from retinue.engine.optim import Schedule, make_optimizer
from retinue.engine.run import Run, facts
from retinue.errors import ArgumentError, CheckpointError, unknown

if TYPE_CHECKING:
    from lightning.fabric import Fabric

SETTINGS_OF_A_PLAYER = ("optimizer", "lr", "weight_decay", "momentum", "optimizer_args")


class Training:
    """A training's players, optimisers, schedules, moving average, sums for the log, and best result so far.

    Args:
        model: the network.
        objective: what is minimised.
        data: for the record in the checkpoints.
        fabric: where it runs.
        settings: the arguments of `fit`.
        total: updates of the whole training.
        per_epoch: updates of an epoch.
        folder: the run's folder, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Data,
        fabric: "Fabric",
        settings: dict[str, Any],
        total: int,
        per_epoch: int,
        folder: Path | None,
    ) -> None:
        self.model, self.objective, self.data, self.fabric = model.to(fabric.device), objective.to(fabric.device), data, fabric
        self.settings, self.total, self.per_epoch, self.folder = settings, total, per_epoch, folder
        distributed.broadcast(fabric, model, objective)
        self.players = objective.players(model)
        self.optimizers: dict[str, Any] = {}
        self.schedules: dict[str, Schedule] = {}
        self._make_optimizers()
        decay = settings["ema"]
        self.ema = None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=True)
        self.monitor = settings["monitor"] or objective.monitor
        self.step = self.step_resumed = 0
        self.seconds = 0.0
        self.sums: dict[str, Tensor] = {}
        self.added = 0
        self.best: dict[str, float] = {}
        self.best_step = -1
        self.best_state: dict[str, Tensor] | None = None
        self.since_better = 0
        self.clock = time.perf_counter()
        self.timed_step = 0

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept: the moving average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def stopped(self) -> bool:
        """Whether patience is at its end."""
        patience = self.settings["patience"]
        return patience is not None and self.since_better >= patience

    def _make_optimizers(self) -> None:
        overrides = self.settings["players"] or {}
        for player in overrides:
            if player not in self.players:
                raise unknown("fit", f"player of {type(self.objective).__name__}", player, self.players)
        for player, parameters in self.players.items():
            if not parameters:
                raise ArgumentError(f'fit: the player "{player}" has no parameters that learn. Is everything frozen?')
            chosen = {name: self.settings[name] for name in SETTINGS_OF_A_PLAYER} | dict(overrides.get(player, {}))
            more = dict(chosen["optimizer_args"] or {})
            optimizer = make_optimizer(
                chosen["optimizer"], parameters, lr=chosen["lr"], weight_decay=chosen["weight_decay"], momentum=chosen["momentum"], **more
            )
            self.schedules[player] = Schedule(
                optimizer,
                self.settings["schedule"],
                steps=self.total,
                steps_per_epoch=self.per_epoch,
                warmup_epochs=self.settings["warmup_epochs"],
                **dict(self.settings["schedule_args"] or {}),
            )
            self.optimizers[player] = self.fabric.setup_optimizers(optimizer)

    def schedule(self, step: int) -> None:
        """Set every player's learning rate for the update after `step` finished ones."""
        for schedule in self.schedules.values():
            schedule.set(step)

    def add(self, player: str, numbers: dict[str, Tensor], share: float) -> None:
        """Add a player's numbers to the sums of the log; nothing leaves the device."""
        prefix = "" if list(self.players) == ["model"] else f"{player}/"
        for name, value in numbers.items():
            part = value.detach().float() * share
            key = f"train/{prefix}{name}"
            self.sums[key] = self.sums[key] + part if key in self.sums else part

    def follow(self, step: int) -> None:
        """Move the average after the model."""
        if self.ema is not None:
            self.ema.update(self.model, step=step)

    def finished_step(self, step: int) -> int:
        """Count an update."""
        self.step = step
        self.added += 1
        return step

    def log(self, logs: Logs, bar: Progress, images: int) -> None:
        """Write the means since the last line; the one moment at which numbers leave the device."""
        means = distributed.mean_over_processes(self.fabric, self.sums)
        numbers = {name: value / self.added for name, value in zip(means, torch.stack(list(means.values())).tolist())}
        rates = {f"lr/{player}" if len(self.players) > 1 else "lr": o.param_groups[0]["lr"] for player, o in self.optimizers.items()}
        logs.write(self.step, self.step / self.per_epoch, {**numbers, **rates})
        now = time.perf_counter()
        logs.time(self.step, now - self.clock, images * (self.step - self.timed_step))
        self.seconds += now - self.clock
        self.clock, self.timed_step = now, self.step
        bar.say(self.step / self.per_epoch, numbers)
        self.sums, self.added = {}, 0

    def judge(self, numbers: dict[str, float], logs: Logs, bar: Progress) -> None:
        """Log an evaluation, and keep the model if it is the best so far (the newest, where nothing is evaluated)."""
        logs.write(self.step, self.step / self.per_epoch, {f"val/{name}": value for name, value in numbers.items()})
        if numbers and self.monitor not in numbers:
            raise unknown("fit", "number of the evaluation", self.monitor, numbers, "`monitor` takes one of them.")
        now = numbers.get(self.monitor)
        before = self.best.get(self.monitor)
        sign = 1 if self._mode() == "max" else -1
        if now is None or before is None or sign * now > sign * before or before != before:
            self.best, self.best_step, self.since_better = dict(numbers), self.step, 0
            self._keep_best()
        else:
            self.since_better += 1
        for schedule in self.schedules.values():
            schedule.evaluated(self.step // self.per_epoch, now)
        bar.say(self.step / self.per_epoch, numbers, line=True)
        self.clock = time.perf_counter()

    def _mode(self) -> str:
        return self.objective.mode if self.monitor == self.objective.monitor else ("min" if "loss" in self.monitor else "max")

    def _keep_best(self) -> None:
        if self.folder is None:
            self.best_state = {name: tensor.detach().clone() for name, tensor in self.judged.state_dict().items()}
        elif self.fabric.is_global_zero:
            told = facts(self.judged, self.data, self.step, self.best)
            checkpoint.save(self.folder / "best", self.judged.state_dict(), told)

    def save(self, logs: Logs) -> None:
        """Write a checkpoint, from which `resume` goes on."""
        if self.folder is None or not self.fabric.is_global_zero:
            return
        logs.flush()
        training = {
            "step": self.step,
            "seconds": self.seconds,
            "objective": self.objective.state_dict(),
            "optimizers": {player: optimizer.state_dict() for player, optimizer in self.optimizers.items()},
            "schedules": {player: schedule.state_dict() for player, schedule in self.schedules.items()},
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "precision": dict(self.fabric._strategy.precision.state_dict()),  # the loss scale of 16-mixed
            "sums": self.sums,
            "added": self.added,
            "best": self.best,
            "best_step": self.best_step,
            "since_better": self.since_better,
        }
        parent = self.folder / "checkpoints"
        told = facts(self.model, self.data, self.step, self.best)
        checkpoint.save(parent / f"step-{self.step:09d}", self.model.state_dict(), told, training)
        checkpoint.keep_newest(parent, "step-", self.settings["keep"])

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            CheckpointError: if there are checkpoints and none is whole.
        """
        if self.folder is None:
            return
        found, refused = checkpoint.newest_valid(self.folder / "checkpoints", "step-")
        if found is None and refused:
            raise CheckpointError(f"fit: no checkpoint of {self.folder} is whole: {' '.join(refused)} Delete the folder to start again.")
        for reason in refused:
            print(f"{reason} The checkpoint before it is used.")
        if found is None or found.training is None:
            return
        state = found.training
        self.model.load_state_dict(found.tensors)
        self.objective.load_state_dict(state["objective"])
        for player, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][player])
            self.schedules[player].load_state_dict(state["schedules"][player])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.fabric._strategy.precision.load_state_dict(state["precision"])
        self.step = self.step_resumed = self.timed_step = state["step"]
        self.seconds = state["seconds"]
        self.sums = {name: value.to(self.fabric.device) for name, value in state["sums"].items()}
        self.added, self.since_better = state["added"], state["since_better"]
        self.best, self.best_step = state["best"], state["best_step"]

    def result(self, logs: Logs) -> Run:
        """Put the best weights into the model, and return the run."""
        kept = self.best_state
        if self.folder is not None and (self.folder / "best").exists():
            kept = checkpoint.read(self.folder / "best", training=False).tensors
        self.model.load_state_dict(self.judged.state_dict() if kept is None else kept)
        self.model.eval()
        model: Any = self.model
        model.classes, model.preprocessing = self.data.classes, self.data.preprocessing
        return Run(
            self.folder,
            model,
            self.objective.eval(),
            dict(self.best),
            history(logs.rows),
            self.step,
            round(self.seconds, 3),
            self.best_step,
        )
