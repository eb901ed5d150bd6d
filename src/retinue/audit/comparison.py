"""Two or more audits side by side, where their numbers may be compared at all."""

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.audit.dataset_report import DatasetReport
from retinue.errors import ArgumentError, DataError

ROWS = ("training images", "dimension (MLE)", "dimension (TwoNN)", "label sharpness", "mean ratio", "grey levels apart")


def compare(reports: Sequence[DatasetReport | Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Set audits side by side.

    Args:
        reports: what `dataset_report` returned, or what stands in `audit.json`.

    Returns:
        By name of the data set: "training images", "dimension (MLE)", "dimension (TwoNN)", "label sharpness", "mean ratio", "grey levels
        apart"; None for what was not measured. The dimension grows with the number of images: mind the first row.

    Raises:
        ArgumentError: if there are fewer than two, or they were made at different resolution, channels, pixel range or neighbours.
        DataError: if something is no audit.
    """
    plain = [one.to_dict() if isinstance(one, DatasetReport) else one for one in reports]
    if len(plain) < 2:
        raise ArgumentError(f"compare: at least two audits are needed, got {len(plain)}.")
    try:
        conventions = [dict(one["convention"]) for one in plain]
        names = _distinct([str(one["name"]) for one in plain])
        table = {name: _row(one) for name, one in zip(names, plain)}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"compare: this is no audit: {type(error).__name__} {error}. Audits are made by retinue audit DATA.") from error
    first = conventions[0]
    for name, other in zip(names[1:], conventions[1:]):
        for what in first.keys() | other.keys():
            if first.get(what) != other.get(what):
                raise ArgumentError(
                    f"compare: {names[0]} was measured at {what} {first.get(what)} and {name} at {other.get(what)}, so their numbers mean "
                    "different things. Audit both alike: --resolution, --channels and --k."
                )
    return table


def _row(report: Mapping[str, Any]) -> dict[str, float | None]:
    dimension, sharpness = report["dimension"], report["sharpness"]
    values = [
        sum(one["train"] for one in report["classes"]),
        *((dimension[method]["value"] for method in ("mle", "twonn")) if dimension else (None, None)),
        *((sharpness[name] for name in ("value", "mean_ratio", "grey_levels")) if sharpness else (None,) * 3),
    ]
    return dict(zip(ROWS, values, strict=True))


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
