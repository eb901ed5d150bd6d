"""Pictures of why: a heat map over each of some image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from retinue.engine import read_images
from retinue.engine.prediction import probabilities
from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.explain.grad_cam import Variant, heat_maps
from retinue.plots.overlays import explained

METHODS = get_args(Variant)


def explain_files(
    model: nn.Module,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    target: str | int | None = None,
    batch_size: int = 16,
    on_bad: str = "raise",
) -> list[Path]:
    """Write one picture for each image file, the image beside its heat map, and one of all of them (of the first 64).

    Args:
        model: from `retinue.load`.
        paths: image files.
        out: a folder, made if need be.
        method: a variant of `GradCAM`.
        layer: the layer to look at; None finds the last one with a map.
        target: the class to explain, by name or number; None takes the predicted one.
        batch_size: images at a time.
        on_bad: "raise" lists all files that cannot be read, "skip" leaves them out.

    Returns:
        The pictures written, the one of all of them last.

    Raises:
        ArgumentError: if there is no such method or class, or the model is not one of `retinue.load`.
        DataError: if files cannot be read.
        CheckpointError: if the pictures cannot be written.
    """
    if method not in METHODS:
        raise unknown("explain", "method", method, METHODS)
    of_run: Any = model
    if not hasattr(of_run, "preprocessing") or not hasattr(of_run, "classes"):
        raise ArgumentError("explain: the model must know its classes and preprocessing. Take it from retinue.load(run_dir).")
    number = None if target is None else class_number(str(target), of_run.classes)
    images, good = read_images(paths, of_run.preprocessing, on_bad)
    folder = Path(out)
    written: list[Path] = []
    maps, captions = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            shares = probabilities(model, part, batch_size)
            told = shares.argmax(-1) if number is None else torch.full((len(part),), number)
            device = next(model.parameters()).device
            heat = heat_maps(model, of_run.preprocessing.normalize(part.to(device)), told.tolist(), layer=layer, variant=method).cpu()  # type: ignore[arg-type]
            maps.append(heat)
            for i, path in enumerate(good[start : start + batch_size]):
                caption = f"{path.name}\n{of_run.classes[told[i]]}: {100 * shares[i, told[i]]:.1f} %"
                captions.append(caption)
                place = folder / f"{start + i:04}-{path.stem}.png"
                save(explained(part[i : i + 1], heat[i : i + 1], [caption]), place)
                written.append(place)
        place = folder / "all.png"
        most = 64
        save(explained(images[:most], torch.cat(maps)[:most], captions[:most]), place)
    except OSError as error:
        raise CheckpointError(f"explain: {folder} cannot be written: {error.strerror}. Choose another folder by --out.") from error
    return [*written, place]


def class_number(word: str, classes: Sequence[str]) -> int:
    """Find a class by its name, or by its number where no class has such a name.

    Raises:
        ArgumentError: if there is none; near misses are named.

    >>> class_number("dog", ["cat", "dog"]), class_number("0", ["cat", "dog"])
    (1, 0)
    """
    if word in classes:
        return list(classes).index(word)
    if word.isdigit() and int(word) < len(classes):
        return int(word)
    raise unknown("explain", "class", word, classes)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=110)
