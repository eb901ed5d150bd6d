"""Can a heat map be trusted? Deletion and insertion, localisation against masks, average drop, and whether it follows the weights.

Each measure gives one number an image; `summarize` makes mean and standard error of them. Heat maps of any origin can be measured.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from retinue.engine.modes import evaluating
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.explain.grad_cam import labels
from retinue.models.untrained import forget

Fill = Literal["mean", "blur"] | float
Classes = int | Sequence[int] | Tensor | None
Explainer = Callable[[nn.Module, Tensor, Tensor], Tensor]
POINTING_TOLERANCE = 15 / 224  # of the longer side (Zhang et al. 2016, arXiv 1608.00507, section 4.1)
BLUR = 5 / 224  # standard deviation, of the longer side (Petsiuk et al. 2018, arXiv 1806.07421, as their code has it)
LEAST_BLUR = 2.0  # pixels; less would not hide anything in a small image


def deletion_auc(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    maps: Float[Tensor, "batch height width"],
    target: Classes = None,
    *,
    steps: int = 50,
    fill: Fill = "mean",
    batch_size: int = 256,
) -> Float[Tensor, " batch"]:
    """Compute the area under the class's probability while the pixels are removed, hottest first; lower is better.

    Arguments and errors are those of `curve`.
    """
    return area(curve(model, images, maps, target, "deletion", steps=steps, fill=fill, batch_size=batch_size))


def insertion_auc(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    maps: Float[Tensor, "batch height width"],
    target: Classes = None,
    *,
    steps: int = 50,
    fill: Fill = "blur",
    batch_size: int = 256,
) -> Float[Tensor, " batch"]:
    """Compute the area under the class's probability while the pixels are brought back, hottest first; higher is better.

    Arguments and errors are those of `curve`.
    """
    return area(curve(model, images, maps, target, "insertion", steps=steps, fill=fill, batch_size=batch_size))


def curve(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    maps: Float[Tensor, "mapbatch mapheight mapwidth"],
    target: Classes = None,
    kind: Literal["deletion", "insertion"] = "deletion",
    *,
    steps: int = 50,
    fill: Fill = "mean",
    batch_size: int = 256,
) -> Float[Tensor, "batch points"]:
    """Compute the class's probability after each step in which pixels are removed or brought back (Petsiuk et al. 2018, section 3.3).

    Args:
        model: a classifier that gives logits.
        images: as the network takes them.
        maps: their heat maps.
        target: the class, or one for each image; None takes what is predicted for the whole image.
        kind: "deletion" removes the hottest pixels first, "insertion" brings them back first.
        steps: number of equal steps from none of the pixels to all.
        fill: what stands in the place of a missing pixel: "mean" is the mean of each channel over the images given, "blur" is a blurred
            copy of the image, and a number is that value: after normalisation 0 is the data's mean (grey, not black).
        batch_size: images at a time; all images and steps are run together.

    Returns:
        Probabilities at 0, 1/steps, ..., 1. Of pixels that are equally hot, the first in reading order goes first.

    Raises:
        ArgumentError: if `steps` is below 1, `fill` or `kind` is unknown, or the target is no class.
        ShapeError: if the maps are not of the images' size.
    """
    if steps < 1:
        raise ArgumentError(f"{kind}: `steps` must be at least 1, got {steps}. 50 is usual.")
    if kind not in ("deletion", "insertion"):
        raise unknown("curve", "kind", kind, ("deletion", "insertion"))
    _check_size(kind, "maps", maps, images)
    filler = _filler(images, fill)
    pixels = maps[0].numel()
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand_as(order)).view_as(maps)
    counts = torch.tensor([round(step / steps * pixels) for step in range(steps + 1)], device=maps.device)
    found = []
    with torch.no_grad(), evaluating(model):
        classes = labels(torch.cat([model(part) for part in images.split(batch_size)]), target, kind)
        for points in torch.arange(len(images) * (steps + 1), device=maps.device).split(batch_size):
            image, step = points // (steps + 1), points % (steps + 1)
            hot = (rank[image] < counts[step, None, None])[:, None]
            kept, other = (filler[image], images[image]) if kind == "deletion" else (images[image], filler[image])
            outputs = model(torch.where(hot, kept, other))
            found.append(probability(outputs, classes[image], kind))
    return torch.cat(found).view(len(images), steps + 1)


def area(curves: Float[Tensor, "batch points"]) -> Float[Tensor, " batch"]:
    """Compute the area under each curve over [0, 1] by the trapezoid rule.

    >>> area(torch.tensor([[0.9, 0.6, 0.3, 0.2, 0.1]]))
    tensor([0.4000])
    """
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def probability(outputs: Tensor, target: Classes, where: str = "probability") -> Float[Tensor, " batch"]:
    """Compute the probability of a class from logits: softmax, or sigmoid where there is one logit (of class 0, what is left to 1)."""
    classes = labels(outputs, target, where)
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        logits = outputs.reshape(len(outputs)).float()
        return torch.where(classes == 1, logits, -logits).sigmoid()
    return outputs.float().softmax(1).gather(1, classes[:, None])[:, 0]


def pointing_game(
    maps: Float[Tensor, "batch height width"], masks: Shaped[Tensor, "maskbatch maskheight maskwidth"], tolerance: float | None = None
) -> Float[Tensor, " batch"]:
    """Tell for each image whether the hottest pixel lies in the mask: 1 or 0 (Zhang et al. 2016, section 4.1).

    Args:
        maps: heat maps; of equally hot pixels the first in reading order counts, and a map of zeros misses.
        masks: where the object is: bool, or positive.
        tolerance: pixels by which it may lie outside; None is 15 at a side of 224, scaled with the longer side.

    Returns:
        1 or 0; not a number where the mask is empty, which is warned of.

    Raises:
        ShapeError: if the masks are not of the maps' size.
    """
    inside, empty = _masks("pointing_game", maps, masks)
    height, width = maps.shape[1:]
    radius = POINTING_TOLERANCE * max(height, width) if tolerance is None else tolerance
    hottest = maps.flatten(1).argmax(1)
    rows = torch.arange(height, device=maps.device)[None, :, None] - (hottest // width)[:, None, None]
    columns = torch.arange(width, device=maps.device)[None, None, :] - (hottest % width)[:, None, None]
    hit = (inside & (rows**2 + columns**2 <= radius**2)).flatten(1).any(1) & (maps.flatten(1).amax(1) > 0)
    return _skipping(hit.float(), empty)


def energy_in_mask(
    maps: Float[Tensor, "batch height width"], masks: Shaped[Tensor, "maskbatch maskheight maskwidth"]
) -> Float[Tensor, " batch"]:
    """Compute the share of the heat that lies in the mask, sum(M * mask) / sum(M); 0 for a map of zeros.

    Arguments and errors are those of `pointing_game`.
    """
    inside, empty = _masks("energy_in_mask", maps, masks)
    total = maps.sum((1, 2))
    return _skipping((maps * inside).sum((1, 2)) / torch.where(total > 0, total, 1), empty)


def iou(
    maps: Float[Tensor, "batch height width"],
    masks: Shaped[Tensor, "maskbatch maskheight maskwidth"],
    level: float = 0.5,
    box: bool = False,
) -> Float[Tensor, " batch"]:
    """Compute the intersection over union of the hot region with the mask.

    Args:
        maps: heat maps; one of zeros has no hot region.
        masks: as in `pointing_game`.
        level: the hot region is where a map reaches this share of its maximum, in (0, 1].
        box: compare with the mask's bounding box instead.

    Raises:
        ArgumentError: if `level` lies outside (0, 1].
        ShapeError: if the masks are not of the maps' size.
    """
    if not 0 < level <= 1:
        raise ArgumentError(f"iou: `level` must lie in (0, 1], got {level}. It is a share of each map's maximum; 0.5 is usual.")
    inside, empty = _masks("iou", maps, masks)
    if box:
        inside = _from_first_to_last(inside.any(2))[:, :, None] & _from_first_to_last(inside.any(1))[:, None, :]
    peak = maps.amax((1, 2), keepdim=True)
    hot = (maps >= level * peak) & (peak > 0)
    union = (hot | inside).sum((1, 2))
    return _skipping((hot & inside).sum((1, 2)) / union.clamp(min=1), empty)


class Drop(NamedTuple):
    """What happens to each image's probability when the image is multiplied by its map, in percent."""

    drop: Float[Tensor, " batch"]
    increase: Float[Tensor, " batch"]


