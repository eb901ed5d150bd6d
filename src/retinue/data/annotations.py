"""Real and synthetic images with where they come from: the annotation files of ImagiNet (arXiv 2407.20020), read, written and opened.

A line is `relative_path,origin,content,model,specific`; the last four are the numbers of names in `COLUMNS`. What stands behind the numbers
is deduced from the folders of the published set; which of StyleGAN-XL and StyleGAN3 is 1 and which 2, by their folders' names alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from retinue.data.dataset import Data, Split
from retinue.data.preprocessing import decode
from retinue.errors import ArgumentError, DataError, unknown

ORIGINS = ("real", "synthetic")
CONTENTS = ("photos", "paintings", "faces", "uncategorised")
FAMILIES = ("GAN", "Stable Diffusion", "Midjourney", "DALL-E 3", "real")
SPECIFIC = ("ProGAN", "StyleGAN-XL", "StyleGAN3", "SD 2.1", "SDXL 1.0", "Animagine XL", "Midjourney", "DALL-E 3", "real")
COLUMNS = {"origin": ORIGINS, "content": CONTENTS, "model": FAMILIES, "specific": SPECIFIC}
FAMILY_OF = (0, 0, 0, 1, 1, 1, 2, 3, 4)  # the family of each specific model
REAL = FAMILIES.index("real")
MOST_LISTED = 200

Track = Literal["origin", "model", "specific_model", "content_type", "family", "all"]
TRACKS: dict[str, tuple[str, bool]] = {  # the column that is the label, and whether real images are left out
    "origin": ("origin", False),
    "model": ("model", True),
    "specific_model": ("specific", True),
    "content_type": ("content", True),
    "family": ("model", False),
}


class Annotation(NamedTuple):
    """One image: its path below the root, and its four numbers."""

    path: str
    origin: int
    content: int
    model: int
    specific: int


@dataclass
class Annotations:
    """The lines of one file or of several.

    Attributes:
        paths: below the root.
        codes: the numbers of `COLUMNS`, one column each.
    """

    paths: list[str]
    codes: Int[Tensor, "images 4"]

    def __len__(self) -> int:
        return len(self.paths)

    def column(self, name: str) -> Int[Tensor, " images"]:
        """Return "origin", "content", "model" or "specific" of every image."""
        if name not in COLUMNS:
            raise unknown("annotations", "column", name, COLUMNS)
        return self.codes[:, list(COLUMNS).index(name)]

    def rows(self) -> list[Annotation]:
        """List all images."""
        return [Annotation(path, *codes) for path, codes in zip(self.paths, self.codes.tolist())]

    def subset(self, indices: Int[Tensor, " chosen"] | Sequence[int]) -> "Annotations":
        """Return some of the images, in the order given."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Annotations([self.paths[i] for i in chosen.tolist()], self.codes[chosen])

    def track(self, name: Track) -> tuple["Annotations", Int[Tensor, "images ..."], list[str]]:
        """Return the images of a track, their labels and the names of the classes.

        Args:
            name: "origin" (all images), "model", "specific_model", "content_type" (the synthetic ones alone), "family" (all, with "real"
                as a family), or "all": all images with their four numbers, which have no names of classes.

        Raises:
            ArgumentError: if there is no such track.
        """
        if name == "all":
            return self, self.codes, []
        if name not in TRACKS:
            raise unknown("annotations", "track", name, [*TRACKS, "all"])
        column, synthetic_only = TRACKS[name]
        chosen = self.subset((self.column("origin") == 1).nonzero()[:, 0]) if synthetic_only else self
        names = [one for one in COLUMNS[column] if not (synthetic_only and one == "real")]
        return chosen, chosen.column(column), names


