"""kill -9 at any step, then the same call: the end is the same, bit for bit, as if nothing had happened."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.cases import Duel, digits, noisy, settings, train
from support import same
from torch import Tensor, nn

import retinue
from retinue.engine import checkpoint
from retinue.errors import CheckpointError
from retinue.models import adapt
from retinue.train import Supervised

STEPS = 30  # 3 epochs of 10


class Killed(Supervised):
    """Ends its own process without a word at a step, at one of several moments within it."""

    def __init__(self, at: int, moment: str) -> None:
        super().__init__()
        self._at, self._moment = at, moment
        self.register_buffer("seen", torch.zeros(()))  # an objective's own state has to come back too

    def forward(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        self._now = int(self.seen)
        if self._now == self._at and self._moment == "forward" and model.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(model, batch)

    def after_step(self, model: nn.Module, step: int) -> None:
        if step - 1 == self._at and self._moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1


def in_a_process(function: Any, *arguments: Any, kill_after: float | None = None) -> int:
    """Run a function in a forked process, perhaps kill it, and return how it ended."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def one_training(folder: Path, at: int = -1, moment: str = "", **changes: Any) -> None:
    retinue.fit(noisy(), Killed(at, moment), digits(), run_dir=folder, **settings(**changes))


def everything(folder: Path) -> dict[str, Any]:
    """Collect what a run left: weights, the training's whole state, the best weights, the log."""
    found, refused = checkpoint.newest_valid(folder / "checkpoints", "step-")
    assert found is not None
    assert not refused
    assert found.training is not None
    training = {name: value for name, value in found.training.items() if name != "seconds"}
    best = checkpoint.read(folder / "best")
    return {
        "last": found.tensors,
        "training": training,
        "best": best.tensors,
        "facts": best.facts["metrics"],
        "log": (folder / "metrics.csv").read_bytes(),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    one_training(folder)
    return everything(folder)


@pytest.mark.parametrize("moment", ["forward", "after"])
@pytest.mark.parametrize("step", sorted(random.Random(7).sample(range(STEPS), 4)))
def test_killed_at_a_step_and_resumed_is_never_killed(whole: dict[str, Any], tmp_path: Path, step: int, moment: str) -> None:
    assert in_a_process(one_training, tmp_path, step, moment) == -signal.SIGKILL
    one_training(tmp_path)
    assert same(everything(tmp_path), whole)


def test_killed_again_and_again_at_any_moment(whole: dict[str, Any], tmp_path: Path) -> None:
    random.seed(11)
    for _ in range(6):
        in_a_process(one_training, tmp_path, kill_after=random.uniform(0.02, 0.5))
    one_training(tmp_path)
    assert same(everything(tmp_path), whole)


def test_ctrl_c_writes_a_checkpoint_at_once_and_the_run_goes_on(whole: dict[str, Any], tmp_path: Path) -> None:
    class Interrupted(Killed):
        def after_step(self, model: nn.Module, step: int) -> None:
            super().after_step(model, step)
            if step == 14:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        retinue.fit(noisy(), Interrupted(-1, ""), digits(), run_dir=tmp_path, **settings())
    assert (tmp_path / "checkpoints" / "step-000000014").exists()
    assert signal.getsignal(signal.SIGINT) is before
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("Interrupted", "Killed").replace(
        "test_ctrl_c_writes_a_checkpoint_at_once_and_the_run_goes_on.<locals>.", ""))  # fmt: skip
    one_training(tmp_path)
    assert same(everything(tmp_path), whole)


def test_two_players_resume_too(tmp_path: Path) -> None:
    def duel(folder: Path, stop: int) -> None:
        torch.manual_seed(0)
        model = adapt(nn.Sequential(nn.Flatten(), nn.Linear(4, 64)), input_size=2)

        class Stopping(Duel):
            def after_step(self, model: nn.Module, step: int) -> None:
                if step == stop:
                    os.kill(os.getpid(), signal.SIGKILL)

        retinue.fit(model, Stopping(), digits(), run_dir=folder, **settings(players={"critic": {"optimizer": "sgd"}}, epochs=1))

    duel(tmp_path / "a", -1)
    assert in_a_process(duel, tmp_path / "b", 8) == -signal.SIGKILL
    duel(tmp_path / "b", -1)
    assert same(everything(tmp_path / "a"), everything(tmp_path / "b"))


def test_a_plateau_schedule_and_patience_resume_too(tmp_path: Path) -> None:
    changes = {"schedule": "plateau", "schedule_args": {"patience_epochs": 0, "decay_rate": 0.5}, "patience": 4, "lr": 1e-5, "epochs": 4}
    one_training(tmp_path / "a", **changes)
    assert in_a_process(lambda: one_training(tmp_path / "b", 33, "after", **changes)) == -signal.SIGKILL
    one_training(tmp_path / "b", **changes)
    assert same(everything(tmp_path / "a"), everything(tmp_path / "b"))


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path)
    assert again.metrics == first.metrics
    assert again.history == first.history
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values()))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_a_process(one_training, tmp_path, 25, "after") == -signal.SIGKILL
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    content = bytearray((newest / "training.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "training.pt").write_bytes(content)
    one_training(tmp_path)
    assert f"{newest / 'training.pt'} was altered after it was written" in capsys.readouterr().out
    assert same(everything(tmp_path), whole)


def test_no_whole_checkpoint_is_said_and_nothing_deleted(tmp_path: Path) -> None:
    train(tmp_path)
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        (folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole: .*model\.json is missing.*Delete the folder to start again"):
        train(tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_procedure_of_several_stages_goes_on_at_its_stage(tmp_path: Path) -> None:
    def procedure(folder: Path, at: int = -1) -> dict[str, Any]:
        steps = retinue.stages(folder)
        weights: dict[str, Any] = {}
        for name in ("first", "second", "third"):

            def one(name: str = name, start: dict[str, Any] = weights) -> dict[str, Any]:
                model = noisy()
                if start:
                    model.load_state_dict(start["weights"])
                run = retinue.fit(
                    model, Killed(at if name == "second" else -1, "after"), digits(), run_dir=steps.folder(name), **settings(epochs=1)
                )
                return {"weights": run.model.module.state_dict(), "top1": run.metrics["top1"]}

            weights = steps(name, one, name, weights)
        return weights

    expected = procedure(tmp_path / "whole")
    assert in_a_process(procedure, tmp_path / "killed", 7) == -signal.SIGKILL
    assert (tmp_path / "killed" / "stages" / "first").exists()
    assert not (tmp_path / "killed" / "stages" / "second").exists()
    before = (tmp_path / "killed" / "stages" / "first" / "model.json").stat().st_mtime_ns
    assert same(procedure(tmp_path / "killed"), expected)
    assert (tmp_path / "killed" / "stages" / "first" / "model.json").stat().st_mtime_ns == before
