"""The engine of claims: seeds, timing, verdict, plot and record; a claim's own file holds `RULE`, `measure` and `shown`, and no more."""

import importlib
import json
import math
import os
import pkgutil
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

import retinue
from retinue import catalog
from retinue.errors import ArgumentError, DataError, MissingExtraError, RetinueError, unknown

Choice = TypeVar("Choice")
BUDGETS = ("laptop", "smoke")
SEEDS = (0, 1, 2)
NOT_SHOWABLE = "not showable here"
VERDICTS = ("shown", "not shown", NOT_SHOWABLE, "smoke run, no verdict")


class NotShowableError(RetinueError):
    """What a claim raises when this machine cannot show it either way; the text says why."""


@dataclass(frozen=True)
class Budget:
    """How much a claim may spend: "laptop" gives the verdict, "smoke" only walks through the same code in seconds.

    >>> Budget("smoke").pick(laptop=20, smoke=1)
    1
    """

    name: Literal["laptop", "smoke"] = "laptop"

    def __post_init__(self) -> None:
        if self.name not in BUDGETS:
            raise unknown("claim", "budget", self.name, BUDGETS)

    def pick(self, *, laptop: Choice, smoke: Choice) -> Choice:
        """Return the value for this budget."""
        return laptop if self.name == "laptop" else smoke


class Figures(Mapping[str, NDArray[np.float64]]):
    """What `measure` returned, by name: one row for each seed; curves have one column for each point.

    Args:
        rows: what `measure` returned for each seed.

    Raises:
        ArgumentError: if the seeds do not agree in names and lengths: the claim's file is wrong.
    """

    def __init__(self, rows: Sequence[Mapping[str, float | Sequence[float]]]) -> None:
        names = list(rows[0]) if rows else []
        if any(list(row) != names for row in rows):
            raise ArgumentError(f"claim: `measure` must return the same names for every seed, got {[list(row) for row in rows]}.")
        try:
            self._columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
        except ValueError as error:
            raise ArgumentError(f"claim: a curve of `measure` must have the same length for every seed: {error}.") from error

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in self._columns:
            raise unknown("claim", "figure", name, self._columns)
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def standard_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean, s / sqrt(n) with n - 1 in s; not a number for a single value.

    >>> round(standard_error(np.array([1.0, 2.0, 3.0])), 6)
    0.57735
    """
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def pooled_standard_error(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the standard error of the difference of two means under one common variance (Student's two-sample form).

    >>> round(pooled_standard_error(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])), 6)
    0.816497

    Args:
        a: the values of one group, at least two.
        b: the values of the other, at least two.

    Returns:
        s_p * sqrt(1 / n_a + 1 / n_b), where s_p^2 is the mean of both variances weighted with n - 1.
    """
    if len(a) < 2 or len(b) < 2:
        raise ArgumentError(f"pooled_standard_error needs two values of each group at least, got {len(a)} and {len(b)}. Give more seeds.")
    squares = (len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)
    return float(math.sqrt(squares / (len(a) + len(b) - 2) * (1 / len(a) + 1 / len(b))))


@dataclass
class Result:
    """What one run of a claim gave; the same fields stand in `claims/<slug>.json`."""

    slug: str
    sentence: str
    rule: str
    verdict: str
    reason: str
    budget: str
    seeds: list[int]
    figures: dict[str, list[Any]]
    effects: Mapping[str, Sequence[float]]
    parts: dict[str, bool]
    seconds: float
    data: list[str]
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""


def claim_module(slug: str) -> ModuleType:
    """Import `claims/<slug>.py`.

    Raises:
        ArgumentError: if there is no such system, or it has no claim yet.
    """
    catalog.system(slug)
    if slug not in claim_slugs():
        raise ArgumentError(f'claim: the claim of "{slug}" is not written yet. Those that are: {", ".join(claim_slugs())}.')
    return importlib.import_module(f"retinue.claims.{slug.replace('-', '_')}")


def claim_slugs() -> list[str]:
    """List the systems that have a claim, in the catalogue's order."""
    files = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return [system.slug for system in catalog.systems() if system.slug.replace("-", "_") in files]


