"""What fooled the classifier, to look at: the image of each class with its confidence, and how the confidence grew."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from retinue.data import Split
from retinue.errors import ArgumentError
from retinue.explain.fooling import FoolingResult
from retinue.plots.galleries import gallery as pictures
from retinue.plots.galleries import to_rgb
from retinue.plots.overlays import side_by_side

COLOURS = ("#2458ba", "#bd5009", "#24794f")


def nearest_real(result: FoolingResult, split: Split) -> tuple[Float[Tensor, "classes channels height width"], Float[Tensor, " classes"]]:
    """Find for each image the real image of its class that is nearest in pixels, and the Euclidean distance (values in [0, 1]).

    Args:
        result: what `fool` found.
        split: real images of the same classes and size, that fit in memory.

    Raises:
        ArgumentError: if a class has no image in the split.
    """
    real, labels = split.preprocessing.centre(split.images()).float() / 255, split.labels
    found, distances = [], []
    for image, one in zip(result.images, result.classes):
        own = real[labels == one]
        if not len(own):
            raise ArgumentError(f"nearest_real: the split has no image of class {one}. Take the training images.")
        distance = (own - image).flatten(1).norm(dim=1)
        found.append(own[distance.argmin()])
        distances.append(distance.min())
    return torch.stack(found), torch.stack(distances)


def gallery(
    result: FoolingResult,
    classes: Sequence[str] | None = None,
    *,
    beside: Float[Tensor, "classes channels height width"] | None = None,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Draw the image of each class, with the class and the classifier's confidence below.

    Args:
        result: what `fool` found.
        classes: names of the model's classes; None numbers them.
        beside: an image to show beside each, such as those of `nearest_real`.
        columns: images in a row; None makes rows of at most 8.
        title: over all of them; None says what the picture is.

    Raises:
        ArgumentError: if a class has no name.
    """
    if classes is not None and max(result.classes) >= len(classes):
        raise ArgumentError(f"gallery: there are {len(classes)} names and a class {max(result.classes)}. Give a name for each class.")
    names = [str(one) if classes is None else classes[one] for one in result.classes]
    captions = [f"{name}: {percent(float(p))}" for name, p in zip(names, result.confidence)]
    shown = [to_rgb(image) for image in result.images]
    if beside is not None:
        shown = [side_by_side(picture, to_rgb(other)) for picture, other in zip(shown, beside)]
    told = title or ("fooling images, each beside the nearest real one" if beside is not None else "fooling images")
    figure = pictures(shown, captions, columns=columns, title=told, width=1.6 if beside is None else 2.4)
    for axes in figure.axes[: len(shown)]:  # some of these images are white all over
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor="#8d929b", linewidth=0.8))
    return figure


def history(results: Mapping[str, FoolingResult] | FoolingResult) -> Figure:
    """Draw how sure the classifier became, generation by generation: the median over the classes, and half of them around it.

    Args:
        results: what `fool` found, or several such by name.

    Raises:
        ArgumentError: if there is no result.
    """
    named = {"": results} if isinstance(results, FoolingResult) else dict(results)
    if not named:
        raise ArgumentError("history: there is no result to draw.")
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes, least = figure.subplots(), 0.01
    for i, (name, result) in enumerate(named.items()):
        missing = 1 - result.history.numpy().clip(max=1 - 1e-7)
        low, middle, high = np.quantile(missing, [0.25, 0.5, 0.75], axis=0 if missing.ndim == 1 else 1)
        least = min(least, float(low.min()))
        rows, colour = range(len(middle)), COLOURS[i % len(COLOURS)]
        axes.plot(rows, middle, color=colour, label=name)
        axes.fill_between(rows, low, high, color=colour, alpha=0.2, linewidth=0)
    marks = [0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6]
    axes.set(yscale="log", yticks=marks, yticklabels=["50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"])
    axes.set_ylim(1, least / 2)
    axes.minorticks_off()
    axes.set(xlabel="generation", ylabel="confidence")
    axes.set_title("median confidence, and half of the classes around it", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    if any(named):
        axes.legend(frameon=False, fontsize="small")
    return figure


def percent(p: float) -> str:
    """Write a confidence so that what is missing to certainty can be seen.

    >>> percent(0.5), percent(0.99987), percent(1.0)
    ('50.0 %', '99.987 %', '> 99.9999 %')
    """
    if p > 1 - 1e-6:
        return "> 99.9999 %"
    digits = 1 if p < 0.99 else int(np.ceil(-np.log10(1 - p))) - 1
    return f"{100 * p:.{digits}f} %"
