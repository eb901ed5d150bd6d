"""The same function over many items: the same results however they are spread, in order."""

import types
from typing import Any

import pytest
import torch
from support import fails_at_three, train_a_little

import retinue
from retinue.engine import parallel
from retinue.errors import ArgumentError, MissingExtraError

SEEDS = [3, 1, 2, 0]


def test_processes_give_bit_for_bit_what_one_after_the_other_gives() -> None:
    serial = retinue.map(train_a_little, SEEDS)
    spread = retinue.map(train_a_little, iter(SEEDS), workers=2)
    assert [seed for seed, _, _ in spread] == SEEDS
    for (_, weights, _), (_, others, threads) in zip(serial, spread, strict=True):
        assert torch.equal(weights, others)
        assert threads == 1, "two workers on one thread have one each"
    assert not torch.equal(serial[0][1], serial[1][1])


def test_an_error_in_a_worker_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        retinue.map(fails_at_three, [1, 3])
    with pytest.raises(ZeroDivisionError):
        retinue.map(fails_at_three, [1, 3, 2], workers=2)


def test_few_or_no_items_and_any_function_without_workers() -> None:
    assert retinue.map(lambda x: x + 1, [], workers=0) == []
    assert retinue.map(lambda x: x + 1, (1, 2), workers=1) == [2, 3]
    assert retinue.map(str, {"a": 1}, workers=4, backend="serial") == ["a"]


def test_wrong_workers_and_backends_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^map: `workers` must be 0 or more, got -1\.$"):
        retinue.map(str, [1], workers=-1)
    with pytest.raises(ArgumentError, match=r'^map: no backend is called "process"\. Did you mean processes\?$'):
        retinue.map(str, [1], backend="process")


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'^ray is not installed\. Run: pip install "retinue\[cluster\]"$'):
        retinue.map(str, [1], workers=2, backend="ray")


@pytest.mark.parametrize("running", [True, False])
def test_ray_gets_every_item_and_only_what_we_started_is_stopped(monkeypatch: pytest.MonkeyPatch, running: bool) -> None:
    calls: list[str] = []

    def remote(function: Any) -> Any:
        return types.SimpleNamespace(remote=lambda item: lambda: function(item))

    ray = types.SimpleNamespace(
        is_initialized=lambda: running,
        init=lambda num_cpus, **_: calls.append(f"init {num_cpus}"),
        remote=remote,
        get=lambda promises: [promise() for promise in promises],
        shutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setattr(parallel, "need", lambda module, extra: ray)
    assert retinue.map(str, [1, 2], workers=3, backend="ray") == ["1", "2"]
    assert calls == ([] if running else ["init 3", "shutdown"])
