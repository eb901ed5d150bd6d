"""Which classes a classifier takes for which."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from retinue.errors import ShapeError

NUMBERED = 24  # classes up to which cells have numbers and rows have names


def confusion(matrix: Int[Tensor, "classes classes"], classes: Sequence[str] | None = None) -> Figure:
    """Draw a confusion matrix: right answers blue, wrong ones orange, the deeper the larger their share of the row.

    Args:
        matrix: images by label (row) and predicted class (column), as from `retinue.metrics.confusion_matrix`.
        classes: names of the classes; None numbers them.

    Raises:
        ShapeError: if there are not as many names as rows.

    >>> import torch
    >>> figure = confusion(torch.tensor([[9, 1], [0, 10]]), classes=["cat", "dog"])
    """
    names = [str(i) for i in range(len(matrix))] if classes is None else list(classes)
    if len(names) != len(matrix):
        raise ShapeError(f"confusion: the matrix has {len(matrix)} rows and there are {len(names)} names. Give a name for each class.")
    counts = matrix.numpy()
    shares = np.sqrt(counts / counts.sum(1, keepdims=True).clip(min=1))  # the root lifts rare mistakes into sight
    right = np.eye(len(counts), dtype=bool)
    numbered = len(counts) <= NUMBERED
    side = max(3.6, 0.42 * len(counts)) if numbered else 7.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    for where, colour in ((right, "#2458ba"), (~right, "#bd5009")):
        ramp = LinearSegmentedColormap.from_list("", ["#ffffff", colour])
        axes.imshow(np.ma.masked_array(shares, ~where), cmap=ramp, vmin=0, vmax=1)
    if numbered:
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) <= 3 else 90)
        axes.set_yticks(range(len(names)), names)
        for i, j in zip(*counts.nonzero()):
            axes.text(j, i, counts[i, j], ha="center", va="center", fontsize="small", color="white" if shares[i, j] > 0.6 else "black")
    axes.set_xlabel("what the model says")
    axes.set_ylabel("what it is")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure
