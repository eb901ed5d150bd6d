"""Three numbers of a labelled image set: intrinsic dimension of images and representations, and label sharpness (arXiv 2401.08865).

Before anything is trained they tell how fast the test loss falls with more images (the lower the dimension, the faster), and how exposed a
trained network will be to noise made against it (the sharper the labels, the more).

Images count as pixels in [0, 255], each scaled to a maximum of 255, as in the official data classes: label sharpness is worth comparing
under one convention, one size and one number of channels only. Where the official code and the paper differ on label sharpness, this
follows the paper: the code's numerator is 1 where the labels are the same, and it sees pairs of two shuffled loaders instead of all.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from retinue import metrics
from retinue.data import Data, Split
from retinue.engine.evaluation import as_trained
from retinue.engine.modes import evaluating
from retinue.errors import ArgumentError, DataError, unknown
from retinue.metrics.dimension import Correction, IDResult, Method
from retinue.metrics.neighbours import distance, flat, groups
from retinue.models import adapt, pooled_features

PAIRS_SHOWN = 10
AT_ONCE = 4096  # images that are read together
ROWS, LOOKED_AT = 256, 8  # rows of a matrix of distances, and how many of its smallest are computed exactly


class LabelSharpness(NamedTuple):
    """Largest and mean ratio over pairs of differently labelled images, and the pair that attains the largest."""

    value: float
    mean_ratio: float
    pair: tuple[int, int]


def intrinsic_dimension(
    x: Shaped[Tensor, "points ..."] | Data | Split,
    method: Method = "mle",
    k: int = 20,
    correction: Correction = "k-2",
    max_samples: int | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> IDResult:
    """Estimate how many numbers it takes to say where an image, or a point, lies among the others.

    Args:
        x: images (of `Data`, the training images), each of which is scaled to a maximum of 255; or points of any shape, taken as they are.
        method: this and the rest as in `retinue.metrics.intrinsic_dimension`.
        k: neighbours of the likelihood.
        correction: "k-2" as the official code, or "k-1".
        max_samples: points whose neighbours are measured; None takes all.
        n_bootstrap: draws for the interval; 0 gives none.
        seed: of the draws.

    Raises:
        ArgumentError: if an argument cannot be, or there are not more distinct points than neighbours.
        DataError: if there are fewer than three distinct points, or values that are not finite.
    """
    return metrics.intrinsic_dimension(x if isinstance(x, Tensor) else pixels(x), method, k, correction, max_samples, n_bootstrap, seed)


def representation_dimension(
    model: nn.Module,
    layer: str | None,
    dataset: Data | Split | Float[Tensor, "images channels height width"],
    method: Method = "twonn",
    k: int = 20,
    correction: Correction = "k-2",
    max_images: int | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    batch_size: int = 256,
) -> IDResult:
    """Estimate the intrinsic dimension of what a layer of a network makes of the images, in evaluation mode.

    Args:
        model: any network; it is not changed.
        layer: the name of one of its modules, whose output is flattened; None takes the vector that enters the classifier.
        dataset: images (of `Data`, the training images), or a batch as the network takes it.
        method: as in `intrinsic_dimension`; the official script takes "twonn" here.
        k: as there.
        correction: as there.
        max_images: take so many of the images, drawn at random; None takes all. They are kept in memory as the layer gives them.
        n_bootstrap: as there.
        seed: of the draws.
        batch_size: images at a time.

    Raises:
        ArgumentError: if there is no such layer, or it gives no tensor, or as in `intrinsic_dimension`.
        DataError: as there.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layer is not None and layer not in names:
        raise unknown("representation_dimension", "layer", layer, names, "All names: model.named_modules().")
    if isinstance(dataset, Tensor):
        chosen = dataset[_some(len(dataset), max_images, seed)]
        batches: Any = chosen.split(batch_size)
    else:
        split = as_trained(model, dataset.train if isinstance(dataset, Data) else dataset)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        loader = split.subset(_some(len(split), max_images, seed)).loader(batch_size, device=device)
        batches = (batch.images for batch in loader.batches())
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, out: Any) -> None:
        if not isinstance(out, Tensor):
            raise ArgumentError(
                f'representation_dimension: the layer "{layer}" gives a {type(out).__name__}, not a tensor. Take a whole stage or block.'
            )
        seen.append(out.detach().float().flatten(1).cpu())

    with torch.no_grad(), evaluating(model), contextlib.ExitStack() as stack:
        if layer is not None:
            hook = model.get_submodule(layer).register_forward_hook(look)
            stack.callback(hook.remove)
        for images in batches:
            if layer is None:
                seen.append(pooled_features(adapt(model, input_size=tuple(images.shape[-2:])), images).float().cpu())
            else:
                model(images)
    return intrinsic_dimension(torch.cat(seen), method, k, correction, n_bootstrap=n_bootstrap, seed=seed)