def average_drop(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    maps: Float[Tensor, "mapbatch mapheight mapwidth"],
    target: Classes = None,
) -> Drop:
    """Compute how much of the class's probability is lost when only the hot region is shown (Chattopadhay et al. 2018, section 4.1).

    Args:
        model: a classifier that gives logits.
        images: as the network takes them.
        maps: their heat maps, in [0, 1].
        target: as in `curve`.

    Returns:
        `drop`: 100 max(0, Y - O) / Y, lower is better; `increase`: 100 where O > Y, else 0, higher is better; Y is the probability for the
        image and O that for image times map.

    Raises:
        ArgumentError: if the target is no class.
        ShapeError: if the maps are not of the images' size.
    """
    _check_size("average_drop", "maps", maps, images)
    with torch.no_grad(), evaluating(model):
        outputs = model(images)
        classes = labels(outputs, target, "average_drop")
        whole, part = probability(outputs, classes), probability(model(images * maps[:, None]), classes)
    lost = (whole - part).clamp(min=0) / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    return Drop(100 * lost, 100 * (part > whole).float())


def sanity_check(
    model: nn.Module,
    explainer: Explainer,
    images: Float[Tensor, "batch channels height width"],
    target: Classes = None,
    *,
    stages: int = 8,
    seed: int = 0,
) -> dict[str, Float[Tensor, " batch"]]:
    """Initialise the network anew from the top down, and correlate each stage's maps with the trained network's (Adebayo et al. 2018).

    A map of which the correlation does not fall ignores the weights, and explains nothing. Where a layer cannot initialise itself, its
    values are shuffled. Layers count from the last to the first in the order in which the network defines them.

    Args:
        model: the trained network; it is copied, and not changed.
        explainer: called as explainer(model, images, classes), gives the maps; `heat_maps` is one.
        images: as the network takes them.
        target: as in `curve`; the same classes are explained at all stages.
        stages: in how many steps the network is lost.
        seed: of the initialisation.

    Returns:
        For each stage, under the name of the lowest layer that is new: Spearman's rank correlation for each image, and 0 for a map that is
        the same everywhere.

    Raises:
        ArgumentError: if `stages` is below 1, or the target is no class.
    """
    if stages < 1:
        raise ArgumentError(f"sanity_check: `stages` must be at least 1, got {stages}.")
    with torch.no_grad(), evaluating(model):
        classes = labels(model(images), target, "sanity_check")
    trained = explainer(model, images, classes)
    spoiled = copy.deepcopy(model)
    owners = [(name, part) for name, part in spoiled.named_modules() if list(part.parameters(recurse=False))][::-1]
    ends = [round((stage + 1) * len(owners) / min(stages, len(owners))) for stage in range(min(stages, len(owners)))]
    found, start = {}, 0
    with own_randomness():
        seed_all(seed)
        for end in ends:
            for _, part in owners[start:end]:
                forget(part)
            name = owners[end - 1][0] or type(model).__name__
            found[name], start = spearman(trained, explainer(spoiled, images, classes)), end
    return found


