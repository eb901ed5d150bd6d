"""The audit of a data set as one page of HTML that needs nothing beside it: a verdict for each topic, and the pictures it rests on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinue.audit.dataset_report import DatasetReport
from retinue.audit.duplicates import Pair
from retinue.audit.survey import Survey
from retinue.audit.verdicts import overall, verdicts
from retinue.report import words
from retinue.report.charts import Chart, line_chart
from retinue.report.html import _template, data_uri
from retinue.report.pictures import shown
from retinue.report.words import count, measured, number, percent

MOST_PICTURES = 12  # pairs of each kind
OPEN_CLASSES = 24  # more are folded
BINS = 24
LEVELS = {"good": "in order", "look": "worth a look", "mend": "to mend"}
METHODS = {"mle": "maximum likelihood", "twonn": "TwoNN"}


@dataclass(frozen=True)
class Side:
    """One picture of a pair: the picture itself, file name, class and split."""

    picture: str
    name: str
    label: str
    part: str


@dataclass(frozen=True)
class Interval:
    """A dimension as a bar: label, value, its interval in words, and start, width and middle in percent of the axis."""

    label: str
    value: str
    interval: str
    start: float
    width: float
    middle: float


def audit_page(report: DatasetReport, beside: Mapping[str, Mapping[str, float | None]] | None = None) -> bytes:
    """Set an audit as a page.

    Args:
        report: what `dataset_report` returned.
        beside: the table of `retinue.audit.compare`, if other data sets stand beside.
    """
    found = verdicts(report)
    values: dict[str, Any] = {
        "title": report.name,
        "lead": overall(found),
        "report": report,
        "verdicts": found,
        "levels": LEVELS,
        "headline": headline(report),
        "galleries": galleries(report),
        "sharpest": sharpest(report),
        "intervals": intervals(report),
        "chart": curve(report),
        "attacks": attacks(report),
        "histograms": histograms(report.survey) if report.survey is not None else {},
        "settings": words.flat({**report.convention, "seconds": round(report.seconds, 1)}),
        "beside": beside or {},
        "open_classes": OPEN_CLASSES,
    }
    return _template("audit.html").render(**values).encode()


def headline(report: DatasetReport) -> list[tuple[str, str, str]]:
    """List the numbers that are looked at first: value, what it is, and a remark."""
    parts = ", ".join(f"{count(report.count(part))} {part}" for part in ("train", "val", "test") if report.count(part))
    told = [
        (count(sum(report.count(part) for part in ("train", "val", "test"))), "images", parts),
        (count(len(report.classes)), "class" if len(report.classes) == 1 else "classes", ""),
        (count(report.copies["exact"] + report.copies["near"]), "copies", f"{count(report.copies['exact'])} exact"),
        (count(len(report.broken)), "broken file" if len(report.broken) == 1 else "broken files", ""),
    ]
    if report.dimension is not None:
        row = report.dimension["mle"]
        told.append((f"{row['value']:.1f}", "dimensions", _interval(row)))
    if report.sharpness is not None:
        told.append((measured(report.sharpness["value"]), "label sharpness", f"{report.sharpness['grey_levels']:.0f} grey levels apart"))
    return told


def galleries(report: DatasetReport) -> list[tuple[str, str, list[tuple[Side, Side, str]]]]:
    """Picture the most suspicious copies: those with two labels, those across splits, then the others."""
    seen, found = report.survey, report.pairs
    if seen is None or found is None:
        return []
    both = sorted([*found.exact, *found.near], key=lambda pair: -pair.correlation)
    clashing = {(pair.a, pair.b) for pair in found.clashes}
    apart = [pair for pair in both if seen.parts[pair.a] != seen.parts[pair.b] and (pair.a, pair.b) not in clashing]
    others = [pair for pair in both if seen.parts[pair.a] == seen.parts[pair.b] and (pair.a, pair.b) not in clashing]
    kinds = [
        ("Copies with different labels", "One of the two labels is wrong, or the classes overlap.", found.clashes),
        ("Copies across the splits", "What is measured on these images is memory.", apart),
        ("Copies within a split", "They count twice.", others),
    ]
    return [
        (title, f"{text} {_shown(pairs)}", [_pair(seen, pair) for pair in pairs[:MOST_PICTURES]]) for title, text, pairs in kinds if pairs
    ]


def _shown(pairs: Sequence[Pair]) -> str:
    return f"The {MOST_PICTURES} most alike of {count(len(pairs))} pairs." if len(pairs) > MOST_PICTURES else ""


def _pair(seen: Survey, pair: Pair) -> tuple[Side, Side, str]:
    told = "the same pixels" if pair.correlation == 1 else f"correlation {pair.correlation:.3f}"
    return _side(seen, pair.a), _side(seen, pair.b), told


def _side(seen: Survey, i: int) -> Side:
    return Side(data_uri(shown(seen.picture(i))), seen.name(i), seen.label(i), seen.part(i))


def sharpest(report: DatasetReport) -> tuple[Side, Side, str] | None:
    """Picture the two nearest images of different classes."""
    if report.sharpness is None or report.survey is None:
        return None
    a, b = report.sharpness["positions"]
    return _side(report.survey, a), _side(report.survey, b), f"{report.sharpness['grey_levels']:.1f} grey levels apart on average"


def intervals(report: DatasetReport) -> list[Interval]:
    """Lay out the dimensions on a common axis from 0."""
    rows = [
        (f"{what}, {METHODS[method]}", row)
        for what, found in (("images", report.dimension), ("representations", report.representation))
        for method, row in (found or {}).items()
    ]
    most = max((max(row["value"], *(row["ci"] or [0.0])) for _, row in rows), default=1.0) * 1.05
    told = []
    for label, row in rows:
        low, high = row["ci"] or (row["value"], row["value"])
        told.append(
            Interval(label, f"{row['value']:.1f}", _interval(row), 100 * low / most, 100 * (high - low) / most, 100 * row["value"] / most)
        )
    return told


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['ci'][0]:.1f} to {row['ci'][1]:.1f}" if row["ci"] else ""


def curve(report: DatasetReport) -> Chart | None:
    """Draw the measured test losses, and the fit up to four times the images."""
    if report.curve is None:
        return None
    sizes = sorted({row["images"] for row in report.curve["rows"]})
    means = [(float(size), float(np.mean([row["loss"] for row in report.curve["rows"] if row["images"] == size]))) for size in sizes]
    largest, now = float(report.curve["images"]), report.curve["now"][0]
    fitted = [(x, now * (x / largest) ** report.curve["exponent"]) for x in np.geomspace(sizes[0], 4 * largest, 60).tolist()]
    return line_chart("Test loss", {"fit": fitted, "measured": means}, x_name="training images", logarithmic=lambda values: True,
                      mark=largest, colours={"fit": 1, "measured": 0})  # fmt: skip


def attacks(report: DatasetReport) -> list[tuple[str, str, str]]:
    """List what moving the pixels costs: how far, accuracy, loss."""
    if report.attack is not None:
        return [(number(eps), percent(row["top1"]), measured(row["loss"])) for eps, row in report.attack.items()]
    if report.curve is not None and "attacked" in report.curve["rows"][0]:
        row = max(report.curve["rows"], key=lambda one: one["images"])
        return [("0", percent(row["top1"]), measured(row["loss"])), ("2", percent(row["attacked"]), words.UNSET)]
    return []


def histograms(seen: Survey) -> dict[str, list[tuple[float, float, float, str]]]:
    """Count brightness and contrast of all images: place, width and height in percent, and what the pointer is told."""
    drawn = {}
    for title, values, most in (("Brightness", seen.brightness, 1.0), ("Contrast", seen.contrast, 0.5)):
        heights, edges = np.histogram(values.numpy(), bins=BINS, range=(0.0, most))
        tallest = max(1, int(heights.max()))
        drawn[title] = [
            (100 * low / most, 100 / BINS, 100 * height / tallest, f"{low:.2f} to {low + most / BINS:.2f}: {count(int(height))} images")
            for low, height in zip(edges[:-1].tolist(), heights.tolist())
        ]
    return drawn
