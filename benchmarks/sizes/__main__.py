"""`python -m benchmarks.sizes [--quick] [--only SYSTEM ...] [--folder DIR]`: accuracy, parameters and milliseconds of every size.

One data set and one budget for all systems that change sizes; what `docs/sizes.md` shows is made of `docs/sizes.json`, which this writes.
Accuracy is that on test images, looked at once; milliseconds are of one image on one thread, measured alone at the end.
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

import retinue
from benchmarks.sizes.systems import PARENT, SIDE, SYSTEMS, Rows, Study, run
from retinue.models import count_macs

ROOT = Path(__file__).resolve().parents[2]


def milliseconds(networks: list[nn.Module]) -> list[float]:
    """Time one image through each, in turn, on one thread: the median of many rounds."""
    torch.set_num_threads(1)
    x, times = torch.randn(1, 3, SIDE, SIDE), [[] for _ in networks]  # type: ignore[var-annotated]
    with torch.no_grad():
        for turn in range(300):
            for network, own in zip(networks, times):
                started = time.perf_counter()
                network(x)
                own.append(time.perf_counter() - started) if turn >= 5 else None
    return [1000 * statistics.median(own) for own in times]


def measured(rows: Rows, study: Study) -> Rows:
    """Add accuracy on test images, parameters, multiply-adds and milliseconds to each row."""
    networks = [retinue.load(study.folder / row["folder"]).eval() for row in rows]
    for row, network, ms in zip(rows, networks, milliseconds(networks)):
        row.setdefault("parameters", sum(parameter.numel() for parameter in network.parameters()))
        row |= {"macs": count_macs(network, SIDE), "ms": ms, "top1": retinue.evaluate(network, study.data.test)["top1"]}
        del row["folder"]
    return rows


def draw(rows: Rows, path: Path) -> None:
    """Draw accuracy against parameters and against milliseconds, a colour for each system."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = picture.subplots(1, 2, sharey=True)
    for i, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        own = [row for row in rows if row["system"] == system]
        plain = {"from scratch, CNN": "black", "from scratch, ViT": "darkgrey"}.get(system)
        for axes, key, scale in ((left, "parameters", 1e-3), (right, "ms", 1.0)):
            points = sorted((row[key] * scale, 100 * row["top1"]) for row in own)
            axes.plot(
                *zip(*points), marker="o" if plain else "s", markersize=5, linestyle="--" if plain else "-", linewidth=1,
                color=plain or ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:cyan")[i % 6], label=system,
            )  # fmt: skip
    left.set(xscale="log", xlabel="stored parameters, thousands", ylabel="test accuracy, %")
    left.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
    right.set(xlabel="milliseconds for an image")
    for axes in (left, right):
        axes.grid(alpha=0.2)
    picture.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    picture.savefig(path, dpi=110)


def main() -> None:
    """Run the study and write what docs/sizes.md is made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="walk through, and write nothing into docs")
    parser.add_argument("--only", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, default=Path("runs/sizes"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    jobs = [(name, options.folder, options.quick) for name in options.only]
    with ProcessPoolExecutor(options.workers, mp_context=torch.multiprocessing.get_context("spawn")) as workers:
        found = dict(workers.map(run, jobs))
    study = Study(options.folder, options.quick)
    rows = measured([row for name in sorted(found, key=lambda name: name != "scratch") for row in found[name]], study)
    told = {
        "data": study.data.name, "side": SIDE, "train": len(study.data.train), "test": len(study.data.test), "budget": study.budget,
        "epochs": study.epochs, "parent": PARENT, "machine": f"{os.cpu_count()} cores, torch {torch.__version__}", "rows": rows,
    }  # fmt: skip
    target = options.folder if options.quick else ROOT / "docs"
    (target / "images").mkdir(parents=True, exist_ok=True)
    (target / "sizes.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(rows, target / "images" / "sizes.png")
    for row in rows:
        print(f"{row['system']:20} {row['size']:14} {row['parameters']:8,.0f} {row['ms']:6.2f} ms {100 * row['top1']:5.1f} %")


if __name__ == "__main__":
    main()