def spearman(a: Float[Tensor, "batch height width"], b: Float[Tensor, "batch height width"]) -> Float[Tensor, " batch"]:
    """Compute the rank correlation of two maps for each image, equal values sharing their mean rank; 0 where a map is constant."""
    x, y = (_ranks(maps.flatten(1)) for maps in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    spread = x.norm(dim=1) * y.norm(dim=1)
    return (torch.where(spread > 0, (x * y).sum(1) / spread, 0.0)).float()


class Summary(NamedTuple):
    """Mean and standard error over the images that count, their number, and how many were skipped."""

    mean: float
    error: float
    images: int
    skipped: int


def summarize(values: Float[Tensor, " batch"]) -> Summary:
    """Average a measure over the images; those that are not a number (empty masks) are left out and counted.

    >>> summarize(torch.tensor([1.0, 0.0, torch.nan]))
    Summary(mean=0.5, error=0.5, images=2, skipped=1)
    """
    kept = values[~values.isnan()].double()
    count = len(kept)
    return Summary(
        float(kept.mean()) if count else math.nan,
        float(kept.std() / math.sqrt(count)) if count > 1 else math.nan,
        count,
        len(values) - count,
    )


def _filler(images: Tensor, fill: Fill) -> Tensor:
    if isinstance(fill, int | float):
        return torch.full_like(images, fill)
    if fill == "mean":
        return images.mean((0, 2, 3), keepdim=True).expand_as(images)
    if fill != "blur":
        raise unknown("curve", "`fill`", fill, ("mean", "blur"), "Or give a number.")
    sigma = max(LEAST_BLUR, BLUR * max(images.shape[-2:]))
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in images.shape[-2:]))
    return TF.gaussian_blur(images, [2 * reach + 1] * 2, [sigma, sigma])


def _check_size(where: str, what: str, given: Tensor, images: Tensor) -> None:
    wanted = (len(images), *images.shape[-2:])
    if tuple(given.shape) != wanted:
        raise ShapeError(f"{where}: `{what}` must be of shape {wanted}, one for each image and of its size, got {tuple(given.shape)}.")


def _masks(where: str, maps: Tensor, masks: Tensor) -> tuple[Bool[Tensor, "batch height width"], Bool[Tensor, " batch"]]:
    _check_size(where, "masks", masks, maps)
    inside = masks > 0
    empty = ~inside.flatten(1).any(1)
    if bool(empty.any()):
        warnings.warn(f"{where}: {int(empty.sum())} of {len(masks)} masks are empty; these items are skipped (not a number).", stacklevel=3)
    return inside, empty


def _skipping(values: Tensor, empty: Tensor) -> Tensor:
    return torch.where(empty, torch.nan, values.float())


def _from_first_to_last(line: Bool[Tensor, "batch places"]) -> Bool[Tensor, "batch places"]:
    forth = line.long().cumsum(1)
    back = line.flip(1).long().cumsum(1).flip(1)
    return (forth > 0) & (back > 0)


def _ranks(values: Float[Tensor, "batch places"]) -> Float[Tensor, "batch places"]:
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values.contiguous())
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to).double() / 2
