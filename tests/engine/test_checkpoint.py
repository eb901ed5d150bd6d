"""Checkpoints: what is written is read back, what is damaged is named, and what existed is never lost."""

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinue.engine import checkpoint
from retinue.engine.checkpoint import Checkpoint, keep_newest, newest_valid, read, read_plain, recover, save, write_whole
from retinue.errors import CheckpointError

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16)}
FACTS = {"model": {"name": "mlp", "arguments": {"widths": [3]}}, "classes": ["Katze", "猫"], "step": 7, "loss": 0.1, "none": None}
TRAINING = {"step": 7, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "groups": [{"lr": 0.1}]}, "name": "sgd", "ema": None}
FORK = multiprocessing.get_context("fork")  # a child that starts at once, to be killed
FILES = ("model.json", "model.safetensors", "training.pt")


def write(folder: Path, value: float = 0.0) -> Path:
    save(folder, {**TENSORS, "value": torch.tensor(value)}, FACTS, TRAINING)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def equal(found: Checkpoint, tensors: dict[str, Tensor]) -> bool:
    return found.tensors.keys() == tensors.keys() and all(
        torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path / "one", TENSORS, FACTS, TRAINING)
    found = read(tmp_path / "one")
    assert equal(found, TENSORS)
    assert {name: found.facts[name] for name in FACTS} == FACTS
    assert found.facts["format"] == 1
    assert found.training is not None
    assert found.training["optimizer"]["state"][0]["momentum"].tolist() == [1, 1]
    assert {**found.training, "optimizer": None} == {**TRAINING, "optimizer": None}
    assert {path.name for path in (tmp_path / "one").iterdir()} == set(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_model_alone_has_no_training_and_training_can_be_left_unread(tmp_path: Path) -> None:
    save(tmp_path / "model", TENSORS, FACTS)
    assert read(tmp_path / "model").training is None
    assert not (tmp_path / "model/training.pt").exists()
    assert read(write(tmp_path / "both"), training=False).training is None


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = contents(write(tmp_path / "a")), contents(write(tmp_path / "b"))
    assert first == second
    shuffled = dict(reversed(list(FACTS.items())))
    save(tmp_path / "c", {**TENSORS, "value": torch.tensor(0.0)}, shuffled, TRAINING)
    assert contents(tmp_path / "c") == first


@given(
    st.dictionaries(
        st.text(max_size=5) | st.integers(0, 20),  # as in an optimiser's state: keys that are numbers come back as strings
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.lists(st.integers(), max_size=3),
        max_size=12,
    )
)
def test_any_facts_come_back_as_json_has_them(facts: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "one", {}, {"told": facts})
        assert read(Path(folder) / "one").facts["told"] == json.loads(json.dumps(facts))


def test_tensors_that_share_memory_are_stored_each_on_its_own(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    shared = {"a": base.view(3, 4), "tied": base.view(3, 4), "row": base[4:8], "turned": base.view(3, 4).t(), "empty": torch.empty(0, 3)}
    save(tmp_path / "one", {**shared, "void": torch.empty(0)}, {})
    assert equal(read(tmp_path / "one"), {**shared, "void": torch.empty(0)})


def test_tied_weights_of_a_network_come_back(tmp_path: Path) -> None:
    def tied() -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        net[1].weight = net[0].weight
        return net

    net, other = tied(), tied()
    save(tmp_path / "one", net.state_dict(), {})
    other.load_state_dict(read(tmp_path / "one").tensors)
    assert torch.equal(other[1].weight, net[0].weight)


def test_saving_again_replaces_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "best")
    save(tmp_path / "best", {"value": torch.tensor(2.0)}, {"step": 8})
    found = read(tmp_path / "best")
    assert found.tensors["value"] == 2
    assert found.training is None
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


# --- damage -----------------------------------------------------------------------------------------------------------------------


def flip(content: bytes, place: float, bit: int) -> bytes:
    at = min(int(place * len(content)), len(content) - 1)
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def cut(content: bytes, place: float, bit: int) -> bytes:
    return content[: min(int(place * len(content)), len(content) - 1)]


def drop(content: bytes, place: float, bit: int) -> bytes:
    at = min(int(place * len(content)), len(content) - 1)
    return content[:at] + content[at + 1 :]


def swap(content: bytes, place: float, bit: int) -> bytes:
    at = min(int(place * len(content)), len(content) - 2)
    return content[:at] + content[at : at + 2][::-1] + content[at + 2 :]


def insert(content: bytes, place: float, bit: int) -> bytes:
    at = int(place * len(content))
    return content[:at] + bytes([bit]) + content[at:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("two")
    write(parent / "step-000000001", 1)
    write(parent / "step-000000002", 2)
    return parent


@settings(max_examples=150)
@given(st.sampled_from(FILES), st.sampled_from([flip, cut, drop, swap, insert]), st.floats(0, 1), st.integers(0, 7))
def test_any_altered_byte_is_noticed_and_named_and_the_checkpoint_before_is_used(
    two: Path, name: str, damage: Callable[[bytes, float, int], bytes], place: float, bit: int
) -> None:
    path = two / "step-000000002" / name
    whole = path.read_bytes()
    damaged = damage(whole, place, bit)
    path.write_bytes(damaged)
    try:
        if damaged == whole:  # two equal bytes were swapped
            assert newest_valid(two, "step-")[1] == []
            return
        with pytest.raises(CheckpointError, match=rf"step-000000002/{name} was altered after it was written"):
            read(path.parent, training=False)
        found, refused = newest_valid(two, "step-")
        assert found is not None
        assert (found.folder.name, found.tensors["value"].item(), len(refused)) == ("step-000000001", 1, 1)
        assert str(path) in refused[0]
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_every_single_byte_matters(tmp_path: Path, name: str) -> None:
    save(tmp_path / "one", {"w": torch.ones(2)}, {}, {"step": 1})
    path = tmp_path / "one" / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path / "one", training=False)
    path.write_bytes(whole)
    read(tmp_path / "one")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(two: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(two, tmp_path / "copy")
    (tmp_path / "copy/step-000000002" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"step-000000002/{name} is missing or unreadable: No such file or directory\."):
        read(tmp_path / "copy/step-000000002")
    found, refused = newest_valid(tmp_path / "copy", "step-")
    assert found is not None
    assert found.folder.name == "step-000000001"
    assert name in refused[0]


def test_files_of_two_checkpoints_cannot_be_mixed(two: Path, tmp_path: Path) -> None:
    for name in FILES[:2]:  # the training states of the two are equal
        shutil.copytree(two, tmp_path / name)
        shutil.copy(two / "step-000000001" / name, tmp_path / name / "step-000000002" / name)
        with pytest.raises(CheckpointError, match=r"model\.safetensors was altered after it was written: its SHA-256 is not the one in"):
            read(tmp_path / name / "step-000000002")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'"seal"', b'{"seal": "x"}', b"\xff\xfe", b"[" * 100_000, b'{"seal": 1, "seal": 2}']
)
def test_a_model_json_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path / "one") / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json was altered after it was written\."):
        read(tmp_path / "one")


