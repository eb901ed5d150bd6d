"""What a report says, as plain values: `collect` fills them in from a run's folder, `html` sets them as a page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence.

    Attributes:
        low: lower bound of the confidence.
        high: upper bound.
        count: predictions.
        confidence: their mean confidence; not a number where there are none.
        accuracy: the share of them that is right; not a number where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScore:
    """How well one class is recognised; all but `name` and `support` in [0, 1]."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class HeldOut:
    """What the best model says of the test images.

    Attributes:
        images: how many there are.
        top1: share whose highest score is the label's.
        top5: share whose label is among the five highest scores; None for fewer than six classes.
        balanced_accuracy: mean recall of the classes that occur.
        loss: cross-entropy in nats.
        ece: expected calibration error.
        brier: Brier score, from 0 to 2.
        confusion: images by label (row) and prediction (column).
        bins: of confidence, from 0 to 1.
        classes: scores of each class, in the order of `confusion`.
        fingerprint: a hash of the test images and labels.
    """

    images: int
    top1: float
    top5: float | None
    balanced_accuracy: float
    loss: float
    ece: float
    brier: float
    confusion: NDArray[np.int64]
    bins: list[Bin]
    classes: list[ClassScore]
    fingerprint: str = ""

    @property
    def wrong(self) -> int:
        """How many images are taken for another class."""
        return int(self.confusion.sum() - self.confusion.trace())


def standard_error(held: HeldOut) -> float:
    """Return the standard error of the accuracy, sqrt(p (1 - p) / n): the binomial one."""
    return math.sqrt(held.top1 * (1 - held.top1) / held.images)


@dataclass(frozen=True)
class Mistake:
    """One image that was taken for another class.

    Attributes:
        name: file or row.
        label: what it is.
        predicted: what it was taken for.
        confidence: the model's probability of `predicted`.
        label_confidence: its probability of `label`.
        picture: the image as a data URI.
        overlay: the image with the heat map of where the model looked for `predicted`; None if there is none.
    """

    name: str
    label: str
    predicted: str
    confidence: float
    label_confidence: float
    picture: str
    overlay: str | None = None


@dataclass
class Collected:
    """Everything that the report of one run says.

    Attributes:
        name: of the run, its folder's.
        settings: `config.json`, by section.
        environment: `environment.json`.
        history: one dict a logged step: {"step", "epoch", "train/loss", "val/top1", ...}.
        timing: one (step, seconds since the last, images per second) a logged step.
        best_step: after which the model was the best.
        macs: multiply-adds of the model for one image.
        held_out: None where the model was not measured on test images; `notes` say why.
        mistakes: the most confident ones first.
        explanations: pictures that `retinue explain` has left beside the run, by method.
        notes: what is missing and why, and what else a reader must know.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    timing: list[tuple[int, float, float]] = field(default_factory=list)
    best_step: int | None = None
    macs: int | None = None
    held_out: HeldOut | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    explanations: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def setting(self, section: str, name: str) -> Any:
        """Return one setting, or None if there is none of that name."""
        part = self.settings.get(section)
        return part.get(name) if isinstance(part, Mapping) else None

    @property
    def sections(self) -> dict[str, Any]:
        """The settings by section, a network's arguments beside its name."""
        model = self.settings.get("model")
        if not isinstance(model, Mapping) or not isinstance(model.get("arguments"), Mapping):
            return self.settings
        beside = {key: value for key, value in model.items() if key not in ("name", "arguments")}
        return {**self.settings, "model": {"name": model.get("name"), **model["arguments"], **beside}}

    @property
    def epochs(self) -> float:
        """Epochs that were trained."""
        return max((row["epoch"] for row in self.history), default=0.0)

    @property
    def best_epoch(self) -> float | None:
        """Epochs after which the model was the best."""
        return next((row["epoch"] for row in self.history if row["step"] == self.best_step), None)

    @property
    def seconds(self) -> float:
        """Time spent in updates."""
        return sum(seconds for _, seconds, _ in self.timing)

    @property
    def images_per_second(self) -> float | None:
        """Median over the logged steps of the images trained on per second."""
        return float(np.median([rate for *_, rate in self.timing])) if self.timing else None
