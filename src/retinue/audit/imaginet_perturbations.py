"""Test images as a social network would hand them on, stored once and for all, and sweeps over one perturbation at a time.

The test set of Boychev and Cholakov 2024, arXiv 2407.20020. Results are stored without losses: stored as JPEG, all would carry one codec's
traces, and real and synthetic images in different files would let a detector learn the format.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from retinue.audit.imaginet import check_both
from retinue.audit.imaginet_report import Row
from retinue.data import decode, views
from retinue.data.annotated import window
from retinue.data.annotations import Annotations, write_annotations
from retinue.data.views.draws import whole
from retinue.data.views.perturbations import FORMATS, check_formats, check_quality, recompressed
from retinue.errors import ArgumentError, DataError, ShapeError

QUALITIES = (100, 90, 80, 70, 60, 50)
FACTORS = (1.0, 0.9, 0.75, 0.5)

OneImage = UInt8[Tensor, "channels height width"]
NewImage = UInt8[Tensor, "channels newheight newwidth"]


def clean(image: OneImage, size: int = 256) -> NewImage:
    """Return the clean test image: padded to this side, its middle cut out; nothing is resized."""
    return window(image, (size, size))


class SocialNetworkPerturbation:
    """A square random crop, resized to one side, then, most of the time, compressed.

    The side of the crop is uniform from `min_side` to the image's shorter side, at most `max_side`; it is resized by Lanczos to `min_side`.

    Args:
        min_side: smallest side of the crop, in pixels; smaller images are padded. It is the side of the result, unless `size` is given.
        max_side: largest side of the crop.
        quality: smallest and largest quality of the compression; each is equally likely.
        p: probability with which an image is compressed.
        formats: "jpeg" and "webp", with equal odds.
        seed: of all draws; what becomes of an image depends on the seed and its number alone.
        size: side of the result.

    Raises:
        ArgumentError: if an argument cannot work.

    >>> SocialNetworkPerturbation(min_side=8, max_side=16)(torch.zeros(3, 20, 30, dtype=torch.uint8), 0).shape
    torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        min_side: int = 256,
        max_side: int = 1000,
        quality: Sequence[int] = (60, 100),
        p: float = 0.75,
        formats: Sequence[str] = FORMATS,
        seed: int = 0,
        size: int | None = None,
    ) -> None:
        if not 1 <= min_side <= max_side:
            raise ArgumentError(f"SocialNetworkPerturbation: `min_side` must lie between 1 and `max_side` ({max_side}), got {min_side}.")
        if not 0 <= p <= 1:
            raise ArgumentError(f"SocialNetworkPerturbation: `p` must lie in [0, 1], got {p}. It is the probability of compression.")
        if size is not None and size < 1:
            raise ArgumentError(f"SocialNetworkPerturbation: `size` must be at least 1, got {size}.")
        self.quality = check_quality("SocialNetworkPerturbation", quality)
        self.formats = check_formats("SocialNetworkPerturbation", formats)
        self.min_side, self.max_side, self.p, self.seed, self.size = min_side, max_side, p, seed, size or min_side

    def __call__(self, image: OneImage, index: int) -> NewImage:
        """Perturb one image.

        Args:
            image: bytes.
            index: its number, from which everything is drawn.
        """
        draws = views.uniform(views.keys(self.seed, 0, torch.tensor([index])), 6)[0]
        if min(image.shape[-2:]) < self.min_side:
            image = window(image, (max(self.min_side, image.shape[-2]), max(self.min_side, image.shape[-1])))
        height, width = image.shape[-2:]
        largest = max(self.min_side, min(height, width, self.max_side))
        side = self.min_side + int(whole(draws[0], largest - self.min_side + 1))
        top, left = int(whole(draws[1], height - side + 1)), int(whole(draws[2], width - side + 1))
        image = resized(image[..., top : top + side, left : left + side], self.size)
        if float(draws[3]) >= self.p:
            return image
        format = self.formats[int(whole(draws[4], len(self.formats)))]
        low, high = self.quality
        return recompressed(image, format, low + int(whole(draws[5], high - low + 1)))

    def all(self, images: UInt8[Tensor, "images channels height width"]) -> UInt8[Tensor, "images channels newheight newwidth"]:
        """Perturb images that are numbered by their place."""
        return torch.stack([self(image, index) for index, image in enumerate(images)])

    def build(self, root: str | Path, table: Annotations, folder: str | Path) -> Annotations:
        """Write the perturbed images of a table as PNG files, and their annotations as `annotations.txt`.

        A file that exists is written anew: the same seed gives the same bytes.

        Args:
            root: the folder of the images.
            table: which.
            folder: where the files go, as `NUMBER.png`: neither name nor format tells where an image is from.

        Returns:
            The annotations of the new files.

        Raises:
            DataError: if images cannot be read; all are listed, and nothing is written.
        """
        bad = []
        for path in table.paths:
            try:
                decode(Path(root) / path)
            except DataError as error:
                bad.append(f"  {path}: {error}")
        if bad:
            listed = "\n".join(bad)
            raise DataError(f"SocialNetworkPerturbation: {len(bad)} of {len(table)} images cannot be used. Mend or remove them:\n{listed}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{number:06d}.png" for number in range(len(table))]
        for number, (path, name) in enumerate(zip(table.paths, names)):
            picture(self(decode(Path(root) / path), number)).save(folder / name, "PNG")
        made = Annotations(names, table.codes)
        write_annotations(made, folder / "annotations.txt")
        return made


