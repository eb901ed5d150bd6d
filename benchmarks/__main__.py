"""`python -m benchmarks [NAME ...] [--quick]`: measure, each beside its peer in the same run, and write the table benchmarks/RESULTS.md."""

import argparse
import importlib
import json
import os
import pkgutil
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RECORD = FOLDER / "results.json"


def names() -> list[str]:
    """List the benchmarks: the modules of this folder that have `run`."""
    return sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]) if module.name != "__main__" and not module.ispkg)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write all results as markdown; a ratio is ours over the peer's, in the unit of the row."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make benchmarks`: each row is measured beside its peer in the same run, medians of several. A ratio above 1 means more",
        "of the unit than the peer; for seconds, less is better. Other machines give other figures, and about the same ratios.",
    ]
    for name, result in results.items():
        lines += ["", f"## {name}", "", result["what"], "", f"{result['machine']}, {result['day']}.", ""]
        extra = [key for key in ("share_of_matmul_rate", "target") if any(key in row for row in result["rows"])]
        lines += [
            "| measured | ours | peer | unit | ratio |" + "".join(f" {key.replace('_', ' ')} |" for key in extra),
            "| --- |" * 1 + " --- |" * (4 + len(extra)),
        ]
        for row in result["rows"]:
            more = "".join(f" {_number(row[key], row) if key in row else ''} |" for key in extra)
            lines.append(f"| {row['name']} | {row['ours']:.4g} | {row['peer']:.4g} | {row['unit']} | {row['ratio']:.2f} |{more}")
    return "\n".join(lines) + "\n"


def _number(value: Any, row: dict[str, Any]) -> str:
    return f"{'<=' if row.get('lower') and value == row.get('target') else ''}{value:.2f}" if isinstance(value, int | float) else str(value)


def main() -> None:
    """Run the benchmarks named, or all, and put their rows in the place of earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names(), []], default=[])
    parser.add_argument("--quick", action="store_true", help="walk through in seconds, and write nothing")
    options = parser.parse_args()
    results = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for name in options.names or names():
        module = importlib.import_module(f"benchmarks.{name}")
        versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "timm"))
        machine = f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads, {versions}"
        what = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        results[name] = {"what": what, "machine": machine, "day": date.today().isoformat(), "rows": []}
        for row in module.run(quick=options.quick):
            results[name]["rows"].append(row)
            print(f"{row['name']}: {row['ours']:.4g}, {row['peer']:.4g} {row['unit']}, ratio {row['ratio']:.2f}", flush=True)
            if not options.quick:
                RECORD.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
                (FOLDER / "RESULTS.md").write_text(table(dict(sorted(results.items()))))


if __name__ == "__main__":
    main()
