"""Push: every prototype becomes a patch of a training image of its class; prune: those whose neighbours are of other classes go."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from retinue.data import Split
from retinue.engine import evaluating
from retinue.errors import ArgumentError, DataError
from retinue.models.protopnet import Branch, ProtoPNet, Sources

log = logging.getLogger(__name__)
HOT = 0.95  # quantile of an enlarged map above which a pixel belongs to the part
PASS = 64  # images at a time where the field of the map's places is measured


class Pushed(NamedTuple):
    """One row of the table that `push` returns; boxes are (top, left, bottom, right) in pixels, the last two exclusive."""

    branch: str
    prototype: int
    label: int
    image: int
    name: str
    place: tuple[int, int]
    box: tuple[int, int, int, int]
    field: tuple[int, int, int, int]
    similarity: float


@torch.no_grad()
def push(network: ProtoPNet, split: Split, batch_size: int = 128) -> list[Pushed]:
    """Replace every prototype by the most similar patch among the training images of its class.

    Images are shown as they are, and the network is in evaluation mode. "Most similar" is by the cosine (by the distance for the similarity
    "log"); the prototype becomes the patch's vector, of length 1 where the cosine is used. Of equal patches the first image's is taken.

    Args:
        network: it is changed; the table stays in it, with small pictures, so that it can explain itself without the training data.
        split: training images.
        batch_size: images at a time.

    Returns:
        A row for each prototype; see `table`.

    Raises:
        DataError: if a class has no image.
    """
    missing = sorted(set(range(network.num_classes)) - set(split.labels.tolist()))
    if missing:
        names = ", ".join(split.classes[i] for i in missing[:5])
        raise DataError(f"push: there is no training image of {names}. Every prototype becomes a patch of its own class: add images.")
    device = network.rows.device
    with evaluating(network):
        if bool((network.rows < 0).any()):
            measure_fields(network)
        best: dict[str, list[Tensor]] = {}
        for batch in split.loader(batch_size, device=device).batches():
            features = network.forward_features(batch.images)
            for kind, branch in network.branches.items():
                z = branch.embed(features)
                near = branch.nearness(z).masked_fill(~branch.identity.T[batch.labels][:, :, None, None], -math.inf)
                found = _nearest(near, z, batch.indices)
                if kind in best:
                    better = found[0] > best[kind][0]
                    found = [torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(found, best[kind])]
                best[kind] = found
        for kind, branch in network.branches.items():
            similarity, images, places, vectors = best[kind]
            prototypes = vectors if branch.similarity == "log" else F.normalize(vectors, dim=1)
            branch.prototypes.copy_(prototypes)
            branch.place(prototypes, _sources(network, branch, split, similarity, images, places, batch_size))
    return table(network)


def table(network: ProtoPNet) -> list[Pushed]:
    """List where each prototype comes from.

    Raises:
        ArgumentError: if the network was not pushed.
    """
    rows = []
    for kind, branch in network.branches.items():
        if not branch.pushed:
            raise ArgumentError(
                "push: the prototypes of this network are no training patches yet. Run push(network, data.train) after training, or train "
                "by fit_prototypes."
            )
        sources = branch.sources()
        for i, label in enumerate(branch.owner.tolist()):
            place, box, field = (tuple(tensor[i].tolist()) for tensor in (sources.places, sources.boxes, sources.fields))
            similarity = float(sources.similarities[i])
            rows.append(Pushed(kind, i, label, int(sources.images[i]), sources.names[i], place, box, field, similarity))
    return rows


def hot_box(heat: Float[Tensor, "maps mapheight mapwidth"], size: tuple[int, int]) -> Int[Tensor, "maps 4"]:
    """Find the box around the hottest 5 percent of each map, after bicubic enlargement to a size in pixels.

    >>> heat = torch.zeros(1, 2, 2)
    >>> heat[0, 1, 0] = 1
    >>> hot_box(heat, (8, 8)).tolist()
    [[6, 0, 8, 2]]
    """
    large = F.interpolate(heat[:, None].float(), size=size, mode="bicubic", align_corners=False)[:, 0]
    level = large.flatten(1).quantile(HOT, dim=1)[:, None, None]
    hot = large >= level
    rows, columns = hot.any(2).long(), hot.any(1).long()
    bottom, right = (line.shape[1] - line.flip(1).argmax(1) for line in (rows, columns))
    return torch.stack([rows.argmax(1), columns.argmax(1), bottom, right], 1)


@torch.no_grad()
def measure_fields(network: ProtoPNet) -> None:
    """Measure which rows and columns of an image each place of the map depends on, and keep them in the network.

    One row of the image is made not a number, and so becomes every place that depends on it; exact, for any layers.
    """
    height, width = network.input_size
    like = network.rows
    with evaluating(network), plain_kernels():
        spoiled: list[list[Tensor]] = [[], []]
        for side, (length, found) in enumerate(zip((height, width), spoiled)):
            for lines in torch.arange(length, device=like.device).split(PASS):
                images = torch.zeros(len(lines), network.in_chans, height, width, device=like.device)
                at = torch.arange(len(lines), device=like.device)
                if side == 0:
                    images[at, :, lines] = torch.nan
                else:
                    images[at, :, :, lines] = torch.nan
                found.append(network.forward_features(images).isnan().any(1).any(2 - side))
    for buffer, found in zip((network.rows, network.columns), spoiled):
        depends = torch.cat(found).T.long()  # (places, pixels)
        buffer.copy_(torch.stack([depends.argmax(1), depends.shape[1] - depends.flip(1).argmax(1)], 1))


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Compute without oneDNN and cuDNN, whose convolutions may mix neighbouring places in passing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch itself warns of graphics cards that are not there
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


@torch.no_grad()
def prune(network: ProtoPNet, split: Split, k: int = 6, tau: int = 3, batch_size: int = 128) -> dict[str, Tensor]:
    """Remove every prototype of whose k nearest training patches fewer than tau are of its own class (ProtoPNet).

    Each image counts with its nearest patch. Retrain the last layer afterwards. Where a class would lose all its prototypes, the one with
    most neighbours of its class stays, which is said in the log.

    Args:
        network: it is changed; which class a prototype is of stands in each branch's `identity`.
        split: training images of all classes.
        k: neighbours looked at.
        tau: of which at least so many must be of the prototype's class.
        batch_size: images at a time.

    Returns:
        For each branch, which of its prototypes stayed.

    Raises:
        ArgumentError: unless 1 <= tau <= k <= number of images.
    """
    if not 1 <= tau <= k <= len(split):
        raise ArgumentError(f"prune: `tau` and `k` must fulfil 1 <= tau <= k <= {len(split)} images, got tau={tau} and k={k}.")
    near: dict[str, list[Tensor]] = {kind: [] for kind in network.branches}
    with evaluating(network):
        for batch in split.loader(batch_size, device=network.rows.device).batches():
            for kind, seen in network.see(batch.images).items():
                near[kind].append(seen.nearness)
    labels = split.labels.to(network.rows.device)
    kept = {}
    for kind, branch in network.branches.items():
        neighbours = torch.cat(near[kind]).topk(k, dim=0).indices
        of_own = (labels[neighbours] == branch.owner).sum(0)
        kept[kind] = of_own >= tau
        for label in range(network.num_classes):
            own = branch.identity[:, label]
            if not bool((kept[kind] & own).any()):
                stays = of_own.masked_fill(~own, -1).argmax()
                kept[kind][stays] = True
                log.warning(
                    'prune: no %s prototype of class "%s" has %d of %d neighbours of its class; the best one, with %d, stays.',
                    kind, split.classes[label], tau, k, int(of_own[stays]),
                )  # fmt: skip
    network.keep(kept)
    return kept


def _nearest(near: Tensor, z: Tensor, indices: Tensor) -> list[Tensor]:
    """Find for each prototype the best place of a batch: nearness, image, place, vector."""
    width = near.shape[3]
    value, position = near.flatten(2).max(2)  # (images, prototypes)
    value, image = value.max(0)
    position = position.gather(0, image[None])[0]
    places = torch.stack([position // width, position % width], 1)
    return [value, indices[image], places, z[image, :, places[:, 0], places[:, 1]]]


def _sources(
    network: ProtoPNet, branch: Branch, split: Split, similarity: Tensor, images: Tensor, places: Tensor, batch_size: int
) -> Sources:
    """Look at the chosen images again: boxes, names and small pictures."""
    seen, size = split.preprocessing, network.input_size
    side, small = branch.get_buffer("source_patches").shape[-1], branch.get_buffer("source_pictures").shape[-2:]
    boxes, patches, pictures = [], [], []
    for some in torch.arange(len(images), device=images.device).split(batch_size):
        pixels = seen.centre(split.images(images[some].cpu()))
        maps = branch(branch.embed(network.forward_features(seen.normalize(pixels).to(images.device)))).maps
        found = hot_box(maps[torch.arange(len(some)), some], size)
        boxes.append(found)
        pictures.append(_resized(pixels, (small[0], small[1])))
        patches += [_resized(image[None, :, t:b, l:r], (side, side)) for image, (t, l, b, r) in zip(pixels, found.tolist())]
    fields = torch.stack([network.rows[places[:, 0]], network.columns[places[:, 1]]], 2).flatten(1)
    names = [split.name(i) for i in images.tolist()]
    return Sources(images, places, torch.cat(boxes), fields, similarity, names, torch.cat(patches), torch.cat(pictures))


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring bytes to another size."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    larger = size[0] > pixels.shape[-2] or size[1] > pixels.shape[-1]
    mode = "nearest" if larger else "area"  # a small patch keeps its pixels
    return F.interpolate(pixels.float(), size=size, mode=mode).round().clamp(0, 255).byte()
