"""A run: one folder with everything of one training."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retinue.data import Data
from retinue.engine import checkpoint
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import config

PLACES = ("run_dir", "progress", "loggers")  # settings of `fit` that say nothing about the result
PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "safetensors", "numpy", "scikit-learn")


@dataclass
class Run:
    """What `fit` returns.

    Attributes:
        dir: the run's folder, or None if none was asked for.
        model: the best model by the objective's `monitor` (its moving average where `ema` was on), in evaluation mode.
        objective: as it was at the end of training.
        metrics: the numbers of the best evaluation.
        history: one dict a logged step: {"step", "epoch", "train/loss", "val/top1", ...}.
        steps: updates done.
        seconds: time spent in training, over all resumptions.
        best_step: updates after which the model was the best; -1 if it was never judged.
    """

    dir: Path | None
    model: nn.Module
    objective: nn.Module
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    best_step: int = -1


def environment() -> dict[str, Any]:
    """Describe the machine and the libraries, for the record and the report."""
    import retinue

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "retinue": retinue.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": devices,
        "packages": versions,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def describe(model: nn.Module, objective: nn.Module, data: Data, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what defines a run's result, as JSON values in the sections model, objective, data and fit."""
    rebuilt = config(model)
    plain = {name: value for name, value in vars(objective).items() if name[0] != "_" and name != "training" and _is_plain(value)}
    return {
        "model": {**(rebuilt or {"class": _class(model)}), "parameters": sum(p.numel() for p in model.parameters())},
        "objective": {"class": _class(objective), **plain},
        "data": data.describe(),
        "fit": {name: value if _is_plain(value) else _text(value) for name, value in settings.items() if name not in PLACES},
    }


def facts(model: nn.Module, data: Data, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Describe what a checkpoint's weights are, so that they can be used without the run."""
    import retinue

    return {
        "model": config(model) or {"class": _class(model)},
        "classes": data.classes,
        "preprocessing": data.preprocessing.to_dict(),
        "step": step,
        "metrics": dict(metrics),
        "provenance": {
            "retinue": retinue.__version__,
            "torch": torch.__version__,
            "data": data.name,
            "fingerprint": data.train.fingerprint,
        },
    }


def _class(thing: object) -> str:
    inner = getattr(thing, "module", None) if type(thing).__name__ == "Adapted" else None
    kind = type(inner if inner is not None else thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _text(value: Any) -> str:
    """Name a value in the same words in every process: a function by its place, anything else by its repr."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def open_run(run_dir: Path, config: dict[str, Any], free_to_change: set[str], needed_bytes: int) -> None:
    """Prepare a run's folder before anything is computed: it can be written, there is room, and a run in it is the same one.

    Args:
        run_dir: the folder, made if need be.
        config: JSON values that define the run's result, sections of settings.
        free_to_change: settings of the section "fit" that may differ when a run goes on, as they do not change its result.
        needed_bytes: what the checkpoints will take.

    Raises:
        ArgumentError: if the folder holds another run, or is no folder.
        CheckpointError: if the folder cannot be written or the disk is too full.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / ".writing-probe"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"fit: the run folder {run_dir} cannot be written: {error.strerror}. Choose another `run_dir`.") from error
    free = shutil.disk_usage(run_dir).free
    if free < needed_bytes:
        raise CheckpointError(
            f"fit: checkpoints in {run_dir} will take about {needed_bytes / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free. "
            "Make room or choose another `run_dir`."
        )
    checkpoint.recover(run_dir)
    config = json.loads(json.dumps(config))
    path = run_dir / "config.json"
    if path.exists():
        try:
            changed = _changes(json.loads(path.read_text(encoding="utf-8")), config, free_to_change)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path} is not a readable configuration: {error}. Delete {run_dir} to start again.") from error
        if changed:
            raise ArgumentError(
                f"fit: {run_dir} holds another run: {'; '.join(changed[:5])}. Choose another `run_dir`, or delete this one to start again."
            )
    elif any((run_dir / "checkpoints").glob("step-*")):
        raise CheckpointError(
            f"fit: {run_dir} holds checkpoints but no config.json, so nobody can say of what run. Choose another `run_dir`."
        )
    checkpoint.write_whole(path, (json.dumps(config, indent=1) + "\n").encode())
    checkpoint.write_whole(run_dir / "environment.json", (json.dumps(environment(), indent=1) + "\n").encode())


def _changes(before: dict[str, Any], now: dict[str, Any], free_to_change: set[str]) -> list[str]:
    told = []
    for section in sorted(set(before) | set(now)):
        old, new = before.get(section), now.get(section)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {section: old}, {section: new}
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key) and not (section == "fit" and key in free_to_change):
                told.append(f"{key} was {old.get(key)!r} and now is {new.get(key)!r}")
    return told
