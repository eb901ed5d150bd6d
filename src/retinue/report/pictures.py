"""The images that a model takes for something else, as pictures inside a page, with where it looked."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from retinue.data import Split
from retinue.errors import RetinueError
from retinue.explain import GradCAM
from retinue.plots import overlay, to_rgb
from retinue.report.contents import Mistake
from retinue.report.html import data_uri

AT_ONCE = 16  # images in one pass of Grad-CAM
SMALLEST, LARGEST = 160, 224  # longer side of a picture in pixels
WIDEST, TALLEST = 1400, 3000  # of an explanation, in pixels


def confident_mistakes(
    model: nn.Module, split: Split, logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], most: int
) -> tuple[list[Mistake], str]:
    """Picture the wrong answers of which a model is most sure.

    Args:
        model: the classifier.
        split: its images, with the model's own preprocessing.
        logits: what it says of them.
        labels: what they are.
        most: how many to picture.

    Returns:
        The mistakes, surest first, and why there are no heat maps, if there are none.
    """
    confidence, said = logits.softmax(-1).max(-1)
    wrong = (said != labels).nonzero()[:, 0]
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]
    trouble, told = "", []
    for some in order.split(AT_ONCE) if len(order) else ():
        images = split.preprocessing.centre(split.images(some))
        maps = None
        if not trouble:
            try:
                maps = _maps(model, split, images, said[some])
            except RetinueError as error:
                trouble = str(error)
        for row, i in enumerate(some.tolist()):
            picture = shown(images[row])
            told.append(
                Mistake(
                    name=split.name(i),
                    label=split.classes[int(labels[i])],
                    predicted=split.classes[int(said[i])],
                    confidence=float(confidence[i]),
                    label_confidence=float(logits[i].softmax(-1)[labels[i]]),
                    picture=data_uri(picture),
                    overlay=None if maps is None else data_uri(overlaid(picture, maps[row])),
                )
            )
    return told, trouble


def explanations(folder: Path) -> dict[str, str]:
    """Take in the pictures of everything that `retinue explain` has written into a run's folder, by method; broken files are left out."""
    found = {}
    for path in sorted(folder.glob("explain/*/all.png")):
        try:
            with Image.open(path) as picture:
                whole = picture.convert("RGB")
        except OSError:
            continue
        whole.thumbnail((WIDEST, TALLEST), Image.Resampling.LANCZOS)
        found[path.parent.name] = data_uri(whole)
    return found


def shown(image: UInt8[Tensor, "channels height width"]) -> Image.Image:
    """Bring an image to a size at which it can be looked at: small ones by whole factors, so that pixels stay square, large ones down."""
    picture = Image.fromarray(to_rgb(image))
    longer = max(picture.size)
    if longer < SMALLEST:
        factor = math.ceil(SMALLEST / longer)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture


def _maps(model: nn.Module, split: Split, images: Tensor, said: Tensor) -> Float[Tensor, "batch height width"]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return GradCAM(model)(split.preprocessing.normalize(images).to(device), said.to(device)).cpu()


def overlaid(picture: Image.Image, heat: Float[Tensor, "height width"]) -> Image.Image:
    """Lay a heat map over a picture, smoothly brought to its size."""
    smooth = F.interpolate(heat[None, None], (picture.height, picture.width), mode="bilinear", align_corners=False)[0, 0]
    return Image.fromarray(overlay(np.array(picture), smooth))
