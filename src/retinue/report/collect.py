"""Everything that a report says, gathered from a run's folder alone."""

import csv
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from retinue import metrics
from retinue.data import Data, Split
from retinue.engine import best, check_run, held_out, judge, load, logits
from retinue.engine.evaluation import as_trained
from retinue.engine.logs import history, read_metrics
from retinue.errors import DataError, RetinueError
from retinue.models import count_macs
from retinue.report.contents import Bin, ClassScore, Collected, HeldOut
from retinue.report.pictures import confident_mistakes, explanations

MOST_MISTAKES = 24


def collect(run_dir: str | Path, data: Data | str | Path | None = None, most_mistakes: int = MOST_MISTAKES) -> Collected:
    """Gather what a run's folder holds, and measure its best model on its test images.

    What cannot be had (the data has gone, the network is the user's own, nothing was classified) is left out, and the notes say so.

    Args:
        run_dir: the run's folder.
        data: the data, or where it is now; None opens what the run was trained on.
        most_mistakes: how many to picture.

    Raises:
        ArgumentError: if there is no run in the folder.
        RetinueError: if `data` was given and does not fit.
    """
    folder = check_run(run_dir)
    rows = history(read_metrics(folder / "metrics.csv"))
    run = Collected(
        name=folder.resolve().name,
        settings=_json(folder / "config.json"),
        environment=_json(folder / "environment.json"),
        history=rows,
        timing=read_timing(folder / "timing.csv"),
    )
    run.explanations = explanations(folder)
    try:
        run.best_step = best(folder).facts["step"]
        model: Any = load(folder)
    except RetinueError as error:
        run.notes.append(f"The model could not be loaded, so nothing was measured on test images: {error}")
        return run
    run.macs = _macs(model)
    if not any(name.endswith("/top1") for row in rows for name in row):
        run.notes.append("This training did not learn the classes, so its model was not measured on test images.")
        return run
    try:
        split = data.test if isinstance(data, Data) else held_out(folder, None if data is None else str(data))
        if not len(split):
            raise DataError("report: the data has no test images. Open it with test_fraction=0.2.")
        test = as_trained(model, split)
        found, labels = logits(model, test)
        run.held_out = measure(found, labels, test)
    except RetinueError as error:
        if data is not None:
            raise
        run.notes.append(f"Nothing was measured on test images, and there are no pictures: {error}")
        return run
    run.mistakes, trouble = confident_mistakes(model, test, found, labels, most_mistakes)
    if trouble:
        run.notes.append(f"There are no heat maps: {trouble}")
    return run


def measure(found: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], split: Split) -> HeldOut:
    """Compute everything that a report says of a model's answers."""
    told, shares = judge(found, labels), found.softmax(-1)
    matrix = metrics.confusion_matrix(found.argmax(-1), labels, classes=found.shape[1])
    bins = metrics.calibration(shares, labels)
    scores = metrics.per_class(matrix)
    columns = [scores.support.tolist(), scores.precision.tolist(), scores.recall.tolist(), scores.f1.tolist()]
    return HeldOut(
        images=len(labels),
        top1=told["top1"],
        top5=told["top5"] if found.shape[1] > 5 else None,
        balanced_accuracy=float(metrics.balanced_accuracy(matrix)),
        loss=told["loss"],
        ece=told["ece"],
        brier=float(metrics.brier_score(shares, labels)),
        confusion=matrix.numpy(),
        bins=[
            Bin(*row)
            for row in zip(
                bins.edges.tolist(), bins.edges[1:].tolist(), bins.count.tolist(), bins.confidence.tolist(), bins.accuracy.tolist()
            )
        ],
        classes=[ClassScore(name, *row) for name, *row in zip(split.classes, *columns)],
        fingerprint=split.fingerprint,
    )


def read_timing(path: Path) -> list[tuple[int, float, float]]:
    """Read `timing.csv`: rows of (step, seconds since the last row, images per second); rows torn by a kill are left out."""
    rows = []
    for row in csv.reader(path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []):
        try:
            step, seconds, rate = row
            rows.append((int(step), float(seconds), float(rate)))
        except ValueError:
            continue
    return rows


def _macs(model: Any) -> int | None:
    """Count multiply-adds; None where that cannot be done without computing: a course that depends on the values."""
    try:
        return count_macs(model, model.preprocessing.input_size, in_chans=model.preprocessing.channels)
    except RuntimeError:
        return None


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: if the file is none.
    """
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"report: {path} is not readable JSON: {error}. Is it damaged?") from error
    if not isinstance(told, dict):
        raise DataError(f"report: {path} holds a {type(told).__name__}, not an object of settings. Is it damaged?")
    return told
