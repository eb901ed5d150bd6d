"""Fractals as data of the engine: training, validation and test images of the same systems, made when they are asked for."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retinue.data import Data, Preprocessing, Split
from retinue.data.splits import PARTS
from retinue.data.store import FileStore
from retinue.errors import ArgumentError
from retinue.pretrain.fractal import FractalDataset, Mode

NAME, SOURCE = "fractals", "retinue.pretrain.fractals"  # what recipes and records call it


class FractalStore(FileStore):
    """The images of a `FractalDataset`, by number; worker processes make them as they would decode files.

    Args:
        dataset: makes them.
        preprocessing: of the images.
    """

    def __init__(self, dataset: FractalDataset, preprocessing: Preprocessing) -> None:
        super().__init__(range(len(dataset)), preprocessing)
        self.dataset = dataset
        self.span = len(dataset)  # every epoch has images of its own

    def __getitem__(self, index: int) -> UInt8[Tensor, "channels size size"]:
        return self.dataset.images([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Make a batch at once; torch's loader asks for it by this name."""
        return list(self.dataset.images(indices))

    def images(self, indices: Int[Tensor, " batch"]) -> UInt8[Tensor, "batch channels size size"]:
        """Make some of the images."""
        return self.dataset.images(indices)

    def targets(self, numbers: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"] | None:
        """Return 1 for each class that an image of "multi" mode shows; in "single" mode the label says it."""
        return self.dataset.multi_hot(numbers) if self.dataset.mode == "multi" else None


class Names(Sequence[str]):
    """What to call each image: its class and its number within it; made when asked for, as there may be millions.

    Args:
        dataset: the images.
        positions: which of them.
    """

    def __init__(self, dataset: FractalDataset, positions: Int[Tensor, " images"]) -> None:
        self.per_class, self.positions = dataset.per_class, positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label, number = divmod(int(self.positions[index]), self.per_class)
        return f"fractal {label}, picture {number}"


def fractals(
    num_classes: int = 1000,
    *,
    train_images: int = 1_000_000,
    val_images: int = 2000,
    test_images: int = 2000,
    input_size: int = 224,
    mode: Mode = "multi",
    num_systems: int | None = None,
    n: Sequence[int] = (2, 4),
    n_points: int = 100_000,
    jitter: str = "scale",
    n_objects: Sequence[int] = (1, 5),
    period: int = 2,
    cache: int = 16_384,
    seed: int = 0,
) -> Data:
    """Open fractals as data: no file is read, nothing is stored, and the labels are exact.

    Train them with `retinue.train.Supervised()` in "single" mode, with `MultiInstance` in "multi" and with `SimSiam` in "pairs" mode.

    Args:
        num_classes: how many classes.
        train_images: of an epoch, spread evenly over the classes.
        val_images: other pictures of the same systems.
        test_images: and others again.
        input_size: side in pixels.
        mode: "single", "multi" or "pairs": one fractal in an image, several, or two pictures of one for `SimSiam`.
        num_systems: as in `FractalDataset`, and so are those that follow.
        n: fewest and most maps of a system.
        n_points: of each rendered fractal.
        jitter: how a system is changed for each picture.
        n_objects: fewest and most fractals in an image.
        period: images for each rendered fractal.
        cache: renders that an epoch's images share.
        seed: of systems and images.

    Raises:
        ArgumentError: if a number cannot be, or there are fewer training images than classes.

    >>> data = fractals(4, train_images=40, val_images=8, test_images=8, input_size=16, n_points=500)
    >>> next(iter(data.train.loader(5, shuffle=True).batches())).images.shape
    torch.Size([5, 3, 16, 16])
    """
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in locals().items()}
    if train_images < num_classes or min(val_images, test_images) < 0:
        raise ArgumentError(
            f"fractals: `train_images` must be at least the {num_classes} classes, and `val_images` and `test_images` 0 or more, got "
            f"{train_images}, {val_images} and {test_images}."
        )
    classes = [f"fractal {label}" for label in range(num_classes)]
    preprocessing = Preprocessing((input_size, input_size))  # (x - 0.5) / 0.5, as the official code
    parts: dict[str, Any] = {}
    for number, (part, count) in enumerate(zip(PARTS, (train_images, val_images, test_images))):
        dataset = FractalDataset(
            num_classes, max(1, -(-count // num_classes)), input_size, mode, seed, num_systems=num_systems, n=(n[0], n[-1]),
            n_points=n_points, jitter=jitter, n_objects=(n_objects[0], n_objects[-1]), period=period, cache=cache, part=number,
        )  # fmt: skip
        positions = torch.arange(count) * len(dataset) // max(1, count)
        store, names = FractalStore(dataset, preprocessing), Names(dataset, positions)
        parts[part] = Split(store, positions, dataset.labels(positions), names, classes, preprocessing)
    return Data(**parts, classes=classes, preprocessing=preprocessing, name=NAME, opened_with={"source": SOURCE, **arguments})
