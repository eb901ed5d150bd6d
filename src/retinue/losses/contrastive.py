"""Contrastive losses: an embedding shall be like its positives and unlike everything else of the batch.

NT-Xent (Chen et al. 2020, arXiv 2006.10029, section 2) has one positive, the other view of the image; the supervised contrastive loss
(Khosla et al. 2020, arXiv 2004.11362, equation 2) has all others of the class, and the self-contrastive one (Bae et al. 2021, arXiv
2106.15499) is its form for views from one network. All three are -s(z, positives) + log sum_others exp s, and share one kernel that never
holds the whole matrix of similarities.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.losses.gathering import gather_with_gradient, rank

Reduction = Literal["mean", "official", "sum", "none"]
REDUCTIONS = ("mean", "official", "sum", "none")
BLOCK = 1 << 22  # similarities that are held at once where nothing else is asked for: 16 MiB


def nt_xent(
    z1: Float[Tensor, "images dim"],
    z2: Float[Tensor, "images dim"],
    temperature: float = 0.1,
    memory: Float[Tensor, "entries dim"] | None = None,
    *,
    chunk: int | None = None,
    reduction: Reduction = "mean",
    gather: bool = True,
) -> Float[Tensor, "..."]:
    """Compute l_i = -log(exp(z_i z_j(i) / tau) / sum_{k != i} exp(z_i z_k / tau)) over all 2 N views of a batch, j(i) the other view of i.

    Embeddings are brought to length 1 here. A view has 1 positive and 2 N - 2 negatives; over several processes, the views of all are
    negatives, with gradient, and the result is of this process's own anchors.

    Args:
        z1: embeddings of the first views.
        z2: of the second views of the same images.
        temperature: tau, above 0: 0.1 for large batches, 0.2 to 0.5 for small ones.
        memory: embeddings of earlier views, which are negatives and get no gradient.
        chunk: anchors whose similarities are held at once; None takes as many as fit 16 MiB. It changes memory and time, not the result.
        reduction: "mean" over the 2 N anchors; "official", the mean over the first views plus that over the second, which is twice as
            much; "sum"; or "none", the losses of the first views, then of the second.
        gather: take the views of all processes, where there are several. Give False where all have the same images, as in evaluation.

    Raises:
        ShapeError: if the two differ in shape, there are fewer than two images, or the memory has another dimension.
        ArgumentError: if the temperature is not positive, an embedding is not finite, or an option does not exist.

    >>> pairs = torch.eye(4, dtype=torch.float64)[:2]
    >>> round(nt_xent(pairs, pairs, temperature=0.5).item(), 8)
    0.23954477
    """
    _check_options("nt_xent", temperature, chunk)
    if reduction not in REDUCTIONS:
        raise unknown("nt_xent", "`reduction`", reduction, REDUCTIONS)
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ShapeError(
            f"nt_xent: `z1` and `z2` must both be (images, dim), row by row of the same image, got {tuple(z1.shape)} and {tuple(z2.shape)}."
        )
    if len(z1) < 2:
        raise ShapeError(f"nt_xent: a batch needs 2 images at least, got {len(z1)}: one image has no negatives. Leave it out.")
    _check_finite("nt_xent", z1, z2)
    if memory is not None and memory.shape[1:] != z1.shape[1:]:
        raise ShapeError(f"nt_xent: `memory` must be (entries, {z1.shape[1]}), got {tuple(memory.shape)}.")
    return reduced(view_losses(z1, z2, temperature, memory, chunk, gather), reduction)


def supcon(
    z: Float[Tensor, "images views dim"],
    labels: Int[Tensor, " images"] | None = None,
    temperature: float = 0.1,
    *,
    chunk: int | None = None,
    gather: bool = True,
) -> Float[Tensor, ""]:
    """Compute the mean over all views of -1/|P(i)| sum_{p in P(i)} (z_i z_p / tau - log sum_{a != i} exp(z_i z_a / tau)).

    P(i) are the other views of the same class, those of the same image among them; without labels, the other views of the image alone.
    Embeddings are brought to length 1 here. Views without any positive are left out of the mean.

    Args:
        z: embeddings of several views of each image, or of several exits of a network.
        labels: classes, any whole numbers; None: every image is a class of its own.
        temperature: tau, above 0.
        chunk: anchors whose similarities are held at once; None takes as many as fit 16 MiB.
        gather: as for `nt_xent`.

    Raises:
        ShapeError: if `z` or `labels` has a shape that cannot be, or there is only one view in all.
        ArgumentError: if no view has a positive, the temperature is not positive, or an embedding is not finite.

    >>> z = torch.eye(4, dtype=torch.float64)[:2, None].expand(2, 2, 4)  # two images, whose views are equal: NT-Xent
    >>> round(supcon(z, temperature=0.5).item(), 8)
    0.23954477
    """
    _check_options("supcon", temperature, chunk)
    if z.ndim != 3:
        raise ShapeError(f"supcon: `z` must be (images, views, dim), got {tuple(z.shape)}. For one view of each: z[:, None].")
    if z.shape[0] * z.shape[1] < 2:
        raise ShapeError(f"supcon: there must be 2 views at least, got `z` of {tuple(z.shape)}: one view has nothing to be compared with.")
    if labels is not None and labels.shape != z.shape[:1]:
        raise ShapeError(f"supcon: `labels` must be {len(z)} whole numbers, one for each image, got {tuple(labels.shape)}.")
    if labels is None and z.shape[1] < 2:
        raise ArgumentError("supcon: with one view of each image, and no `labels`, nothing is a positive. Give labels, or two views.")
    _check_finite("supcon", z)
    anchors = unit(z).flatten(0, 1)
    keys = gather_with_gradient(anchors) if gather else anchors
    first = rank() * len(anchors) if gather else 0
    if labels is None:
        kinds = torch.arange(len(keys), device=z.device) // z.shape[1]
    else:
        given = gather_with_gradient(labels) if gather else labels
        kinds = given.unique(return_inverse=True)[1].repeat_interleave(z.shape[1])
    own = kinds[first : first + len(anchors)]
    positives = kinds.bincount()[own] - 1
    sums = keys.new_zeros(int(kinds.max()) + 1, keys.shape[1]).index_add(0, kinds, keys)
    mean = (sums[own] - anchors) / positives.clamp_min(1)[:, None]
    losses = others_logsumexp(anchors, keys, first, temperature, chunk=chunk) - (anchors * mean).sum(1) / temperature
    if z.shape[1] == 1 and not bool((positives > 0).any()):
        raise ArgumentError("supcon: no two images have the same label, so nothing is a positive. Give larger batches, or two views.")
    return losses[positives > 0].mean() if z.shape[1] == 1 else losses.mean()


def view_losses(
    z1: Float[Tensor, "images dim"],
    z2: Float[Tensor, "images dim"],
    temperature: float,
    memory: Float[Tensor, "entries dim"] | None = None,
    chunk: int | None = None,
    gather: bool = True,
) -> Float[Tensor, " views"]:
    """Compute the losses l_i of `nt_xent` of the first views, then of the second; nothing is checked, so no device is waited for."""
    anchors = unit(torch.cat([z1, z2]))
    keys = gather_with_gradient(anchors) if gather else anchors
    first = rank() * len(anchors) if gather else 0
    extra = None if memory is None else unit(memory.detach())
    positive = torch.mul(*anchors.chunk(2)).sum(1).repeat(2) / temperature
    return others_logsumexp(anchors, keys, first, temperature, extra, chunk) - positive


def reduced(losses: Float[Tensor, " views"], reduction: Reduction) -> Float[Tensor, "..."]:
    """Reduce the losses of `view_losses` as `nt_xent` says."""
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean() * (2 if reduction == "official" else 1)


def unit(z: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Bring rows to length 1, in single precision at least."""
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1)


