"""The report of a run, or of several side by side: one HTML file that opens anywhere."""

from collections.abc import Sequence
from pathlib import Path

from retinue.data import Data
from retinue.engine.checkpoint import write_whole
from retinue.errors import ArgumentError
from retinue.report.collect import MOST_MISTAKES, collect
from retinue.report.contents import Collected
from retinue.report.html import render, render_comparison

__all__ = ["Collected", "collect", "render", "render_comparison", "report"]

LARGEST = 5_000_000  # bytes of the file


def report(run_dirs: str | Path | Sequence[str | Path], out: str | Path | None = None, data: Data | str | Path | None = None) -> Path:
    """Write the report of a run as one HTML file that needs nothing beside it; of several runs, one that sets them side by side.

    Args:
        run_dirs: a run's folder, or several.
        out: the file to write; None writes `report.html` into the run's folder, or beside the folder of the first of several.
        data: the data, or where it is now; None opens what each run was trained on. Data that is not there any more is left out.

    Returns:
        The file that was written.

    Raises:
        ArgumentError: if a folder holds no run, or none is given.
        CheckpointError: if the file cannot be written.
    """
    folders = [Path(run_dirs)] if isinstance(run_dirs, (str, Path)) else [Path(folder) for folder in run_dirs]
    if not folders:
        raise ArgumentError("report: there is no run to report on. Give at least one run folder.")
    runs = [collect(folder, data, max(3, MOST_MISTAKES // len(folders))) for folder in folders]
    default = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    path = default / "report.html" if out is None else Path(out)
    write_whole(path, page(runs))
    return path


def page(runs: Sequence[Collected]) -> bytes:
    """Set one run or several as a page of at most 5 MB: as long as it is larger, half of the pictures go, the explanations last."""
    while True:
        text = (render(runs[0]) if len(runs) == 1 else render_comparison(runs)).encode()
        if len(text) <= LARGEST or not any(run.mistakes or run.explanations for run in runs):
            return text
        for run in runs:
            if not run.mistakes:
                run.explanations = {}
            run.mistakes = run.mistakes[: len(run.mistakes) // 2]
