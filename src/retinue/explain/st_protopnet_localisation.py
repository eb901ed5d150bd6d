"""Do the prototypes look at the object? Four measures of part localisation against masks (ST-ProtoPNet, section 4)."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from retinue.engine import evaluating
from retinue.errors import ArgumentError, ShapeError
from retinue.explain.faithfulness import deletion_auc, iou, summarize
from retinue.models.protopnet import ProtoPNet

DELETION_STEPS = 28  # the paper removes 8 * 224 of 224 * 224 pixels at a time


@torch.no_grad()
def class_heat(
    network: ProtoPNet, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, "batch height width"]:
    """Compute where a class's prototypes are active: the mean of their maps and of the branches, enlarged, from 0 to 1.

    Args:
        network: with prototypes.
        images: normalised.
        labels: the class of each image.

    Returns:
        Heat in [0, 1]; 0 everywhere where the map is the same everywhere.
    """
    with evaluating(network):
        seen = network.see(images)
    each = []
    for kind, one in seen.items():
        own = network.branches[kind].identity.T[labels].to(one.maps.dtype)
        each.append(torch.einsum("bmhw,bm->bhw", one.maps, own) / own.sum(1)[:, None, None])
    heat = torch.stack(each).mean(0)[:, None].float()
    heat = F.interpolate(heat, size=images.shape[-2:], mode="bicubic", align_corners=False)[:, 0]
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return torch.where(high > low, (heat - low) / (high - low).clamp(min=torch.finfo(heat.dtype).tiny), 0.0)


def content_heat(
    heat: Float[Tensor, "batch height width"], masks: Shaped[Tensor, "maskbatch maskheight maskwidth"]
) -> Float[Tensor, " batch"]:
    """Compute CH, the mean heat inside the mask; not a number where the mask is empty. Higher is better.

    Raises:
        ShapeError: if the masks are not of the maps' size.
    """
    inside = _inside("content_heat", heat, masks)
    return (heat * inside).sum((1, 2)) / inside.sum((1, 2))


def outside_inside_ratio(
    heat: Float[Tensor, "batch height width"], masks: Shaped[Tensor, "maskbatch maskheight maskwidth"]
) -> Float[Tensor, " batch"]:
    """Compute OIRR, the mean heat outside over the mean heat inside; lower is better.

    Returns:
        The ratio; infinite where there is no heat inside, and not a number where the mask is empty or the whole image.

    Raises:
        ShapeError: if the masks are not of the maps' size.
    """
    inside = _inside("outside_inside_ratio", heat, masks)
    outer = (heat * ~inside).sum((1, 2)) / (~inside).sum((1, 2))
    return outer / ((heat * inside).sum((1, 2)) / inside.sum((1, 2)))


def localisation(
    network: ProtoPNet,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    masks: Shaped[Tensor, "maskbatch maskheight maskwidth"],
    *,
    steps: int = DELETION_STEPS,
    batch_size: int = 64,
) -> dict[str, float]:
    """Measure over images with masks of their objects how well the prototypes of their classes find them.

    Args:
        network: with prototypes.
        images: normalised.
        labels: their classes.
        masks: where the object is: bool, or positive; at the images' size.
        steps: of the deletion.
        batch_size: images at a time.

    Returns:
        "CH" (mean heat inside the mask), "OIRR" (heat outside over heat inside), "IoU" (of heat from 0.5 on with the mask), "DAUC" (area
        under the predicted class's probability while the hottest pixels are set to 0), each a mean over the images with a mask that is
        not empty; "skipped" is the number of the others.

    Raises:
        ArgumentError: if there is no image.
        ShapeError: if the masks are not of the images' size.
    """
    if not len(images):
        raise ArgumentError("localisation: there is no image. Give images with masks.")
    if tuple(masks.shape) != (len(images), *images.shape[-2:]):
        raise ShapeError(
            f"localisation: `masks` must be of shape {(len(images), *images.shape[-2:])}, one for each image and of its size, got "
            f"{tuple(masks.shape)}."
        )
    found: dict[str, list[Tensor]] = {"CH": [], "OIRR": [], "IoU": [], "DAUC": []}
    judge = LogProbabilities(network)
    for x, y, mask in zip(images.split(batch_size), labels.split(batch_size), masks.split(batch_size)):
        heat = class_heat(network, x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # empty masks are counted below
            found["CH"].append(content_heat(heat, mask))
            found["OIRR"].append(outside_inside_ratio(heat, mask))
            found["IoU"].append(iou(heat, mask))
        scores = deletion_auc(judge, x, heat, steps=steps, fill=0.0, batch_size=4 * batch_size)
        found["DAUC"].append(scores.masked_fill(~(mask > 0).flatten(1).any(1), torch.nan))
    means = {name: summarize(torch.cat(values)) for name, values in found.items()}
    return {**{name: one.mean for name, one in means.items()}, "skipped": float(means["CH"].skipped)}


class LogProbabilities(nn.Module):
    """A network whose logits are the logarithms of the mean of the branches' probabilities.

    Args:
        network: with prototypes.
    """

    def __init__(self, network: ProtoPNet) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute them."""
        return self.network.probabilities(x).log()


def _inside(where: str, heat: Tensor, masks: Tensor) -> Bool[Tensor, "batch height width"]:
    if masks.shape != heat.shape:
        raise ShapeError(
            f"{where}: `masks` must be of shape {tuple(heat.shape)}, one for each map and of its size, got {tuple(masks.shape)}."
        )
    inside = masks > 0
    empty = int((~inside.flatten(1).any(1)).sum())
    if empty:
        warnings.warn(f"{where}: {empty} of {len(masks)} masks are empty; these images are skipped (not a number).", stacklevel=3)
    return inside
