"""Several runs side by side: their results in one table, and the settings in which they differ in another."""

import math
from collections.abc import Callable, Mapping, Sequence

from retinue.report.contents import Collected, HeldOut, standard_error
from retinue.report.words import count, duration, flat, measured, number, percent, rounded, short

NOT_COMPARABLE = "These runs were not measured on the same images: their results cannot be set against each other."


def distinct(runs: Sequence[Collected]) -> dict[str, Collected]:
    """Name the runs so that no two have the same name; later ones are numbered."""
    named: dict[str, Collected] = {}
    for run in runs:
        name, place = run.name, 1
        while name in named:
            place += 1
            name = f"{run.name} ({place})"
        named[name] = run
    return named


def same_images(runs: Mapping[str, Collected]) -> bool:
    """Whether all that were measured were measured on the same test images."""
    return len({run.held_out.fingerprint for run in runs.values() if run.held_out is not None}) <= 1


def best_of(runs: Mapping[str, Collected]) -> str:
    """Say which run has the highest accuracy, and whether the second is further off than chance explains; nothing if it cannot be said."""
    ranked = sorted(((run.held_out, name) for name, run in runs.items() if run.held_out is not None), key=lambda pair: -pair[0].top1)
    if len(ranked) < 2 or not same_images(runs):
        return ""
    (first, name), (second, other) = ranked[:2]
    if first.top1 == second.top1:
        return f"{name} and {other} are right equally often: {percent(first.top1)} of the test images."
    told = f"{name} is right most often: {percent(first.top1)}, against {percent(second.top1)} of {other}, the second."
    apart = first.top1 - second.top1 > 2 * math.hypot(standard_error(first), standard_error(second))
    return told if apart else f"{told} The difference is within two standard errors."


def results(runs: Mapping[str, Collected]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """One row for each result: its name, and for each run the value and whether it is the best of all."""
    alike = same_images(runs)
    told: list[tuple[str, list[tuple[str, bool]]]] = []

    def add(name: str, values: Sequence[float | None], write: Callable[[float], str], better: int = 0) -> None:
        """Add a row; `better` is 1 if more is better, -1 if less is, 0 if neither."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        best = max(known, key=lambda value: better * value) if better and len(set(known)) > 1 else None
        if any(value is not None for value in values):
            told.append((name, [("", False) if value is None else (write(value), value == best) for value in values]))

    def measure(name: str, value: Callable[[HeldOut], float | None], write: Callable[[float], str], better: int = 0) -> None:
        add(name, [None if run.held_out is None else value(run.held_out) for run in runs.values()], write, better if alike else 0)

    measure("accuracy", lambda held: held.top1, percent, 1)
    measure("standard error of it", standard_error, percent)
    measure("among the first five", lambda held: held.top5, percent, 1)
    measure("balanced accuracy", lambda held: held.balanced_accuracy, percent, 1)
    measure("calibration error (ECE)", lambda held: held.ece, percent, -1)
    measure("loss", lambda held: held.loss, measured, -1)
    measure("Brier score", lambda held: held.brier, measured, -1)
    measure("test images", lambda held: held.images, count)
    add("epochs", [run.epochs for run in runs.values()], number)
    add("best epoch", [run.best_epoch for run in runs.values()], number)
    add("parameters", [run.setting("model", "parameters") for run in runs.values()], short)
    add("multiply-adds an image", [run.macs for run in runs.values()], short)
    add("images a second", [run.images_per_second for run in runs.values()], rounded, 1)
    add("time of training", [run.seconds or None for run in runs.values()], duration, -1)
    return told


def settings_apart(runs: Mapping[str, Collected]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """Part the settings into those that differ (name, one value for each run) and those that all runs share (name, value)."""
    flats = [dict(flat(run.sections)) for run in runs.values()]
    names = dict.fromkeys(name for values in flats for name in values)
    rows = [(name, [values.get(name, "") for values in flats]) for name in names]
    differing = [(name, values) for name, values in rows if len(set(values)) > 1]
    return differing, [(name, values[0]) for name, values in rows if len(set(values)) == 1]
