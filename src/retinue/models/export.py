"""`export`: a network as one file for other programs, with its classes and preprocessing inside, and checked before the file appears."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, CheckpointError, need, unknown
from retinue.models.fusion import fuse_checked
from retinue.models.onnx_form import onnx_model, onnx_session
from retinue.models.optimized import Optimized
from retinue.models.probe import check_equal, inference_copy, outputs, trial_images

Format = Literal["onnx", "torchscript", "safetensors"]
ENTRY = "retinue"  # the name under which torchscript and safetensors keep the facts, as JSON
ADVICE = "No file was written."


def export(
    model: nn.Module,
    path: str | Path,
    format: Format = "onnx",
    *,
    input_size: int | tuple[int, int] | list[int] | None = None,
    fold: bool = True,
) -> Path:
    """Write a network to one file.

    The file is written beside its place, read back, and compared with the network on batches of one and of three images; only then does it
    get its name. `read_facts` reads the metadata of all formats: input size, channels, mean, std, interpolation, classes, ...

    Args:
        model: any network that takes a batch of normalised images; it is not changed. Its `preprocessing` and `classes` are stored, where
            it has them; else what its `pretrained_cfg` says.
        path: the file.
        format: "onnx" (its input "images" has an open batch, and open height and width where the network permits; its output is "logits"),
            "torchscript" (for `torch.jit.load`), or "safetensors" (the weights under the network's own names, bit for bit).
        input_size: side of the images, or height and width; None: the network's own, or the first of the usual ones that passes.
        fold: write onnx and torchscript in inference form (`retinue.optimize`): smaller, and faster where the reader does not fold.

    Returns:
        The path.

    Raises:
        ArgumentError: if the format is unknown, no image passes, or the network cannot be written in this format.
        MissingExtraError: if onnx is not installed.
        CheckpointError: if the file cannot be written.
        UnequalError: if the file does not compute what the network computes.
    """
    writers = {"onnx": _write_onnx, "torchscript": _write_torchscript}
    if format not in (*writers, "safetensors"):
        raise unknown("export", "format", format, [*writers, "safetensors"])
    if isinstance(model, Optimized):
        raise ArgumentError(f'export: this network is optimized for "{model.backend}" already. Export the network that it comes from.')
    path = Path(path)
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            need(module, "export")
    reference = inference_copy(model).cpu()
    images = trial_images(reference, input_size, where="export")
    known = facts(model, images)
    if format == "safetensors":
        with _beside(path) as draft:
            _write_safetensors(model, draft, known)
        return path
    expected = outputs(reference, images)
    if len(expected) != 1:
        raise ArgumentError(
            f"export: the network must return one tensor, this one returns {len(expected)}. Wrap it in a module that picks one."
        )
    net = fuse_checked(reference, images, expected, merge=False)[0] if fold else reference
    with _beside(path) as draft:
        writers[format](net, draft, images, expected, known)
    return path


def facts(model: nn.Module, images: Float[Tensor, "batch channels height width"]) -> dict[str, Any]:
    """Collect what a reader of the file must know to feed the network and to name its answers, as JSON values.

    Args:
        model: the network.
        images: images that pass through it.
    """
    known: dict[str, Any] = {"retinue": retinue.__version__, "network": type(model).__name__}
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(cfg, Mapping):
        known.update({name: cfg[name] for name in ("mean", "std", "interpolation") if cfg.get(name) is not None})
    made = getattr(model, "retinue_config", None)
    if made is not None:
        known["model"] = made
    preprocessing = getattr(model, "preprocessing", None)
    if is_dataclass(preprocessing) and not isinstance(preprocessing, type):
        known.update({name: value for name, value in asdict(preprocessing).items() if value is not None})
    if getattr(model, "classes", None) is not None:
        known["classes"] = list(model.classes)  # type: ignore[arg-type]
    channels = images.shape[1]
    for name in ("mean", "std"):
        if len(known.get(name, ())) == 1:
            known[name] = list(known[name]) * channels
        elif len(known.get(name, ())) != channels:  # settings of other images
            known.pop(name, None)
    return json.loads(json.dumps({**known, "channels": channels, "input_size": list(images.shape[2:])}))


def read_facts(path: str | Path) -> dict[str, Any]:
    """Read what `export` has stored beside the weights.

    Args:
        path: a file that `export` wrote, with its usual suffix: .onnx, .pt or .safetensors.

    Raises:
        CheckpointError: if it is no such file.
    """
    path = Path(path)
    try:
        if path.suffix == ".onnx":
            stored = need("onnx", "export").load(str(path), load_external_data=False).metadata_props
            return {entry.key: json.loads(entry.value) for entry in stored}
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return json.loads(file.metadata()[ENTRY])
        extra = {ENTRY: ""}
        with _no_warnings():
            torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
        return json.loads(extra[ENTRY])
    except ImportError:
        raise
    except Exception as error:  # each reader has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read as a file of `export` ({reason}). Export the network again.") from error


def _write_onnx(net: nn.Module, draft: Path, images: Tensor, expected: list[Tensor], known: dict[str, Any]) -> None:
    onnx = need("onnx", "export")
    model = onnx_model(net, images)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in known.items()})
    onnx.save(model, str(draft))
    session = onnx_session(str(draft), torch.get_num_threads())
    name = session.get_inputs()[0].name
    for batch in (images, images[:1]):
        got = [torch.from_numpy(value) for value in session.run(None, {name: batch.numpy()})]
        check_equal([value[: len(batch)] for value in expected], got, "the ONNX file", ADVICE)


def _write_torchscript(net: nn.Module, draft: Path, images: Tensor, expected: list[Tensor], known: dict[str, Any]) -> None:
    with _no_warnings(), torch.no_grad():  # torch says at each use that torchscript grows old
        try:
            traced = torch.jit.trace(net, images, check_trace=False)
        except Exception as error:  # whatever a network's own code raises
            reason = " ".join(str(error).split())[:200]
            raise ArgumentError(f"export: torch.jit cannot trace the network ({reason}). Use another format.") from error
        torch.jit.save(traced, str(draft), _extra_files={ENTRY: json.dumps(known)})
        script = torch.jit.load(str(draft))
        for batch in (images, images[:1]):
            check_equal([value[: len(batch)] for value in expected], outputs(script, batch), "the torchscript file", ADVICE)


def _write_safetensors(model: nn.Module, draft: Path, known: dict[str, Any]) -> None:
    save_model(model, str(draft), metadata={ENTRY: json.dumps(known)})
    held = model.state_dict()
    for name, stored in load_file(draft).items():
        bits = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (stored, held[name])]
        if not torch.equal(*bits):
            raise CheckpointError(f"export: {name} was read back otherwise than written. {ADVICE} Check the disk.")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a path beside another; what was written there gets the other's name if nothing went wrong, and is removed otherwise."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.touch()  # says at once whether the folder can be written
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise CheckpointError(f"export: {path} could not be written: {error.strerror or error}. Choose another place.") from error
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
