"""CKA and RSA: how alike two representations of the same images are, in whatever basis.

CKA is of Kornblith et al. 2019 (arXiv 1905.00414), RSA of Kriegeskorte et al. 2008. `linear_cka` and `rsa` compare features;
`linear_kernel` and `cosines` with `aligned` and `correlated` are their halves: what is kept of each representation, and how two such
matrices compare. Losses are made of the halves, since they never give NaN.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
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


def rsa(x: Float[Tensor, "images features"], y: Float[Tensor, "images others"]) -> Float[Tensor, ""]:
    """Correlate the similarities of all pairs of images in one representation with those in another (representational similarity).

    Args:
        x: features of some images; maps are flattened or pooled first.
        y: other features of the same images, of any length.

    Returns:
        Pearson's correlation between the two matrices of cosines, in [-1, 1]; 0 where all cosines of one are equal. Differentiable.

    Raises:
        ShapeError: if the two have different numbers of images, or fewer than two.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(float(rsa(x, x @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))), 6)
    1.0
    """
    _check(x, len(y), least=2)
    _check(y, len(x), least=2)
    return correlated(cosines(x.double()), cosines(y.double()))


def linear_kernel(x: Float[Tensor, "*groups images features"]) -> Float[Tensor, "*groups images images"]:
    """Compute X X' of centred features, in float32 or higher whatever the precision around it: half precision would overflow.

    Features that differ between images by rounding alone count as constant, and their kernel is zero.

    Args:
        x: features of some images; any leading dimensions are kept apart.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        centred = x - x.mean(-2, keepdim=True)
        K = centred @ centred.mT
        rounding = (8 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum((-2, -1))
        return K * (K.detach().diagonal(dim1=-2, dim2=-1).sum(-1) > rounding)[..., None, None]


def aligned(K: Float[Tensor, "*groups n n"], L: Float[Tensor, "*groups n n"]) -> Float[Tensor, "*groups"]:
    """Compute <K, L> / (|K| |L|) of two centred kernels: the biased CKA, in [0, 1]; 0 (without gradient) where one is zero."""
    return _cosine(K, L)


def cosines(x: Float[Tensor, "*groups images features"]) -> Float[Tensor, "*groups images images"]:
    """Compute the cosine between each pair of images, in float32 or higher; images of zero features have cosine 0 with all."""
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)
        return unit @ unit.mT


def correlated(A: Float[Tensor, "*groups n n"], B: Float[Tensor, "*groups n n"]) -> Float[Tensor, "*groups"]:
    """Compute Pearson's correlation between the entries of two matrices, diagonals included; 0 (without gradient) where one is constant."""

    def centred(M: Tensor) -> Tensor:
        M = M - M.mean((-2, -1), keepdim=True)
        rounding = 8 * torch.finfo(M.dtype).eps  # cosines are of order 1
        return M * (M.detach().abs().amax((-2, -1), keepdim=True) > rounding)

    return _cosine(centred(A), centred(B))


def _cosine(A: Tensor, B: Tensor) -> Tensor:
    """The cosine between matrices, scaled first: the squares of large kernels would overflow, those of small ones vanish."""

    def unit(M: Tensor) -> Tensor:
        M = M.flatten(-2)
        largest = M.detach().abs().amax(-1, keepdim=True)
        M = M / torch.where(largest > 0, largest, 1)
        square = M.square().sum(-1, keepdim=True)
        return M / torch.where(square > 0, square, 1).sqrt()

    return (unit(A) * unit(B)).sum(-1)


def _check(x: Tensor, others: int, least: int) -> None:
    if x.ndim != 2:
        raise ShapeError(f"cka: features must have one row an image, got shape {tuple(x.shape)}. Flatten or pool maps: x.flatten(1).")
    if len(x) != others or len(x) < least:
        raise ShapeError(f"cka: both representations must be of the same images, at least {least} of them; got {len(x)} and {others}.")


def _kernel(x: Tensor, others: int, unbiased: bool) -> Tensor:
    _check(x, others, least=4 if unbiased else 2)
    return linear_kernel(x.double())  # centring changes neither estimate, and keeps the digits of features with a large mean
