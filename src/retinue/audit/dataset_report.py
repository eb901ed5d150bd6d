"""One look at a data set from all sides: what is broken, twice there or lopsided, how hard it is, and how far more images would take.

Memory: the images at the resolution of the distances as bytes (channels x height x width of each), 1.5 kB an image for the search for
copies, and blocks, of which the largest is 512 rows by all images. 50,000 images of 32 px in colour took 0.5 GB beside the data itself.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retinue.data
from retinue.audit.adversarial import attacked
from retinue.audit.dataset_properties import IDResult, contradictions, intrinsic_dimension, label_sharpness, representation_dimension
from retinue.audit.duplicates import Duplicates, Pair, find_duplicates
from retinue.audit.image_statistics import file_statistics, image_statistics
from retinue.audit.learning_curve import one_data_set, small_network, trained
from retinue.audit.survey import Survey, survey
from retinue.data import Data, from_arrays
from retinue.data.splits import PARTS, thinned
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, DataError, RetinueError

MOST_PAIRS = 200  # listed of each kind
SHARPNESS_IMAGES, SHARPNESS_DRAWS = 1000, 5  # M of the paper, and how often it is drawn for the range
EPS = 2.0
SHARES = (8, 4, 2, 1)  # parts of the learning curve, as fractions 1/8 ... 1 of its images
REPEATS = 2  # trainings on each part
LEAST_CURVE, MOST_TEST = 200, 1000  # images from which a curve is tried, and on which it is measured
AHEAD = (2, 4, 10)  # how many times the images the loss is predicted for
CURVE = {"epochs": 15.0, "batch_size": 50, "lr": 1e-3, "weight_decay": 1e-4}


@dataclass
class DatasetReport:
    """What was found out about a data set; `to_dict` gives the JSON.

    Attributes:
        name: of the data set.
        convention: under which its numbers may be compared with another's: size, channels, pixel range, scaling, neighbours.
        classes: of each its name, and its images in each split.
        broken: files that cannot be read: name and reason.
        files: the files' own sizes, as `file_statistics` gives them, or None.
        images: as `image_statistics` gives them.
        copies: exact and near copies, and where they leak from split to split.
        dimension: of the training images, by method: value, interval, images; None where there are too few.
        sharpness: of the labels; None where there is one class.
        representation: of a model's layer, by method; None without a model.
        attack: a model's top-1 and loss, by how far pixels were moved against it; None without a model of these classes.
        curve: test loss on growing parts, the fit, and predictions; None where there is nothing to train on.
        notes: what could not be measured, and why.
        seconds: that it took.
        survey: the images; not in the JSON.
        pairs: copies by position in the survey; not in the JSON.
    """

    name: str
    convention: dict[str, Any]
    classes: list[dict[str, Any]]
    broken: list[tuple[str, str]]
    files: dict[str, Any] | None
    images: dict[str, Any]
    copies: dict[str, Any]
    dimension: dict[str, dict[str, Any]] | None = None
    sharpness: dict[str, Any] | None = None
    representation: dict[str, dict[str, Any]] | None = None
    attack: dict[float, dict[str, float]] | None = None
    curve: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    survey: Survey | None = field(default=None, repr=False)
    pairs: Duplicates | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the images as JSON values."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name not in ("survey", "pairs")}
        return {**values, "attack": None if self.attack is None else {f"{eps:g}": row for eps, row in self.attack.items()}}

    def count(self, part: str) -> int:
        """Return how many images a split has."""
        return sum(one[part] for one in self.classes)


def dataset_report(
    dataset: Data | str | Path,
    model: nn.Module | None = None,
    *,
    layer: str | None = None,
    resolution: int | None = None,
    k: int = 20,
    max_samples: int | None = 2000,
    n_bootstrap: int = 200,
    curve_images: int = 2000,
    curve: Sequence[Mapping[str, float]] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> DatasetReport:
    """Audit a data set.

    Args:
        dataset: opened data, or what `retinue.data.open` takes; then broken files are left out and listed.
        model: a network; the dimension of its representations is measured, and, if it tells these classes apart, what an attack costs.
        layer: the layer of the representations; None takes what enters the classifier.
        resolution: side in pixels at which distances are measured; None takes the images' own, at most 64. It is part of the convention.
        k: neighbours of the likelihood.
        max_samples: training images whose neighbours (among all) give the dimension; None takes all.
        n_bootstrap: draws for the intervals.
        curve_images: most training images of the learning curve by a small probe network; 0 leaves it out.
        curve: "images" and test "loss" of networks that were trained before, instead of the probe's.
        seed: of all draws.
        tell: is given a line before each step.

    Raises:
        DataError: if there is no such data, or no image of it can be read.
        ArgumentError: if an argument cannot be.
    """
    if k < 3:
        raise ArgumentError(f"audit: `k` must be at least 3, got {k}. The paper has 20.")
    if curve_images < 0:
        raise ArgumentError(f"audit: `curve_images` must be 0 or more, got {curve_images}. 0 trains nothing.")
    started = time.perf_counter()
    tell("reading all images")
    data = dataset if isinstance(dataset, Data) else retinue.data.open(dataset, on_bad="skip")
    seen = survey(data, resolution)
    tell(f"looking for copies among {len(seen):,} images")
    found = find_duplicates(seen)
    opened = data.opened_with or {}
    source = {name: opened.get(name) for name in ("image_column", "label_column")}
    report = DatasetReport(
        name=data.name,
        convention={
            "size": list(seen.pixels.shape[-2:]), "channels": int(seen.pixels.shape[1]), "range": [0, 255],
            "scaled": "each image to a maximum of 255", "k": k, "correction": "k-2",
        },
        classes=[
            {"name": name, **{part: int((seen.labels[seen.of(part)] == number).sum()) for part in PARTS}}
            for number, name in enumerate(data.classes)
        ],
        broken=list(data.skipped),
        files=file_statistics(opened["source"], **source) if "source" in opened else None,
        images=image_statistics(seen),
        copies=_copies(seen, found),
        survey=seen,
        pairs=found,
    )  # fmt: skip
    train = seen.of("train")
    pixels = seen.pixels[train]
    tell("measuring the dimension")
    with _Noting(report, "dimension"):
        report.dimension = {
            method: _plain(intrinsic_dimension(pixels, method, k, "k-2", max_samples, n_bootstrap, seed)) for method in ("mle", "twonn")
        }
    tell("measuring how sharp the labels are")
    with _Noting(report, "label sharpness"):
        report.sharpness = _sharpness(seen, train, seed)
    if model is not None:
        tell("measuring the model's representations")
        with _Noting(report, "the model's representations"):
            report.representation = {
                method: _plain(representation_dimension(model, layer, data, method, k, "k-2", max_samples, n_bootstrap, seed))
                for method in ("mle", "twonn")
            }
        if getattr(model, "classes", None) == data.classes and len(data.test):
            report.attack = attacked(model, data.test)
    if (curve is not None or curve_images) and report.dimension is not None:
        tell("predicting the loss with more images")
        with _Noting(report, "the prediction for more images"):
            rows = [dict(row) for row in curve] if curve is not None else _probed(seen, curve_images, seed)
            report.curve = _predicted(rows, report.dimension["mle"]["value"], len(train), "your runs" if curve is not None else "a probe")
    report.seconds = time.perf_counter() - started
    return report


class _Noting:
    """Turns what a user's data does not allow into a note, instead of ending the audit."""

    def __init__(self, report: DatasetReport, what: str) -> None:
        self.report, self.what = report, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, RetinueError):
            self.report.notes.append(f"Not measured: {self.what}. {error}")
            return True
        return False


