"""The bytes of a stored augmentation: which field stands where, in little-endian numbers that any program can read."""

from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from retinue.data.views.auto import RANDOM
from retinue.errors import DataError

Parameters = dict[str, Tensor]
Packed = UInt8[Tensor, "batch bytes"]

# The paper's code numbers torchvision's operations so; ours (data/views/auto.py) has those that move pixels first.
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness", "Posterize",
    "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
OURS = (5, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13)
TYPES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "float32": torch.float32}


class Layout:
    """The fields of a record, in order: (name, type, how many).

    crop: top, left, height, width of the resized window, or top, left in the padded image. flip: 1 where mirrored. ops, magnitudes:
    RandAugment's operations (`OPERATIONS`) and torchvision's magnitudes. erase: row, column, height, width; height 0 for none.
    mixup: the image's own weight; NaN for none. cutmix: lambda; NaN for none. cutmix_box: first row, first column, end row, end column.
    partner: number of the other image; -1 for none. partner_...: what is done to that.

    Args:
        padded: a window of a padded image instead of a resized one.
        flip: whether images may be mirrored.
        num_ops: operations of RandAugment.
        erase: whether boxes may be erased.
        mixup: whether images may be averaged.
        cutmix: whether boxes may be pasted.
    """

    def __init__(self, padded: bool, flip: bool, num_ops: int, erase: bool, mixup: bool, cutmix: bool) -> None:
        alone = [("crop", "int16", 2 if padded else 4)]
        alone += [("flip", "uint8", 1)] * flip
        alone += [("ops", "uint8", num_ops), ("magnitudes", "float32", num_ops)] if num_ops else []
        alone += [("erase", "int16", 4)] * erase
        mixed = [("mixup", "float32", 1)] * mixup
        mixed += [("cutmix", "float32", 1), ("cutmix_box", "int16", 4)] if cutmix else []
        if mixup or cutmix:
            mixed += [("partner", "int32", 1), *((f"partner_{name}", kind, count) for name, kind, count in alone)]
        self.fields = [*alone, *mixed]
        self.names = [name for name, _, _ in self.fields]
        self.places: dict[str, tuple[int, int, torch.dtype]] = {}
        start = 0
        for name, kind, count in self.fields:
            end = start + count * TYPES[kind].itemsize
            self.places[name] = (start, end, TYPES[kind])
            start = end
        self.width = start

    def describe(self) -> list[list[Any]]:
        """Return the fields as JSON values; numpy.dtype([(name, "<" + type, (count,)), ...]) reads a record."""
        return [list(field) for field in self.fields]

    def pack(self, parameters: Parameters) -> Packed:
        """Write parameters as bytes, one row an image."""
        parts = []
        for name, (_, _, kind) in self.places.items():
            parts.append(parameters[name].to(kind).contiguous().view(torch.uint8))
        return torch.cat(parts, 1)

    def unpack(self, packed: Packed | bytes) -> Parameters:
        """Read the parameters of some records: whole numbers as int64, others as float32.

        Raises:
            DataError: if the length does not fit.
        """
        if isinstance(packed, bytes):
            packed = torch.frombuffer(bytearray(packed), dtype=torch.uint8) if packed else torch.empty(0, dtype=torch.uint8)
            packed = packed.view(-1, self.width) if packed.numel() % self.width == 0 else packed[None]
        if packed.shape[1] != self.width:
            raise DataError(
                f"ReplayableTransform: a record of this transform has {self.width} bytes, got {packed.shape[1]}. "
                "They were written by a transform with other steps."
            )
        return {name: self.field(packed, name) for name in self.names}

    def field(self, packed: Packed, name: str) -> Shaped[Tensor, "batch count"]:
        """Read one field."""
        start, end, kind = self.places[name]
        values = packed[:, start:end].clone(memory_format=torch.contiguous_format).view(kind)
        return values if kind.is_floating_point else values.long()

    def magnitudes(
        self, ops: Int64[Tensor, "batch ops"], sign: Float[Tensor, "batch ops"], level: float, sides: tuple[int, int]
    ) -> Float[Tensor, "batch ops"]:
        """Compute torchvision's magnitudes of RandAugment's operations at a level in [0, 1]."""
        signed = torch.tensor(_scales(*sides), device=ops.device)[ops] * level * sign
        signed = torch.where(ops == OPERATIONS.index("Posterize"), 8.0 - round(RANDOM.posterize * level), signed)
        return torch.where(ops == OPERATIONS.index("Solarize"), 255.0 * (1 - level), signed)


def operation_levels(
    ops: Int64[Tensor, " batch"], magnitudes: Float[Tensor, " batch"], height: int, width: int
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Turn operations and torchvision's magnitudes into operation, level in [0, 1] and sign as `data.views.auto.operate` takes them."""
    scale = torch.tensor(_scales(height, width), device=ops.device)[ops]
    level = torch.where(scale > 0, magnitudes.abs() / scale.clamp_min(1e-9), 0.0)
    level = torch.where(ops == OPERATIONS.index("Posterize"), (8 - magnitudes) / RANDOM.posterize, level)
    level = torch.where(ops == OPERATIONS.index("Solarize"), 1 - magnitudes / 255, level)
    return torch.tensor(OURS, device=ops.device)[ops], level, torch.where(magnitudes < 0, -1.0, 1.0)


def _scales(height: int, width: int) -> list[float]:
    """Return each operation's magnitude at level 1; 0 for those without a direction."""
    shear, shift, enhance = RANDOM.shear, RANDOM.translate, RANDOM.enhance
    return [0.0, shear, shear, shift * width, shift * height, RANDOM.rotate, enhance, enhance, enhance, enhance, 0.0, 0.0, 0.0, 0.0]
