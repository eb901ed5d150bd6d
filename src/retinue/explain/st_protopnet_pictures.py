"""Why a network of part prototypes says what it says: "this part looks like that training patch", as rows and as pictures."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from retinue.engine import evaluating
from retinue.errors import ArgumentError, ShapeError
from retinue.explain.st_protopnet_push import Pushed, hot_box, table
from retinue.models.protopnet import ProtoPNet
from retinue.plots.galleries import gallery as grid
from retinue.plots.galleries import to_rgb
from retinue.plots.overlays import overlay

COLOURS = {"plain": "tab:orange", "trivial": "tab:orange", "support": "tab:cyan"}


class Part(NamedTuple):
    """A part of an image and the training patch that it looks like.

    Attributes:
        source: where the prototype comes from.
        similarity: activation of the prototype.
        weight: of the prototype for the predicted class.
        contribution: similarity times weight: what the prototype adds to the logit.
        box: the part (top, left, bottom, right) in pixels, the last two exclusive.
        heat: the prototype's map at the image's size, from 0 to 1.
    """

    source: Pushed
    similarity: float
    weight: float
    contribution: float
    box: tuple[int, int, int, int]
    heat: Float[Tensor, "height width"]


@torch.no_grad()
def explain(network: ProtoPNet, images: Float[Tensor, "batch channels height width"], top: int = 5) -> list[list[Part]]:
    """List for each image the prototypes that speak most for the class that is predicted.

    Args:
        network: whose prototypes are training patches.
        images: normalised.
        top: parts of each image, of both branches together.

    Returns:
        For each image its parts, that with the largest contribution first.

    Raises:
        ArgumentError: if the network was not pushed, or `top` is below 1.
    """
    if top < 1:
        raise ArgumentError(f"explain: `top` must be at least 1, got {top}.")
    sources = table(network)
    with evaluating(network):
        seen = network.see(images)
    predicted = torch.stack([one.logits for one in seen.values()]).sum(0).argmax(1)
    activations = torch.cat([one.activations for one in seen.values()], 1)
    weights = torch.cat([branch.last.weight for branch in network.branches.values()], 1)[predicted]
    maps = torch.cat([one.maps for one in seen.values()], 1)
    contributions = activations * weights
    chosen = contributions.topk(min(top, contributions.shape[1]), dim=1).indices
    told = []
    for i, rows in enumerate(chosen):
        size = (images.shape[-2], images.shape[-1])
        boxes = hot_box(maps[i, rows], size).tolist()
        heat = F.interpolate(maps[i, rows][:, None].float(), size=size, mode="bicubic", align_corners=False)[:, 0]
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        heat = ((heat - low) / (high - low).clamp(min=1e-12)).cpu()
        told.append([
            Part(
                sources[row], float(activations[i, row]), float(weights[i, row]), float(contributions[i, row]), tuple(boxes[n]), heat[n]
            )
            for n, row in enumerate(rows.tolist())
        ])  # fmt: skip
    return told


def figures(
    model: nn.Module, images: UInt8[Tensor, "batch channels height width"], names: Sequence[str], top: int = 4
) -> Iterator[tuple[str, Figure]]:
    """Draw for each image which of its parts look like which training patches; the model carries all that is shown beside the image.

    Args:
        model: a pushed network of prototypes, from `retinue.load` or `fit_prototypes`.
        images: not normalised, at the model's size.
        names: what to call each.
        top: parts of each image.

    Yields:
        The image's name and its figure: a row for each part.

    Raises:
        ArgumentError: if the model is no such network, does not know its classes, or there is another number of names.
        ShapeError: if the images are not of the model's size.
    """
    network: Any = model
    if not isinstance(model, ProtoPNet) or not hasattr(model, "preprocessing"):
        raise ArgumentError(
            f"st_protopnet: the model must be a ProtoPNet or STProtoPNet that knows its classes and preprocessing, got "
            f"{type(model).__name__}. Take it from retinue.load(run_dir)."
        )
    if len(names) != len(images):
        raise ArgumentError(f"st_protopnet: there are {len(images)} images and {len(names)} names. Give one for each.")
    if tuple(images.shape[1:]) != (network.in_chans, *network.input_size):
        raise ShapeError(
            f"st_protopnet: `images` must be of shape {(len(images), network.in_chans, *network.input_size)}, got {tuple(images.shape)}."
        )
    device = network.rows.device
    for image, name in zip(images, names):
        x = network.preprocessing.normalize(image[None].to(device))
        parts = explain(network, x, top)[0]
        with torch.no_grad(), evaluating(network):
            shares = network.probabilities(x)[0]
            predicted = int(network(x)[0].argmax())
        title = f"{name}\n{network.classes[predicted]}: {100 * float(shares[predicted]):.1f} %"
        yield name, picture(network, image, parts, title)


def gallery(model: nn.Module, most: int = 96) -> Figure:
    """Draw the training images whose patches are the prototypes, each with the patch in a frame, its class and its file.

    Args:
        model: a pushed network of prototypes, from `retinue.load` or `fit_prototypes`.
        most: patches drawn; where there are more, each class has about as many.

    Raises:
        ArgumentError: if the network was not pushed.
    """
    network: Any = model
    rows = sorted(table(network), key=lambda row: row.label)
    rows = rows[:: -(-len(rows) // most)]
    kept = {kind: branch.sources().pictures for kind, branch in network.branches.items()}
    classes = getattr(network, "classes", [str(i) for i in range(network.num_classes)])
    captions = [f"{classes[row.label]}{'' if row.branch == 'plain' else ', ' + row.branch}\n{_short(row.name, 18)}" for row in rows]
    shown = [kept[row.branch][row.prototype] for row in rows]
    figure = grid(shown, captions, columns=12, title="prototypes: the framed patches of these training images", width=1.1)
    for axis, row, small in zip(figure.axes, rows, shown):
        down, across = small.shape[-2] / network.input_size[0], small.shape[-1] / network.input_size[1]
        axis.add_patch(Rectangle(
            (row.box[1] * across - 0.5, row.box[0] * down - 0.5), (row.box[3] - row.box[1]) * across, (row.box[2] - row.box[0]) * down,
            fill=False, edgecolor=COLOURS[row.branch], linewidth=2,
        ))  # fmt: skip
    return figure


def picture(network: ProtoPNet, image: UInt8[Tensor, "channels height width"], parts: Sequence[Part], title: str) -> Figure:
    """Draw an image's parts beside the training patches that they look like: a row for each part.

    Args:
        network: pushed.
        image: not normalised.
        parts: of `explain`.
        title: over all of it.

    Returns:
        The figure. A frame is drawn around each part, and a dotted one around all pixels on which the training patch's vector depends,
        where these are not the whole image.
    """
    network_classes = getattr(network, "classes", [str(i) for i in range(network.num_classes)])
    kept = {kind: branch.sources() for kind, branch in network.branches.items()}
    height, width = network.input_size
    figure = Figure(figsize=(8.6, 0.75 + 2.05 * len(parts)), layout="constrained")
    axes = figure.subplots(len(parts), 4, squeeze=False)
    heads = ("this part of the image ...", "(where it is found)", "... looks like this patch", "of this training image")
    for axis, head in zip(axes[0], heads):
        axis.set_title(head, fontsize=9)
    for row, part in zip(axes, parts):
        source, colour = part.source, COLOURS[part.source.branch]
        patch, small = kept[source.branch].patches[source.prototype], kept[source.branch].pictures[source.prototype]
        row[0].imshow(to_rgb(image), interpolation="nearest")
        row[0].add_patch(_frame(part.box, colour))
        row[1].imshow(overlay(image, part.heat), interpolation="nearest")
        row[1].add_patch(_frame(part.box, colour))
        top, left, bottom, right = source.box
        row[2].imshow(to_rgb(patch), interpolation="nearest", extent=(left, right, bottom, top), aspect="equal")
        row[3].imshow(to_rgb(small), interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="equal")
        row[3].add_patch(_frame(source.box, colour))
        if source.field != (0, 0, height, width):  # what the patch's vector depends on
            row[3].add_patch(_frame(source.field, colour, linestyle=":"))
        kind = "" if source.branch == "plain" else f"{source.branch}, "
        row[0].set_xlabel(f"{kind}class {network_classes[source.label]}", fontsize=8)
        row[1].set_xlabel(f"similarity {part.similarity:.2f}", fontsize=8)
        row[2].set_xlabel(f"x weight {part.weight:.2f} = {part.contribution:+.2f}", fontsize=8)
        row[3].set_xlabel(_short(source.name, 32), fontsize=8)
        for axis in row:
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def _short(name: str, most: int) -> str:
    """Leave out the beginning of a long name."""
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _frame(box: tuple[int, int, int, int], colour: str, linestyle: str = "-") -> Rectangle:
    """Outline the pixels of a box."""
    top, left, bottom, right = box
    return Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=2, linestyle=linestyle)
