"""What train, run and demo do alike: train, measure on the test split, write the report, and say where it is."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import retinue
from retinue.cli.recipes import Bound
from retinue.engine import distributed
from retinue.engine.checkpoint import write_whole
from retinue.errors import ArgumentError


def train_and_report(bound: Bound, run_dir: str | Path, progress: bool = True) -> dict[str, Any]:
    """Run a recipe in a folder; if it is a training, measure it on the test split and write the report.

    Returns:
        The numbers on the test split; for objectives without labels those of the validation split, and for procedures what they return.
    """
    folder = Path(run_dir)
    data = bound.open()
    for name, reason in data.skipped:
        print(f"left out {name}: {reason}", file=sys.stderr)
    model = bound.build(data)
    for note in getattr(model, "adaptation", []):
        print(f"{bound.recipe.model['name']}: {note}", file=sys.stderr)
    recipe = yaml.safe_dump(bound.recipe.blocks(), sort_keys=False)
    if bound.recipe.procedure is not None:  # whose stages are read back whatever the settings; a training compares its own
        _check_same(folder / "recipe.yaml", recipe)
    result = bound.run(folder, data, progress, model)
    if not distributed.is_first():
        return {}  # the first process measures and writes
    write_whole(folder / "recipe.yaml", recipe.encode())
    if bound.recipe.procedure is not None:
        write_whole(folder / "result.json", (json.dumps(result, indent=1) + "\n").encode())
        _print(result)
        print(f"results: {folder / 'result.json'}")
        return result
    from retinue.report import report

    labelled = len(data.classes) > 1 and getattr(result.model, "num_classes", 0) == len(data.classes) and "top1" in result.metrics
    numbers = retinue.evaluate(result.model, data.test) if labelled and len(data.test) else dict(result.metrics)
    write_whole(folder / "test.json", (json.dumps(numbers, indent=1) + "\n").encode())
    _print({"test" if labelled else "validation": numbers, "training": f"{result.steps} steps in {result.seconds:.1f} s"})
    print(f"report: {report(folder)}")
    return numbers


def _check_same(path: Path, recipe: str) -> None:
    """Refuse a folder in which a procedure with other settings has begun; note the settings in a new one."""
    if not path.exists():
        if distributed.is_first():
            write_whole(path, recipe.encode())
    elif (before := path.read_text(encoding="utf-8")) != recipe:
        changed = [line.strip() for line in recipe.splitlines() if line not in before.splitlines()]
        raise ArgumentError(
            f"{path.parent} holds what was found with other settings ({', '.join(changed[:3]) or 'some were left out'}). "
            "Take another --run_dir, or the settings of its recipe.yaml."
        )


def _print(values: Mapping[str, Any]) -> None:
    """Print nested values, a line for each group."""
    for name, value in values.items():
        print(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    """Write numbers with four digits, and groups within groups in brackets."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key} ({_text(of)})" if isinstance(of, Mapping) else f"{key} {_text(of)}" for key, of in value.items())
    return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, list | tuple) else str(value)
