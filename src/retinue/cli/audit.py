"""`retinue audit DATA`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from retinue.cli.parser import Parser

if TYPE_CHECKING:
    from torch import nn

    from retinue.audit.dataset_report import DatasetReport


def arguments(parser: Parser) -> None:
    """Take a data set, models if wanted, and every argument of `dataset_report` and of `retinue.data.open`."""
    import retinue
    from retinue.audit.dataset_report import dataset_report

    parser.add_argument("data", type=str, help="a folder of class folders, a .parquet or .npz file, or a name")
    parser.add_argument(
        "--model", type=str, nargs="+", default=[],
        help="a run, or a network with published weights, whose representations are measured; several runs that were trained on different "
        "numbers of these images give the learning curve",
    )  # fmt: skip
    parser.add_argument("--out", type=str, default=None, help="a folder for audit.html and audit.json (default: audits/DATA)")
    parser.add_argument("--compare", type=str, nargs="+", default=[], help="audit.json of other data sets, set beside this one")
    parser.options_of(dataset_report, skip=["dataset", "model", "curve", "tell"])
    parser.options_of(retinue.data.open, skip=["source", "on_bad", "seed"])


def run(options: Namespace) -> None:
    """Write the page and the numbers, and print what matters."""
    import inspect
    import json
    import sys

    import retinue
    from retinue.audit.comparison import compare
    from retinue.audit.dataset_report import dataset_report
    from retinue.audit.verdicts import overall, verdicts
    from retinue.engine.checkpoint import write_whole
    from retinue.report.audit import audit_page

    others = [_read(path) for path in options.compare]
    given = {name: getattr(options, name) for name in inspect.signature(retinue.data.open).parameters if hasattr(options, name)}
    data, models = _opened(options.data, options.model, {**given, "on_bad": "skip"})
    chosen = {name: getattr(options, name) for name in inspect.signature(dataset_report).parameters if hasattr(options, name)}
    chosen.pop("model")
    first = next(iter(models.values()), None)
    report = dataset_report(data, first, curve=_curve(models, data), tell=lambda line: print(line, file=sys.stderr), **chosen)
    table = compare([report, *others]) if others else {}
    found = verdicts(report)
    for one in found:
        print(f"{one.topic} [{WORDS[one.level]}]: {one.text}{' ' + one.advice if one.advice else ''}")
    for line in [*_numbers(report), *report.notes]:
        print(line)
    for name, row in table.items():
        print(f"{name}: " + "  ".join(f"{what} {'-' if value is None else f'{value:.4g}'}" for what, value in row.items()))
    print(overall(found))
    folder = Path(options.out or Path("audits") / (Path(options.data).stem or "data"))
    values = {**report.to_dict(), "verdicts": [one._asdict() for one in found]}
    write_whole(folder / "audit.json", (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "audit.html", audit_page(report, table))
    print(f"numbers: {folder / 'audit.json'}")
    print(f"page: {folder / 'audit.html'}")


WORDS = {"good": "in order", "look": "worth a look", "mend": "to mend"}


def _numbers(report: "DatasetReport") -> list[str]:
    """Tell the three numbers with their intervals."""
    lines = []
    for title, found in (("dimension of the images", report.dimension), ("dimension of the representations", report.representation)):
        if found:
            intervals = {method: " ({:.2f} to {:.2f})".format(*row["ci"]) if row["ci"] else "" for method, row in found.items()}
            told = [f"{method} {row['value']:.2f}{intervals[method]}" for method, row in found.items()]
            lines.append(f"{title}: {', '.join(told)}")
    if report.sharpness:
        low, high = report.sharpness["range"]
        lines.append(f"label sharpness: {report.sharpness['value']:.4g} ({low:.4g} to {high:.4g} over {report.sharpness['draws']} draws)")
    return lines


def _read(path: str) -> Any:
    import json

    from retinue.errors import DataError

    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"audit: {path} cannot be read: {error.strerror}. Give the audit.json of another data set.") from error
    except ValueError as error:
        raise DataError(f"audit: {path} is no JSON: {error}. Give the audit.json of another data set.") from error


def _opened(source: str, names: list[str], given: dict[str, Any]) -> "tuple[Any, dict[str, nn.Module]]":
    """Open the data as the first model sees it, and load the models."""
    import retinue
    from retinue.cli.recipes import normalisation_of
    from retinue.engine.seeds import own_randomness

    runs = [name for name in names if (Path(name) / "config.json").is_file()]
    models: dict[str, Any] = {name: retinue.load(name) for name in runs}
    if models:
        seen = next(iter(models.values())).preprocessing
        like = ("input_size", "channels", "read_size", "resize", "interpolation", "mean", "std")
        given = {**given, **{name: getattr(seen, name) for name in like}}
    elif names:  # published weights want the images as they saw them
        given = {**given, **normalisation_of(names[0], given)}
    data = retinue.data.open(source, **given)
    for name in names:
        if name not in models:
            with own_randomness():
                seen = data.preprocessing
                shape: dict[str, Any] = {"num_classes": 0, "in_chans": seen.channels, "input_size": seen.input_size}
                models[name] = retinue.create_model(name, **shape, pretrained=True)
    return data, {name: models[name] for name in names}


def _curve(models: "dict[str, nn.Module]", data: Any) -> list[dict[str, float]] | None:
    """Measure runs that were trained on different numbers of images, where there are at least two and they know these classes."""
    import json

    import retinue

    rows = []
    for name, model in models.items():
        path = Path(name) / "config.json"
        if path.is_file() and getattr(model, "classes", None) == data.classes and len(data.test):
            images = json.loads(path.read_text(encoding="utf-8"))["data"]["images"]["train"]
            rows.append({"images": images, **{key: retinue.evaluate(model, data.test)[key] for key in ("loss", "top1")}})
    return rows if len({row["images"] for row in rows}) > 1 else None
