"""Augmentations that are written down as bytes and carried out again bit for bit, on whole batches (Faghri et al. 2023, section 3).

Two ways to write one down. `KeyedViews` keeps the key from which retinue's views draw: 8 bytes for any views. `ReplayableTransform` keeps
what was drawn, in the units of the paper's code (boxes in pixels, torchvision's operations and magnitudes): other programs can read and
write it. Both draw partners to mix with from the whole data set, so that a row depends on its own key alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from retinue.data import views as kit
from retinue.data.views.auto import RANDOM, operate
from retinue.data.views.base import on_rows, to_unit
from retinue.data.views.crops import pad, windows
from retinue.data.views.draws import PARTNER_VIEWS, beta, derive, uniform, whole
from retinue.data.views.resampling import RandomResizedCrop, resample, shares
from retinue.distill.replayable_layout import Layout, Parameters, operation_levels
from retinue.errors import ArgumentError, DataError, ShapeError, unknown

FORMAT = 1  # of what is written; raise it when a record would be carried out differently
RECIPES: dict[str, dict[str, Any]] = {  # the paper's names
    "rrc": {},
    "+m*": {"mixup": 0.5, "cutmix": 0.5},
    "+ra/re": {"num_ops": 2, "erase": 0.25},
    "+m*+r*": {"num_ops": 2, "erase": 0.25, "mixup": 0.5, "cutmix": 0.5},
}
AREA, RATIO, ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10  # of erased boxes: random erasing, Zhong et al. 2020
Packed = UInt8[Tensor, "batch bytes"]
Images = UInt8[Tensor, "batch channels height width"]
Shown = UInt8[Tensor, "batch channels newheight newwidth"] | Float[Tensor, "batch channels newheight newwidth"]


@runtime_checkable
class Augmentation(Protocol):
    """What can be drawn, kept as bytes and carried out again."""

    @property
    def width(self) -> int:
        """Bytes of one record."""

    def draw(self, keys: Int64[Tensor, " batch"], size: tuple[int, int], count: int) -> Packed:
        """Draw a record for each key, for images of a size, with partners from `count` images."""

    def partners(self, packed: Packed, count: int) -> Int64[Tensor, " batch"] | None:
        """Return the image with which each is mixed, -1 for none; None where nothing ever is."""

    def replay_packed(self, images: Images, packed: Packed, partners: Images | None = None) -> Shown:
        """Carry records out."""

    def describe(self) -> dict[str, Any]:
        """Return JSON values from which `described` builds it again."""


@dataclass(frozen=True)
class KeyedViews:
    """Any views of retinue, kept as the key with which they draw.

    Args:
        text: views, such as "random_resized_crop(224), flip, randaugment, mixup(1.0)".

    Raises:
        ArgumentError: if the text cannot be read.

    >>> KeyedViews("crop(4), flip").width
    8
    """

    text: str
    width: ClassVar[int] = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", repr(self.view))  # in one way only, so that stores can be compared

    @cached_property
    def view(self) -> kit.Compose:
        """The views."""
        return kit.parse(self.text)

    def draw(self, keys: Int64[Tensor, " batch"], size: tuple[int, int], count: int) -> Packed:
        """Return the keys as bytes."""
        return keys.contiguous().view(torch.uint8).view(-1, self.width)

    def partners(self, packed: Packed, count: int) -> Int64[Tensor, " batch"] | None:
        """Return the image with which each is mixed; None where no view mixes."""
        return kit.partner_indices(self._keys(packed), count) if self.view.mixes else None

    def replay_packed(self, images: Images, packed: Packed, partners: Images | None = None) -> Shown:
        """Show the images as the keys say."""
        keys = self._keys(packed)
        return self.view(images, keys) if partners is None else self.view.mix(images, partners, keys)[0]

    def describe(self) -> dict[str, Any]:
        """Return the text."""
        return {"kind": "keys", "format": FORMAT, "views": self.text}

    def _keys(self, packed: Packed) -> Tensor:
        return packed.clone(memory_format=torch.contiguous_format).view(torch.int64)[:, 0]


@dataclass(frozen=True)
class ReplayableTransform:
    """The paper's augmentation: crop, flip, RandAugment, [0, 1], erasing with zeros, then mixup and CutMix of two images shown so.

    (Mixing in [0, 1] is mixing after the normalisation: it is affine, and weights sum to 1.) Steps with probability 0 are left out and
    store nothing. `RECIPES` has the paper's four variants.

    Args:
        size: side of the result, or (height, width).
        padding: None takes a random resized crop; a number a window of `size` from the image padded with so many zeros.
        scale: smallest and largest share of the area of a resized crop.
        ratio: smallest and largest width / height of a resized crop.
        interpolation: "bilinear", "bicubic" or "nearest", antialiased.
        flip: probability of left and right exchanged.
        num_ops: operations of RandAugment; 0 leaves it out, the paper has 2.
        magnitude: of RandAugment, in `bins`.
        bins: number of magnitudes.
        erase: probability of an erased box; the paper has 0.25.
        mixup: probability; the paper has 0.5.
        mixup_alpha: of Beta(alpha, alpha).
        mixup_div_by: by which its draw is divided. With the paper's 2 the partner weighs at least as much as the image.
        cutmix: probability; the paper has 0.5.
        cutmix_alpha: of Beta(alpha, alpha).

    Raises:
        ArgumentError: if an argument cannot work.

    >>> transform = ReplayableTransform(8, num_ops=2)
    >>> images, drawn = transform.sample(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    >>> torch.equal(transform.replay(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), transform.unpack(transform.pack(drawn))), images)
    True
    """

    size: int | tuple[int, int]
    padding: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.5
    num_ops: int = 0
    magnitude: float = 9
    bins: int = 31
    erase: float = 0.0
    mixup: float = 0.0
    mixup_alpha: float = 1.0
    mixup_div_by: float = 2.0
    cutmix: float = 0.0
    cutmix_alpha: float = 1.0

    def __post_init__(self) -> None:
        for name in ("size", "scale", "ratio"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        RandomResizedCrop(self.size, self.scale, self.ratio, self.interpolation)  # the views refuse what cannot work, naming it
        kit.Crop(self.padding or 0, self.size)
        kit.RandAugment(max(1, self.num_ops) if isinstance(self.num_ops, int) else self.num_ops, self.magnitude, self.bins)
        kit.Mixup(self.mixup_alpha)
        kit.CutMix(self.cutmix_alpha)
        for name in ("flip", "erase", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"ReplayableTransform: `{name}` is a probability in [0, 1], got {getattr(self, name)}.")
        if self.num_ops < 0 or not self.mixup_div_by >= 1:
            raise ArgumentError(
                f"ReplayableTransform: `num_ops` must be 0 or more and `mixup_div_by` 1 or more, got {self.num_ops} and "
                f"{self.mixup_div_by}. The paper has 2 and 2."
            )

    @cached_property
    def layout(self) -> Layout:
        """The fields of a record."""
        return Layout(self.padding is not None, self.flip > 0, self.num_ops, self.erase > 0, self.mixup > 0, self.cutmix > 0)

    @property
    def width(self) -> int:
        """Bytes of one record."""
        return self.layout.width

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return bool(self.mixup or self.cutmix)

    def sample(
        self, images: Images, keys: Int64[Tensor, " batch"] | None = None, partners: Images | None = None
    ) -> tuple[Float[Tensor, "batch channels newheight newwidth"], Parameters]:
        """Draw parameters and carry them out.

        Args:
            images: bytes.
            keys: one a row, as for views; None draws them from torch's default generator.
            partners: for a transform that mixes, an image for each row; their numbers stand in the parameters as -1, unknown.
        """
        keys = torch.randint(-(1 << 63), (1 << 63) - 1, (len(images),)).to(images.device) if keys is None else keys
        drawn = self.parameters(keys, (images.shape[2], images.shape[3]))
        return self.replay(images, drawn, partners), drawn

    def parameters(self, keys: Int64[Tensor, " batch"], size: tuple[int, int], count: int = 0) -> Parameters:
        """Draw what is done to each of some images.

        Args:
            keys: one a row.
            size: height and width of the images.
            count: images from which partners are drawn; 0 leaves their numbers open (-1).
        """
        drawn = self._alone(keys, size)
        if not self.mixes:
            return drawn
        draws = uniform(derive(keys, 4), 6)
        mixed, cut = draws[:, 0] < self.mixup, draws[:, 1] < self.cutmix
        if self.mixup:
            drawn["mixup"] = torch.where(mixed, beta(draws[:, 2], self.mixup_alpha) / self.mixup_div_by, torch.nan)[:, None]
        if self.cutmix:
            share = beta(draws[:, 3], self.cutmix_alpha)
            drawn["cutmix"] = torch.where(cut, share, torch.nan)[:, None]
            drawn["cutmix_box"] = self._cut(share, draws[:, 4:]) * cut[:, None]
        partners = kit.partner_indices(keys, count) if count else torch.full_like(keys, -1)
        drawn["partner"] = torch.where(mixed | cut, partners, -1)[:, None]
        others = self._alone(derive(keys, PARTNER_VIEWS), size)
        return {**drawn, **{f"partner_{name}": value for name, value in others.items()}}

    def replay(
        self, images: Images, parameters: Parameters, partners: Images | None = None
    ) -> Float[Tensor, "batch channels newheight newwidth"]:
        """Carry parameters out, the same bits each time.

        Args:
            images: bytes.
            parameters: as `sample` or `unpack` returned them.
            partners: for a transform that mixes, the images with the numbers `parameters["partner"]`; any image where that is -1.

        Returns:
            Images in [0, 1], not normalised.

        Raises:
            ShapeError: if images and parameters differ in number, or a window reaches beyond the image.
            ArgumentError: if the transform mixes and there are no partners.
        """
        self._check(images, parameters)
        shown = self._shown(images, parameters, "")
        if not self.mixes:
            return shown
        if partners is None:
            raise ArgumentError(
                "ReplayableTransform: these parameters mix each image with another one. Give `partners`, the images with the numbers "
                'parameters["partner"].'
            )
        others = self._shown(partners, parameters, "partner_")
        if self.mixup:
            share = parameters["mixup"][:, :, None, None]
            share = torch.where(share.isnan(), 1.0, share)
            shown = shown * share + others * (1 - share)
        if self.cutmix:
            inside = _boxes(parameters["cutmix_box"], *self.sides)
            shown = torch.where(inside, others, shown)
        return shown

    def pack(self, parameters: Parameters) -> Packed:
        """Write parameters as bytes, one row an image; `layout` says what stands where."""
        return self.layout.pack(parameters)

    def unpack(self, packed: Packed | bytes) -> Parameters:
        """Read what `pack` wrote, a tensor or its bytes.

        Raises:
            DataError: if the length does not fit.
        """
        return self.layout.unpack(packed)

    def draw(self, keys: Int64[Tensor, " batch"], size: tuple[int, int], count: int) -> Packed:
        """Draw parameters as bytes."""
        return self.pack(self.parameters(keys, size, count))

    def partners(self, packed: Packed, count: int) -> Int64[Tensor, " batch"] | None:
        """Return the image with which each is mixed, -1 for none; None where nothing ever is."""
        return self.layout.field(packed, "partner")[:, 0] if self.mixes else None

    def replay_packed(self, images: Images, packed: Packed, partners: Images | None = None) -> Shown:
        """Carry out parameters that are still bytes."""
        return self.replay(images, self.unpack(packed), partners)

    def describe(self) -> dict[str, Any]:
        """Return the arguments, and the layout of a record."""
        arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"kind": "parameters", "format": FORMAT, "arguments": arguments, "layout": self.layout.describe()}

    def _alone(self, keys: Tensor, size: tuple[int, int]) -> Parameters:
        """Draw what is done to an image before it is mixed."""
        drawn: Parameters = {}
        height, width = size
        if self.padding is None:
            crop = RandomResizedCrop(self.size, self.scale, self.ratio, self.interpolation)
            drawn["crop"] = torch.stack(crop.boxes(derive(keys, 0), height, width), 1)
        else:
            draws = uniform(derive(keys, 0), 2)
            room = (height + 2 * self.padding - self.sides[0], width + 2 * self.padding - self.sides[1])
            if min(room) < 0:
                raise ShapeError(
                    f"ReplayableTransform: a window of {self.sides} px does not fit into {height}x{width} px padded by {self.padding}. "
                    "Give more `padding` or a smaller `size`."
                )
            drawn["crop"] = torch.stack([whole(draws[:, i], room[i] + 1) for i in (0, 1)], 1)
        if self.flip:
            drawn["flip"] = (uniform(derive(keys, 1), 1) < self.flip).long()
        if self.num_ops:
            draws = uniform(derive(keys, 2), 2 * self.num_ops).view(-1, self.num_ops, 2)
            drawn["ops"] = whole(draws[..., 0], 14)
            sign = torch.where(draws[..., 1] < 0.5, -1.0, 1.0)
            drawn["magnitudes"] = self.layout.magnitudes(drawn["ops"], sign, self.magnitude / (self.bins - 1), self.sides)
        if self.erase:
            drawn["erase"] = self._erased(derive(keys, 3))
        return drawn

    def _erased(self, keys: Tensor) -> Tensor:
        """Draw boxes (row, column, height, width); 0 pixels for none."""
        height, width = self.sides
        draws = uniform(keys, 4 * ATTEMPTS + 1).double()
        tries = draws[:, 1:].view(-1, ATTEMPTS, 4)
        area = (AREA[0] + (AREA[1] - AREA[0]) * tries[..., 0]) * (height * width)
        low, high = (torch.tensor(ratio, dtype=torch.float64).log().item() for ratio in RATIO)
        ratio = (low + (high - low) * tries[..., 1]).exp()
        tall, wide = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (tall < height) & (wide < width)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        tall, wide = tall.gather(1, first), wide.gather(1, first)
        row = whole(tries[..., 2].gather(1, first), height - tall + 1)
        column = whole(tries[..., 3].gather(1, first), width - wide + 1)
        return torch.cat((row, column, tall, wide), 1) * (fits.gather(1, first) & (draws[:, :1] < self.erase))

    def _cut(self, share: Tensor, centre: Tensor) -> Tensor:
        """Draw boxes (first row, first column, end row, end column) of sides sqrt(1 - share), cut off at the border."""
        corners = []
        for length, place in zip(self.sides, centre.unbind(1)):
            half = ((1 - share).clamp_min(0).sqrt() * length).long() // 2
            middle = whole(place, length)
            corners.append(((middle - half).clamp(0, length), (middle + half).clamp(0, length)))
        (top, bottom), (left, right) = corners
        return torch.stack((top, left, bottom, right), 1)

    def _shown(self, images: Images, parameters: Mapping[str, Tensor], prefix: str) -> Float[Tensor, "batch channels h w"]:
        height, width = self.sides
        crop = parameters[f"{prefix}crop"]
        if self.padding is None:
            rows = shares(crop[:, 0], crop[:, 2], images.shape[2], height, self.interpolation)
            columns = shares(crop[:, 1], crop[:, 3], images.shape[3], width, self.interpolation)
            shown = resample(images.contiguous(), rows, columns)
        else:
            shown = windows(pad(images, self.padding, "zeros").contiguous(), crop[:, 0], crop[:, 1], height, width)
        if self.flip:
            shown = on_rows(shown, parameters[f"{prefix}flip"][:, 0] > 0, lambda some: some.flip(-1))
        for step in range(self.num_ops):
            ops, magnitudes = (parameters[f"{prefix}{name}"][:, step] for name in ("ops", "magnitudes"))
            shown = operate(shown, *operation_levels(ops, magnitudes, height, width), RANDOM)
        shown = to_unit(shown)
        if self.erase:
            box = parameters[f"{prefix}erase"]
            shown = shown.mul_(~_boxes(torch.cat((box[:, :2], box[:, :2] + box[:, 2:]), 1), height, width))
        return shown

    def _check(self, images: Tensor, parameters: Mapping[str, Tensor]) -> None:
        missing = [name for name in self.layout.names if name not in parameters]
        if missing:
            raise DataError(f"ReplayableTransform: the parameters lack {', '.join(missing)}. They are of a transform with other steps.")
        crop = parameters["crop"]
        if len(crop) != len(images):
            raise ShapeError(f"ReplayableTransform: got {len(images)} images and parameters of {len(crop)}. Give one row an image.")


def _boxes(corners: Shaped[Tensor, "batch 4"], height: int, width: int) -> Bool[Tensor, "batch 1 height width"]:
    """Mark the pixels between (first row, first column) and (end row, end column)."""
    top, left, bottom, right = corners[:, :, None].unbind(1)
    down, across = torch.arange(height, device=corners.device), torch.arange(width, device=corners.device)
    rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
    return rows[:, None, :, None] & columns[:, None, None, :]


def recipe(name: str, size: int | tuple[int, int], **changes: Any) -> ReplayableTransform:
    """Build a variant of the paper by its name: "rrc", "+m*", "+ra/re" (the recommended one) or "+m*+r*".

    Args:
        name: in any case.
        size: side of the result, or (height, width).
        changes: other arguments of `ReplayableTransform`.

    Raises:
        ArgumentError: if there is no such variant.
    """
    if name.lower() not in RECIPES:
        raise unknown("reinforcement", "recipe", name, RECIPES)
    return ReplayableTransform(size, **{**RECIPES[name.lower()], **changes})


def described(description: Mapping[str, Any]) -> Augmentation:
    """Build an augmentation from what its `describe` returned.

    Raises:
        DataError: if it was written by another version, or is no description.
    """
    if description.get("format") != FORMAT:
        raise DataError(
            f"reinforcement: the store's augmentations have format {description.get('format')}, and this version of retinue carries out "
            f"format {FORMAT}. Build the store anew, or use the version that built it."
        )
    if description.get("kind") == "keys":
        return KeyedViews(description["views"])
    if description.get("kind") == "parameters":
        written: Mapping[str, Any] = description["arguments"]
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
        transform = ReplayableTransform(**given)
        if transform.layout.describe() == description["layout"]:
            return transform
    raise DataError("reinforcement: the store's description of its augmentations is not one that retinue wrote. Build the store anew.")