def label_sharpness(
    x: Shaped[Tensor, "images ..."] | Data | Split,
    y: Int[Tensor, " images"] | None = None,
    max_samples: int | None = 1000,
    seed: int = 0,
) -> LabelSharpness:
    """Compute how abruptly labels change between images: K_F = max 1[y_j != y_k] / |x_j - x_k| over all pairs (equation 5).

    It is the Lipschitz constant of the labels, one over the smallest distance between two images that are labelled differently. The pair
    that attains it is worth a look: often one of the two is mislabelled.

    Args:
        x: images of any shape, or a data set (of `Data`, the training images): then each image is scaled to a maximum of 255.
        y: their classes; None takes those of the data set.
        max_samples: take so many of the images, drawn at random (the paper has 1,000), and all pairs of them; None takes all.
        seed: of the draw.

    Returns:
        K_F; the mean of the ratios over differently labelled pairs, which does not hang on one pair; and the pair's positions in `x`.

    Raises:
        ArgumentError: if there are not as many labels as images.
        DataError: if all images have one class, there are values that are not finite, or the same image has two labels.

    >>> points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [6.0, 9.0]])
    >>> label_sharpness(points, torch.tensor([0, 1, 0, 1])).pair
    (2, 3)
    """
    where = "label_sharpness"
    if not isinstance(x, Tensor):
        split = x.train if isinstance(x, Data) else x
        chosen = _some(len(split), max_samples, seed)
        values, labels = pixels(split.subset(chosen)), split.labels[chosen]
    else:
        if y is None or len(y) != len(x):
            raise ArgumentError(f"{where}: there must be one label for each of {len(x)} images, got {0 if y is None else len(y)}.")
        chosen = _some(len(x), max_samples, seed)
        values, labels = x[chosen], y[chosen]
    values = flat(where, values)
    if len(labels.unique()) < 2:
        raise DataError(f"{where}: all images have one class, so no two labels differ. Give images of two classes at least.")
    given = values
    values = given.double() - given.mean(0, dtype=torch.float64)
    values = values if given.dtype == torch.float64 else values.float()
    own = values.square().sum(1)
    floor = max(torch.finfo(values.dtype).eps * float(own.mean()), torch.finfo(values.dtype).tiny)  # what rounding leaves of the product
    total, pairs, least, place = 0.0, 0, torch.inf, (0, 0)
    for start in range(0, len(values), ROWS):  # each pair once: the columns begin where the rows do
        block, others = values[start : start + ROWS], values[start:]
        squares = torch.addmm(own[None, start:], block, others.T, alpha=-2).add_(own[start : start + ROWS, None])
        same = labels[start : start + ROWS, None] == labels[None, start:]
        squares.clamp_(min=floor).masked_fill_(same, torch.inf)
        ratios, differ = squares.rsqrt(), ~same
        total += 2 * float(ratios.sum(dtype=torch.float64)) - float(
            ratios[:, :ROWS].sum(dtype=torch.float64)
        )  # the square on the diagonal has its pairs twice
        pairs += 2 * int(differ.sum()) - int(differ[:, :ROWS].sum())
        nearest_of = squares.min(1)
        rows = nearest_of.values.topk(min(LOOKED_AT, len(block)), largest=False).indices  # the product cancels: look at several exactly
        rows = rows[nearest_of.values[rows].isfinite()]
        if not len(rows):
            continue
        a, b = rows + start, nearest_of.indices[rows] + start
        exact = distance(given, a, b)
        best = int(exact.argmin())
        if float(exact[best]) < least:
            least, place = float(exact[best]), (int(a[best]), int(b[best]))
    if least == 0:
        clashes = [(int(chosen[i]), int(chosen[j])) for i, j in contradictions(given, labels)]
        told = ", ".join(f"{i} and {j}" for i, j in clashes[:PAIRS_SHOWN])
        more = f" and {len(clashes) - PAIRS_SHOWN} more pairs" if len(clashes) > PAIRS_SHOWN else ""
        raise DataError(
            f"{where}: the same image has two labels, so that the labels are infinitely sharp: images {told}{more}. Correct or remove them."
        )
    first, second = sorted(int(chosen[i]) for i in place)
    return LabelSharpness(1 / least, total / pairs, (first, second))


def contradictions(x: Shaped[Tensor, "images ..."], y: Int[Tensor, " images"]) -> list[tuple[int, int]]:
    """List pairs of images that are exactly the same and have different labels; of each group of copies, the first beside the others."""
    return [(members[0], i) for members in groups(x) for i in members[1:] if y[i] != y[members[0]]]


def pixels(images: Data | Split) -> Float[Tensor, "images features"]:
    """Return images as rows of pixels in [0, 255], each image scaled to a maximum of 255; of `Data`, the training images."""
    split = images.train if isinstance(images, Data) else images
    if not len(split):
        raise DataError("audit: there are no images. Give some.")
    return torch.cat([scaled(split.images(some)).flatten(1) for some in torch.arange(len(split)).split(AT_ONCE)])


def scaled(images: Shaped[Tensor, "images ..."]) -> Float[Tensor, "images ..."]:
    """Scale each image to a maximum of 255; a black one stays black."""
    values = images.float()
    most = values.flatten(1).amax(1)
    return values * 255 / torch.where(most > 0, most, 1.0).view(-1, *[1] * (values.ndim - 1))


def _some(count: int, most: int | None, seed: int) -> Int[Tensor, " chosen"]:
    """Draw positions without return, in rising order; all of them if there are no more."""
    if most is not None and most < 1:
        raise ArgumentError(f"audit: at least one image must be drawn, got {most}.")
    if most is None or most >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
