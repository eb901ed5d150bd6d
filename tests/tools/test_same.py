"""`tools/same.py`: two commits that train alike, and the first step at which they do not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tool

same: Any = tool("same")
LOG = [(1, "train/loss", "2.0"), (1, "lr", "0.1"), (2, "train/loss", "1.5")]


def test_the_first_difference_is_named() -> None:
    assert same.first_difference(LOG, list(LOG)) is None
    assert same.first_difference(LOG, [*LOG[:2], (2, "train/loss", "1.25")]) == "step 2: train/loss is 1.5, on the other side 1.25"
    assert same.first_difference(LOG, [LOG[0], (1, "momentum", "0.9"), LOG[2]]) == "step 1 logs lr, the other side step 1 momentum"
    assert same.first_difference(LOG, LOG[:2]) == "one side logs 3 numbers, the other 2"
    assert same.first_difference([], []) is None


# Stands in for a training: the losses are a function of a file of the commit.
TRAINING = """
import pathlib, sys
slug, steps, folder = sys.argv[1:]
rate = float(pathlib.Path("rate").read_text())
lines = [f"{step},{step / 10},train/loss,{1 - step * rate}" for step in range(1, int(steps) + 1)]
pathlib.Path(folder, "metrics.csv").write_text("step,epoch,name,value\\n" + "\\n".join(lines) + "\\n")
sys.exit(int(rate == 9))
"""


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own with commits of the rates 1, 1, 2 and 9, and a working tree of rate 3."""
    root = tmp_path / "repository"
    root.mkdir()

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words], cwd=root, check=True, capture_output=True)

    git("init", "--initial-branch", "main")
    for i, rate in enumerate((1, 1, 2, 9)):
        (root / "rate").write_text(str(rate))
        (root / "count").write_text(str(i))
        git("add", ".")
        git("commit", "-m", f"rate {rate}")
    (root / "rate").write_text("3")
    monkeypatch.setattr(same, "TRAINING", TRAINING)
    for function in (same.checked_out.__wrapped__, same.losses):
        monkeypatch.setattr(function, "__defaults__", (root,))
    return root


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["same.py", *words, "--steps", "3"])
    return same.main()


def test_commits_that_train_alike_and_that_do_not(
    history: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "main~3", "main~2") == 0
    assert json.loads(capfd.readouterr().out) == {
        "commits": ["main~3", "main~2"], "system": "supervised", "steps": 3, "first_difference": None,
    }  # fmt: skip
    assert call(monkeypatch, "main~2", "main~1") == 1
    assert json.loads(capfd.readouterr().out)["first_difference"] == "step 1: train/loss is 0.0, on the other side -1.0"
    assert call(monkeypatch, "main~1", ".") == 1, "the working tree as it is"
    capfd.readouterr()
    assert call(monkeypatch, "main", ".") == 2
    assert "a side could not be trained" in capfd.readouterr().err
    assert call(monkeypatch, "nowhere", ".") == 2
    listed = subprocess.run(["git", "worktree", "list"], cwd=history, capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 1, "the trees that were checked out are gone"
    assert (history / "rate").read_text() == "3"


def test_plain_supervised_training_logs_what_is_compared() -> None:
    found = same.losses(".", "supervised", 2)
    assert {(step, name) for step, name, _ in found} >= {(1, "train/loss"), (2, "train/loss"), (1, "lr")}
    assert all(float(value) == float(value) for _, _, value in found)
