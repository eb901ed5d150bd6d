"""RotNet: pre-train any backbone by guessing how far each image was turned (Gidaris et al. 2018, arXiv 1803.07728)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, views
from retinue.engine import Objective
from retinue.errors import ArgumentError, ShapeError
from retinue.models import feature_size, pooled_features

QUARTERS = (0, 90, 180, 270)
UPRIGHT = 45  # degrees: views that turn images by so much, or more, destroy what is to be guessed


def rotate_batch(
    images: Float[Tensor, "batch channels side side"], rotations: Sequence[float] = QUARTERS, *, interpolate: bool = False
) -> tuple[Float[Tensor, "turned channels side side"], Int[Tensor, " turned"]]:
    """Turn every image counter-clockwise by each of some angles (section 2.2).

    Quarter turns move pixels, and interpolate nothing. With any other angle among them all images are cut to the disc that is inside at
    every angle, as black corners would tell the angle.

    Args:
        images: square; any range.
        rotations: degrees.
        interpolate: allow angles that are not multiples of 90, bilinearly.

    Returns:
        All turns of the first image, then of the second, and so on; and for each the place of its angle in `rotations`.

    Raises:
        ShapeError: if the images are not square: turning would change their shape.
        ArgumentError: if there are fewer than two rotations, one comes twice, or one needs interpolation.

    >>> turned, labels = rotate_batch(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    >>> turned[1, 0].tolist(), labels.tolist()
    ([[2.0, 4.0], [1.0, 3.0]], [0, 1, 2, 3])
    """
    _check_rotations(rotations, interpolate)
    height, width = images.shape[-2:]
    if height != width:
        raise ShapeError(
            f"rotnet needs square images, got height={height} and width={width}. Open the data with input_size={min(height, width)}."
        )
    turned = torch.stack([_turned(images, degrees) for degrees in rotations], dim=1)
    if any(degrees % 90 for degrees in rotations):
        turned = turned * _disc(height, images.device)
    return turned.flatten(0, 1), torch.arange(len(rotations), device=images.device).repeat(len(images))


class RotNet(Objective):
    """Cross-entropy over all turns of every image of a batch (equations 2 and 3): a batch of B images becomes one of 4 B.

    Give views that shift and mirror, such as "crop(4), flip"; those that turn or flip images upside down are refused.

    Args:
        model: the backbone to pre-train.
        rotations: the angles to tell apart, in degrees. The paper's ablation has also (0, 180), (90, 270) and eight multiples of 45.
        interpolate: allow angles that are not multiples of 90.

    >>> from retinue.models import tiny
    >>> RotNet(tiny("ours")).head.out_features
    4
    """

    monitor, mode = "turn_accuracy", "max"

    def __init__(self, model: nn.Module, rotations: Sequence[float] = QUARTERS, interpolate: bool = False) -> None:
        super().__init__()
        _check_rotations(rotations, interpolate)
        self.rotations, self.interpolate = tuple(rotations), interpolate
        self.head = nn.Linear(feature_size(model), len(self.rotations))

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse images that are not square before anything is computed."""
        channels, sides = data.preprocessing.channels, data.preprocessing.input_size
        rotate_batch(torch.empty(0, channels, *sides), self.rotations, interpolate=self.interpolate)

    def check_views(self, shown: Any) -> None:
        """Refuse views after which nobody could tell which way up an image was."""
        for view in views.flat(shown):
            degrees = view.degrees if isinstance(view, views.Rotate | views.Affine) else 0
            turns = max(map(abs, degrees)) if isinstance(degrees, Sequence) else abs(degrees)
            if turns >= UPRIGHT or isinstance(view, views.VerticalFlip):
                raise ArgumentError(
                    f"rotnet: the view {view!r} destroys what is to be guessed: how far an image was turned. (Flipped both ways, it is "
                    "turned by 180 degrees.) Leave it out; crop and flip help."
                )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the share of turns that are guessed right."""
        images, turns = rotate_batch(batch.images, self.rotations, interpolate=self.interpolate)
        logits = self.head(pooled_features(model, images))
        return {"loss": F.cross_entropy(logits, turns), "turn_accuracy": (logits.argmax(-1) == turns).float().mean()}


def _check_rotations(rotations: Sequence[float], interpolate: bool) -> None:
    angles = [degrees % 360 for degrees in rotations]
    if len(angles) < 2 or len(set(angles)) < len(angles):
        raise ArgumentError(f"rotnet: `rotations` must be two angles or more, each once, got {list(rotations)}. The paper has {QUARTERS}.")
    odd = [degrees for degrees in rotations if degrees % 90]
    if odd and not interpolate:
        raise ArgumentError(
            f"rotnet: {odd[0]} degrees is no multiple of 90, so that pixels must be interpolated. Allow it with interpolate=True; the "
            "paper is more accurate without."
        )


def _turned(images: Tensor, degrees: float) -> Tensor:
    quarters, rest = divmod(degrees % 360, 90)
    images = torch.rot90(images, int(quarters), dims=(-2, -1))
    if not rest:
        return images
    angle = math.radians(rest)  # a grid says where each pixel comes from: clockwise in rows that run downwards
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]], device=images.device)
    grid = F.affine_grid(turn.expand(len(images), 2, 3).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _disc(side: int, device: torch.device) -> Tensor:
    places = torch.arange(side, device=device) - (side - 1) / 2
    return places[:, None].square() + places.square() <= (side / 2) ** 2