def others_logsumexp(
    anchors: Float[Tensor, "anchors dim"],
    keys: Float[Tensor, "keys dim"],
    first: int,
    temperature: float,
    extra: Float[Tensor, "entries dim"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " anchors"]:
    """Compute log sum_{k != i} exp(a_i k / tau) for each anchor, a few anchors at a time; the backward pass computes these again.

    Args:
        anchors: a.
        keys: k; row `first` + i is anchor i itself, which is left out.
        first: place of the first anchor among the keys.
        temperature: tau.
        extra: more keys, which get no gradient.
        chunk: anchors at a time; all at once, nothing is computed twice.
    """
    count = len(keys) + (0 if extra is None else len(extra))
    chunk = min(len(anchors), chunk or max(1, BLOCK // count))
    with torch.autocast(anchors.device.type, enabled=False):  # sixteen bits are too few for the logarithm of a sum of thousands
        sums: Tensor = _OthersLogSumExp.apply(anchors, keys, extra, first, temperature, chunk)
    return sums


class _OthersLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, extra: Tensor | None, first: int, temperature: float, chunk: int) -> Tensor:
        ctx.first, ctx.temperature, ctx.chunk = first, temperature, chunk
        every = keys if extra is None else torch.cat([keys, extra])
        sums = anchors.new_empty(len(anchors))
        for start in range(0, len(anchors), chunk):
            block = _similarities(anchors[start : start + chunk], every, first + start, temperature)
            largest = block.amax(1)
            total = block.sub_(largest[:, None]).exp_().sum(1)
            sums[start : start + chunk] = total.log().add_(largest)
        kept = (block.div_(total[:, None]),) if chunk >= len(anchors) else ()  # of one block, the shares are not computed again
        ctx.save_for_backward(anchors, keys, extra, sums, *kept)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        anchors, keys, extra, sums, *kept = ctx.saved_tensors
        every = keys if extra is None else torch.cat([keys, extra])
        of_anchors, of_keys = torch.empty_like(anchors), torch.zeros_like(keys)
        weight = (gradient / ctx.temperature)[:, None]
        for start in range(0, len(anchors), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            if kept:
                shares = kept[0]
            else:
                shares = _similarities(anchors[rows], every, ctx.first + start, ctx.temperature).sub_(sums[rows, None]).exp_()
            torch.mm(shares, every, out=of_anchors[rows])
            of_keys.addmm_(shares[:, : len(keys)].T, anchors[rows] * weight[rows])
        return of_anchors.mul_(weight), of_keys, None, None, None, None


def _similarities(anchors: Tensor, keys: Tensor, own: int, temperature: float) -> Tensor:
    """Compute a block of the matrix of similarities, with minus infinity where an anchor meets itself."""
    block = (anchors / temperature) @ keys.T
    block.diagonal(own).fill_(-torch.inf)
    return block


def _check_options(where: str, temperature: float, chunk: int | None) -> None:
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"{where}: `temperature` must be above 0, got {temperature}. Usual are 0.07 to 0.5.")
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ArgumentError(f"{where}: `chunk` must be a whole number of anchors, 1 or more, got {chunk!r}. None chooses one.")


def _check_finite(where: str, *embeddings: Tensor) -> None:
    for z in embeddings:
        finite = z.detach().isfinite()
        if not bool(finite.all()):
            image = int((~finite).nonzero()[0, 0])
            raise ArgumentError(
                f"{where}: the embedding of image {image} is NaN or infinite. Lower the learning rate, or clip gradients: "
                "retinue.fit(clip_grad=1.0)."
            )
