"""How soon the command line answers, against the time that `import torch` takes."""

import os
import statistics
import subprocess
import sys
import time
from typing import Any

COMMANDS = {"retinue --help": ["--help"], "retinue systems": ["systems"], "retinue systems few labels": ["systems", "few", "labels"]}


def seconds(arguments: list[str]) -> float:
    """Time one process."""
    started = time.perf_counter()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "120"})
    return time.perf_counter() - started


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure each command beside `import torch`, in turn; medians."""
    ours = {
        name: [sys.executable, "-c", f"import sys, retinue.cli; sys.exit(retinue.cli.main({words!r}))"] for name, words in COMMANDS.items()
    }
    peer = [sys.executable, "-c", "import torch"]
    times: dict[str, list[float]] = {name: [] for name in [*ours, "torch"]}
    for number in range(3 if quick else 8):
        for name, command in {**ours, "torch": peer}.items():
            took = seconds(command)
            if number:  # the first round fills the disk's cache
                times[name].append(took)
    middle = {name: statistics.median(values) for name, values in times.items()}
    common = {"peer": middle["torch"], "unit": "s", "target": 0.3, "lower": True}
    return [{"name": f"{name} vs import torch", "ours": middle[name], "ratio": middle[name] / middle["torch"], **common} for name in ours]
