"""The numbers of a run: `metrics.csv` (a function of the seed), `timing.csv` (of the machine), TensorBoard, and the progress bar."""

import csv
import io
import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from retinue.engine.checkpoint import write_whole
from retinue.errors import ArgumentError, CheckpointError, unknown

KINDS = ("csv", "tensorboard")
Row = tuple[int, float, str, float]


def read_metrics(path: Path) -> list[Row]:
    """Read `metrics.csv`: rows of (step, epoch, name, value), oldest first; a last line torn by a kill is left out."""
    return [(int(step), float(epoch), name, float(value)) for step, epoch, name, value in csv.reader(_whole_lines(path))]


def _whole_lines(path: Path) -> list[str]:
    """Read the lines below the head; what follows the last line break was not written whole."""
    return path.read_text().split("\n")[1:-1] if path.exists() else []


def history(rows: list[Row]) -> list[dict[str, float]]:
    """Join the rows of one step to one dict: {"step": ..., "epoch": ..., name: value, ...}."""
    joined: dict[int, dict[str, float]] = {}
    for step, epoch, name, value in rows:
        joined.setdefault(step, {"step": step, "epoch": epoch})[name] = value
    return list(joined.values())


class Logs:
    """Appends to the logs of a run folder; opened at a step, it drops whatever was written after that step.

    Args:
        run_dir: the run's folder, or None to keep the numbers in memory only.
        step: updates that are done.
        kinds: of `KINDS`, or loggers of Lightning Fabric, which get the same numbers.
    """

    def __init__(self, run_dir: Path | None, step: int, kinds: tuple[Any, ...] = ("csv",)) -> None:
        for kind in kinds:
            if isinstance(kind, str) and kind not in KINDS:
                raise unknown("fit", "logger", kind, KINDS)
            if not isinstance(kind, str) and not hasattr(kind, "log_metrics"):
                raise ArgumentError(f"fit: `loggers` takes names ({', '.join(KINDS)}) and loggers of Lightning Fabric, got {kind!r}.")
        self.others = [kind for kind in kinds if not isinstance(kind, str)]
        self.rows: list[Row] = []
        self.board: Any = None
        self.metrics: io.TextIOWrapper | None = None
        self.timing: io.TextIOWrapper | None = None
        if run_dir is None:
            return
        self.rows = [row for row in read_metrics(run_dir / "metrics.csv") if row[0] <= step] if step else []
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("step", "epoch", "name", "value"), *(_texts(row) for row in self.rows)])
        write_whole(run_dir / "metrics.csv", text.getvalue().encode())
        kept = [line for line in _whole_lines(run_dir / "timing.csv") if int(line.split(",")[0]) <= step] if step else []
        write_whole(run_dir / "timing.csv", "".join(f"{line}\n" for line in ("step,seconds,images_per_second", *kept)).encode())
        self.metrics = (run_dir / "metrics.csv").open("a", newline="")
        self.timing = (run_dir / "timing.csv").open("a", newline="")
        if "tensorboard" in kinds:
            from torch.utils.tensorboard import SummaryWriter  # a slow import, only for those who log to it

            shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
            self.board = SummaryWriter(run_dir / "tensorboard")
            for row in self.rows:
                self.board.add_scalar(row[2], row[3], row[0])

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write(self, step: int, epoch: float, numbers: dict[str, float]) -> None:
        """Write the numbers of a step."""
        rows = [(step, float(f"{epoch:g}"), name, float(value)) for name, value in numbers.items()]  # as they will be read back
        self.rows += rows
        if self.metrics is not None:
            csv.writer(self.metrics, lineterminator="\n").writerows(_texts(row) for row in rows)
        if self.board is not None:
            for row in rows:
                self.board.add_scalar(row[2], row[3], step)
        for other in self.others:
            other.log_metrics(numbers, step=step)

    def time(self, step: int, seconds: float, images: int) -> None:
        """Write what the steps since the last call took."""
        if self.timing is not None:
            self.timing.write(f"{step},{seconds:.4f},{images / max(seconds, 1e-9):.2f}\n")
            self.timing.flush()

    def flush(self) -> None:
        """Put everything on the disk; a checkpoint calls this first, so that no checkpoint is newer than its logs."""
        try:
            for file in (self.metrics, self.timing):
                if file is not None:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"The logs could not be written: {error.strerror}. Make room, then give the same command again."
            ) from error
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        """Flush and close all files; a failure to write is left to `flush` to report."""
        for file in (self.metrics, self.timing, self.board):
            try:
                if file is not None:
                    file.close()
            except OSError:
                pass  # the disk is full: the numbers up to the last checkpoint are safe, and that is what a resumed run reads
        self.metrics = self.timing = self.board = None


def _texts(row: Row) -> tuple[str, str, str, str]:
    return str(row[0]), f"{row[1]:g}", row[2], repr(row[3])


class Progress:
    """A live bar on a terminal, one line an evaluation elsewhere.

    Args:
        shown: whether to show anything.
        total: updates of the whole run.
        done: updates done before.
    """

    def __init__(self, shown: bool, total: int, done: int = 0) -> None:
        self.shown, self.total, self.numbers = shown, total, ""
        self.bar: Any = None
        self.next = 0.0
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = ("training", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True), refresh_per_second=5)
            self.task = self.bar.add_task("", total=total, completed=done, numbers="")

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, done: int) -> None:
        """Move the bar, at most five times a second."""
        if self.bar is not None and (done == self.total or time.monotonic() > self.next):
            self.next = time.monotonic() + 0.2
            self.bar.update(self.task, completed=done, numbers=self.numbers)

    def say(self, epoch: float, numbers: dict[str, float], line: bool = False) -> None:
        """Show numbers beside the bar; with `line`, also where there is no bar."""
        self.numbers = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        if self.shown and self.bar is None and line:
            print(f"epoch {epoch:g}  {self.numbers}", file=sys.stderr, flush=True)
