"""The defence: train again with the fooling images as a class of their own, and attack again (Nguyen et al. 2015, section 3.4)."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Data, from_arrays
from retinue.engine import Supervised, evaluate, fit, stages
from retinue.engine.seeds import mix
from retinue.errors import ArgumentError
from retinue.explain.fooling import FoolingResult, fool
from retinue.models import adapt

FOOLING = "fooling"  # name of the further class
Trainer = Callable[[nn.Module, Data, Path | None], nn.Module]


def with_fooling_class(data: Data, images: Float[Tensor, "images channels height width"]) -> Data:
    """Add a class of fooling images to the training images, each repeated until the class is about as large as the others.

    Args:
        data: labelled images that fit in memory; validation and test images stay as they are.
        images: with values in [0, 1], of the data's size.

    Raises:
        ArgumentError: if there is no image, or the data have a fooling class already.
    """
    if not len(images):
        raise ArgumentError("with_fooling_class: there is no fooling image. Take FoolingResult.images.")
    if FOOLING in data.classes:
        raise ArgumentError(f'with_fooling_class: the data have a class "{FOOLING}" already. Start from the data without it.')
    bytes_ = (images * 255).round().byte()
    each = max(1, round(len(data.train) / len(data.classes)))
    copies = bytes_.repeat(-(-each // len(bytes_)), 1, 1, 1)[: max(each, len(bytes_))]
    parts = {name: getattr(data, name) for name in ("train", "val", "test")}
    seen = data.preprocessing
    pixels = [seen.centre(part.images()) for part in parts.values() if len(part)]
    labels = [part.labels for part in parts.values() if len(part)]
    return from_arrays(
        torch.cat([*pixels, copies]),
        torch.cat([*labels, torch.full((len(copies),), len(data.classes))]),
        classes=[*data.classes, FOOLING],
        split=[name for name, part in parts.items() for _ in range(len(part))] + ["train"] * len(copies),
        name=f"{data.name} with {len(images)} fooling images",
        mean=seen.mean,
        std=seen.std,
        channels=seen.channels,
    )


def retrain_with_fooling(
    model: nn.Module,
    data: Data,
    *,
    rounds: int = 2,
    per_round: int | None = None,
    encoding: str = "direct",
    generations: int = 200,
    population: int = 200,
    options: Mapping[str, Any] | None = None,
    fit_args: Mapping[str, Any] | None = None,
    trainer: Trainer | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train a classifier, fool it, train one anew with all fooling images so far as a further class, fool that one, and so on.

    Every network starts from the weights that `model` has when it is given; the last one stands in `run_dir/round R/best`.

    Args:
        model: the network of every round, untrained; its classifier is replaced.
        data: labelled images that fit in memory.
        rounds: how often it is trained again.
        per_round: fooling images that a round adds: whole searches, of one image a class, are made until there are as many; None makes one.
        encoding: "direct", "cppn" or "gradient".
        generations: of a search.
        population: of a search.
        options: of the encoding, as in `fool`.
        fit_args: how a network is trained, as in `retinue.fit`.
        trainer: trains a network instead: called with the network, the data and a folder (or None), returns the trained one.
        seed: of everything random.
        run_dir: the folder, with one folder for each training and search; what has finished is not done again, what was stopped goes on.
        progress: show a live bar while training.

    Returns:
        For each round "round R": "top1" on the test images (validation images where there are none), median and least confidence of the
        first search's images, the median of its random start, and the first generation in which the median was above 0.99 (-1 if none).

    Raises:
        ArgumentError: if a number is below 1, or there is no image to test.
    """
    if rounds < 1 or (per_round is not None and per_round < 1):
        raise ArgumentError(f"retrain_with_fooling: `rounds` and `per_round` must be at least 1, got {rounds} and {per_round}.")
    held_out = data.test if len(data.test) else data.val
    if not len(held_out):
        raise ArgumentError("retrain_with_fooling: there is no image to test. Open the data with a larger test_fraction.")
    start = copy.deepcopy(adapt(model, input_size=data.preprocessing.input_size))
    finished = stages(run_dir)
    known = len(data.classes)
    shape = (data.preprocessing.channels, *data.preprocessing.input_size)
    searches = 1 if per_round is None else -(-per_round // known)
    pool: list[Tensor] = []

    def network(outputs: int) -> nn.Module:
        fresh: Any = copy.deepcopy(start)
        if fresh.num_classes != outputs:
            with torch.random.fork_rng():
                torch.manual_seed(mix(seed, outputs))
                fresh.reset_classifier(outputs)
            if hasattr(fresh, "retinue_config"):
                fresh.retinue_config["arguments"]["num_classes"] = outputs
        return fresh

    def trained(name: str, shown: Data) -> dict[str, Any]:
        fresh, folder = network(len(shown.classes)), finished.folder(name)
        if trainer is not None:
            fresh = trainer(fresh, shown, folder)
        else:
            fresh = fit(fresh, Supervised(), shown, seed=seed, run_dir=folder, progress=progress, **(fit_args or {})).model
        return {"weights": dict(fresh.state_dict()), "top1": evaluate(fresh, held_out)["top1"]}

    def attack(name: str, weights: dict[str, Tensor], outputs: int, number: int) -> dict[str, Any]:
        target = network(outputs)
        target.load_state_dict(weights)
        folder = finished.folder(name)
        found = fool(
            target, encoding, classes=range(known), image_shape=shape, generations=generations, population=population,  # type: ignore[arg-type]
            seed=mix(seed, number), preprocessing=data.preprocessing, run_dir=folder, **(options or {}),
        )  # fmt: skip
        return {"images": found.images, "confidence": found.confidence, "history": found.history}

    numbers: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):
        shown = with_fooling_class(data, torch.cat(pool)) if pool else data
        learned = finished(f"round {number}", trained, f"round {number}", shown)
        outcomes = []
        for turn in range(searches if number < rounds else 1):
            name = f"round {number}, search {turn}"
            outcomes.append(finished(name, attack, name, learned["weights"], len(shown.classes), number * searches + turn))
        pool += [outcome["images"] for outcome in outcomes]
        numbers[f"round {number}"] = {"top1": learned["top1"], **summary(outcomes[0])}
    return numbers


def summary(found: Mapping[str, Any] | FoolingResult) -> dict[str, float]:
    """Say in numbers how a search went; the names are explained at `retrain_with_fooling`."""
    confidence, history = (getattr(found, name) if isinstance(found, FoolingResult) else found[name] for name in ("confidence", "history"))
    medians = np.median(history.numpy(), axis=1)
    sure = np.flatnonzero(medians > 0.99)
    return {
        "median": float(np.median(confidence.numpy())),
        "least": float(confidence.min()),
        "random": float(medians[0]),
        "generations": float(sure[0]) if len(sure) else -1.0,
    }
