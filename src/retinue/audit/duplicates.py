"""The same image twice, or nearly: exact copies by a hash, near copies by correlation, within and across splits.

Two images are called near copies where their pixels correlate, and far more than with other images: a picture of a straight "1" resembles
hundreds of others, and is no copy of any. Scaled, re-compressed, brightened or slightly cut copies
are found; mirrored or turned ones are not.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from retinue.audit.survey import Survey
from retinue.metrics.neighbours import BLOCK

SIDE = 16  # of the grey miniatures by which candidates are found
OTHERS = 10  # the neighbour with which a copy is compared: more copies of one image than these hide each other
CORRELATION = 0.9  # a near copy's at least
APART = 0.25  # 1 - correlation, as a share of that with the tenth neighbour, below which an image is a copy: half of the distance
CERTAIN = 0.995  # correlation above which it is one, however many others are as near
TINY = 256  # pixels below which only the last counts: there is too little to tell a copy from a lookalike
ROWS = 512  # of the matrix of correlations at a time


class Pair(NamedTuple):
    """Two images by their positions in the survey, and the correlation of their pixels; 1 for exact copies."""

    a: int
    b: int
    correlation: float


@dataclass
class Duplicates:
    """Copies among the images.

    Attributes:
        exact: pairs that are the same; of each group of copies, the first beside each other one.
        near: pairs that are nearly the same, the most alike first.
        leaks: of two splits, such as "test in train", how many images of the first have an exact or near copy in the other.
        clashes: exact or near copies with different labels.
    """

    exact: list[Pair]
    near: list[Pair]
    leaks: dict[str, int]
    clashes: list[Pair]


def find_duplicates(survey: Survey) -> Duplicates:
    """Find exact and near copies.

    The search looks at every pair of images in grey miniatures of 16 px, by blocks; memory grows with the number of images alone, by
    about 1.5 kB an image. Pairs that are found are compared again at the survey's resolution and in colour.
    """
    copies: dict[bytes, list[int]] = {}
    for i, digest in enumerate(survey.hashes):
        copies.setdefault(digest, []).append(i)
    groups = [members for members in copies.values() if len(members) > 1]
    exact = [Pair(members[0], i, 1.0) for members in groups for i in members[1:]]
    firsts = torch.tensor([members[0] for members in copies.values()], dtype=torch.int64)
    near = near_copies(survey.pixels, firsts)
    # what is near to the first of a group is near to all of it
    of = {members[0]: members for members in groups}
    together = [*groups, *([*of.get(p.a, [p.a]), *of.get(p.b, [p.b])] for p in near)]
    leaks: dict[str, set[int]] = {}
    for members in together:
        for i in members:
            for j in members:
                if survey.parts[i] > survey.parts[j]:  # train, val, test: the later one is spoiled
                    leaks.setdefault(f"{survey.part(i)} in {survey.part(j)}", set()).add(i)
    clashes = [p for p in (*exact, *near) if survey.labels[p.a] != survey.labels[p.b]]
    return Duplicates(exact, near, {name: len(found) for name, found in sorted(leaks.items())}, clashes)


def near_copies(pixels: UInt8[Tensor, "images channels height width"], among: Int[Tensor, " chosen"] | None = None) -> list[Pair]:
    """List pairs of images that are nearly the same.

    Args:
        pixels: all images.
        among: positions of those to look at; None looks at all. Exact copies should be left out: they hide each other's near copies.

    Returns:
        Pairs of positions in `pixels`, the most alike first.
    """
    chosen = torch.arange(len(pixels)) if among is None else among
    if len(chosen) < 2:
        return []
    small = torch.cat([unit(miniatures(pixels[some])) for some in chosen.split(ROWS)])
    most = min(OTHERS, len(chosen) - 1)
    least: dict[tuple[int, int], float] = {}  # the correlation that each pair must have when it is looked at closely
    for start in range(0, len(small), ROWS):
        likeness = small[start : start + ROWS] @ small.T
        rows = torch.arange(len(likeness))
        likeness[rows, rows + start] = -torch.inf  # an image is not its own copy
        values, places = likeness.topk(most, dim=1)
        reference = 1 - values[:, -1:] if most == OTHERS else torch.ones(len(values), 1)
        apart = (values >= CORRELATION) & (1 - values <= APART * reference)
        if pixels[0, 0].numel() < TINY:
            apart = torch.zeros_like(apart)
        for row, column in (apart | (values >= CERTAIN)).nonzero().tolist():
            a, b = sorted((start + row, int(places[row, column])))
            needed = CORRELATION if apart[row, column] else CERTAIN
            least[a, b] = min(needed, least.get((a, b), needed))
    if not least:
        return []
    a, b = (torch.tensor(side) for side in zip(*least))
    exact = correlation(pixels, chosen[a], chosen[b])
    pairs = [Pair(int(chosen[i]), int(chosen[j]), float(r)) for i, j, r, needed in zip(a, b, exact, least.values()) if r >= needed]
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.a, pair.b))


def correlation(pixels: UInt8[Tensor, "images channels height width"], a: Int[Tensor, " pairs"], b: Int[Tensor, " pairs"]) -> Tensor:
    """Compute the correlation of the pixels of pairs of images, over all channels together; 0 where one has a single value."""
    rows = max(1, BLOCK // (2 * pixels[0].numel()))
    return torch.cat([(unit(pixels[i].float()) * unit(pixels[j].float())).sum(1) for i, j in zip(a.split(rows), b.split(rows))])


def miniatures(pixels: UInt8[Tensor, "images channels height width"]) -> Float[Tensor, "images 1 h w"]:
    """Average to grey images of at most 16 px a side."""
    grey = pixels.float().mean(1, keepdim=True)
    size = tuple(min(side, SIDE) for side in grey.shape[-2:])
    return grey if size == tuple(grey.shape[-2:]) else F.interpolate(grey, size, mode="area")


def unit(images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images features"]:
    """Subtract each image's mean and divide by its length, so that a product is a correlation; an image of a single value becomes 0."""
    rows = images.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-3, rows / length.clamp(min=1e-3), 0.0)