def resized(image: OneImage, size: int) -> NewImage:
    """Resize a square image to another side by Pillow's Lanczos."""
    if image.shape[-1] == size:
        return image.contiguous()
    found = np.array(picture(image).resize((size, size), Image.Resampling.LANCZOS))
    return torch.from_numpy(found).reshape(size, size, -1).permute(2, 0, 1).contiguous()


def picture(image: OneImage) -> Image.Image:
    """Return an image as Pillow's, grey or RGB."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def sweep(
    score: Callable[[Any], Float[Tensor, " images"]],
    images: UInt8[Tensor, "images channels height width"],
    synthetic: Int[Tensor, " images"],
    *,
    qualities: Sequence[int] = QUALITIES,
    factors: Sequence[float] = FACTORS,
) -> dict[str, dict[float, Row]]:
    """Measure a detector under one perturbation at a time.

    Args:
        score: returns calibrated logits of images as bytes; above 0 one is called synthetic.
        images: square.
        synthetic: 0 real, 1 synthetic.
        qualities: of JPEG.
        factors: images are resized by these, and back.

    Returns:
        "jpeg" by quality, and "resize" by factor.

    Raises:
        DataError: if there are real or synthetic images only.
        ArgumentError: if a quality is not in 1 to 100, or a factor not positive.
        ShapeError: if the images are not square.
    """
    check_both("sweep", synthetic)
    if images.shape[-2] != images.shape[-1]:
        raise ShapeError(f"sweep: `images` must be square, got {images.shape[-2]}x{images.shape[-1]} px. Cut them: clean(image, size).")
    if not all(0 < factor < float("inf") for factor in factors):
        raise ArgumentError(f"sweep: `factors` must be above 0, got {list(factors)}. 0.5 halves each side.")
    side = images.shape[-1]
    found: dict[str, dict[float, Row]] = {"jpeg": {}, "resize": {}}
    for quality in qualities:
        check_quality("sweep", quality)
        found["jpeg"][quality] = _row(score(torch.stack([recompressed(image, "jpeg", quality) for image in images])), synthetic)
    for factor in factors:
        shrunk = max(1, round(side * factor))
        found["resize"][factor] = _row(score(torch.stack([resized(resized(image, shrunk), side) for image in images])), synthetic)
    return found


def _row(scores: Tensor, synthetic: Tensor) -> Row:
    truth, values = synthetic.numpy(), scores.double().numpy()
    return Row(float(balanced_accuracy_score(truth, values > 0)), float(roc_auc_score(truth, values)), len(truth))
