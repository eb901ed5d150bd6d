"""Named sets: bundled ones, those below $RETINUE_DATA, those that torchvision or the Hugging Face hub can fetch, and made ones."""

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retinue.data.records import Records, from_digits, from_parquet, from_path
from retinue.errors import DataError, unknown

TORCHVISION = {  # the names that people use -> torchvision's classes
    "cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST", "svhn": "SVHN",
    "stl10": "STL10", "flowers102": "Flowers102", "oxford-pets": "OxfordIIITPet", "food101": "Food101", "dtd": "DTD", "eurosat": "EuroSAT",
    "gtsrb": "GTSRB", "imagenette": "Imagenette", "caltech101": "Caltech101",
}  # fmt: skip


def home() -> Path:
    """Return the folder of named sets: $RETINUE_DATA, or ~/.cache/retinue."""
    return Path(os.environ.get("RETINUE_DATA") or Path.home() / ".cache" / "retinue")


def maker(source: str) -> Callable[..., Any] | None:
    """Find the function that makes data, where a source is a function's dotted name such as "retinue.pretrain.fractals"; None otherwise."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", source) or Path(source).exists():
        return None
    package, _, name = source.rpartition(".")
    try:
        found = getattr(importlib.import_module(package), name, None)
    except ImportError:
        return None
    return found if callable(found) else None


def find(source: str, image_column: str | None = None, label_column: str | None = None) -> Records:
    """Find the records of a path or a name.

    Args:
        source: a path; "digits"; a name below $RETINUE_DATA; "torchvision:NAME"; "hf:OWNER/NAME".
        image_column: where the images are, in parquet and npz files; None looks for the usual names.
        label_column: where the labels are.

    Raises:
        DataError: if there is no such data and it cannot be fetched.
    """
    if source == "digits":
        return from_digits()
    if source.startswith("torchvision:"):
        return _from_torchvision(source.removeprefix("torchvision:"))
    if source.startswith("hf:"):
        return _from_hub(source.removeprefix("hf:"), image_column, label_column)
    if Path(source).exists():
        return from_path(Path(source), image_column, label_column)
    place = home() / source
    for path in (place / f"{source}.parquet", place / f"{source}.npz", place):
        if source and path.exists():
            return from_path(path, image_column, label_column)
    if source in TORCHVISION:
        return _from_torchvision(TORCHVISION[source])
    there = [entry.name for entry in home().iterdir() if entry.is_dir()] if home().is_dir() else []
    if "/" in source or "." in source:
        raise DataError(f"data: there is no file or folder {source}.")
    hint = "Give a folder of class folders, a .parquet or .npz file, torchvision:NAME or hf:OWNER/NAME."
    raise DataError(str(unknown("data", "data set", source, {"digits", *there, *TORCHVISION}, hint)))


def _from_torchvision(name: str) -> Records:
    import torchvision.datasets

    kinds = [kind for kind in torchvision.datasets.__all__ if isinstance(getattr(torchvision.datasets, kind), type)]
    if name not in kinds:
        raise DataError(str(unknown("data", "data set of torchvision", name, kinds)))
    kind: Any = getattr(torchvision.datasets, name)
    root = home() / "torchvision"
    parts: dict[str, Any] = {}
    try:
        for part, words in {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}.items():
            for options in [{"train": part == "train"}] * (part != "val") + [{"split": word} for word in words]:
                try:
                    parts.setdefault(part, kind(str(root), download=True, **options))
                except (TypeError, ValueError):
                    continue  # this set's splits have other names
        if not parts:
            parts[""] = kind(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data: torchvision could not fetch {name} into {root}: {error}.") from error
    classes = next((list(map(str, part.classes)) for part in parts.values() if hasattr(part, "classes")), None)
    items, labels, split = [], [], []
    for part, pairs in parts.items():
        for image, label in pairs:
            items.append(image.copy())
            labels.append(int(label))
            split.append(part)
    classes = classes or [str(i) for i in range(max(labels) + 1)]
    return Records(items, np.array(labels), classes, np.array(split) if any(split) else None, [f"image {i}" for i in range(len(items))])


def _from_hub(name: str, image_column: str | None, label_column: str | None) -> Records:
    import huggingface_hub

    try:  # the hub keeps a parquet form of every public image set
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision="refs/convert/parquet", allow_patterns="*.parquet", cache_dir=home() / "hub"
        )
    except Exception as error:  # the hub client has errors of many libraries
        raise DataError(f"data: hf:{name} could not be fetched: {' '.join(str(error).split())[:200]}") from error
    tables = sorted(Path(folder).rglob("*.parquet"))
    if not tables:
        raise DataError(f"data: hf:{name} has no parquet files.")
    first = tables[0].relative_to(folder).parts[0]  # the first configuration
    return from_parquet([path for path in tables if path.relative_to(folder).parts[0] == first], image_column, label_column)
