"""What a view is, and the checks that all views share."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from retinue.data.views.draws import fresh_keys
from retinue.errors import ArgumentError, ShapeError

Images = UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"]
Viewed = UInt8[Tensor, "batch channels newheight newwidth"] | Float[Tensor, "batch channels newheight newwidth"]
Keys = Int64[Tensor, " batch"]
Share = Float[Tensor, " batch"]

registered: dict[str, type["View"]] = {}


class View:
    """A change of a batch of images in which row i depends on image i and key i alone, bit for bit.

    A view is a frozen dataclass with a `name`; it defines `_apply`, or `_mix` where it takes in a second image. Bytes stay bytes and count
    as [0, 255]; floats stay floats, in [0, 1]. Only kernels whose result for a row cannot depend on the batch are allowed: elementwise
    operations that round once, and sums of whole numbers, which are exact in any order.
    """

    name: ClassVar[str] = ""
    mixes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if cls.name:
            registered[cls.name] = cls

    @overload
    def __call__(self, images: Shaped[Tensor, "..."], keys: Shaped[Tensor, "..."] | None = None) -> Tensor: ...
    @overload
    def __call__(
        self, images: Shaped[Tensor, "..."], keys: Shaped[Tensor, "..."] | None = None, *, partners: Shaped[Tensor, "..."]
    ) -> tuple[Tensor, Tensor]: ...
    def __call__(
        self,
        images: Shaped[Tensor, "..."],
        keys: Shaped[Tensor, "..."] | None = None,
        *,
        partners: Shaped[Tensor, "..."] | None = None,
    ) -> Any:
        """Show images.

        Args:
            images: bytes, or floats in [0, 1]; (batch, channels, height, width).
            keys: one int64 number a row, see `keys`; None draws them from torch's default generator.
            partners: for a view that mixes: an image for each row to mix it with, see `partner_indices`.

        Returns:
            The images; with `partners` also the weight that each row's own label keeps, in [0, 1].

        Raises:
            ShapeError: if images, keys or partners have a shape or type that cannot work.
            ArgumentError: if the view mixes and there are no partners.
        """
        if partners is not None:
            return self.mix(images, partners, keys)
        if self.mixes:
            raise ArgumentError(
                f"views: {self.name} mixes each image with another one. Give these: view(images, keys, partners=others), where "
                "others = data[views.partner_indices(keys, len(data))]. It returns the images and the shares of their own labels."
            )
        return self._apply(*self._checked(images, keys))

    def mix(
        self, images: Shaped[Tensor, "..."], partners: Shaped[Tensor, "..."], keys: Shaped[Tensor, "..."] | None = None
    ) -> tuple[Viewed, Share]:
        """Show images mixed with others.

        Args:
            images: as when the view is called.
            partners: an image for each row, as it is before any view.
            keys: as when the view is called.

        Returns:
            The images, and the weight in [0, 1] that each row's own label keeps: 1, where the view does not mix.
        """
        images, keys = self._checked(images, keys)
        if partners.shape != images.shape or partners.dtype != images.dtype:
            raise ShapeError(
                f"views: `partners` must be like the images, {tuple(images.shape)} of {images.dtype}, got {tuple(partners.shape)} of "
                f"{partners.dtype}. Take them as they are, before any view: data[views.partner_indices(keys, len(data))]."
            )
        return self._mix(images, partners.to(images.device).contiguous(), keys)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        raise TypeError(f"{type(self).__name__} needs `_apply`.")

    def _mix(self, images: Images, partners: Images, keys: Keys) -> tuple[Viewed, Share]:
        return self._apply(images, keys), torch.ones(len(images), device=images.device)

    def nested(self) -> str:
        """Return the text of the view as an argument of another one."""
        return repr(self)

    def __repr__(self) -> str:
        words = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:
                words.append(_text(value))
            elif value != field.default:
                words.append(f"{field.name}={_text(value)}")
        return f"{self.name}({', '.join(words)})"

    def _checked(self, images: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        if images.ndim != 4:
            raise ShapeError(
                f"views: images must be (batch, channels, height, width), got the shape {tuple(images.shape)}. "
                f"{'One image is a batch of one: images[None].' if images.ndim == 3 else 'Views work on whole batches.'}"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ShapeError(f"views: images must be uint8 or floats in [0, 1], got {images.dtype}. Convert them: images.to(torch.uint8).")
        if keys is None:
            return images.contiguous(), fresh_keys(len(images), images.device)
        if keys.shape != images.shape[:1] or keys.dtype != torch.int64:
            raise ShapeError(
                f"views: `keys` must be {len(images)} int64 numbers, one a row, got {tuple(keys.shape)} of {keys.dtype}. "
                "Make them with views.keys(seed, epoch, indices)."
            )
        return images.contiguous(), keys.to(images.device)


def drawn(uniform: Float[Tensor, " batch"], p: float) -> Bool[Tensor, " batch"]:
    """Choose rows, each with probability `p`."""
    return uniform < p


def on_rows(
    images: Images, rows: Bool[Tensor, " batch"], change: Callable[..., Tensor], *draws: Shaped[Tensor, "batch ..."]
) -> UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"]:
    """Change some of the rows; `change` gets these alone, with their rows of `draws`."""
    places = rows.nonzero()[:, 0]
    if len(places) == len(images):
        return change(images, *draws)
    if not len(places):
        return images
    return images.index_copy(0, places, change(*(part.index_select(0, places) for part in (images, *draws))))


def to_unit(images: Images) -> Float[Tensor, "batch channels height width"]:
    """Copy images to float32 in [0, 1]."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.to(torch.float32, copy=True)


