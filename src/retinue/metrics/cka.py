"""CKA: how alike two representations of the same images are, in whatever basis (Kornblith et al. 2019, arXiv 1905.00414)."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError


def hsic(K: Float[Tensor, "n n"], L: Float[Tensor, "n n"], unbiased: bool = False) -> Float[Tensor, ""]:
    """Estimate the Hilbert-Schmidt independence criterion of two kernel matrices.

    Biased: tr(K H L H) / (n - 1)^2 with H = I - 11'/n (Kornblith et al., equation 3). Unbiased: with the diagonals of K and L set to zero,
    [tr(K L) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'KL1] / (n (n - 3)) (Nguyen et al. 2020, equation 3, after Song et al. 2012).

    Args:
        K: kernel values of each pair of images.
        L: the same of the other representation.
        unbiased: zero on average for independent representations; needs 4 images at least.
    """
    n = len(K)
    if unbiased:
        K, L = (M - M.diagonal().diag() for M in (K, L))
        once = (K * L.T).sum()
        return (once + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K.sum(0) @ L.sum(1))) / (n * (n - 3))
    centred = K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    return (centred * L.T).sum() / (n - 1) ** 2  # H is idempotent, so centring one of the two is enough


def linear_cka(x: Float[Tensor, "images features"], y: Float[Tensor, "images others"], unbiased: bool = False) -> Float[Tensor, ""]:
    """Compute HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) for K = x x', L = y y' (section 3).

    Args:
        x: features of some images; maps are flattened or pooled first.
        y: other features of the same images, of any length.
        unbiased: use the unbiased estimate. The biased one grows to 1 for any two representations with many more features than images.

    Returns:
        1 for the same features up to rotation and one common scale; about 0 (unbiased) for unrelated ones; not a number if all images have
        the same features.

    Raises:
        ShapeError: if the two have different numbers of images, or too few.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(float(linear_cka(x, 3 * x)), 6)
    1.0
    """
    return minibatch_cka([(x, y)], unbiased)


def minibatch_cka(
    pairs: Iterable[tuple[Float[Tensor, "images features"], Float[Tensor, "images others"]]], unbiased: bool = True
) -> Float[Tensor, ""]:
    """Compute CKA from batches, whose HSIC values are averaged before they are divided (Nguyen et al. 2020, arXiv 2010.15327, equation 2).

    Unbiased, the averages do not depend on the batch size, so that any number of images takes the memory of one batch.

    Args:
        pairs: both features of each batch; batches of one size.
        unbiased: as in `linear_cka`.

    Raises:
        ArgumentError: if there is no batch.
        ShapeError: as in `linear_cka`.
    """
    sums: list[Tensor] = []
    for x, y in pairs:
        K, L = _kernel(x, len(y), unbiased), _kernel(y, len(x), unbiased)
        new = [hsic(K, L, unbiased), hsic(K, K, unbiased), hsic(L, L, unbiased)]
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
    if not sums:
        raise ArgumentError("minibatch_cka: there was no batch. Give at least one pair of features.")
    return sums[0] / (sums[1].sqrt() * sums[2].sqrt())


def _kernel(x: Tensor, others: int, unbiased: bool) -> Tensor:
    least = 4 if unbiased else 2
    if x.ndim != 2:
        raise ShapeError(f"cka: features must have one row an image, got shape {tuple(x.shape)}. Flatten or pool maps: x.flatten(1).")
    if len(x) != others or len(x) < least:
        raise ShapeError(f"cka: both representations must be of the same images, at least {least} of them; got {len(x)} and {others}.")
    x = x.double()
    x = x - x.mean(0)  # changes neither estimate, and keeps the digits of features with a large mean
    return x @ x.T
