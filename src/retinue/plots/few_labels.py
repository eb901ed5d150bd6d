"""Accuracy against the number of labels, of a pre-trained network and of one from scratch."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from retinue.errors import ArgumentError
from retinue.plots.curves import COLOURS

NAMES = {"knn": "nearest neighbours", "linear": "linear probe", "finetune": "fine-tuning"}


def few_labels(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw what `retinue.train.probe` returns: a chart for each method, a line for each network.

    Args:
        table: for each "METHOD, SHARE %", top-1 of some networks by name, and "images".

    Raises:
        ArgumentError: if the table is empty.

    >>> figure = few_labels({"knn, 1 %": {"pre-trained": 0.5, "images": 10}, "knn, 10 %": {"pre-trained": 0.7, "images": 100}})
    >>> figure.axes[0].get_title(loc="left")
    'nearest neighbours'
    """
    methods = list(dict.fromkeys(name.split(",")[0] for name in table))
    if not methods:
        raise ArgumentError("few_labels: the table is empty. Give what retinue.train.probe returns.")
    figure = Figure(figsize=(1.2 + 3.6 * len(methods), 3.2), layout="constrained")
    places = list(figure.subplots(1, len(methods), sharey=True, squeeze=False)[0])
    for axes, method in zip(places, methods):
        rows = [row for name, row in table.items() if name.split(",")[0] == method]
        for i, network in enumerate(name for name in rows[0] if name != "images"):
            points = [(row["images"], 100 * row[network]) for row in rows]
            axes.plot(*zip(*points), marker="o", color=COLOURS[i % len(COLOURS)], label=network)
        axes.set_xscale("log")
        counts = [row["images"] for row in rows]
        axes.set_xticks(counts, labels=[f"{count:.0f}" for count in counts])
        axes.minorticks_off()
        axes.set_title(NAMES.get(method, method), loc="left")
        axes.set_xlabel("labelled images")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    places[0].set_ylabel("top-1, %")
    places[0].legend(frameon=False, fontsize="small")
    return figure
