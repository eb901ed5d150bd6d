"""Collected values as one page of HTML that needs nothing beside it: styles and pictures are inside, and it works without scripts."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retinue.metrics import most_confused
from retinue.plots.curves import grouped, is_share, logarithmic, title
from retinue.report import words
from retinue.report.charts import Chart, line_chart
from retinue.report.comparison import NOT_COMPARABLE, best_of, distinct, results, same_images, settings_apart
from retinue.report.contents import Collected, HeldOut, standard_error
from retinue.report.words import count, duration, last_name, measured, number, percent, rounded, short

TABLE_UP_TO = 24  # classes whose confusion matrix is a table; more are a picture
DOTS = 250  # rows of that picture at most
MOST_PAIRS = 12  # of confused classes in the list
OPEN_ROWS = 12  # of the table of classes; the others are folded
MOST_CHARTS = 24
COLOURS = 8  # in page.css
SECTIONS = {"model": "Model", "objective": "Objective", "data": "Data", "fit": "Training"}
RIGHT, WRONG = (70, 124, 214), (222, 98, 28)  # that show on a light ground and on a dark one


def render(run: Collected) -> str:
    """Set the report of one run."""
    return _template("run.html").render(
        title=run.name,
        story=story(run),
        run=run,
        headline=headline(run),
        charts=curves({"": run}),
        speed=speed({"": run}),
        settings=[(SECTIONS.get(section, section), words.flat(values)) for section, values in run.sections.items()],
        environment=words.flat(run.environment),
    )


def render_comparison(runs: Sequence[Collected]) -> str:
    """Set the report of several runs side by side."""
    named = distinct(runs)
    differing, common = settings_apart(named)
    return _template("comparison.html").render(
        title=f"{len(runs)} runs",
        story=best_of(named),
        notes=[] if same_images(named) else [NOT_COMPARABLE],
        runs=named,
        colours={name: i % COLOURS for i, name in enumerate(named)},
        results=results(named),
        differing=differing,
        common=common,
        charts=curves(named),
        speed=speed(named),
        stories={name: story(run) for name, run in named.items()},
        headlines={name: headline(run) for name, run in named.items()},
    )


def story(run: Collected) -> str:
    """Say in a sentence or two what was trained on what, and how good it is."""
    model = run.setting("model", "name") or last_name(run.setting("model", "class")) or "A network"
    data = run.setting("data", "name") or "unnamed data"
    images = (run.setting("data", "images") or {}).get("train")
    objective = last_name(run.setting("objective", "class"))
    told = f"{model}, trained for {number(run.epochs)} {'epoch' if run.epochs == 1 else 'epochs'} on "
    told += f"{count(images)} images of {data}" if images else str(data)
    told += f" with the objective {objective}." if objective else "."
    if run.held_out is not None:
        told += f" Of {count(run.held_out.images)} test images {count(run.held_out.images - run.held_out.wrong)} are recognised."
    return told


def headline(run: Collected) -> list[tuple[str, str, str]]:
    """List the numbers that are looked at first: value, what it is, and a remark."""
    told: list[tuple[str, str, str]] = []
    held = run.held_out
    if held is not None:
        told.append((percent(held.top1), "accuracy", f"± {percent(standard_error(held), sign=False)} standard error"))
        if held.top5 is not None:
            told.append((percent(held.top5), "among the first five", ""))
        told.append((percent(held.ece), "calibration error", f"ECE, {len(held.bins)} bins"))
        told.append((measured(held.loss), "loss", "cross-entropy in nats"))
    else:
        judged = [row for row in run.history if any(name.startswith("val/") for name in row)]
        best = next((row for row in judged if row["step"] == run.best_step), judged[-1] if judged else {})
        numbers = [(name.removeprefix("val/"), value) for name, value in best.items() if name.startswith("val/")]
        told += [(percent(value) if is_share(name) else measured(value), title(name).lower(), "validation") for name, value in numbers[:4]]
    parameters = run.setting("model", "parameters")
    if parameters:
        told.append((short(parameters), "parameters", f"{short(run.macs)} multiply-adds an image" if run.macs else ""))
    if run.images_per_second:
        told.append((rounded(run.images_per_second), "images a second", f"{duration(run.seconds)} of training"))
    return told


def curves(runs: Mapping[str, Collected]) -> list[Chart]:
    """Draw every logged number against epochs, one chart for each; training and validation, or several runs, in common axes."""
    alone = next(iter(runs.values())) if len(runs) == 1 else None
    colours = {"train": 1, "val": 0} if alone else {name: i % COLOURS for i, name in enumerate(runs)}
    drawn = [
        line_chart(
            title(name),
            dict(sorted(lines.items(), key=lambda line: line[0] == "val")) if alone else lines,  # the validation lies on top
            percent=is_share(name),
            logarithmic=partial(logarithmic, name),
            from_zero=name in ("lr", "ece"),
            mark=alone.best_epoch if alone and "val" in lines else None,
            colours=colours,
        )
        for name, lines in grouped({name: run.history for name, run in runs.items()}).items()
    ]
    return [chart for chart in drawn if chart is not None][:MOST_CHARTS]


def speed(runs: Mapping[str, Collected]) -> Chart | None:
    """Draw images a second against steps."""
    lines = {name: [(float(step), rate) for step, _, rate in run.timing] for name, run in runs.items() if run.timing}
    return line_chart("Images a second", lines, x_name="step", from_zero=True, colours={name: i % COLOURS for i, name in enumerate(runs)})


def pairs(held: HeldOut) -> list[tuple[str, str, int, float]]:
    """List the commonest mistakes: label, prediction, how many images, and their share of the label's images."""
    names, support = [c.name for c in held.classes], [c.support for c in held.classes]
    return [(names[i], names[j], n, n / support[i]) for i, j, n in most_confused(torch.from_numpy(held.confusion), MOST_PAIRS)]