def test_with_nothing_whole_everything_is_named(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("model.json"):
        path.write_bytes(b"")
    (tmp_path / "copy/step-file").write_text("a file")
    found, refused = newest_valid(tmp_path / "copy", "step-")
    assert found is None
    assert ["step-file" in refused[0], "000002" in refused[1], "000001" in refused[2], len(refused)] == [True, True, True, 3]
    assert newest_valid(tmp_path / "nowhere", "step-") == (None, [])


# --- code in the place of numbers -------------------------------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("pack", ["torch", "pickle", "tensor"])
def test_a_pickle_with_a_payload_is_refused_and_not_run_even_with_the_right_hash(tmp_path: Path, pack: str) -> None:
    mark = tmp_path / "it-ran"
    folder = write(tmp_path / "one")
    path = folder / "training.pt"
    if pack == "pickle":
        path.write_bytes(pickle.dumps({"step": Payload(mark)}))
    else:
        torch.save({"step": Payload(mark), "w": torch.ones(1)} if pack == "torch" else Payload(mark), path)
    body = json.loads((folder / "model.json").read_text())
    body["sha256"]["training.pt"] = checkpoint._sha256(path.read_bytes())
    body.pop("seal")
    (folder / "model.json").write_bytes(checkpoint._sealed(body))
    with pytest.raises(
        CheckpointError, match=r"training\.pt holds more than tensors and plain values and was not opened: it could run code\."
    ):
        read(folder)
    assert not mark.exists()
    assert equal(read(folder, training=False), {**TENSORS, "value": torch.tensor(0.0)}), "the weights carry no code"
    assert newest_valid(tmp_path, "one")[0] is None
    torch.load(path, weights_only=False) if pack != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the payload is a real one"


@given(st.binary(max_size=200))
def test_bytes_that_are_no_training_state_are_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"training\.pt (is not a readable training state|holds more than tensors)"):
            read_plain(path)


