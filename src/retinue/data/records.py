"""Where images come from: a folder, a parquet or npz file, a named set. Each becomes the same list of records."""

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from retinue.errors import DataError

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2"])
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
IMAGE_COLUMNS = ("image", "images", "img", "jpg", "png", "bytes", "picture", "x", "data")
LABEL_COLUMNS = ("label", "labels", "class", "target", "targets", "y", "fine_label", "category")
NAME_COLUMNS = ("name", "path", "file_name", "filename")
UNLABELLED = "unlabelled"


@dataclass
class Records:
    """All images of a source, not yet decoded.

    Attributes:
        items: paths, encoded bytes, or one array of all images.
        labels: class numbers.
        classes: their names.
        split: "train", "val" or "test" of each; None if the source has no splits.
        names: what to call each in messages.
    """

    items: Sequence[Any] | NDArray[Any]
    labels: NDArray[np.int64]
    classes: list[str]
    split: NDArray[Any] | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)


def from_path(path: Path, image_column: str | None = None, label_column: str | None = None) -> Records:
    """Read the records of a folder, a parquet file (or a folder of them) or an npz file.

    Raises:
        DataError: if there is nothing to read, or what is there cannot be understood.
    """
    if path.is_dir():
        tables = sorted(path.rglob("*.parquet"))
        return from_parquet(tables, image_column, label_column) if tables else from_folder(path)
    if path.suffix == ".parquet":
        return from_parquet([path], image_column, label_column)
    if path.suffix == ".npz":
        return from_npz(path, image_column, label_column)
    raise DataError(f"data: {path} is neither a folder, a .parquet nor a .npz file. Give one of these.")


def from_folder(folder: Path) -> Records:
    """Read `folder/CLASS/**/image`, or `folder/{train,val,test}/CLASS/**/image`; images without class folders are unlabelled."""
    children = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    parts = {child: SPLITS[child.name.lower()] for child in children if child.name.lower() in SPLITS}
    if parts and len(parts) < len(children):
        odd = [child.name for child in children if child not in parts]
        raise DataError(
            f"data: {folder} mixes splits ({', '.join(c.name for c in parts)}) with other folders ({', '.join(odd[:5])}). "
            "Move the classes into the splits, or the splits elsewhere."
        )
    paths: list[Path] = []
    words: list[str] = []
    split: list[str] = []
    for root, part in parts.items() or {folder: ""}.items():
        for path in _images(root):
            inside = path.relative_to(root).parts
            paths.append(path)
            words.append(inside[0] if len(inside) > 1 else UNLABELLED)
            split.append(part)
    if not paths:
        raise DataError(
            f"data: {folder} holds no images ({', '.join(sorted(SUFFIXES))}). Give a folder with a folder of images for each class."
        )
    if UNLABELLED in words and len(set(words)) > 1:
        loose = [str(path) for path, word in zip(paths, words) if word == UNLABELLED]
        raise DataError(f"data: {len(loose)} images lie beside the class folders, such as {loose[0]}. Move them into one.")
    classes = sorted(set(words))
    number = {word: i for i, word in enumerate(classes)}
    labels = np.array([number[word] for word in words], dtype=np.int64)
    return Records(paths, labels, classes, np.array(split) if parts else None, [str(path.relative_to(folder)) for path in paths])


def _images(root: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
    return found


def from_parquet(paths: list[Path], image_column: str | None, label_column: str | None) -> Records:
    """Read a column of encoded images (bytes, or Hugging Face's struct of bytes), a label (number or text), and a split if there is one."""
    tables, split = [], []
    for path in paths:
        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"data: {path} is not a readable parquet file: {error}.") from error
        tables.append(table)
        of_file = next((SPLITS[word] for word in (path.parent.name, path.stem.split("-")[0]) if word in SPLITS), "")
        split += [of_file] * len(table)
    try:
        table = pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise DataError(f"data: the parquet files of {paths[0].parent} have different columns: {error}.") from error
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    image = _column(where, table.column_names, image_column, IMAGE_COLUMNS, "image")
    label = _column(where, table.column_names, label_column, LABEL_COLUMNS, "label", needed=False)
    column = table[image]
    if pyarrow.types.is_struct(column.type):
        column = pyarrow.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
        raise DataError(f'data: the column "{image}" of {where} holds {column.type}, not encoded images. Name another by image_column=.')
    items = [value if value is not None else b"" for value in column.to_pylist()]
    name = next((c for c in NAME_COLUMNS if c in table.column_names), None)
    names = [str(value) for value in table[name].to_pylist()] if name else [f"row {i}" for i in range(len(table))]
    values = table[label].to_pylist() if label else [UNLABELLED] * len(table)
    labels, classes = _numbered(where, values, _class_names(table.schema.metadata or {}, label))
    if "split" in table.column_names:
        split = [SPLITS.get(str(value).lower(), "") for value in table["split"].to_pylist()]
    return Records(items, labels, classes, _checked_split(where, split), names)


