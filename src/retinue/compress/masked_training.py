"""Training of a masked network from any step of a schedule to any other: what a rewound subnetwork needs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retinue.compress.masks import masked
from retinue.data import Data, Loader
from retinue.data import views as kit
from retinue.engine import Supervised, evaluate, train_mode
from retinue.engine.optim import Schedule, make_optimizer
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, NonFiniteError


class SpanTraining:
    """Trains a classifier over a span of its steps: schedule and data order are those of the whole training, momentum starts anew.

    From step 0 to the last, with every weight kept, it does what `retinue.fit` does with the same settings, on the CPU bit for bit.

    Args:
        data: labelled images.
        steps: T, updates of the whole training.
        batch_size: images of an update.
        optimizer: timm's name of it.
        lr: peak learning rate.
        weight_decay: of weights; biases and norms are not decayed.
        momentum: for optimisers that have it.
        schedule: as in `retinue.fit`, all but "plateau".
        warmup_epochs: epochs in which the learning rate rises from 0.
        schedule_args: what else the schedule takes.
        views: how training images are shown, as in `retinue.fit`.

    Raises:
        ArgumentError: if an argument cannot be.
    """

    def __init__(
        self,
        data: Data,
        *,
        steps: int,
        batch_size: int = 128,
        optimizer: str = "momentum",
        lr: float = 0.1,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        schedule: str = "constant",
        warmup_epochs: float = 0.0,
        schedule_args: Mapping[str, Any] | None = None,
        views: str | Callable[..., Any] | None = None,
    ) -> None:
        if steps < 1:
            raise ArgumentError(f"lottery_ticket: `steps` must be 1 or more, got {steps}. It is the number of updates of a training.")
        if schedule == "plateau":
            raise ArgumentError('lottery_ticket: the schedule "plateau" has no position to rewind to. Take another, such as "multistep".')
        self.data, self.steps, self.batch_size = data, steps, batch_size
        self.optimizer = optimizer
        self.rates = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        self.schedule: dict[str, Any] = {"name": schedule, "warmup_epochs": warmup_epochs, **(schedule_args or {})}
        self.views = kit.parse(views) if isinstance(views, str) else views
        self.objective = Supervised()

    def __call__(self, model: nn.Module, mask: Mapping[str, Tensor], start_step: int, end_step: int, seed: int) -> float:
        """Train in place, and return the accuracy on the validation images (on the test images where there are none).

        Args:
            model: is left in evaluation mode.
            mask: which weights are kept; the others are zero from the first step to the last.
            start_step: updates that the weights have behind them.
            end_step: updates that they shall have.
            seed: of data order, views and dropout.

        Raises:
            ArgumentError: if the span is none of this training, or the model does not fit the data.
            NonFiniteError: if the loss is not finite.
        """
        if not 0 <= start_step <= end_step <= self.steps:
            raise ArgumentError(
                f"lottery_ticket: steps {start_step} to {end_step} are no span of a training of {self.steps} steps. "
                "Begin at 0 or later and end at the last step or earlier."
            )
        self.objective.check(model, self.data)
        device = next(model.parameters()).device
        loader = Loader(self.data.train, self.batch_size, shuffle=True, views=self.views, seed=seed, device=device)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(self.optimizer, learned, **self.rates)
        schedule = Schedule(optimizer, **self.schedule, steps=self.steps, steps_per_epoch=len(loader))
        with own_randomness(), masked(model, mask):
            batches: Any = iter(())
            for step in range(start_step, end_step):
                epoch, index = divmod(step, len(loader))
                if index == 0 or step == start_step:
                    batches = loader.batches(epoch, index)
                    train_mode(model)
                seed_all(seed, step, 0)
                schedule.set(step)
                optimizer.zero_grad(set_to_none=True)
                loss = self.objective(model, next(batches).to(device))["loss"]
                if not bool(torch.isfinite(loss)):
                    raise NonFiniteError(f"lottery_ticket: the loss became {loss.item()} at step {step}. Try a smaller `lr`.")
                loss.backward()
                optimizer.step()
        model.eval()
        held_out = self.data.val if len(self.data.val) else self.data.test
        return evaluate(model, held_out)["top1"]