@settings(max_examples=100)
@given(st.sampled_from([flip, cut, drop, swap]), st.floats(0, 1), st.integers(0, 7))
def test_a_torn_training_state_without_a_hash_is_refused_or_read(
    damage: Callable[[bytes, float, int], bytes], place: float, bit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.pt"
        torch.save(TRAINING, path)
        path.write_bytes(damage(path.read_bytes(), place, bit))
        with contextlib.suppress(CheckpointError):  # and no other kind of error
            read_plain(path)


def test_a_state_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt is not a readable training state: .*No such file"):
        read_plain(tmp_path / "nowhere.pt")


# --- writing that fails -----------------------------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at(monkeypatch: pytest.MonkeyPatch, where: str, count: int) -> None:
    """Raise "No space left on device" at the `count`-th call of one of the things that write."""
    owner, name = {
        "tensors": (checkpoint.safetensors.torch, "save_file"),
        "training": (checkpoint.torch, "save"),
        "facts": (Path, "write_bytes"),
        "flush": (os, "fsync"),
        "rename": (Path, "rename"),
        "folder": (Path, "mkdir"),
    }[where]
    real, calls = getattr(owner, name), []

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            if where in ("tensors", "training"):
                real(*args, **options)  # part of the file is there
            raise FULL
        return real(*args, **options)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("where", ["folder", "tensors", "training", "facts", "flush", "flush 2", "flush 4", "rename", "rename 2"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_full_disk_is_said_and_nothing_that_existed_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, existed: bool
) -> None:
    write(tmp_path / "step-1", 1)
    if existed:
        write(tmp_path / "best", 1)
    before = contents(tmp_path)
    kind, _, count = where.partition(" ")
    with monkeypatch.context() as patch:
        fail_at(patch, kind, int(count or 1))
        if where == "rename 2" and not existed:
            write(tmp_path / "best", 2)  # a new checkpoint needs one renaming alone
            return
        with pytest.raises(CheckpointError, match=r"best could not be written: .*No space left.*What was saved before is untouched\."):
            write(tmp_path / "best", 2)
    assert contents(tmp_path) == before
    assert write(tmp_path / "best", 3)
    assert read(tmp_path / "best").tensors["value"] == 3


def save_on_a_small_disk(parent: Path, tensors: int, training: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))  # writes beyond fail, as on a full disk
    try:
        save(parent / "best", {"value": torch.ones(tensors)}, {}, {"state": torch.ones(training)})
    except CheckpointError as error:
        (parent / "said").write_text(str(error))


@pytest.mark.parametrize("sizes", [(25_600, 1), (1, 25_600)], ids=["tensors", "training"])
def test_a_disk_that_really_refuses_more_bytes_is_said(tmp_path: Path, sizes: tuple[int, int]) -> None:
    write(tmp_path / "best", 1)
    child = FORK.Process(target=save_on_a_small_disk, args=(tmp_path, *sizes))
    child.start()
    child.join()
    said = (tmp_path / "said").read_text()
    assert "best could not be written: " in said
    assert said.endswith("What was saved before is untouched.")
    assert read(tmp_path / "best").tensors["value"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "said"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/best could not be written: .*Not a directory"):
        write(tmp_path / "file/best")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_is_replaced_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_whole(tmp_path / "deep/config.json", b"old")
    for where in ("facts", "flush", "replace"):
        with monkeypatch.context() as patch:
            if where == "replace":
                patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(FULL))
            else:
                fail_at(patch, where, 1)
            with pytest.raises(
                CheckpointError, match=r"config\.json could not be written: No space left on device\. What was saved before is"
            ):
                write_whole(tmp_path / "deep/config.json", b"new")
        assert contents(tmp_path) == {"deep/config.json": b"old"}
    write_whole(tmp_path / "deep/config.json", b"new")
    assert contents(tmp_path) == {"deep/config.json": b"new"}


# --- writers that are killed ------------------------------------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        write(tmp_path / f"step-{step:09d}")
    (tmp_path / ".writing-step-12").mkdir()
    keep_newest(tmp_path, "step-", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000011"]


def test_what_a_killed_writer_had_moved_aside_is_put_back(tmp_path: Path) -> None:
    write(tmp_path / "best", 1).rename(tmp_path / ".replaced-best")  # killed between the two renamings
    write(tmp_path / "other", 2).rename(tmp_path / ".writing-best")
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert read(tmp_path / "best").tensors["value"] == 1
    shutil.copytree(tmp_path / "best", tmp_path / ".replaced-best")  # killed before the old one was deleted
    write(tmp_path / "best", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert read(tmp_path / "best").tensors["value"] == 3


def test_two_writers_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    (tmp_path / ".writing-other").mkdir()
    write(tmp_path / "one")
    assert (tmp_path / ".writing-other").exists()


def write_on_and_on(parent: Path, step: int, tell: Any) -> None:
    while True:
        tensors = {"value": torch.full((2000,), float(step))}
        save(parent / "best", tensors, {"step": step})
        save(parent / f"step-{step:09d}", tensors, {"step": step}, {"step": step})
        keep_newest(parent, "step-", 2)
        tell.send(step)
        step += 1


def test_kill_9_at_any_moment_leaves_the_last_finished_checkpoint(tmp_path: Path) -> None:
    draw, first = random.Random(0), 1
    for _ in range(30):
        told, tell = FORK.Pipe(duplex=False)
        writer = FORK.Process(target=write_on_and_on, args=(tmp_path, first, tell))
        writer.start()
        finished = told.recv()
        time.sleep(draw.random() * 0.03)
        writer.kill()
        writer.join()
        tell.close()
        while told.poll():
            try:
                finished = told.recv()
            except EOFError:
                break
        found, refused = newest_valid(tmp_path, "step-")
        assert refused == [], "a checkpoint is whole or not there"
        assert found is not None
        step = found.facts["step"]
        assert finished <= step <= finished + 1
        assert found.training == {"step": step}
        assert found.tensors["value"].tolist() == [step] * 2000
        recover(tmp_path)
        assert finished <= read(tmp_path / "best").facts["step"] <= finished + 1
        first = step + 1
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "best", "nothing is left over"
