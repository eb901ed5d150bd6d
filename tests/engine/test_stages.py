"""Stages: computed once, read back, run again where they are damaged, and equal whether kept or not."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import retinue
from retinue.engine.procedures import Stages, stages
from retinue.errors import ArgumentError

NESTED: dict[str, Any] = {
    "masks": {"conv1": torch.tensor([True, False]), "conv2": [torch.ones(2), torch.zeros(0)]},
    "history": [{"round": 1, "top1": 0.5}, {"round": 2, "top1": float("inf")}],
    "pair": (1, "two", None, True),
    "empty": {},
    "a/b": torch.tensor(1.0),
    "a": {"b": torch.tensor(2.0)},
    "0": torch.tensor(3, dtype=torch.uint8),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and type(a) is type(b)


def test_a_finished_stage_is_read_back_and_not_computed_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def stage(name: str, value: float) -> dict[str, Any]:
        calls.append(name)
        return {"value": torch.tensor(value), "name": name}

    for _ in range(2):
        run = stages(tmp_path)
        assert run("prune", stage, "prune", 1.5)["value"] == 1.5
        assert run("train", stage, name="train", value=2.5)["name"] == "train"
    assert calls == ["prune", "train"]
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["prune", "train"]


def test_nested_results_come_back_as_they_were_whether_computed_read_or_not_kept(tmp_path: Path) -> None:
    computed = stages(tmp_path)("one", lambda: NESTED)
    read = stages(tmp_path)("one", lambda: pytest.fail("computed again"))
    loose = stages(None)("one", lambda: NESTED)
    for found in (computed, read, loose):
        assert same(NESTED, found)
        assert list(found) == list(computed)


def test_a_result_has_no_gradient_and_is_not_a_parameter(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path, None):
        found = stages(place)("one", lambda: {"weight": nn.Parameter(torch.ones(2))})["weight"]
        assert type(found) is torch.Tensor
        assert not found.requires_grad


def test_a_damaged_stage_is_named_and_run_again_and_the_others_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def stage(i: int) -> dict[str, int]:
        calls.append(i)
        return {"i": i}

    def procedure() -> list[int]:
        run = stages(tmp_path)
        return [run(f"round-{i}", stage, i)["i"] for i in range(3)]

    procedure()
    path = tmp_path / "stages/round-1/model.json"
    path.write_bytes(path.read_bytes().replace(b'"value": 1', b'"value": 7'))
    assert procedure() == [0, 1, 2]
    assert calls == [0, 1, 2, 1]
    assert capsys.readouterr().out == f"stage round-1 is run again: {path} was altered after it was written.\n"
    procedure()
    assert calls == [0, 1, 2, 1]


def test_a_stage_that_fails_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        stages(tmp_path)("one", lambda: {"x": 1 / 0})
    assert stages(tmp_path)("one", lambda: {"x": 1}) == {"x": 1}


def test_each_stage_has_a_folder_of_its_own_for_what_it_writes(tmp_path: Path) -> None:
    assert stages(tmp_path).folder("round-1") == tmp_path / "round-1"
    assert Stages(str(tmp_path)).folder("round-1") == tmp_path / "round-1"
    assert stages(None).folder("round-1") is None
    assert retinue.stages is stages


@pytest.mark.parametrize("place", [True, False])
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, place: bool) -> None:
    run = stages(tmp_path if place else None)
    run("one", dict)
    with pytest.raises(ArgumentError, match=r'^stages: the stage "one" was run twice in one procedure\. Give each its own name\.$'):
        run("one", dict)
    for name in ("", "a/b", "..", "a/", "/"):
        with pytest.raises(ArgumentError, match=rf'^stages: "{name}" cannot be the name of a folder\. Leave out slashes\.$'):
            run(name, dict)
    with pytest.raises(ArgumentError, match=r'^stages: "list" must return a dict of tensors and JSON values, got a list\.$'):
        run("list", list)
    with pytest.raises(
        ArgumentError, match=r'^stages: the result of "numpy" holds a ndarray at "/a/0"\. Return tensors, numbers, strings, lists'
    ):
        run("numpy", lambda: {"a": [np.ones(2)]})
    with pytest.raises(ArgumentError, match=r'^stages: the result of "keys" has keys at "/a" that are no strings\. Use strings\.$'):
        run("keys", lambda: {"a": {1: 2}})
    assert not (tmp_path / "stages/numpy").exists()


def ten_rounds(folder: Path) -> torch.Tensor:
    """A procedure whose every round needs the one before."""
    run, value = stages(folder), torch.ones(3)
    for i in range(10):
        value = run(f"round-{i}", slow_round, value, i, folder)["value"]
    return value


def slow_round(value: torch.Tensor, i: int, folder: Path) -> dict[str, torch.Tensor]:
    with (folder / "calls").open("a") as file:
        file.write(f"{i}\n")
    time.sleep(0.01)
    return {"value": value * 1.1 + i}


def test_a_killed_procedure_goes_on_at_its_round_and_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    for delay in (0.02, 0.05, 0.09):
        child = multiprocessing.get_context("fork").Process(target=ten_rounds, args=(tmp_path / "killed",))
        child.start()
        time.sleep(delay)
        child.kill()
        child.join()
    assert torch.equal(ten_rounds(tmp_path / "killed"), ten_rounds(tmp_path / "whole"))
    rounds = [int(line) for line in (tmp_path / "killed/calls").read_text().split()]
    assert sorted(set(rounds)) == list(range(10))
    assert len(rounds) <= 13, "only the rounds in which it was killed were computed again"
    assert rounds == sorted(rounds)
