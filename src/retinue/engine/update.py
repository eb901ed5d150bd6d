"""One update: each player's loss, its gradient, its step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from retinue.data import Batch
from retinue.engine import distributed
from retinue.errors import ArgumentError, NonFiniteError, unknown

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from retinue.engine.state import Training


def make_update(training: "Training", fabric: "Fabric", accumulate: int, clip_grad: float | None) -> Callable[[Batch, int], None]:
    """Build the function that learns from one batch.

    It walks through the objective's players: of each, the gradient of its loss over the parts of the batch, then its optimiser's step.
    A loss that is not finite in any process stops all before the step.
    """
    objective, model = training.objective, training.model

    def update(batch: Batch, step: int) -> None:
        parts = [batch] if accumulate == 1 else _parts(batch, accumulate)
        walks = [objective.losses(model, part, step) for part in parts]
        for turn in range(len(training.players) + 1):
            player = ""
            for part, walk in zip(parts, walks):
                with fabric.autocast():
                    player, numbers = next(walk, ("", {}))
                if not player:
                    break
                if part is parts[0]:
                    _start(training, player)
                share = len(part) / len(batch)
                loss = numbers["loss"]
                finite = _copy(torch.isfinite(loss.detach()))
                fabric.backward(loss if share == 1 else loss * share)
                training.add(player, numbers, share)
                _stop_if_not_finite(training, fabric, finite, loss, batch, step)
            if not player:
                break
            if turn == len(training.players):
                raise ArgumentError(
                    f"fit: {type(objective).__name__}.losses yields more often than it has players ({', '.join(training.players)})."
                )
            optimizer = training.optimizers[player]
            distributed.average_gradients(fabric, training.players[player])
            if clip_grad is not None:
                fabric.clip_gradients(model, optimizer, max_norm=clip_grad, error_if_nonfinite=False)
            optimizer.step()
        objective.after_step(model, step + 1)
        training.follow(step + 1)

    return update


def _start(training: "Training", player: str) -> None:
    """Forget the player's gradients, which the losses of other players have reached too."""
    if player not in training.players:
        raise unknown("fit", f"player of {type(training.objective).__name__}", player, training.players)
    training.optimizers[player].zero_grad(set_to_none=True)


def _parts(batch: Batch, count: int) -> list[Batch]:
    sizes = [len(part) for part in batch.labels.tensor_split(count)]
    return [part for part in batch.split(sizes) if len(part)]


def _copy(flag: Tensor) -> Tensor:
    """Start to bring a flag to the host, behind the forward and before the backward pass, so that nobody waits for it."""
    if flag.device.type != "cuda":
        return flag
    host = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    host.arrived = torch.cuda.Event()  # type: ignore[attr-defined]
    host.arrived.record()  # type: ignore[attr-defined]
    return host


def _stop_if_not_finite(training: "Training", fabric: "Fabric", finite: Tensor, loss: Tensor, batch: Batch, step: int) -> None:
    if hasattr(finite, "arrived"):
        finite.arrived.synchronize()
    if distributed.everywhere(fabric, finite):
        return
    place = "nowhere, since the run has no folder"
    if training.folder is not None:
        path = training.folder / f"nonfinite-step-{step}-rank-{fabric.global_rank}.pt"
        torch.save({"images": batch.images.cpu(), "labels": batch.labels.cpu(), "indices": batch.indices.cpu()}, path)
        place = f"in {path}"
    indices = batch.indices.tolist()
    raise NonFiniteError(
        f"fit: the loss became {loss.item()} at step {step}, before its update. The batch (training images {str(indices[:8])[1:-1]}"
        f"{', ...' if len(indices) > 8 else ''}) is saved {place}. Try a smaller `lr`, `clip_grad`, or `warmup_epochs`."
    )


@contextmanager
def compiled(model: nn.Module, on: bool) -> Iterator[None]:
    """Compile what objectives call of a network, and put the plain methods back on leaving."""
    names = [name for name in ("forward_features", "forward_head", "forward") if on and hasattr(model, name)]
    for name in names:
        setattr(model, name, torch.compile(getattr(model, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