def read_annotations(path: str | Path, root: str | Path | None = None) -> Annotations:
    """Read an annotation file; lines that cannot be are listed all at once. Paths may hold commas.

    Args:
        path: the file.
        root: the folder of the images; given, each image must be there. None: files are not looked for.

    Raises:
        DataError: if there is no such file, it has no line, or lines cannot be used.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"annotations: {path} cannot be read: {error}. It is a text file with a line `path,origin,content,model,specific` an image."
        ) from error
    rows: list[Annotation] = []
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line)
        if isinstance(row, Annotation) and root is not None and not (Path(root) / row.path).is_file():
            row = f"there is no file {Path(root) / row.path}"
        if isinstance(row, str):
            bad.append((number, row))
        else:
            rows.append(row)
    if bad:
        listed = "\n".join(f"  line {number}: {reason}" for number, reason in bad[:MOST_LISTED])
        more = f"\n  and {len(bad) - MOST_LISTED} more" if len(bad) > MOST_LISTED else ""
        raise DataError(
            f"annotations: {len(bad)} of {len(rows) + len(bad)} lines of {path} cannot be used. Mend or remove them:\n{listed}{more}"
        )
    if not rows:
        raise DataError(f"annotations: {path} has no line. Write one for each image: path,origin,content,model,specific.")
    return annotations(rows)


def annotations(rows: Iterable[Annotation]) -> Annotations:
    """Put rows into one table.

    Raises:
        DataError: if the numbers of a row cannot be.
    """
    rows = list(rows)
    for place, row in enumerate(rows):
        reason = _contradiction(row)
        if reason:
            raise DataError(f"annotations: row {place} ({row.path}) cannot be: {reason}. Correct it.")
    return Annotations([row.path for row in rows], torch.tensor([row[1:] for row in rows], dtype=torch.int64).reshape(-1, 4))


def write_annotations(rows: Annotations | Iterable[Annotation], path: str | Path) -> None:
    """Write an annotation file.

    Raises:
        DataError: if a row cannot be, or a path has a line break.
    """
    table = annotations(rows.rows() if isinstance(rows, Annotations) else rows)
    broken = [one for one in table.paths if len(one.splitlines()) != 1 or one != one.strip()]
    if broken:
        raise DataError(f"annotations: the path {broken[0]!r} cannot stand in a line of text. Rename the file.")
    Path(path).write_text("".join(f"{','.join(map(str, row))}\n" for row in table.rows()), encoding="utf-8")


class SyntheticImageDataset(torch.utils.data.Dataset[tuple[Any, Any]]):
    """The images of a track with their labels, decoded at their own size when they are asked for; for loops of your own.

    Args:
        root: the folder of the images.
        annotations: their file, or what was read from it.
        track: as in `Annotations.track`; for "all" a label is a tensor of four numbers.
        transform: is given the image as bytes, and returns what the dataset shall; None: the bytes.

    Raises:
        DataError: if lines cannot be used, or images are missing; all are listed.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | Annotations,
        track: Track = "origin",
        transform: Callable[[UInt8[Tensor, "channels height width"]], Any] | None = None,
    ) -> None:
        self.root, self.transform = Path(root), transform
        table = annotations if isinstance(annotations, Annotations) else read_annotations(annotations, root)
        self.table, self.labels, self.classes = table.track(track)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = decode(self.root / self.table.paths[index])
        label = self.labels[index]
        return image if self.transform is None else self.transform(image), label if label.ndim else int(label)


def by_origin(data: Data, real: str = "real") -> Data:
    """Relabel data whose classes are families of generators, and one of real images: 0 real, 1 synthetic.

    Args:
        data: such as `open_annotated(..., track="family")`.
        real: the name of the class of real images.

    Raises:
        ArgumentError: if there is no such class, or no other.
    """
    number = _real_class(data, real)
    return _changed(data, list(ORIGINS), lambda split: replace(split, labels=(split.labels != number).long()))


def by_family(data: Data, real: str = "real") -> Data:
    """Leave out the real images; the families that are left are numbered from 0.

    Args:
        data: as for `by_origin`.
        real: the name of the class of real images.

    Raises:
        ArgumentError: if there is no such class, or no other.
    """
    number = _real_class(data, real)

    def synthetic(split: Split) -> Split:
        kept = split.subset((split.labels != number).nonzero()[:, 0])
        return replace(kept, labels=kept.labels - (kept.labels > number).long())

    return _changed(data, [name for name in data.classes if name != real], synthetic)


def _real_class(data: Data, real: str) -> int:
    if real not in data.classes:
        raise unknown("annotations", "class of the data (`real`)", real, data.classes)
    if len(data.classes) < 2:
        raise ArgumentError(f"annotations: {data.name} has real images alone. Add synthetic ones.")
    return data.classes.index(real)


def _changed(data: Data, classes: list[str], change: Callable[[Split], Split]) -> Data:
    parts: dict[str, Any] = {name: replace(change(getattr(data, name)), classes=classes) for name in ("train", "val", "test")}
    return replace(data, **parts, classes=classes, opened_with=None)


def _row(line: str) -> Annotation | str:
    """Read a line, or say why it cannot be."""
    path, *fields = line.strip().rsplit(",", 4)  # from the right: paths may hold commas
    if len(fields) != 4 or not path:
        return f'"{line.strip()}" has {len(line.split(","))} fields, not 5 (path,origin,content,model,specific)'
    try:
        row = Annotation(path, *(int(field) for field in fields))
    except ValueError:
        return f'"{",".join(fields)}" are not four whole numbers'
    return _contradiction(row) or row


def _contradiction(row: Annotation) -> str:
    for name, value in zip(COLUMNS, row[1:]):
        if not 0 <= value < len(COLUMNS[name]):
            return f"{name} {value} is out of range: 0 to {len(COLUMNS[name]) - 1}"
    if (row.origin == 0) != (row.model == REAL):
        return f"origin {row.origin} ({ORIGINS[row.origin]}) contradicts model {row.model} ({FAMILIES[row.model]})"
    if FAMILY_OF[row.specific] != row.model:
        return f"specific {row.specific} ({SPECIFIC[row.specific]}) is not of model {row.model} ({FAMILIES[row.model]})"
    return ""
