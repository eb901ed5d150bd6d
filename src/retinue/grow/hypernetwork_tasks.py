"""Tasks one after the other in one hypernetwork, without stored images (von Oswald et al. 2020, arXiv 1906.00695, by hypernetworks)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retinue.data import Data, Split
from retinue.engine import evaluating, fit, stages
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError
from retinue.grow.hypernetworks import HyperTraining, save_network
from retinue.models import adapt
from retinue.models.hypernetwork import HyperNetwork
from retinue.models.hypernetwork_by_name import around

__all__ = ["learn_tasks", "task_data"]


def task_data(data: Data, classes: Sequence[int]) -> Data:
    """Take the images of some classes, numbered anew in the order given; there are no validation images, so that `fit` keeps the last step.

    Args:
        data: all classes.
        classes: numbers of those that the task is to tell apart.

    Raises:
        ArgumentError: if a class does not exist, or is named twice.

    >>> import retinue
    >>> task_data(retinue.data.open("digits"), [4, 5]).classes
    ['4', '5']
    """
    if not classes or len(set(classes)) < len(classes) or not all(0 <= c < len(data.classes) for c in classes):
        raise ArgumentError(f"task_data: `classes` must be numbers between 0 and {len(data.classes) - 1}, each once, got {list(classes)}.")
    names = [data.classes[c] for c in classes]
    number = torch.full((len(data.classes),), -1)
    number[list(classes)] = torch.arange(len(classes))

    def part(split: Split) -> Split:
        chosen = split.subset((number[split.labels] >= 0).nonzero()[:, 0])
        return replace(chosen, labels=number[chosen.labels], classes=names)

    return replace(
        data, train=part(data.train), val=part(data.val).subset([]), test=part(data.test), classes=names, name=f"{data.name} {names}",
        opened_with=None,
    )  # fmt: skip


def learn_tasks(
    model: nn.Module,
    data: Data,
    *,
    tasks: int = 5,
    beta: float = 0.01,
    options: dict[str, Any] | None = None,
    max_tasks: int | None = None,
    freeze: bool = False,
    look_ahead: float = 0.0,
    steps: int = 2000,
    batch_size: int = 32,
    optimizer: str = "adam",
    lr: float = 1e-3,
    views: str | Callable[..., Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Cut the classes into tasks, and let one hypernetwork learn one after the other.

    Args:
        model: the target of every task, or a `HyperNetwork` around it with as many tasks; trained in place.
        data: its classes are cut into tasks of as many, in their order; in each task they are numbered from 0.
        tasks: how many.
        beta: weight of `OutputRegulariser`; with 0 tasks are forgotten.
        options: of `HyperNetwork` around a target.
        max_tasks: as in `OutputRegulariser`.
        freeze: as there.
        look_ahead: as in `HyperTraining`.
        steps: updates for each task.
        batch_size: images of an update.
        optimizer: as in `retinue.fit`.
        lr: constant learning rate.
        views: how training images are shown, as in `retinue.fit`.
        seed: of everything random.
        run_dir: the folder; a finished task is not trained again, and at the end `networks/task-J` holds the ordinary network of each
            task, for `retinue.load`.
        progress: show a live bar.

    Returns:
        "after task I": test accuracy of each task so far ("task J"), in [0, 1]; and "all": "accuracy" (the mean after the last task),
        "forgetting" (accuracy right after learning minus that at the end, mean over all tasks but the last), "task_found" (share of test
        images whose task is guessed from the entropy alone), "parameters" that were trained, "generated" numbers of one network, and their
        "compression".

    Raises:
        ArgumentError: if the classes cannot be cut so, or the model has another number of tasks or classes.
    """
    classes = len(data.classes)
    if tasks < 2 or classes % tasks or classes // tasks < 2:
        raise ArgumentError(
            f"learn_tasks: `tasks` must cut the {classes} classes of {data.name} into two tasks or more, of two classes or more, all "
            f"alike, got {tasks}."
        )
    size = classes // tasks
    each = [task_data(data, range(t * size, (t + 1) * size)) for t in range(tasks)]
    with own_randomness():
        seed_all(seed, 1)
        network = _network(model, data, tasks, size, dict(options or {}))
    finished = stages(run_dir)

    def one(t: int) -> dict[str, Any]:
        objective = HyperTraining(task=t, beta=beta, max_tasks=max_tasks, freeze=freeze, look_ahead=look_ahead)
        fit(
            network, objective, each[t], max_steps=steps, batch_size=batch_size, optimizer=optimizer, lr=lr, weight_decay=0.0,
            schedule="constant", eval_every=1 << 30, views=views, seed=seed, run_dir=finished.folder(f"task-{t}"), progress=progress,
        )  # fmt: skip
        return {"weights": dict(network.state_dict()), "accuracy": [_accuracy(network, each[j], j) for j in range(t + 1)]}

    rows: list[list[float]] = []
    for t in range(tasks):
        done = finished(f"task-{t}", one, t)
        network.load_state_dict(done["weights"])
        rows.append(done["accuracy"])
    network.eval()
    if run_dir is not None:
        for t, own in enumerate(each):
            save_network(network.materialise(t), own, Path(run_dir) / "networks" / f"task-{t}")
    last = rows[-1]
    numbers = {f"after task {i}": {f"task {j}": value for j, value in enumerate(row)} for i, row in enumerate(rows)}
    numbers["all"] = {
        "accuracy": sum(last) / tasks,
        "forgetting": sum(rows[j][j] - last[j] for j in range(tasks - 1)) / (tasks - 1),
        "task_found": _task_found(network, each),
        "parameters": float(sum(p.numel() for p in network.parameters())),
        "generated": float(network.num_generated),
        "compression": network.compression,
    }
    return numbers


def _network(model: nn.Module, data: Data, tasks: int, size: int, options: dict[str, Any]) -> HyperNetwork:
    """Put a hypernetwork around the target, or check the one that there is."""
    if not isinstance(model, HyperNetwork):
        target = adapt(model, num_classes=size, input_size=data.preprocessing.input_size)
        return around(target, **{**options, "condition": "task", "num_tasks": tasks})
    if model.condition.parts != ["task"] or model.condition.num_tasks != tasks or model.num_classes != size:
        raise ArgumentError(
            f'learn_tasks: the HyperNetwork must have condition="task", {tasks} tasks and {size} outputs, got '
            f'"{"+".join(model.condition.parts)}", {model.condition.num_tasks} and {model.num_classes}. Give the target alone.'
        )
    return model


@torch.no_grad()
def _answers(network: HyperNetwork, data: Data, answer: Callable[[Tensor], Tensor]) -> Tensor:
    with evaluating(network):
        batches = data.test.loader(256, device=network.codes.device).batches()
        return torch.cat([answer(batch.images).cpu() for batch in batches])


def _accuracy(network: HyperNetwork, data: Data, task: int) -> float:
    """Measure a task on its test images, the task being known."""
    said = _answers(network, data, lambda images: network(images, task=task).argmax(-1))
    return float((said == data.test.labels).double().mean())


def _task_found(network: HyperNetwork, each: Sequence[Data]) -> float:
    """Measure how often the task is guessed right."""
    right = [_answers(network, data, network.infer_task) == task for task, data in enumerate(each)]
    return float(torch.cat(right).double().mean())
