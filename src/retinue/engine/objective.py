"""What one training step minimises."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine.modes import evaluating
from retinue.models import adapt


class Objective(nn.Module):
    """Base of all objectives; a plain one defines `forward` and nothing else.

    An objective owns what learns beside the model (projection heads, critics) or watches it (teachers, queues) as ordinary
    submodules and buffers, so that checkpoints hold it. It never sees a device, an optimiser or a file.

    Attributes:
        views: the views that the loader makes of each image, one tensor of images for each; None: one, by the `views` of `fit`. Held-out
            images are shown as they are, unless there are several views.
        monitor: the number of `evaluate` by which the best checkpoint is chosen.
        mode: "min" or "max", what is better for `monitor`.
    """

    views: tuple[Any, ...] | None = None
    monitor: str = "loss"
    mode: str = "min"

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a model or data with which this objective cannot work, before anything is computed.

        Raises:
            ArgumentError: with what to do.
        """

    def check_views(self, views: Any) -> None:
        """Refuse views of the training images that destroy what this objective learns from.

        Args:
            views: what `fit` was given; never None.

        Raises:
            ArgumentError: with what to leave out.
        """

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network that is trained: the model with timm's protocol.

        An objective whose model takes no images (a generator) overrides it.
        """
        return adapt(model, input_size=data.preprocessing.input_size)

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name the groups of parameters that have an optimiser of their own; by default one group, "model", of all that learn."""
        both = [*model.parameters(), *self.parameters()]
        return {"model": [parameter for parameter in dict.fromkeys(both) if parameter.requires_grad]}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield a player and its numbers, of which "loss" is minimised; that player's parameters have moved when the call comes back."""
        yield "model", self(model, batch)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute {"loss": scalar, further scalars to log} for one batch."""
        raise TypeError(f"{type(self).__name__} defines neither forward(model, batch) nor losses(model, batch, step).")

    def after_step(self, model: nn.Module, step: int) -> None:
        """Follow the model after each update (moving-average teachers, masks, prototypes); `step` counts finished updates."""

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Average the numbers of `forward` over a held-out split, in evaluation mode."""
        device = next(model.parameters()).device
        sums: dict[str, Tensor] = {}
        count = 0
        with evaluating(model, self):
            for batch in loader.batches(epoch=0):
                for name, value in self(model, batch.to(device)).items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float() * len(batch.images)
                count += len(batch.images)
        return {name: (total / count).item() for name, total in sums.items()}