def run_claim(
    slug: str,
    budget: str = "laptop",
    seeds: Sequence[int] | None = None,
    workers: int = 0,
    folder: str | Path | None = "claims",
    tell: Callable[[str], None] = lambda line: None,
) -> Result:
    """Run a claim on all its seeds, judge it by its own rule, and write `<slug>.json` and the curves that it draws.

    Args:
        slug: the system.
        budget: "laptop" for the verdict; "smoke" walks through the same code in seconds, writes `<slug>.smoke.json` and judges nothing.
        seeds: instead of the claim's own.
        workers: how many seeds run at once, as in `retinue.map`.
        folder: where the results go; None: nothing is written.
        tell: is given a line for each seed that has finished (when they run one after the other).

    Raises:
        ArgumentError: if there is no such claim or budget.
    """
    module = claim_module(slug)
    chosen = Budget(budget)  # type: ignore[arg-type]
    used = list(seeds if seeds is not None else getattr(module, "SEEDS", SEEDS))
    started = time.perf_counter()
    figures, verdict, reason = Figures([]), NOT_SHOWABLE, ""
    parts: dict[str, bool] = {}
    try:
        figures = Figures(retinue.map(partial(_one_seed, slug, chosen, None if workers > 1 else tell), used, workers=workers))
    except (NotShowableError, MissingExtraError, DataError) as error:  # the claim cannot be tried on this machine, and the text says why
        reason = str(error)
    if figures and chosen.name == "smoke":
        verdict = "smoke run, no verdict"
    elif figures:
        verdict = "shown" if module.shown(figures) else "not shown"
        parts = module.parts(figures) if hasattr(module, "parts") else {}
    result = Result(
        slug=slug,
        sentence=_sentence(module),
        rule=module.RULE,
        verdict=verdict,
        reason=reason,
        budget=chosen.name,
        seeds=used,
        figures={name: values.tolist() for name, values in figures.items()},
        effects=_effects(module, figures),
        parts={name: bool(passed) for name, passed in parts.items()},
        seconds=round(time.perf_counter() - started, 1),
        data=list(getattr(module, "DATA", ())),
        versions={"python": platform.python_version(), **{name: version(name) for name in ("retinue", "torch", "torchvision", "timm")}},
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
    )
    if folder is not None:
        _write(result, Path(folder))
        if figures:
            getattr(module, "draw", partial(draw, slug=slug))(figures, Path(folder))
    return result


def draw(figures: Figures, folder: Path, slug: str) -> None:
    """Draw what a claim measured, as `<slug>.png`: a dot for each seed, and the seeds' mean of each curve; for claims without their own."""
    from matplotlib.figure import Figure

    single = {name: values for name, values in figures.items() if values.ndim == 1}
    curves = {name: values for name, values in figures.items() if values.ndim == 2}
    picture = Figure(figsize=(9, 3.6), layout="constrained")
    axes = picture.subplots(1, max(1, bool(single) + bool(curves)), squeeze=False)[0]
    if single:
        for row, values in enumerate(single.values()):
            axes[0].plot(values, [row] * len(values), "o", alpha=0.6)
        axes[0].set(yticks=range(len(single)), yticklabels=single, title=f"{slug}: a dot for each seed")
        axes[0].invert_yaxis()
    for name, values in curves.items():
        axes[-1].plot(values.mean(axis=0), label=name)
    if curves:
        axes[-1].legend()
        axes[-1].set_title("mean over seeds")
    picture.savefig(folder / f"{slug}.png", dpi=110)


def read_results(folder: str | Path = "claims") -> dict[str, Result]:
    """Read every recorded verdict of a folder (not the smoke runs), by slug.

    Raises:
        DataError: if a file is not what `run_claim` wrote.
    """
    results = {}
    for path in sorted(Path(folder).glob("*.json")):
        if path.name.endswith(".smoke.json"):
            continue
        try:
            result = Result(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is not the record of a claim: {error}. Run: retinue claim {path.stem}") from error
        results[result.slug] = result
    return results


def summary(result: Result) -> list[tuple[str, str, str]]:
    """List name, value and standard error of a claim's effects, or of all its plain figures where it names no effects."""
    if result.effects:
        return [(name, f"{value:.4g}", f"{error:.2g}") for name, (value, error) in result.effects.items()]
    plain = {name: np.array(values) for name, values in result.figures.items() if np.ndim(values) == 1}
    return [(name, f"{values.mean():.4g}", f"{standard_error(values):.2g}") for name, values in plain.items()]


def _one_seed(slug: str, budget: Budget, tell: Callable[[str], None] | None, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    row = claim_module(slug).measure(seed, budget)
    if tell is not None:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if np.ndim(value) == 0)
        tell(f"seed {seed} ({time.perf_counter() - started:.0f} s): {numbers}")
    return row


def _sentence(module: ModuleType) -> str:
    text = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return text.partition(": ")[2] or text


def _effects(module: ModuleType, figures: Figures) -> dict[str, tuple[float, float]]:
    """Differences of means, with the pooled standard error, for the pairs that the claim names in `EFFECTS`."""
    effects = {}
    for name, (a, b) in getattr(module, "EFFECTS", {}).items() if figures else ():
        error = pooled_standard_error(figures[a], figures[b]) if len(figures[a]) > 1 else math.nan
        effects[name] = (float(figures[a].mean() - figures[b].mean()), error)
    return effects


def _write(result: Result, folder: Path) -> None:
    name = result.slug if result.budget == "laptop" else f"{result.slug}.{result.budget}"
    path = folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"claim: {path} could not be written: {error.strerror}.") from error
