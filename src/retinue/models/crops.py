"""Many crops of each image, and the average of what several networks say about them (Szegedy et al. 2016, arXiv 1602.07261, section 5).

Probabilities are averaged, not logits: over the crops, then over the networks. The crops are those of GoogLeNet (Szegedy et al. 2014,
arXiv 1409.4842, section 7).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.modes import evaluating

Plan = Literal["1", "12", "144"]
CROPS = {"1": 1, "12": 12, "144": 144}
RATIOS = (8 / 7, 9 / 7, 10 / 7, 11 / 7)  # short sides of 256, 288, 320 and 352 px for a network of 224 px


def multi_crop(
    images: Shaped[Tensor, "batch channels height width"], net_size: int, plan: Plan = "12"
) -> Shaped[Tensor, "batch crops channels net_size net_size"]:
    """Cut the crops of a plan out of every image.

    "1" is the centre. "12" is four corners, centre, and the whole image resized to a square; then the mirror images of these six. "144"
    scales the image to four sizes, takes three squares of each (left, centre and right of a wide image; top, centre and bottom of a
    high one), and twelve crops of each square; the second 72 are the mirror images of the first.

    Args:
        images: of any type that can be resized; larger than the network's images except for "144", which scales them itself.
        net_size: side of the crops.
        plan: "1", "12" or "144".

    Raises:
        ArgumentError: if there is no such plan, or `net_size` is not positive.
        ShapeError: if the images are smaller than the crops.

    >>> multi_crop(torch.zeros(2, 3, 40, 32), 28, "144").shape
    torch.Size([2, 144, 3, 28, 28])
    """
    count = CROPS.get(str(plan))
    if count is None:
        raise unknown("multi_crop", "`plan`", plan, CROPS)
    if not isinstance(net_size, int) or net_size < 1:
        raise ArgumentError(
            f"multi_crop: `net_size` must be a positive whole number of pixels, got {net_size}. It is the side of the crops."
        )
    batch, channels, height, width = images.shape
    if count != 144 and min(height, width) < net_size:
        raise ShapeError(
            f"multi_crop: images of {height}x{width} px hold no crop of {net_size} px. "
            'Read them larger, or use plan="144", which scales them.'
        )
    if count == 1:
        return TF.center_crop(images, [net_size, net_size])[:, None]
    views = _six(images, net_size) if count == 12 else _seventy_two(images, net_size)
    crops = images.new_empty(batch, count, channels, net_size, net_size)
    for i, view in enumerate(views):
        crops[:, i] = view
        crops[:, count // 2 + i] = view.flip(-1)
    return crops


def ensemble_predict(
    models: nn.Module | Sequence[nn.Module],
    images: Float[Tensor, "batch channels height width"],
    plan: Plan = "1",
    *,
    net_size: int | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "batch classes"]:
    """Compute class probabilities, averaged over the crops of a plan and then over networks of equal weight.

    Args:
        models: one network or several, of the same classes; each is put in evaluation mode for the time of the call.
        images: normalised images; they are moved to where the network is.
        plan: the crops, as in `multi_crop`.
        net_size: side of the crops; None asks each network for its own (`preprocessing`, `retinue_config` or `default_cfg`).
        batch_size: most crops that a network sees at once.

    Raises:
        ArgumentError: if there is no network or no image, the networks' classes differ, or a network does not say its size.
        ShapeError: if the images are smaller than the crops.

    >>> from retinue.models import small_convnet
    >>> members = [small_convnet(num_classes=10, in_chans=1) for _ in range(2)]
    >>> ensemble_predict(members, torch.zeros(4, 1, 20, 20), "12", net_size=16).shape
    torch.Size([4, 10])
    """
    members = [models] if isinstance(models, nn.Module) else list(models)
    if not members or len(images) == 0:
        raise ArgumentError(f"ensemble_predict needs at least one network and one image, got {len(members)} and {len(images)}.")
    if not images.is_floating_point():
        raise ArgumentError(
            f"ensemble_predict: `images` must be normalised floats, got {images.dtype}. Call preprocessing.normalize(images)."
        )
    if batch_size < 1:
        raise ArgumentError(f"ensemble_predict: `batch_size` must be positive, got {batch_size}.")
    sizes = [net_size or own_size(member) for member in members]
    at_once = max(1, batch_size // CROPS.get(str(plan), 1))  # images whose crops are in memory together
    predictions = []
    with evaluating(*members), torch.no_grad():
        for part in images.split(at_once):
            crops = {size: multi_crop(part, size, plan) for size in set(sizes)}
            answers = [_average(member, crops[size], batch_size) for member, size in zip(members, sizes)]
            if len({answer.shape[1] for answer in answers}) > 1:
                counts = ", ".join(str(answer.shape[1]) for answer in answers)
                raise ArgumentError(
                    f"ensemble_predict: the networks have {counts} classes. They can be averaged only over the same classes."
                )
            predictions.append(torch.stack(answers).mean(0))
    return torch.cat(predictions)


def own_size(model: nn.Module) -> int:
    """Return the side of the images that a network was made for.

    Raises:
        ArgumentError: if it does not say so, or they are not square.
    """
    size: Any = getattr(getattr(model, "preprocessing", None), "input_size", None)
    made: Any = getattr(model, "retinue_config", None)
    if size is None and made is not None:
        size = made["arguments"].get("input_size")
    if size is None:
        size = (getattr(model, "default_cfg", None) or {}).get("input_size")
    if size is None:
        raise ArgumentError(f"ensemble_predict: {type(model).__name__} does not say its image size. Give it: net_size=224.")
    if size[-2] != size[-1]:
        raise ArgumentError(
            f"ensemble_predict: {type(model).__name__} takes images of {size[-2]}x{size[-1]} px, and crops are square. Give `net_size`."
        )
    return int(size[-1])


def _six(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield four corners, the centre, and the whole image resized."""
    bottom, right = images.shape[-2] - size, images.shape[-1] - size
    for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right)):
        yield images[..., top : top + size, left : left + size]
    yield TF.center_crop(images, [size, size])
    yield _resize(images, size, size)


def _seventy_two(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield six crops of three squares of four scales."""
    height, width = images.shape[-2:]
    for ratio in RATIOS:
        short = round(size * ratio)
        scale = short / min(height, width)
        scaled = _resize(images, max(short, round(height * scale)), max(short, round(width * scale)))
        rest = max(scaled.shape[-2:]) - short
        for start in (0, rest // 2, rest):
            yield from _six(scaled.narrow(-1 if width > height else -2, start, short), size)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return TF.resize(images, [height, width], InterpolationMode.BICUBIC, antialias=True)


def _average(model: nn.Module, crops: Tensor, batch_size: int) -> Tensor:
    """Average a network's probabilities over the crops of each image."""
    batch, count = crops.shape[:2]
    place = next(model.parameters(), crops).device
    answers = [model(part.to(place)).float().softmax(1) for part in crops.flatten(0, 1).split(batch_size)]
    return torch.cat(answers).to(crops.device).unflatten(0, (batch, count)).mean(1)