def to_kind(values: Float[Tensor, "batch channels height width"], images: Shaped[Tensor, "..."]) -> Viewed:
    """Turn floats in [0, 1] back into the type of `images`; `values` are used up."""
    return to_bytes(values.mul_(255)) if images.dtype == torch.uint8 else values.to(images.dtype)


def to_bytes(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Round floats in [0, 255] to bytes; `values` are used up. By way of int16, which torch does five times as fast as straight away."""
    return values.round_().to(torch.int16).to(torch.uint8)


def column(values: Shaped[Tensor, " batch"]) -> Shaped[Tensor, "batch 1 1 1"]:
    """Shape one number a row so that it meets the pixels of the row."""
    return values[:, None, None, None]


def check_number(
    view: View, argument: str, low: float = -math.inf, high: float = math.inf, *, hint: str, whole: bool = False, above: bool = False
) -> Any:
    """Read an argument which is a number in [low, high], or in (low, high] with `above`.

    Raises:
        ArgumentError: naming view, argument, range and value; `hint` says what the number is.
    """
    value = getattr(view, argument)
    _refuse_unless(view, argument, value, low, high, hint, whole, above)
    return value


def check_probability(view: View) -> None:
    """Refuse a `p` that is not in [0, 1]."""
    check_number(view, "p", 0, 1, hint="It is the probability with which an image is changed.")


def check_range(view: View, argument: str, low: float, high: float, *, hint: str, above: bool = False) -> tuple[float, float]:
    """Read an argument which is a pair (smallest, largest) within [low, high], or in (low, high] with `above`.

    Raises:
        ArgumentError: if it is not.
    """
    value = getattr(view, argument)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ArgumentError(f"{view.name}: `{argument}` must be a pair (smallest, largest), got {value!r}. {hint}")
    for end in value:
        _refuse_unless(view, argument, end, low, high, hint, False, above)
    if value[0] > value[1]:
        raise ArgumentError(f"{view.name}: `{argument}` must be (smallest, largest) in this order, got {tuple(value)}. {hint}")
    return keep(view, argument, tuple(value))


def check_size(view: View) -> tuple[int, int]:
    """Read the argument `size` of a view, a side or (height, width).

    Raises:
        ArgumentError: if a side is not a positive whole number.
    """
    size = getattr(view, "size")  # noqa: B009 - not every view has one
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise ArgumentError(f"{view.name}: `size` must be one positive whole number of pixels or (height, width), got {size!r}.")
    if isinstance(size, list):
        keep(view, "size", sides)
    return sides[0], sides[1]


def keep(view: View, argument: str, value: Any) -> Any:
    """Store a value in a view that is frozen."""
    object.__setattr__(view, argument, value)
    return value


def _refuse_unless(view: View, argument: str, value: Any, low: float, high: float, hint: str, whole: bool, above: bool) -> None:
    kinds = (int,) if whole else (int, float)
    fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or (above and value == low):
        kind = "a whole number" if whole else "a number"
        if math.isinf(high):
            span = "" if math.isinf(low) else f" above {low:g}" if above else f" of at least {low:g}"
        else:
            span = f" in {'(' if above else '['}{low:g}, {high:g}]"
        raise ArgumentError(f"{view.name}: `{argument}` must be {kind}{span}, got {value!r}. {hint}")


def _text(value: Any) -> str:
    if isinstance(value, View):
        return value.nested()
    if isinstance(value, Sequence) and not isinstance(value, str):
        words = ", ".join(_text(item) for item in value)
        return f"({words},)" if len(value) == 1 else f"({words})"
    return repr(value)