def _plain(found: IDResult) -> dict[str, Any]:
    return {"value": found.value, "ci": None if found.ci is None else list(found.ci), "n": found.n_used, "duplicates": found.n_duplicates}


def _copies(seen: Survey, found: Duplicates) -> dict[str, Any]:
    def listed(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        return [
            {
                "images": [seen.name(p.a), seen.name(p.b)],
                "splits": [seen.part(p.a), seen.part(p.b)],
                "labels": [seen.label(p.a), seen.label(p.b)],
                "correlation": round(p.correlation, 4),
            }
            for p in pairs[:MOST_PAIRS]
        ]

    return {
        "exact": len(found.exact),
        "near": len(found.near),
        "leaks": found.leaks,
        "clashes": len(found.clashes),
        "exact_pairs": listed(found.exact),
        "near_pairs": listed(found.near),
        "clashing_pairs": listed(found.clashes),
    }


def _sharpness(seen: Survey, train: torch.Tensor, seed: int) -> dict[str, Any]:
    """Measure label sharpness on several draws; images that stand there with two labels are left out, and counted."""
    clashing = {int(i) for pair in contradictions(seen.pixels[train], seen.labels[train]) for i in pair}
    kept = train[[i for i in range(len(train)) if i not in clashing]] if clashing else train
    pixels, labels = seen.pixels[kept], seen.labels[kept]
    draws = SHARPNESS_DRAWS if len(kept) > SHARPNESS_IMAGES else 1
    found = [label_sharpness(pixels, labels, SHARPNESS_IMAGES, seed + draw) for draw in range(draws)]
    first = found[0]
    pair = [int(kept[i]) for i in first.pair]
    distance = 1 / first.value
    return {
        "value": first.value,
        "range": [min(one.value for one in found), max(one.value for one in found)],
        "mean_ratio": first.mean_ratio,
        "images": min(SHARPNESS_IMAGES, len(kept)),
        "draws": draws,
        "distance": distance,
        "grey_levels": distance / math.sqrt(pixels[0].numel()),
        "pair": [seen.name(i) for i in pair],
        "labels": [seen.label(i) for i in pair],
        "positions": pair,
        "left_out": len(clashing),
    }


def _probed(seen: Survey, most: int, seed: int) -> list[dict[str, Any]]:
    """Train the small probe network on growing parts of the images, twice on each."""
    train, test = seen.of("train"), seen.of("test")
    if len(test) < 2 or len(train) < LEAST_CURVE:
        raise DataError(f"There are {len(train)} training and {len(test)} test images, and {LEAST_CURVE} and 2 are needed.")
    if len(seen.labels[train].unique()) < 2:
        raise DataError("There is one class, so there is nothing to tell apart.")
    rows = []
    for repeat in range(REPEATS):
        own = seed + repeat
        held_out = torch.from_numpy(thinned(test.numpy(), seen.labels.numpy(), min(MOST_TEST, len(test)), own, "curve_images"))
        for share in SHARES:
            count = min(most, len(train)) // share
            chosen = torch.from_numpy(thinned(train.numpy(), seen.labels.numpy(), count, own, "curve_images"))
            used = torch.cat([chosen, held_out])
            split = ["train"] * count + ["test"] * len(held_out)
            data = from_arrays(seen.pixels[used], seen.labels[used], classes=seen.data.classes, split=split, val_fraction=0.0)
            with own_randomness():
                seed_all(own)
                network = small_network(len(data.classes), data.preprocessing.channels)
            rows.append({"images": count, **trained(network, data, EPS, **CURVE, seed=own, progress=False)})  # type: ignore[arg-type]
    return rows


def _predicted(rows: list[dict[str, Any]], dimension: float, images: int, by: str) -> dict[str, Any]:
    fitted = one_data_set(rows, dimension)
    largest = int(max(row["images"] for row in rows))
    here = fitted.predict(largest, dimension)
    ahead = [[times, largest * times, *fitted.predict(largest * times, dimension)] for times in AHEAD]
    return {
        "by": by,
        "rows": rows,
        "rate": fitted.rate,
        "r2": fitted.r2,
        "exponent": -fitted.rate / dimension,
        "bound": -1 / dimension,
        "images": largest,
        "train": images,
        "now": list(here),
        "ahead": ahead,
    }