def confusion_cells(held: HeldOut) -> list[list[tuple[int, float, bool]]]:
    """List for each cell: images, how deep its colour is in [0, 1], and whether the answer is right."""
    right = np.eye(len(held.classes), dtype=bool)
    shares = held.confusion / held.confusion.sum(1, keepdims=True).clip(min=1)
    depth = np.where(right, shares, np.sqrt(shares)).round(3)  # the root lifts rare mistakes into sight
    return [list(zip(*row)) for row in zip(held.confusion.tolist(), depth.tolist(), right.tolist())]


def confusion_picture(matrix: NDArray[np.int64]) -> str:
    """Paint a matrix of many classes, a dot for `classes_a_dot` neighbours, without a ground: right answers blue, wrong ones orange."""
    starts = np.arange(0, len(matrix), classes_a_dot(len(matrix)))
    dots = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    shares = np.sqrt(dots / dots.sum(1, keepdims=True).clip(min=1))
    alpha = np.where(shares > 0, 255 * (0.25 + 0.75 * shares), 0)
    colours = np.where(np.eye(len(dots), dtype=bool)[..., None], RIGHT, WRONG)
    return data_uri(Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8)), "PNG")


def classes_a_dot(classes: int) -> int:
    """How many neighbouring classes share a dot, so that no picture has more than 250 rows."""
    return math.ceil(classes / DOTS)


def data_uri(picture: Image.Image, kind: str = "WEBP") -> str:
    """Encode a picture so that it can stand inside the page."""
    file = io.BytesIO()
    if kind == "WEBP":
        picture.save(file, kind, quality=82, method=6)
    else:
        picture.save(file, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (
        percent,
        number,
        measured,
        rounded,
        count,
        duration,
        pairs,
        confusion_cells,
        confusion_picture,
        classes_a_dot,
        standard_error,
    )
    environment.globals.update({helper.__name__: helper for helper in helpers})
    environment.globals.update(TABLE_UP_TO=TABLE_UP_TO, OPEN_ROWS=OPEN_ROWS, UNSET=words.UNSET, EXPLAINED=words.EXPLAINED)
    return environment.get_template(name)
