"""Training, validation and test: as the source gives them, or drawn class by class from a seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinue.errors import ArgumentError, DataError

PARTS = ("train", "val", "test")
Indices = NDArray[np.int64]


def split_indices(labels: Indices, given: NDArray[Any] | None, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Indices]:
    """Choose which images belong to which split.

    Splits that the source gives are kept. A missing test split is drawn from the training images, then a missing validation split from
    what remains, in each class the same share; every class keeps at least one training image.

    Args:
        labels: class numbers.
        given: the source's splits.
        val_fraction: share of the training images that is set apart for validation, in [0, 1).
        test_fraction: share of all images that is set apart for testing, in [0, 1).
        seed: of the draw.

    Returns:
        Sorted positions for "train", "val" and "test"; a part may be empty.

    Raises:
        ArgumentError: if a fraction lies outside [0, 1).
        DataError: if no image is left for training.
    """
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise ArgumentError(f"data: `{name}` must lie in [0, 1), got {value}. For ten percent write 0.1.")
    everything = np.arange(len(labels))
    parts = {part: everything[given == part] if given is not None else everything[:0] for part in PARTS}
    if given is None:
        parts["train"] = everything
    if not len(parts["train"]):
        raise DataError("data: there are no training images. Give a training split, or leave out the splits and let them be drawn.")
    if not len(parts["test"]):
        parts["train"], parts["test"] = draw(parts["train"], labels, test_fraction, seed)
    if not len(parts["val"]):
        parts["train"], parts["val"] = draw(parts["train"], labels, val_fraction, seed + 1)
    return parts


def draw(indices: Indices, labels: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Draw a share of the images of each class, rounded to whole images.

    Returns:
        What remains and what was drawn, both sorted.
    """
    random = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels[indices]):
        members = random.permutation(indices[labels[indices] == label])
        drawn.append(members[: min(round(len(members) * share), len(members) - 1)])
    chosen = np.sort(np.concatenate(drawn)) if drawn else indices[:0]
    return np.setdiff1d(indices, chosen), chosen


def thinned(indices: Indices, labels: Indices, count: int | None, seed: int, what: str) -> Indices:
    """Take `count` of the images, each class in its share (rounded down, the rest to the classes that lost most).

    Raises:
        ArgumentError: if there are not so many.
    """
    if count is None or count == len(indices):
        return indices
    if not 0 < count <= len(indices):
        raise ArgumentError(f"data: `{what}` must lie between 1 and the {len(indices)} images that there are, got {count}.")
    random = np.random.default_rng(seed)
    kinds, sizes = np.unique(labels[indices], return_counts=True)
    exact = sizes * count / len(indices)
    take = exact.astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: count - take.sum()]] += 1
    chosen = [random.permutation(indices[labels[indices] == kind])[:many] for kind, many in zip(kinds, take)]
    return np.sort(np.concatenate(chosen))
