"""Learning curves: every logged number against epochs, what belongs together in common axes."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from retinue.errors import ArgumentError

History = Sequence[Mapping[str, float]]
Points = list[tuple[float, float]]

TITLES = {
    "loss": "Loss",
    "top1": "Accuracy",
    "top5": "Accuracy among the first five",
    "ece": "Calibration error",
    "lr": "Learning rate",
}
ORDER = {"loss": 0, "top1": 1, "top5": 2, "ece": 3, "lr": 9}  # everything else stands between
COLOURS = ("#2458ba", "#bd5009", "#24794f", "#7a49ae", "#b3324d", "#0c7587", "#75680a", "#5b626e")
LOG_FROM = 30.0  # ratio of highest to lowest value from which a loss is drawn on a logarithmic scale


def grouped(histories: Mapping[str, History]) -> dict[str, dict[str, Points]]:
    """Sort the numbers of one or several histories into charts: name of the number, label of the line, points (epoch, value).

    Of one run, training and validation share a chart ("train", "val"). Of several, each run is a line, and numbers of the training
    are left out where the same number was measured on validation images: two lines a run would hide each other.

    Args:
        histories: the histories by the run's name; rows have "step", "epoch" and numbers such as "train/loss", "val/loss", "lr".

    >>> grouped({"run": [{"step": 1, "epoch": 0.5, "train/loss": 2.0}, {"step": 2, "epoch": 1.0, "val/loss": 1.0}]})
    {'loss': {'train': [(0.5, 2.0)], 'val': [(1.0, 1.0)]}}
    """
    charts: dict[str, dict[str, Points]] = {}
    many = len(histories) > 1
    for run, history in histories.items():
        names = dict.fromkeys(name for row in history for name in row if name not in ("step", "epoch"))
        for name in names:
            part, _, rest = name.partition("/")
            if many and part == "train" and f"val/{rest}" in names:
                continue
            chart, label = (part, rest) if part == "lr" or not rest else (rest, part)
            if many:
                label = run if part == "val" or not label else f"{run}, {label}"
            charts.setdefault(chart, {})[label] = [(row["epoch"], row[name]) for row in history if name in row]
    return dict(sorted(charts.items(), key=lambda chart: ORDER.get(chart[0], 5)))


def title(name: str) -> str:
    """Name a logged number in words.

    >>> title("top1"), title("critic/loss"), title("turn_accuracy")
    ('Accuracy', 'Critic, loss', 'Turn accuracy')
    """
    words = name.replace("_", " ").replace("/", ", ")
    return TITLES.get(name, words[:1].upper() + words[1:])


def is_share(name: str) -> bool:
    """Whether a logged number is a share, to be written in percent."""
    return name in ("ece", "top1", "top5") or name.endswith("accuracy")


def logarithmic(name: str, values: Sequence[float]) -> bool:
    """Whether a loss spans so much that its end could not be seen on a linear scale."""
    return "loss" in name and min(values) > 0 and max(values) / min(values) > LOG_FROM


def curves(histories: History | Mapping[str, History]) -> Figure:
    """Draw learning curves, one chart for each number.

    Args:
        histories: what `Run.history` holds, or several such by name, which are laid over each other.

    Raises:
        ArgumentError: if nothing was logged.

    >>> figure = curves([{"step": 1, "epoch": 1.0, "train/loss": 2.0}, {"step": 2, "epoch": 2.0, "train/loss": 1.0}])
    >>> figure.axes[0].get_title(loc="left")
    'Loss'
    """
    named = histories if isinstance(histories, Mapping) else {"": histories}
    charts = grouped(named)
    if not charts:
        raise ArgumentError("curves: the history is empty. Take it from a run that logged something: Run.history.")
    columns = min(len(charts), 3)
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, lines) in zip(places, charts.items()):
        for i, (label, points) in enumerate(lines.items()):
            colour = COLOURS[{"val": 0, "train": 1}.get(label, i) % len(COLOURS)]
            axes.plot(*zip(*points), color=colour, label=label, marker="o" if len(points) == 1 else None)
        finite = [y for points in lines.values() for _, y in points if math.isfinite(y)]
        if finite and logarithmic(name, finite):
            axes.set_yscale("log")
        if any(lines):
            axes.legend(frameon=False, fontsize="small")
        axes.set_title(title(name), loc="left")
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    for axes in places[len(charts) :]:
        axes.set_visible(False)
    return figure
