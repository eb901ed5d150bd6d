"""A run's folder: prepared before anything is computed, refused where it is another run's, and described in full."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import retinue
from retinue.engine import checkpoint
from retinue.engine.run import describe, environment, facts, open_run
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import adapt, tiny
from retinue.train import Supervised

CONFIG: dict[str, Any] = {
    "model": {"name": "mlp", "arguments": {"widths": [3]}},
    "objective": {"class": "retinue.train.Supervised", "label_smoothing": 0.0},
    "data": {"fingerprint": "abc"},
    "fit": {"epochs": 3, "lr": 0.1, "seed": 0, "log_every": 50},
}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**CONFIG, section: {**CONFIG[section], **values}}


def prepare(folder: Path, config: dict[str, Any] = CONFIG, needed: int = 0) -> None:
    open_run(folder, config, {"epochs", "log_every"}, needed)


def test_a_new_folder_holds_the_settings_and_the_machine(tmp_path: Path) -> None:
    prepare(tmp_path / "runs/deep/one")
    assert {path.name for path in (tmp_path / "runs/deep/one").iterdir()} == {"config.json", "environment.json"}
    assert json.loads((tmp_path / "runs/deep/one/config.json").read_text()) == CONFIG
    told = json.loads((tmp_path / "runs/deep/one/environment.json").read_text())
    assert told["retinue"] == retinue.__version__
    assert told["packages"]["torch"] == torch.__version__.split("+")[0] or told["packages"]["torch"] == torch.__version__
    assert told["cores"] == os.cpu_count()


def test_the_same_settings_go_on_also_with_tuples_and_what_may_change(tmp_path: Path) -> None:
    prepare(tmp_path)
    prepare(tmp_path, {**CONFIG, "model": {"name": "mlp", "arguments": {"widths": (3,)}}})
    prepare(tmp_path, changed("fit", epochs=9, log_every=1))
    assert json.loads((tmp_path / "config.json").read_text())["fit"]["epochs"] == 9, "the newest settings stand in the file"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (changed("fit", lr=0.2), "lr was 0.1 and now is 0.2"),
        (changed("fit", seed=1, ema=0.9), "ema was None and now is 0.9; seed was 0 and now is 1"),
        (changed("model", arguments={"widths": [4]}), "arguments was {'widths': [3]} and now is {'widths': [4]}"),
        (changed("data", fingerprint="abd"), "fingerprint was 'abc' and now is 'abd'"),
        (changed("objective", epochs=4), "epochs was None and now is 4"),  # free to change in "fit" alone
        ({**CONFIG, "data": "digits"}, "data was {'fingerprint': 'abc'} and now is 'digits'"),
    ],
)
def test_another_runs_folder_is_refused_with_what_changed(tmp_path: Path, config: dict[str, Any], told: str) -> None:
    prepare(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ArgumentError) as caught:
        prepare(tmp_path, config)
    assert str(caught.value) == f"fit: {tmp_path} holds another run: {told}. Choose another `run_dir`, or delete this one to start again."
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_a_torn_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not a readable configuration: .*\. Delete .* to start again\.$"):
        prepare(tmp_path)


def test_checkpoints_without_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-000000001").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"holds checkpoints but no config\.json, so nobody can say of what run\. Choose another `run_dir`\.$"
    ):
        prepare(tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match=r"^fit: the run folder .*file cannot be written: File exists\. Choose another `run_dir`\.$"):
        prepare(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"file/below cannot be written: Not a directory\."):
        prepare(tmp_path / "file/below")
    assert (tmp_path / "file").read_text() == "kept"

    def read_only(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(CheckpointError, match=r"one cannot be written: Permission denied\."):
        prepare(tmp_path / "one")
    assert list((tmp_path / "one").iterdir()) == []


def test_too_little_room_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(0, 0, 5 * 2**20))
    prepare(tmp_path / "one", needed=5 * 2**20)
    with pytest.raises(
        CheckpointError,
        match=r"^fit: checkpoints in .*two will take about 7 MiB and 5 MiB are free\. Make room or choose another `run_dir`\.$",
    ):
        prepare(tmp_path / "two", needed=7 * 2**20)
    assert not (tmp_path / "two/config.json").exists()


def test_a_best_checkpoint_that_a_killed_run_had_moved_aside_is_put_back(tmp_path: Path) -> None:
    prepare(tmp_path)
    checkpoint.save(tmp_path / "best", {"value": torch.tensor(1.0)}, {})
    (tmp_path / "best").rename(tmp_path / ".replaced-best")
    prepare(tmp_path)
    assert checkpoint.read(tmp_path / "best").tensors["value"] == 1


def test_what_defines_a_result_is_described_in_json() -> None:
    data = retinue.data.open("digits", train_images=20, test_images=20)
    settings = {"epochs": 3, "views": nn.Identity(), "run_dir": "here", "progress": True, "loggers": ("csv",)}
    told = json.loads(json.dumps(describe(tiny("ours", in_chans=1), Supervised(label_smoothing=0.1), data, settings)))
    assert set(told) == {"model", "objective", "data", "fit"}
    assert told["model"]["name"] == "small_convnet"
    assert told["objective"]["class"] == "retinue.engine.supervised.Supervised"
    assert told["objective"]["label_smoothing"] == 0.1
    assert told["fit"] == {"epochs": 3, "views": "Identity()"}, "places say nothing about the result"
    bare = adapt(tiny("bare", in_chans=1))
    assert describe(bare, Supervised(), data, {})["model"]["class"] == "retinue.models.tiny.Bare"


def test_the_facts_of_a_checkpoint_are_json_and_enough_to_use_its_weights() -> None:
    data = retinue.data.open("digits", train_images=20, test_images=20)
    told = json.loads(json.dumps(facts(tiny("ours", in_chans=1, input_size=8), data, 7, {"top1": 0.5})))
    assert told["classes"] == [str(i) for i in range(10)]
    assert (told["step"], told["metrics"]) == (7, {"top1": 0.5})
    net = retinue.create_model(told["model"]["name"], **told["model"]["arguments"])
    assert net.num_classes == 10
    assert retinue.data.Preprocessing.from_dict(told["preprocessing"]).to_dict() == data.preprocessing.to_dict()


def test_the_machine_is_described_without_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinue.engine.run.PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr("sys.argv", ["/usr/bin/retinue", "train", "--data", "x"])
    told = environment()
    assert list(told["packages"]) == ["torch"]
    assert told["command"] == "retinue train --data x"
    assert told["threads"] == 1
