"""The numbers of a run: the same bytes whether a run was interrupted or not, and no line that was not written whole."""

import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.engine.logs import Logs, Progress, history, read_metrics
from retinue.errors import ArgumentError, CheckpointError


def run(folder: Path | None, steps: range, kinds: tuple[Any, ...] = ("csv",)) -> Logs:
    logs = Logs(folder, steps.start, kinds)
    for step in range(steps.start + 1, steps.stop + 1):
        logs.write(step, step / 7, {"train/loss": 1 / step, "lr": 0.1 * 0.94**step})
        logs.time(step, 0.5, 64)
    logs.flush()
    return logs


def test_a_line_for_each_number_in_full(tmp_path: Path) -> None:
    run(tmp_path, range(0, 2)).close()
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,name,value\n1,0.142857,train/loss,1.0\n1,0.142857,lr,0.094\n2,0.285714,train/loss,0.5\n2,0.285714,lr,0.08836\n"
    )
    assert (tmp_path / "timing.csv").read_text() == "step,seconds,images_per_second\n1,0.5000,128.00\n2,0.5000,128.00\n"
    assert read_metrics(tmp_path / "metrics.csv")[-1] == (2, 0.285714, "lr", 0.08836)
    assert read_metrics(tmp_path / "nowhere.csv") == []


@given(st.lists(st.floats(), max_size=4), st.floats(0, 1e6))
def test_every_number_comes_back_bit_for_bit(values: list[float], epoch: float) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        logs = Logs(Path(folder), 0)
        logs.write(1, epoch, {f'loss, "{i}"': value for i, value in enumerate(values)})
        logs.close()
        found = read_metrics(Path(folder) / "metrics.csv")
        assert [repr(row) for row in found] == [repr(row) for row in logs.rows]
        assert [repr(row[3]) for row in found] == [repr(value) for value in values]


def test_history_joins_the_numbers_of_a_step() -> None:
    rows = [(1, 0.5, "train/loss", 2.0), (1, 0.5, "lr", 0.1), (2, 1.0, "val/top1", 0.9)]
    assert history(rows) == [{"step": 1, "epoch": 0.5, "train/loss": 2.0, "lr": 0.1}, {"step": 2, "epoch": 1.0, "val/top1": 0.9}]


@pytest.mark.parametrize("torn", ["", "6,0.857", "6,0.857143,train/lo", "6,0.857143,lr,0.07"])
def test_an_interrupted_log_continues_with_the_same_bytes(tmp_path: Path, torn: str) -> None:
    whole = run(tmp_path / "whole", range(0, 9))
    whole.close()
    run(tmp_path / "killed", range(0, 6)).close()
    with (tmp_path / "killed/metrics.csv").open("a") as file:
        file.write(torn)  # what a kill leaves of a line
    again = run(tmp_path / "killed", range(4, 9))  # the last checkpoint was of step 4
    again.close()
    assert (tmp_path / "killed/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()
    assert again.rows == whole.rows
    assert len((tmp_path / "killed/timing.csv").read_text().splitlines()) == 1 + 9, "each step counts once"


def test_a_run_from_its_start_forgets_an_earlier_one(tmp_path: Path) -> None:
    run(tmp_path, range(0, 5)).close()
    run(tmp_path, range(0, 1)).close()
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2
    assert len((tmp_path / "timing.csv").read_text().splitlines()) == 2


def test_without_a_folder_the_numbers_are_kept_in_memory() -> None:
    logs = run(None, range(0, 2))
    assert [row[0] for row in logs.rows] == [1, 1, 2, 2]
    logs.close()


def test_tensorboard_gets_the_same_numbers_and_a_resumed_run_no_number_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, range(0, 4), ("csv", "tensorboard")).close()
    logs = run(tmp_path, range(2, 5), ("tensorboard",))
    logs.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(i, pytest.approx(1 / i)) for i in range(1, 6)]


class Recorder:
    """A logger of Fabric's kind."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.numbers.append((step, metrics))


def test_a_logger_of_fabric_gets_the_same_numbers(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, range(0, 1), ("csv", recorder)).close()
    assert recorder.numbers == [(1, {"train/loss": 1.0, "lr": 0.1 * 0.94})]


def test_wrong_loggers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r'^fit: no logger is called "tensorbord"\. Did you mean tensorboard\?$'):
        Logs(tmp_path, 0, ("csv", "tensorbord"))
    with pytest.raises(ArgumentError, match=r"^fit: `loggers` takes names \(csv, tensorboard\) and loggers of Lightning Fabric, got 7\.$"):
        Logs(tmp_path, 0, (7,))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_when_the_logs_are_flushed(tmp_path: Path) -> None:
    logs = Logs(tmp_path, 0)
    logs.metrics = open("/dev/full", "w")  # noqa: SIM115 - every write to it finds no space
    logs.write(1, 0.5, {"loss": 1.0})
    with pytest.raises(
        CheckpointError, match=r"^The logs could not be written: No space left on device\. Make room, then give the same command"
    ):
        logs.flush()
    logs.close()
    assert logs.metrics is None


def test_elsewhere_than_on_a_terminal_an_evaluation_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(True, 10) as bar:
        bar.step(3)
        bar.say(0.5, {"train/loss": 1.23456})
        bar.say(1.0, {"val/top1": 0.987654, "val/loss": math.pi}, line=True)
    with Progress(False, 10) as bar:
        bar.say(1.0, {"val/top1": 1.0}, line=True)
    assert capsys.readouterr().err == "epoch 1  val/top1 0.9877  val/loss 3.142\n"


def test_on_a_terminal_there_is_a_bar_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with Progress(True, 10, done=4) as bar:
        bar.say(0.5, {"train/loss": 0.25}, line=True)
        bar.step(10)
    assert "10/10" in screen.getvalue()
    assert "train/loss 0.25" in screen.getvalue()
    assert "epoch" not in screen.getvalue()
