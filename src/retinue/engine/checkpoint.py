"""Checkpoints that are whole or not there: written beside, flushed, renamed; one altered byte is noticed and named.

A checkpoint is a folder: `model.safetensors` (the model's tensors), `training.pt` (plain tensors and numbers of the training, where
it is to go on) and `model.json` (everything that is not a tensor, and the SHA-256 of each file, itself included).
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from retinue.errors import CheckpointError

FORMAT = 1
WRITING, REPLACED = ".writing-", ".replaced-"  # what a writer puts beside the name it writes, and aside


@dataclass
class Checkpoint:
    """What a checkpoint folder holds: the model's tensors, the facts of `model.json`, and the training's state if it has one."""

    folder: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    training: dict[str, Any] | None


def save(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint so that at any moment either all of `folder` is there or nothing.

    Args:
        folder: where it shall stand; what stands there already is replaced at the end.
        tensors: the model's tensors by name.
        facts: JSON values.
        training: nested dicts and lists of tensors, numbers, strings and None.

    Raises:
        CheckpointError: if it cannot be written; the half-written copy is removed and nothing that existed is touched.
    """
    beside, old = folder.with_name(WRITING + folder.name), folder.with_name(REPLACED + folder.name)
    try:
        _tidy(folder)
        beside.mkdir(parents=True)
        safetensors.torch.save_file(_separate(tensors), beside / "model.safetensors")
        if training is not None:
            torch.save(dict(training), beside / "training.pt")
        files = sorted(path.name for path in beside.iterdir())
        body = {**facts, "format": FORMAT, "sha256": {name: _sha256((beside / name).read_bytes()) for name in files}}
        (beside / "model.json").write_bytes(_sealed(body))
        for path in [*beside.iterdir(), beside]:
            _flush(path)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        _flush(folder.parent)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch and safetensors wrap a full disk in their own errors
        _tidy(folder)
        raise CheckpointError(f"The checkpoint {folder} could not be written: {error}. What was saved before is untouched.") from error


def read(folder: Path, training: bool = True) -> Checkpoint:
    """Read a checkpoint after checking every byte of it.

    Args:
        folder: the checkpoint.
        training: whether to read `training.pt` too, if there is one (it is checked in any case).

    Raises:
        CheckpointError: if a file is missing, was altered, or holds anything but tensors and plain values; the file is named.
    """
    facts = _unsealed(folder / "model.json")
    for name, expected in facts["sha256"].items():
        try:
            found = _sha256((folder / name).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{folder / name} is missing or unreadable: {error.strerror}.") from error
        if found != expected:
            raise CheckpointError(f"{folder / name} was altered after it was written: its SHA-256 is not the one in model.json.")
    state = None
    if training and "training.pt" in facts["sha256"]:
        state = read_plain(folder / "training.pt")
    return Checkpoint(folder, safetensors.torch.load_file(folder / "model.safetensors"), facts, state)


def read_plain(path: Path) -> dict[str, Any]:
    """Read tensors and plain values written by `torch.save`; code inside is refused, not run.

    Raises:
        CheckpointError: if the file holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and plain values and was not opened: it could run code.") from error
    except Exception as error:  # bytes that are no pickle end in errors of any kind
        raise CheckpointError(f"{path} is not a readable training state: {error}.") from error


def newest_valid(parent: Path, prefix: str, training: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest whole checkpoint `prefix`* in a folder, and say of each newer one what is wrong with it."""
    refused: list[str] = []
    for folder in sorted(parent.glob(f"{prefix}*"), reverse=True):
        try:
            return read(folder, training), refused
        except CheckpointError as error:
            refused.append(str(error))
    return None, refused


def keep_newest(parent: Path, prefix: str, count: int) -> None:
    """Delete all but the newest `count` checkpoints `prefix`*, and what a killed writer left behind."""
    recover(parent)
    for folder in sorted(parent.glob(f"{prefix}*"), reverse=True)[count:]:
        shutil.rmtree(folder, ignore_errors=True)


def recover(parent: Path) -> None:
    """Tidy a folder of checkpoints after a writer was killed: what it had moved aside and not replaced yet is put back."""
    for prefix in (WRITING, REPLACED):
        for left in parent.glob(f"{prefix}*"):
            _tidy(left.with_name(left.name.removeprefix(prefix)))


def _tidy(folder: Path) -> None:
    beside, old = folder.with_name(WRITING + folder.name), folder.with_name(REPLACED + folder.name)
    shutil.rmtree(beside, ignore_errors=True)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment the old or the new content is there, never a part."""
    beside = path.with_name(WRITING + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        _flush(beside)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # its folder may be a file
            beside.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {error.strerror}. What was saved before is untouched.") from error


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory (tied weights): safetensors stores each name on its own."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return separate


def _sealed(body: dict[str, Any]) -> bytes:
    """Serialise in one way only, with a hash of itself, so that no byte can change unnoticed."""
    body = json.loads(json.dumps(body))  # keys that are numbers become strings, which sort differently
    seal = _sha256(json.dumps(body, sort_keys=True).encode())
    return (json.dumps({**body, "seal": seal}, sort_keys=True, indent=1) + "\n").encode()


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} is missing or unreadable: {error.strerror}.") from error
    try:
        body = json.loads(content)
        body.pop("seal")
        whole = _sealed(body) == content
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole or "sha256" not in body:
        raise CheckpointError(f"{path} was altered after it was written.")
    return body


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
