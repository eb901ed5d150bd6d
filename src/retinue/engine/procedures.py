"""The steps of a procedure: a step that has finished is read back, so a killed ten-round pruning goes on at its round."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from retinue.engine import checkpoint
from retinue.errors import ArgumentError, CheckpointError

Values = dict[str, Any]


class Stages:
    """Runs each named stage once, for good.

    >>> import tempfile
    >>> stages = Stages(tempfile.mkdtemp())
    >>> stages("sum", lambda a, b: {"sum": a + b}, 1, 2)
    {'sum': 3}
    >>> stages("sum", lambda a, b: {"sum": "not computed again"}, 1, 2)
    {'sum': 3}

    Args:
        run_dir: the procedure's folder; a stage's result stands in `run_dir/stages/NAME`, and what the stage itself writes (the run of
            a `fit`, say) belongs in `stages.folder(NAME)`. None: nothing is kept and every stage is computed.
    """

    def __init__(self, run_dir: str | Path | None) -> None:
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._names: set[str] = set()

    def folder(self, name: str) -> Path | None:
        """Return the folder in which the stage `name` may keep what it writes itself, such as the run of a `fit`."""
        return None if self.run_dir is None else self.run_dir / name

    def __call__(self, name: str, function: Callable[..., Values], /, *arguments: Any, **options: Any) -> Values:
        """Return the result of `function(*arguments, **options)`, computed now or read back.

        Args:
            name: unique within the procedure.
            function: returns a dict of tensors and JSON values, which may be nested.
            arguments: for the function. They are not compared: a procedure whose settings changed needs another folder.
            options: for the function.

        Raises:
            ArgumentError: if the name was used before, is no file name, or the result is not a dict of tensors and JSON values.
        """
        if name in self._names:
            raise ArgumentError(f'stages: the stage "{name}" was run twice in one procedure. Give each its own name.')
        if name in ("", "..") or name != Path(name).name:
            raise ArgumentError(f'stages: "{name}" cannot be the name of a folder. Leave out slashes.')
        self._names.add(name)
        place = None if self.run_dir is None else self.run_dir / "stages" / name
        if place is not None and place.exists():
            try:
                done = checkpoint.read(place)
                return _joined(done.facts["values"], done.tensors)
            except CheckpointError as error:
                print(f"stage {name} is run again: {error}")
        result = function(*arguments, **options)
        if not isinstance(result, dict):
            raise ArgumentError(f'stages: "{name}" must return a dict of tensors and JSON values, got a {type(result).__name__}.')
        tensors: dict[str, Tensor] = {}
        values = _parted(result, "", tensors, name)
        if place is not None:
            checkpoint.save(place, tensors, {"values": values})
        return _joined(values, tensors)  # as it will be read back: tuples are lists, tensors are plain ones


def _parted(value: Any, path: str, tensors: dict[str, Tensor], stage: str) -> Any:
    """Replace each tensor by a reference and collect it."""
    if isinstance(value, Tensor):
        key = f"{len(tensors)}{path}"  # numbered, since keys with slashes could make two paths equal
        tensors[key] = value.detach().cpu()
        return {"tensor": key}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ArgumentError(f'stages: the result of "{stage}" has keys at "{path}" that are no strings. Use strings.')
        return {"dict": [[key, _parted(item, f"{path}/{key}", tensors, stage)] for key, item in value.items()]}  # a list keeps the order
    if isinstance(value, list | tuple):
        return {"list": [_parted(item, f"{path}/{i}", tensors, stage) for i, item in enumerate(value)]}
    try:
        json.dumps(value)
    except TypeError:
        raise ArgumentError(
            f'stages: the result of "{stage}" holds a {type(value).__name__} at "{path}". '
            "Return tensors, numbers, strings, lists and dicts only."
        ) from None
    return {"value": value}


def _joined(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    kind, content = next(iter(value.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _joined(item, tensors) for key, item in content}
    if kind == "list":
        return [_joined(item, tensors) for item in content]
    return content


def stages(run_dir: str | Path | None) -> Stages:
    """Open the stages of a procedure in a folder, as `retinue.stages`."""
    return Stages(run_dir)
