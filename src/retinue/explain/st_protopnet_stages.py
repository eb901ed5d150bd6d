"""The training of part prototypes, stage by stage: warm, then joint, push and last layer, over and over; and prune at the end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from retinue.data import Data, Split
from retinue.engine import evaluate, fit, stages
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.explain.st_protopnet import LEARNING, PartPrototypes, Stage
from retinue.explain.st_protopnet_push import prune as prune_prototypes
from retinue.explain.st_protopnet_push import push
from retinue.models.protopnet import ProtoPNet

PLAYERS = ("backbone", "addon", "prototypes", "last")
LR = {"backbone": 1e-4, "addon": 3e-3, "prototypes": 3e-3, "last": 1e-4}  # the ST paper, on full images of CUB
DECAYED = ("backbone", "addon")  # by weight decay; prototypes and last layers are not


def push_epochs(epochs: int, warm_epochs: int, push_start: int, push_every: int) -> list[int]:
    """List the numbers of epochs after which the prototypes are pushed; the last is the end of training.

    >>> push_epochs(120, 10, 100, 10)
    [100, 110, 120]
    """
    if not 0 <= warm_epochs < push_start <= epochs or push_every < 1:
        raise ArgumentError(
            f"fit_prototypes: epochs must fulfil 0 <= warm_epochs < push_start <= epochs, and push_every be at least 1, got "
            f"warm_epochs={warm_epochs}, push_start={push_start}, epochs={epochs} and push_every={push_every}."
        )
    return sorted({*range(push_start, epochs, push_every), epochs})


def stage_settings(
    stage: Stage, lr: Mapping[str, float], weight_decay: float, decay: tuple[float, int] | None, done: int = 0
) -> dict[str, Any]:
    """Return arguments of `retinue.fit` for a stage: Adam with each player's learning rate.

    Args:
        stage: "warm", "joint" or "last".
        lr: learning rate of each player.
        weight_decay: of the backbone and the add-on layers.
        decay: factor by which the rates of the joint stage fall, and after how many joint epochs, over and over; None keeps them.
        done: joint epochs done before.
    """
    factor, schedule = 1.0, {"schedule": "constant"}
    if stage == "joint" and decay is not None:
        rate, every = decay
        factor = rate ** (done // every)
        schedule = {"schedule": "step", "schedule_args": {"decay_rate": rate, "decay_epochs": every}}  # type: ignore[dict-item]
        if done % every:  # the next fall is nearer than the later ones are to each other
            falls = [every * i - done for i in range(done // every + 1, done // every + 100)]
            schedule = {"schedule": "multistep", "schedule_args": {"decay_rate": rate, "decay_milestones": falls}}  # type: ignore[dict-item]
    players = {name: {"lr": lr[name] * factor, "weight_decay": weight_decay if name in DECAYED else 0.0} for name in LEARNING[stage]}
    return {"optimizer": "adam", "players": players, **schedule}


def fit_prototypes(
    model: nn.Module,
    data: Data,
    *,
    kind: Literal["st_protopnet", "protopnet"] = "st_protopnet",
    options: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    epochs: int = 120,
    warm_epochs: int = 10,
    push_start: int = 100,
    push_every: int = 10,
    last_epochs: int = 10,
    lr: dict[str, float] | None = None,
    weight_decay: float = 1e-4,
    decay: tuple[float, int] | None = (0.2, 20),
    batch_size: int = 80,
    views: str | Callable[..., Any] | None = None,
    prune: bool = False,
    k: int = 6,
    tau: int = 3,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train a network of part prototypes in its stages: warm, then joint, push and last layer at each push, and prune.

    In the stage "warm" the backbone rests; in "joint" all learn but the last layers; "last" trains these alone, on prototypes that are
    training patches. A stage of training gives the best network by the validation images, or its last where there are none.

    Args:
        model: a `ProtoPNet` or `STProtoPNet`, which is trained in place, or any network, around which one is built (load it from
            `run_dir`).
        data: labelled images.
        kind: what is built around a network that is none: "st_protopnet" or "protopnet".
        options: of that network, such as {"prototypes_per_class": 3, "dim": 32}.
        objective: weights of the losses, as in `PartPrototypes`.
        epochs: of warm and joint stages together.
        warm_epochs: of the warm stage; 0 leaves it out.
        push_start: epochs before the first push.
        push_every: epochs between two pushes.
        last_epochs: of the last layers after each push, beside `epochs`.
        lr: learning rates of the players "backbone", "addon", "prototypes" and "last" where they differ from the paper's.
        weight_decay: of backbone and add-on layers.
        decay: factor by which the rates of the joint stage fall, and after how many joint epochs; None keeps them.
        batch_size: images of an update.
        views: how training images are shown, as in `retinue.fit`; pushes look at the images as they are.
        prune: remove prototypes whose neighbours are of other classes, after the last push, and train the last layers once more.
        k: neighbours that pruning looks at.
        tau: of which at least so many must be of the prototype's class.
        seed: of everything random.
        run_dir: the folder: a run, which holds the finished network, with the runs of the stages before in its folders `warm`, `joint-1`,
            ...; a finished stage is not computed again.
        progress: show a live bar.

    Returns:
        top1, top5, ece and loss on the test images (the validation images, where there are none) after each stage.

    Raises:
        ArgumentError: if a setting cannot be.
        DataError: if a class has no training image.
    """
    rates = {**LR, **(lr or {})}
    for name in rates:
        if name not in PLAYERS:
            raise unknown("fit_prototypes", "player", name, PLAYERS)
    if decay is not None and not (0 < decay[0] <= 1 and decay[1] >= 1):
        raise ArgumentError(f"fit_prototypes: `decay` must be a factor in (0, 1] and a number of epochs, got {decay}.")
    ends = push_epochs(epochs, warm_epochs, push_start, push_every)
    if prune and not 1 <= tau <= k <= len(data.train):
        raise ArgumentError(
            f"fit_prototypes: `tau` and `k` must fulfil 1 <= tau <= k <= {len(data.train)} images, got tau={tau} and k={k}."
        )
    with own_randomness():
        seed_all(seed)
        network: Any = PartPrototypes(kind, options, **(objective or {})).prepare(model, data)
    held_out = data.test if len(data.test) else data.val
    finished, top = stages(run_dir), None if run_dir is None else Path(run_dir)
    numbers: dict[str, dict[str, float]] = {}

    def train(stage: Stage, folder: Path | None, length: int, done: int) -> dict[str, Any]:
        fit(
            network, PartPrototypes(kind, options, stage, **(objective or {})), data, batch_size=batch_size, views=views, seed=seed,
            run_dir=folder, progress=progress, epochs=length, **stage_settings(stage, rates, weight_decay, decay, done),
        )  # fmt: skip
        return result(network, held_out)

    def run(name: str, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        done = finished(name, function, *arguments)
        network.load_state_dict(done["weights"])
        numbers[name] = done["numbers"]
        return done

    if warm_epochs:
        run("warm", train, "warm", finished.folder("warm"), warm_epochs, 0)
    start = warm_epochs
    for turn, end in enumerate(ends, start=1):
        run(f"joint-{turn}", train, "joint", finished.folder(f"joint-{turn}"), end - start, start - warm_epochs)
        run(f"push-{turn}", _pushed, network, data.train, held_out)
        folder = top if end == epochs and not prune else finished.folder(f"last-{turn}")
        run(f"last-{turn}", train, "last", folder, last_epochs, 0)
        start = end
    if prune:
        chosen = finished("prune", lambda: prune_prototypes(network, data.train, k, tau))
        if network.num_features > sum(int(mask.sum()) for mask in chosen.values()):  # read back
            network.keep(chosen)
        numbers["pruned"] = {"prototypes": float(network.num_features)}
        run("last-pruned", train, "last", top, last_epochs, 0)
    network.requires_grad_(True)
    network.classes, network.preprocessing = data.classes, data.preprocessing
    network.eval()
    return numbers


def result(network: ProtoPNet, held_out: Split) -> dict[str, Any]:
    """Return a network's weights and its numbers, as a stage keeps them."""
    measured = evaluate(network, held_out) if len(held_out) else {}
    return {"weights": {name: tensor.clone() for name, tensor in network.state_dict().items()}, "numbers": measured}


def _pushed(network: ProtoPNet, split: Split, held_out: Split) -> dict[str, Tensor | Any]:
    push(network, split)
    return result(network, held_out)
