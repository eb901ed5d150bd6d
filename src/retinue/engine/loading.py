"""A finished run, opened again: its best model, and its data."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retinue.data
from retinue.data import Data, Preprocessing, Split
from retinue.data.dataset import open_again
from retinue.data.splits import PARTS
from retinue.engine import checkpoint
from retinue.engine.checkpoint import Checkpoint
from retinue.errors import ArgumentError, CheckpointError, DataError, unknown
from retinue.models import adapt, create_model

log = logging.getLogger(__name__)


def load(run_dir: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load the best model of a run.

    Args:
        run_dir: the run's folder, or a checkpoint's.
        model: your own network to take the weights, for a run whose network `create_model` cannot build.

    Returns:
        The network in evaluation mode; `classes` are the names of its outputs, `preprocessing` turns a file into its input, and `metrics`
        are its numbers on the validation images.

    Raises:
        CheckpointError: if there is no whole checkpoint, or the network is your own and `model` is missing or another.
    """
    found = best(Path(run_dir))
    made = found.facts["model"]
    if model is not None:
        network: Any = adapt(model, input_size=tuple(found.facts["preprocessing"]["input_size"]))
    elif "arguments" in made:
        network = create_model(made["name"], **made["arguments"])
    else:
        raise CheckpointError(
            f"{found.folder} holds the weights of your own {made['class']}. Build it and give it: load(run_dir, model=...)."
        )
    try:
        network.load_state_dict(found.tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{found.folder} does not fit this network: {' '.join(str(error).split())[:300]}") from error
    network.classes, network.preprocessing = found.facts["classes"], Preprocessing.from_dict(found.facts["preprocessing"])
    network.metrics = found.facts["metrics"]
    return network.eval()


def best(run_dir: Path) -> Checkpoint:
    """Read the best checkpoint of a run without its training state; if it is damaged or not there yet, the newest whole one.

    Raises:
        CheckpointError: if there is none.
    """
    if (run_dir / "model.json").exists():
        return checkpoint.read(run_dir, training=False)
    refused = []
    if (run_dir / "best").exists():
        try:
            return checkpoint.read(run_dir / "best", training=False)
        except CheckpointError as error:
            refused.append(str(error))
    found, more = checkpoint.newest_valid(run_dir / "checkpoints", "step-", training=False)
    if found is None:
        reason = " ".join(refused + more) or "Train first: retinue train --run_dir DIR."
        raise CheckpointError(f"{run_dir} is no run with a whole checkpoint. {reason}")
    for line in refused + more:
        log.warning("%s The newest whole checkpoint is used: %s.", line, found.folder.name)
    return found


def reopen(run_dir: str | Path, source: str | None = None) -> Data:
    """Open the data of a run again, with the same splits and the run's preprocessing.

    Args:
        run_dir: the run.
        source: other data, as for `retinue.data.open`, which is read as the run's was; its classes may be any.

    Raises:
        DataError: if the data was made in memory, is not there any more, or has changed.
        CheckpointError: if this is no run.
    """
    section = _section(run_dir)
    if source is not None:
        return retinue.data.open(source, **_like_run(section))
    opened = section["opened_with"]
    if opened is None:
        raise DataError(f"the data of {run_dir} was made in memory and cannot be opened again. Name a source of the same images.")
    again = open_again(opened, _like_run(section))
    if again.train.fingerprint != section["fingerprint"]:
        raise DataError(f"the data of {run_dir} ({opened['source']}) has changed since it was trained on. Name a source explicitly.")
    return again


def held_out(run_dir: str | Path, source: str | None = None, part: str = "test") -> Split:
    """Return labelled images on which to measure a run's model.

    Args:
        run_dir: the run.
        source: other data, as for `retinue.data.open`; its test split, or all of it if it has none. Classes are matched by name.
        part: "test", "val" or "train"; of the run's own data, or of `source` where it has such a split.

    Raises:
        DataError: if the data cannot be opened, or has a class that the run does not know.
        ArgumentError: if there is no such part.
    """
    if part not in PARTS:
        raise unknown("evaluate", "split", part, PARTS)
    if source is None:
        return getattr(reopen(run_dir), part)
    data = retinue.data.open(source, val_fraction=0.0, test_fraction=0.0, **_like_run(_section(run_dir)))
    split: Split = getattr(data, part) if len(getattr(data, part)) else data.train
    classes = best(Path(run_dir)).facts["classes"]
    number = {name: i for i, name in enumerate(classes)}
    present = [data.classes[i] for i in split.labels.unique().tolist()]
    strange = [name for name in present if name not in number]
    if strange:
        raise DataError(
            f"evaluate: {source} has classes that {run_dir} was not trained on: {', '.join(strange[:5])}. "
            f"It knows {', '.join(classes[:20])}."
        )
    mapped = torch.tensor([number.get(name, -1) for name in data.classes])[split.labels]
    return dataclasses.replace(split, labels=mapped, classes=classes)


def _section(run_dir: str | Path) -> dict[str, Any]:
    path = check_run(run_dir) / "config.json"
    try:
        section = json.loads(path.read_text(encoding="utf-8"))["data"]
        section["preprocessing"]["input_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__} {error}.") from error
    return section


def _like_run(section: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that read other images as the run's were read."""
    names = ("input_size", "channels", "read_size", "resize", "interpolation", "mean", "std")
    values = {name: section["preprocessing"][name] for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def check_run(run_dir: str | Path) -> Path:
    """Return a run's folder.

    Raises:
        ArgumentError: if it is none.
    """
    folder = Path(run_dir)
    if not (folder / "config.json").is_file():
        raise ArgumentError(f"{folder} is no run: it has no config.json. Runs are made by retinue train, run and demo, or by retinue.fit.")
    return folder
