"""The two-track report: real or synthetic, per family of generators and per content; and which family (arXiv 2407.20020, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from retinue.audit.imaginet import check_both
from retinue.data.annotations import CONTENTS, FAMILIES, REAL, Annotations
from retinue.errors import DataError, ShapeError

ALL = -1  # of `pairs`: a real image that stands beside every family


class Row(NamedTuple):
    """Balanced accuracy at the threshold 0.5, area under the ROC curve, and on how many images."""

    accuracy: float
    auc: float
    images: int


@dataclass
class TwoTrackReport:
    """What `two_track_report` found.

    Attributes:
        families: of each family of generators, its images and the real ones beside them.
        mean: over the families.
        contents: of each kind of content that has real and synthetic images.
        identification: which family, of the synthetic images alone: balanced accuracy, and area under the curve of each family against the
            others, averaged over the families; None where no logits of families were given.
        images_per_second: of the detector, where it was measured.
    """

    families: dict[str, Row]
    mean: Row
    contents: dict[str, Row]
    identification: Row | None = None
    images_per_second: float | None = None

    def rows(self) -> dict[str, Row]:
        """Return all rows by name: the families, "mean of families", the kinds of content, and "which family"."""
        last = {} if self.identification is None else {"which family": self.identification}
        return {**self.families, "mean of families": self.mean, **self.contents, **last}

    def table(self) -> str:
        """Return a table in Markdown."""
        lines = [f"| {name} | {row.accuracy:.3f} | {row.auc:.3f} | {row.images} |" for name, row in self.rows().items()]
        speed = [] if self.images_per_second is None else ["", f"{self.images_per_second:.0f} images/s"]
        return "\n".join(["| | balanced accuracy | AUC | images |", "| --- | --- | --- | --- |", *lines, *speed])


def two_track_report(
    scores: Float[Tensor, " images"],
    logits: Float[Tensor, "images families"] | None,
    table: Annotations,
    *,
    pairs: Int[Tensor, " images"] | None = None,
    families: Mapping[int, str] | None = None,
    contents: Mapping[int, str] | None = None,
    images_per_second: float | None = None,
) -> TwoTrackReport:
    """Judge a detector on both tracks.

    Args:
        scores: calibrated logits log P(synthetic) / P(real) of the images; above 0 an image is called synthetic. Probabilities would tie
            where they are rounded to 0 or 1: for these give torch.logit(p).
        logits: of the families of generators, in the order of their numbers, for all images; those of real ones do not matter. None
            leaves the second track out.
        table: where each image comes from.
        pairs: the family beside which a real image stands, as in a test file for each family; -1, or None for all: beside every family.
        families: names of the families by their number; None are ImagiNet's.
        contents: names of the kinds of content by their number; None are ImagiNet's.
        images_per_second: of the detector, to be shown beside.

    Raises:
        ShapeError: if scores, logits, pairs and table do not have the same number of images, or logits has no column for a family.
        DataError: if there are real or synthetic images only, also of one family, or a score is NaN.
    """
    if scores.shape != (len(table),) or (logits is not None and (logits.ndim != 2 or len(logits) != len(table))):
        shapes = tuple(scores.shape), None if logits is None else tuple(logits.shape)
        raise ShapeError(f"two_track_report: the table has {len(table)} images, got scores of {shapes[0]} and logits of {shapes[1]}.")
    if pairs is not None and pairs.shape != scores.shape:
        raise ShapeError(f"two_track_report: `pairs` must be {len(table)} numbers, one for each image, got {tuple(pairs.shape)}.")
    if bool(scores.isnan().any()):
        raise DataError(f"two_track_report: the score of {table.paths[int(scores.isnan().nonzero()[0, 0])]} is NaN. Look at the image.")
    origin, model, content = (table.column(name) for name in ("origin", "model", "content"))
    check_both("two_track_report", origin)
    names = dict(enumerate(FAMILIES[:REAL])) if families is None else families
    beside = torch.full_like(model, ALL) if pairs is None else pairs
    synthetic = origin == 1
    per_family = {}
    for number in sorted(set(model[synthetic].tolist())):
        real = ~synthetic & ((beside == ALL) | (beside == number))
        if not bool(real.any()):
            raise DataError(f"two_track_report: no real image stands beside {_name(names, number)}. Put -1 in `pairs` of some.")
        per_family[_name(names, number)] = _binary(scores, origin, real | (synthetic & (model == number)))
    kinds = dict(enumerate(CONTENTS)) if contents is None else contents
    per_content = {}
    for number in sorted(set(content.tolist())):
        rows = content == number
        if len(set(origin[rows].tolist())) == 2:
            per_content[_name(kinds, number)] = _binary(scores, origin, rows)
    mean = Row(
        float(np.mean([row.accuracy for row in per_family.values()])), float(np.mean([row.auc for row in per_family.values()])), len(table)
    )
    second = None if logits is None else _identification(logits[synthetic], model[synthetic])
    return TwoTrackReport(per_family, mean, per_content, second, images_per_second)


def joined(files: list[Annotations]) -> tuple[Annotations, Int[Tensor, " images"]]:
    """Join the test files of single families; of each real image, the second result is the family of its file.

    Raises:
        DataError: if a file has synthetic images of several families or none, so that it is not clear beside which its real ones stand.
    """
    pairs = []
    for number, table in enumerate(files):
        found = sorted(set(table.column("model")[table.column("origin") == 1].tolist()))
        if len(found) != 1:
            raise DataError(f"joined: file {number} has synthetic images of {len(found)} families, not of 1. Give a file for each family.")
        pairs.append(torch.full((len(table),), found[0]))
    return Annotations([path for table in files for path in table.paths], torch.cat([table.codes for table in files])), torch.cat(pairs)


def _name(names: Mapping[int, str], number: int) -> str:
    return names.get(number, str(number))


def _binary(scores: Tensor, origin: Tensor, rows: Tensor) -> Row:
    truth, found = origin[rows].numpy(), scores[rows].double().numpy()
    # one more than there are finite numbers, so that infinite scores keep their place
    finite = np.nan_to_num(found, posinf=np.finfo(np.float64).max, neginf=np.finfo(np.float64).min)
    accuracy = balanced_accuracy_score(truth, (found > 0).astype(np.int64))
    return Row(float(accuracy), float(roc_auc_score(truth, finite)), int(rows.sum()))


def _identification(logits: Tensor, model: Tensor) -> Row:
    truth: NDArray[np.int64] = model.numpy()
    present = sorted(set(truth.tolist()))
    if present[-1] >= logits.shape[1]:
        raise ShapeError(f"two_track_report: there is a family {present[-1]}, and `logits` has {logits.shape[1]} columns. Give one each.")
    accuracy = balanced_accuracy_score(truth, logits.argmax(1).numpy())
    shares = logits.double().softmax(1).numpy()
    areas = [roc_auc_score(truth == number, shares[:, number]) for number in present] if len(present) > 1 else [float("nan")]
    return Row(float(accuracy), float(np.mean(areas)), len(truth))