def from_npz(path: Path, image_column: str | None, label_column: str | None) -> Records:
    """Read arrays: images and labels, or train_images, train_labels, test_images, ... (x_train, y_train, ... as well)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"data: {path} is not a readable npz file of plain arrays: {error}.") from error
    found: dict[str, tuple[str, str | None]] = {}
    for part in ("train", "val", "test"):
        image = next((n for c in IMAGE_COLUMNS for n in (f"{part}_{c}", f"{c}_{part}") if n in arrays), None)
        if image and not image_column:
            found[part] = image, next((n for c in LABEL_COLUMNS for n in (f"{part}_{c}", f"{c}_{part}") if n in arrays), None)
    if not found:
        image = _column(str(path), list(arrays), image_column, IMAGE_COLUMNS, "image")
        found[""] = image, _column(str(path), list(arrays), label_column, LABEL_COLUMNS, "label", needed=False)
    images, split = [], []
    values: list[Any] = []
    for part, (image, label) in found.items():
        many = len(arrays[image])
        given = arrays[label].tolist() if label else [UNLABELLED] * many
        if len(given) != many:
            raise DataError(f"data: {path} has {many} images in {image} and {len(given)} labels in {label}.")
        images.append(arrays[image])
        values += given
        split += [part] * many
    if len({array.shape[1:] for array in images}) > 1:
        raise DataError(f"data: the images of {path} have different shapes: {', '.join(str(array.shape[1:]) for array in images)}.")
    names = arrays.get("class_names")
    labels, classes = _numbered(str(path), values, None if names is None else [str(name) for name in names])
    return Records(np.concatenate(images), labels, classes, _checked_split(str(path), split), [f"image {i}" for i in range(len(labels))])


def from_digits() -> Records:
    """Return scikit-learn's 1,797 digits of 8x8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16) + 0.5).astype(np.uint8)
    return Records(images, digits.target.astype(np.int64), [str(i) for i in range(10)], None, [f"digit {i}" for i in range(len(images))])


def _column(where: str, names: Sequence[str], wanted: str | None, usual: Sequence[str], kind: str, needed: bool = True) -> Any:
    if wanted is not None:
        if wanted not in names:
            raise DataError(f'data: {where} has no "{wanted}". There is {", ".join(names)}.')
        return wanted
    found = next((name for name in usual if name in names), None)
    if found is None and needed:
        raise DataError(f"data: {where} has no {kind} under a usual name; there is {', '.join(names)}. Name it by {kind}_column=.")
    return found


def _class_names(metadata: dict[bytes, bytes], label: str | None) -> list[str] | None:
    try:
        if b"class_names" in metadata:
            return [str(name) for name in json.loads(metadata[b"class_names"])]
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return list(features[label]["names"])
    except (ValueError, KeyError, TypeError):
        return None


def _numbered(where: str, values: list[Any], names: list[str] | None) -> tuple[NDArray[np.int64], list[str]]:
    """Turn labels, numbers or texts, into class numbers from 0 and their names."""
    missing = [i for i, value in enumerate(values) if value is None or value != value]
    if missing:
        raise DataError(f"data: {where} has {len(missing)} rows without a label, the first is row {missing[0]}. Label or remove them.")
    if all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values):
        least, most = min(values, default=0), max(values, default=0)
        if names is not None and least >= 0 and most < len(names):
            return np.array(values, dtype=np.int64), names
        if names is not None:
            raise DataError(f"data: {where} has labels from {least} to {most} and {len(names)} class names.")
    kinds = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    number = {value: i for i, value in enumerate(kinds)}
    return np.array([number[value] for value in values], dtype=np.int64), [str(value) for value in kinds]


def _checked_split(where: str, split: list[str]) -> NDArray[Any] | None:
    if not any(split):
        return None
    if not all(split):
        raise DataError(
            f"data: {where} says for some images to which split they belong, and for {split.count('')} not (train, val or test)."
        )
    return np.array(split)
