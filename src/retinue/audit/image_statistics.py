"""What the images look like in numbers: sizes of the files, brightness, contrast, colour, and whether light alone gives the class away."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retinue.audit.survey import Survey
from retinue.data import named
from retinue.data.preprocessing import BadImageError, peek

FLAT = 0.01  # contrast below which an image shows nothing: 2.5 grey levels
MOST_NAMES = 200  # in a list
MOST_SIZES = 8
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def image_statistics(survey: Survey) -> dict[str, Any]:
    """Summarise brightness, contrast and colour.

    Returns:
        "brightness" and "contrast": minimum, quartiles and maximum, in [0, 1]; "parts": of each split its brightness and each channel's
        mean and standard deviation; "flat": names of images that show nothing; "grey": how many have no colour; "class_signal": shares of
        the variance of brightness and of contrast that lie between the classes of the training images.
    """
    points = torch.tensor(QUANTILES)
    train = survey.of("train")
    flat = (survey.contrast < FLAT).nonzero()[:, 0].tolist()
    return {
        "brightness": survey.brightness.quantile(points).tolist(),
        "contrast": survey.contrast.quantile(points).tolist(),
        "parts": {
            part: {
                "brightness": float(survey.brightness[survey.of(part)].mean()),
                "spread": float(survey.brightness[survey.of(part)].std(unbiased=False)),
                "mean": mean,
                "std": std,
            }
            for part, (mean, std) in survey.moments.items()
        },
        "flat": [survey.name(i) for i in flat[:MOST_NAMES]],
        "flat_count": len(flat),
        "grey": int((~survey.coloured).sum()),
        "class_signal": {
            "brightness": between_classes(survey.brightness[train], survey.labels[train]),
            "contrast": between_classes(survey.contrast[train], survey.labels[train]),
        },
    }


def between_classes(values: Float[Tensor, " images"], labels: Int[Tensor, " images"]) -> float:
    """Compute the share of a number's variance that lies between the classes (eta squared): 0 tells nothing of the class, 1 gives it away.

    >>> between_classes(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    numbers = values.double()
    whole = float((numbers - numbers.mean()).square().sum())
    within = sum(float((some - some.mean()).square().sum()) for some in (numbers[labels == label] for label in labels.unique()))
    return 1 - within / whole if whole > 0 else 0.0


def file_statistics(source: str | Path, image_column: str | None = None, label_column: str | None = None) -> dict[str, Any] | None:
    """Read the heads of all files: their own sizes in pixels and bytes, before anything was scaled.

    Args:
        source: as for `retinue.data.open`.
        image_column: as there.
        label_column: as there.

    Returns:
        "count"; "width" and "height": minimum, median and maximum; "sizes": the commonest, as [width, height, how many]; "bytes": minimum,
        median, maximum and sum, None where pixels lie in one array. None for sets that torchvision would have to read once more.
    """
    if str(source).startswith("torchvision:"):
        return None
    records = named.find(str(source), image_column, label_column)
    if isinstance(records.items, np.ndarray):
        height, width = records.items.shape[1:3]
        sizes, weights = Counter({(int(width), int(height)): len(records)}), list[int]()
    else:
        sizes, weights = _heads(records.items)
    if not sizes:
        return None
    widths, heights = (np.repeat([size[axis] for size in sizes], list(sizes.values())) for axis in (0, 1))
    return {
        "count": len(records),
        "width": _three(widths),
        "height": _three(heights),
        "sizes": [[width, height, count] for (width, height), count in sizes.most_common(MOST_SIZES)],
        "distinct_sizes": len(sizes),
        "bytes": [*_three(weights), int(sum(weights))] if weights else None,
    }


def _heads(items: Sequence[Any]) -> tuple[Counter[tuple[int, int]], list[int]]:
    def look(item: Any) -> tuple[tuple[int, int] | None, int | None]:
        weight = len(item) if isinstance(item, bytes) else os.path.getsize(item) if isinstance(item, str | Path) else None
        try:
            (height, width), _ = peek(item)
        except BadImageError:
            return None, weight  # it is listed among the broken ones
        return (width, height), weight

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(look, items))
    return Counter(size for size, _ in found if size is not None), [weight for _, weight in found if weight is not None]


def _three(values: Any) -> list[int]:
    return [int(np.min(values)), int(np.median(values)), int(np.max(values))]
