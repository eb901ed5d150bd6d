"""What a trained classifier says of image files."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from retinue.data import BadImageError, Preprocessing
from retinue.data.records import SUFFIXES
from retinue.data.store import refusal
from retinue.engine.modes import evaluating
from retinue.errors import ArgumentError, DataError, unknown


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """List the image files named by paths, folders (with all below them) and patterns such as "photos/*.jpg", in order, each once.

    Raises:
        DataError: if a place does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = [Path(folder) / name for folder, _, names in os.walk(path) for name in names if Path(name).suffix.lower() in SUFFIXES]
            found += sorted(inside)
        elif path.exists():
            found.append(path)
        else:
            matched = sorted(map(Path, glob.glob(str(place), recursive=True)))
            if not matched:
                raise DataError(f"images: there is no file or folder {place}.")
            found += matched
    if not found:
        raise DataError(f"predict: no images in {', '.join(map(str, places))}.")
    return list(dict.fromkeys(found))


def read_images(
    paths: Sequence[str | Path], preprocessing: Preprocessing, on_bad: str = "raise"
) -> tuple[UInt8[Tensor, "images channels height width"], list[Path]]:
    """Decode files as a model saw its training images.

    Args:
        paths: image files.
        preprocessing: of the model.
        on_bad: "raise" lists all files that cannot be read, "skip" leaves them out.

    Returns:
        The images, and the files that they come from.

    Raises:
        DataError: if files cannot be read, or none can.
    """
    if on_bad not in ("raise", "skip"):
        raise unknown("predict", "`on_bad`", on_bad, ("raise", "skip"))
    images, good, bad = [], [], {}
    for i, path in enumerate(paths):
        try:
            images.append(preprocessing.centre(preprocessing.read(path)))
            good.append(Path(path))
        except BadImageError as error:
            bad[i] = str(error)
    if bad and (on_bad == "raise" or not good):
        raise DataError(refusal(bad, [str(path) for path in paths], len(paths)))
    return torch.stack(images), good


def probabilities(
    model: nn.Module, images: UInt8[Tensor, "images channels height width"], batch_size: int = 64
) -> Float[Tensor, "images classes"]:
    """Compute the probabilities of all classes for decoded images, on the CPU."""
    of_run: Any = model
    device = next(model.parameters()).device
    with torch.inference_mode(), evaluating(model):
        parts = [model(of_run.preprocessing.normalize(part.to(device))).float().softmax(-1).cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


def predict(
    model: nn.Module, paths: Sequence[str | Path], *, top: int = 5, batch_size: int = 64, on_bad: str = "raise"
) -> list[dict[str, Any]]:
    """Name what is on image files.

    Args:
        model: from `retinue.load`.
        paths: image files.
        top: how many classes to name.
        batch_size: images at a time.
        on_bad: "raise" lists all files that cannot be read, "skip" leaves them out.

    Returns:
        For each file {"image": path, "classes": names, "probabilities": theirs}, most probable first.

    Raises:
        ArgumentError: if `top` is not positive, or the model is not one of `retinue.load`.
        DataError: if files cannot be read.
    """
    if top < 1:
        raise ArgumentError(f"predict: `top` must be at least 1, got {top}.")
    of_run: Any = model
    if not hasattr(of_run, "preprocessing") or not hasattr(of_run, "classes"):
        raise ArgumentError("predict: the model must know its classes and preprocessing. Take it from retinue.load(run_dir).")
    answers = []
    for start in range(0, len(paths), batch_size):
        images, good = read_images(paths[start : start + batch_size], of_run.preprocessing, on_bad)
        shares, numbers = probabilities(model, images, batch_size).topk(min(top, len(of_run.classes)), dim=-1)
        for path, row, which in zip(good, shares.tolist(), numbers.tolist()):
            answers.append({"image": str(path), "classes": [of_run.classes[i] for i in which], "probabilities": row})
    return answers
