"""The arguments of `fit`, checked before anything is computed."""

from typing import Any

from torch import nn

from retinue.data import Data, views
from retinue.engine.objective import Objective
from retinue.errors import ArgumentError, unknown

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
PLAYER_KEYS = ("optimizer", "lr", "weight_decay", "momentum", "optimizer_args")
POSITIVE = ("batch_size", "accumulate", "eval_every", "eval_batch_size", "keep", "log_every", "devices")
POSITIVE_OR_NONE = ("max_steps", "epochs", "clip_grad", "patience", "checkpoint_every")


def check(settings: dict[str, Any], objective: Objective, data: Data) -> dict[str, Any]:
    """Check the arguments of `fit` one by one; views are parsed.

    Raises:
        ArgumentError: for the first that cannot be.
    """
    if not isinstance(objective, Objective):
        raise ArgumentError(f"fit: `objective` must be an Objective such as retinue.train.Supervised(), got {_kind(objective)}.")
    if not isinstance(data, Data):
        raise ArgumentError(f"fit: `data` must come from retinue.data.open, got {_kind(data)}.")
    for name in POSITIVE:
        _positive(name, settings[name], whole=True)
    for name in POSITIVE_OR_NONE:
        if settings[name] is not None:
            _positive(name, settings[name], whole=name not in ("epochs", "clip_grad"))
    for name in ("lr", "weight_decay", "warmup_epochs"):
        if not settings[name] >= 0:
            raise ArgumentError(f"fit: `{name}` must be 0 or more, got {settings[name]}.")
    if settings["ema"] is not None and not 0 < settings["ema"] < 1:
        raise ArgumentError(f"fit: `ema` must lie strictly between 0 and 1, got {settings['ema']}. It is the decay, such as 0.9999.")
    if settings["precision"] not in PRECISIONS:
        raise unknown("fit", "precision", settings["precision"], PRECISIONS)
    if settings["accumulate"] > settings["batch_size"]:
        raise ArgumentError(f"fit: `accumulate` {settings['accumulate']} must not exceed `batch_size` {settings['batch_size']}.")
    if settings["patience"] is not None and not len(data.val):
        raise ArgumentError("fit: `patience` needs validation images, and there are none. Open the data with val_fraction=0.1.")
    for player, changes in (settings["players"] or {}).items():
        for key in changes:
            if key not in PLAYER_KEYS:
                raise unknown("fit", f"setting of the player {player}", key, PLAYER_KEYS)
    if settings["epochs"] is None and settings["max_steps"] is None:
        settings = {**settings, "epochs": 10}
    if isinstance(settings["views"], str):
        settings = {**settings, "views": views.parse(settings["views"])}
    if settings["views"] is not None and objective.views is None:
        objective.check_views(settings["views"])
    return settings


def needed_bytes(model: nn.Module, objective: nn.Module, ema: float | None, keep: int) -> int:
    """Estimate what the checkpoints of a run take: weights, two moments of the optimiser, the average, `keep` + 1 times, and the best."""
    weights = sum(tensor.nbytes for module in (model, objective) for tensor in (*module.parameters(), *module.buffers()))
    return weights * (3 + (ema is not None)) * (keep + 1) + weights


def _positive(name: str, value: Any, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
        raise ArgumentError(f"fit: `{name}` must be a positive {'whole ' if whole else ''}number, got {value!r}.")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
