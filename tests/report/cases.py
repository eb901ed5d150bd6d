"""Made-up contents of reports, and the page read back."""

import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import torch

from retinue import metrics
from retinue.report.contents import Bin, ClassScore, Collected, HeldOut, Mistake

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
VOID = {"meta", "link", "img", "br", "wbr"}


def held_out(matrix: list[list[int]] | np.ndarray, names: list[str] | None = None, **changes: Any) -> HeldOut:
    """What a report says of a confusion matrix; confidences are made up."""
    counts = np.asarray(matrix, dtype=np.int64)
    scores = metrics.per_class(torch.from_numpy(counts))
    names = names or [f"class {i}" for i in range(len(counts))]
    images = int(counts.sum())
    values: dict[str, Any] = {
        "images": images,
        "top1": counts.trace() / images,
        "top5": None,
        "balanced_accuracy": float(metrics.balanced_accuracy(torch.from_numpy(counts))),
        "loss": 0.25,
        "ece": 0.0321,
        "brier": 0.05,
        "confusion": counts,
        "bins": [Bin(0.0, 0.5, 0, math.nan, math.nan), Bin(0.5, 1.0, images, 0.9, float(counts.trace() / images))],
        "classes": [
            ClassScore(name, int(scores.support[i]), float(scores.precision[i]), float(scores.recall[i]), float(scores.f1[i]))
            for i, name in enumerate(names)
        ],
        "fingerprint": "images",
    }
    return HeldOut(**{**values, **changes})


def collected(name: str = "a-run", **changes: Any) -> Collected:
    """A run of three classes, twenty epochs, one mistake pictured."""
    history: list[dict[str, float]] = []
    for epoch in range(1, 21):
        row = {"step": 10 * epoch, "epoch": float(epoch), "train/loss": 2 / epoch, "lr": 0.001}
        history.append({**row, "val/loss": 2.2 / epoch, "val/top1": 1 - 0.5 / epoch, "val/ece": 0.02})
    values: dict[str, Any] = {
        "settings": {
            "model": {"name": "small_convnet", "arguments": {"widths": [8, 8]}, "parameters": 16794},
            "objective": {"class": "retinue.engine.supervised.Supervised", "label_smoothing": 0.1},
            "data": {"name": "digits", "images": {"train": 1294, "val": 144, "test": 100}},
            "fit": {"epochs": 20, "clip_grad": None, "seed": 0},
        },
        "environment": {"retinue": "0.1.0", "cores": 2, "packages": {"torch": "2.11.0"}},
        "history": history,
        "timing": [(10 * epoch, 2.0, 640.0) for epoch in range(1, 21)],
        "best_step": 170,
        "macs": 157_000,
        "held_out": held_out([[30, 2, 1], [0, 33, 0], [0, 3, 31]]),
        "mistakes": [Mistake("img/7.png", "class 0", "class 1", 0.98, 0.01, PIXEL, PIXEL)],
    }
    return Collected(name, **{**values, **changes})


class Page(HTMLParser):
    """Reads a page and complains where tags do not close in order.

    Attributes:
        tags: every tag with its attributes, in order.
        style: the style sheet.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._pieces: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()} closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
        elif "script" not in self._open:
            self._pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """List the attributes of every tag of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        """List every id."""
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]

    @property
    def text(self) -> str:
        """What a reader sees, without styles and scripts."""
        return " ".join(self._pieces)

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())
