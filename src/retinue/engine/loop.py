"""The one training loop."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from retinue.data import Batch, Data, Loader
from retinue.engine import distributed
from retinue.engine.interrupt import Interruption
from retinue.engine.logs import Logs, Progress
from retinue.engine.modes import evaluating, train_mode
from retinue.engine.objective import Objective
from retinue.engine.run import Run, describe, open_run
from retinue.engine.seeds import deterministic, own_randomness, seed_all
from retinue.engine.settings import check, needed_bytes
from retinue.engine.state import Training
from retinue.engine.update import compiled, make_update

EVALUATION = 1 << 32  # a place in the random stream that no training step has
MINUTES_BETWEEN_CHECKPOINTS = 10
FREE_TO_CHANGE = {"run_dir", "progress", "loggers", "workers", "keep", "checkpoint_every", "compile", "accelerator"}


def fit(
    model: nn.Module,
    objective: Objective,
    data: Data,
    *,
    epochs: float | None = None,
    max_steps: int | None = None,
    batch_size: int = 64,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    momentum: float = 0.9,
    optimizer_args: Mapping[str, Any] | None = None,
    players: Mapping[str, Mapping[str, Any]] | None = None,
    schedule: str = "cosine",
    warmup_epochs: float = 0.0,
    schedule_args: Mapping[str, Any] | None = None,
    clip_grad: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    channels_last: bool = False,
    compile: bool = False,
    views: str | Callable[..., Any] | None = None,
    eval_every: int = 1,
    eval_batch_size: int = 256,
    monitor: str | None = None,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    log_every: int = 50,
    loggers: Sequence[Any] = ("csv", "tensorboard"),
    accelerator: str = "auto",
    devices: int = 1,
    workers: int = 0,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Train a model, and give back the best one; the same call with the same `run_dir` goes on where a killed one stopped, bit for bit.

    Args:
        model: any network; one without timm's protocol is adapted.
        objective: what is minimised.
        data: training images, and validation images by which the best checkpoint is chosen.
        epochs: passes over the training images; may be a fraction.
        max_steps: number of updates, instead of `epochs` or as a limit to it. Without either: 10 epochs.
        batch_size: images of an update on each device.
        optimizer: timm's name of it, such as "sgd", "adamw", "lars", "rmsproptf".
        lr: peak learning rate.
        weight_decay: of weights; biases and norms are not decayed.
        momentum: for optimisers that have it.
        optimizer_args: what else the optimiser takes, such as {"eps": 1.0}.
        players: for each player that differs: its own optimizer, lr, weight_decay, momentum, optimizer_args.
        schedule: "cosine", "constant", "step", "multistep", "onecycle", "plateau", "poly" or "tanh"; see `engine.optim.Schedule`.
        warmup_epochs: epochs in which the learning rate rises from 0.
        schedule_args: what else the schedule takes, such as {"decay_epochs": 2, "decay_rate": 0.94}.
        clip_grad: largest norm of a player's gradient.
        accumulate: parts in which a batch is computed one after the other, for want of memory; the update is that of the whole batch.
        ema: decay of a moving average of the weights, which is then what is evaluated and kept, such as 0.9999.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        channels_last: lay out images and weights with the channels last.
        compile: compile the network with torch.compile.
        views: how training images are shown, such as "crop(4), flip"; None as they are. An objective with its own views ignores it.
        eval_every: epochs between evaluations.
        eval_batch_size: images of a batch in evaluation.
        monitor: the number of the evaluation that chooses the best checkpoint; None takes the objective's.
        patience: stop after so many evaluations without a better one.
        checkpoint_every: updates between checkpoints; None makes one at each evaluation and after ten minutes.
        keep: how many checkpoints stay.
        log_every: updates between two lines of the log.
        loggers: "csv", "tensorboard", and loggers of Lightning Fabric.
        accelerator: "auto", "cpu", "cuda", "mps"; as in Fabric.
        devices: processes; more than one average their gradients after each update.
        workers: processes that decode, for data that is not kept in memory.
        seed: of everything random.
        run_dir: the run's folder; None writes nothing.
        progress: show a live bar.

    Returns:
        The run, with the best model.

    Raises:
        ArgumentError: if an argument cannot be, or `run_dir` holds another run.
        CheckpointError: if the folder cannot be written, or its checkpoints are damaged.
        NonFiniteError: if a loss became NaN or infinite; nothing was updated by it, and the batch is saved.
    """
    settings = {name: value for name, value in locals().items() if name not in ("model", "objective", "data")}
    settings = check(settings, objective, data)
    model = objective.prepare(model, data)
    objective.check(model, data)
    fabric = distributed.launch(accelerator, devices, precision)
    folder = None if run_dir is None else Path(run_dir)
    loader = Loader(
        data.train, batch_size, shuffle=True, views=objective.views or settings["views"], seed=seed,
        rank=fabric.global_rank, world=fabric.world_size, workers=workers, device=fabric.device,
    )  # fmt: skip
    several = objective.views if len(objective.views or ()) > 1 else None
    held_out = Loader(data.val, eval_batch_size, views=several, seed=seed, workers=workers, device=fabric.device)
    if fabric.is_global_zero and folder is not None:
        open_run(folder, describe(model, objective, data, settings), FREE_TO_CHANGE, needed_bytes(model, objective, ema, keep))
    fabric.barrier()
    per_epoch = len(loader)
    total = min(max_steps or 1 << 62, round(per_epoch * epochs) if epochs is not None else 1 << 62)
    layout = torch.channels_last if channels_last else torch.preserve_format
    with own_randomness(), deterministic(fabric.device):
        seed_all(seed, EVALUATION)
        training = Training(model.to(memory_format=layout), objective, data, fabric, settings, total, per_epoch, folder)
        training.resume()
        step, written = training.step, time.monotonic()
        logs = Logs(folder if fabric.is_global_zero else None, step, tuple(loggers))
        bar = Progress(progress and fabric.is_global_zero, total, step)
        update = make_update(training, fabric, accumulate, clip_grad)
        with bar, logs, Interruption() as interruption, compiled(model, compile):
            batches: Iterator[Batch] = iter(())
            while step < total and not training.stopped:
                epoch, index = divmod(step, per_epoch)
                if index == 0 or step == training.step_resumed:
                    batches = loader.batches(epoch, index)
                    train_mode(model)
                    train_mode(objective)
                seed_all(seed, step, fabric.global_rank)
                training.schedule(step)
                update(next(batches).to(fabric.device, layout), step)
                step = training.finished_step(step + 1)
                at_end = step == total
                if step % log_every == 0 or step % per_epoch == 0 or at_end:
                    training.log(logs, bar, batch_size * fabric.world_size)
                if (step % per_epoch == 0 and step // per_epoch % eval_every == 0) or at_end:
                    seed_all(seed, EVALUATION, step)
                    with fabric.autocast(), evaluating(model, objective):
                        numbers = objective.evaluate(training.judged, held_out) if len(data.val) else {}
                    training.judge(distributed.agree(fabric, numbers), logs, bar)
                    due = True
                else:
                    due = checkpoint_every is not None and step % checkpoint_every == 0
                    due |= checkpoint_every is None and time.monotonic() - written > 60 * MINUTES_BETWEEN_CHECKPOINTS and devices == 1
                if due or interruption.asked:
                    training.save(logs)
                    written = time.monotonic()
                interruption.leave_if_asked()
                bar.step(step)
    return training.result(logs)
