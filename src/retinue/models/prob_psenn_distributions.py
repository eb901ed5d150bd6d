"""Distributions over prototypes: Gaussians with diagonal or full covariance, mixtures of two (Vadillo et al. 2024, arXiv 2403.13740)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.errors import ArgumentError, DataError, unknown

Family = Literal["gauss_diag", "gauss_full", "mixture"]
COMPONENTS: dict[Family, int] = {"gauss_diag": 1, "gauss_full": 1, "mixture": 2}
SMALLEST = 1e-6  # of a scale: softplus underflows to 0
JITTER = 1e-3  # added to variances before the Cholesky factor
TEMPERATURE = 0.5  # of the choice of a component; only gradients feel it


class PrototypeDistributions(nn.Module):
    """A distribution over each prototype: q = sum of shares times N(mean, L L^T), with one component or, for "mixture", two.

    Parameters are kept in one axis each, as biases are, so that weight decay does not pull the prototypes to 0.

    Args:
        number: prototypes.
        latent_dim: length of a code.
        family: "gauss_diag", "gauss_full" (L lower triangular) or "mixture" (of two of the latter).
        prior: standard deviation of the Gaussian at 0 from which the first means are drawn.

    Raises:
        ArgumentError: if there is no such family, or a number is not positive.
    """

    def __init__(self, number: int, latent_dim: int, family: Family = "gauss_full", prior: float = 1.0) -> None:
        super().__init__()
        if family not in COMPONENTS:
            raise unknown("ProbPSENN", "`family`", family, COMPONENTS)
        if not prior > 0:
            raise ArgumentError(f"ProbPSENN: `prior` must be above 0, got {prior}. It is the standard deviation of the first means.")
        self.number, self.latent_dim, self.family, self.prior = number, latent_dim, family, prior
        parts = self.components = COMPONENTS[family]
        self.flat_means = nn.Parameter(prior * torch.randn(number * parts * latent_dim))
        self.raw_scales = nn.Parameter(torch.full((number * parts * latent_dim,), math.log(math.expm1(1.0))))  # softplus makes 1 of it
        below = 0 if family == "gauss_diag" else latent_dim * (latent_dim - 1) // 2
        self.flat_below = nn.Parameter(torch.zeros(number * parts * below)) if below else None
        self.flat_shares = nn.Parameter(torch.zeros(number * parts)) if parts > 1 else None

    @property
    def means(self) -> Float[Tensor, "prototypes components latent"]:
        """The means of the components."""
        return self.flat_means.view(self.number, self.components, self.latent_dim)

    @property
    def scales(self) -> Float[Tensor, "prototypes components latent"]:
        """The diagonals of L, above 0."""
        return F.softplus(self.raw_scales).view(self.number, self.components, self.latent_dim) + SMALLEST

    @property
    def log_shares(self) -> Float[Tensor, "prototypes components"]:
        """Logarithms of the components' shares."""
        if self.flat_shares is None:
            return self.flat_means.new_zeros(self.number, 1)
        return self.flat_shares.view(self.number, self.components).log_softmax(1)

    def factors(self) -> Float[Tensor, "prototypes components latent latent"]:
        """Return L of each component."""
        full = torch.diag_embed(self.scales)
        if self.flat_below is None:
            return full
        rows, columns = torch.tril_indices(self.latent_dim, self.latent_dim, -1, device=full.device)
        below = torch.zeros_like(full)
        below[..., rows, columns] = self.flat_below.view(self.number, self.components, -1)
        return full + below

    def modes(self) -> Float[Tensor, "prototypes latent"]:
        """Return the mean of each prototype's component with the largest share."""
        return self.means[torch.arange(self.number, device=self.flat_means.device), self.log_shares.argmax(1)]

    def spread(self) -> Float[Tensor, " prototypes"]:
        """Return the trace of each prototype's covariance: how far its samples lie from their mean, squared, on average."""
        shares = self.log_shares.exp()
        within = (shares * self.factors().square().sum((2, 3))).sum(1)
        centre = (shares[..., None] * self.means).sum(1, keepdim=True)
        return within + (shares * (self.means - centre).square().sum(2)).sum(1)

    def noise(self, samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw what samples are made of: a standard normal number for each of theirs, and a Gumbel number for each component."""
        device = "cpu" if generator is not None else self.flat_means.device
        normal = torch.randn(samples, self.number, self.latent_dim, generator=generator, device=device)
        if self.components == 1:  # nothing is chosen
            return normal, normal.new_zeros(samples, self.number, 1)
        uniform = torch.rand(samples, self.number, self.components, generator=generator, device=device)
        return normal, -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()

    def sample(
        self, normal: Float[Tensor, "samples prototypes latent"], gumbel: Float[Tensor, "samples prototypes components"]
    ) -> Float[Tensor, "samples prototypes latent"]:
        """Make joint samples of noise, so that gradients reach means, scales and shares.

        A mixture's component is chosen by the largest log-share + Gumbel number, which is an exact draw; the gradient is that of the soft
        choice (straight through).
        """
        drawn = self.means + torch.einsum("mcij,smj->smci", self.factors(), normal)
        if self.components == 1:
            return drawn[:, :, 0]
        soft = ((self.log_shares + gumbel) / TEMPERATURE).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), self.components).to(soft.dtype)
        return torch.einsum("smc,smci->smi", hard + soft - soft.detach(), drawn)

    def log_density(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch prototypes"]:
        """Compute log q of each prototype at codes."""
        with torch.autocast(z.device.type, enabled=False):
            apart = z.to(self.flat_means.dtype)[:, None, None] - self.means
            if self.flat_below is None:
                white = apart / self.scales
            else:
                white = torch.linalg.solve_triangular(self.factors(), apart.permute(1, 2, 3, 0), upper=False).permute(3, 0, 1, 2)
            constant = self.scales.log().sum(-1) + 0.5 * self.latent_dim * math.log(2 * math.pi)
            return (self.log_shares - 0.5 * white.square().sum(-1) - constant).logsumexp(-1)

    def divergence(self) -> Float[Tensor, ""]:
        """Compute KL(q || N(0, prior^2 I)), averaged over prototypes; of a mixture its bound, the shares' mean over components."""
        variance = self.prior**2
        moments = (self.factors().square().sum((2, 3)) + self.means.square().sum(2)) / variance
        logs = self.latent_dim * math.log(variance) - 2 * self.scales.log().sum(2)
        return (self.log_shares.exp() * 0.5 * (moments - self.latent_dim + logs)).sum(1).mean()

    @torch.no_grad()
    def set_to(
        self, means: Float[Tensor, "prototypes components latent"], factors: Float[Tensor, "prototypes components latent latent"]
    ) -> None:
        """Take over means and factors L; shares become equal.

        Raises:
            ArgumentError: if a diagonal number of L is not positive.
        """
        diagonal = factors.diagonal(dim1=2, dim2=3)
        if not bool((diagonal > 0).all()):
            raise ArgumentError(
                f"ProbPSENN: scales must be above 0, got {float(diagonal.min()):.4g}. "
                "They are standard deviations, or the diagonal of a Cholesky factor."
            )
        self.flat_means.copy_(means.flatten())
        # the inverse of softplus, written so that neither small nor large scales are lost
        scales = (diagonal.double() - SMALLEST).clamp_min(1e-12)
        self.raw_scales.copy_((scales + (-torch.expm1(-scales)).log()).flatten())
        if self.flat_below is not None:
            rows, columns = torch.tril_indices(self.latent_dim, self.latent_dim, -1, device=factors.device)
            self.flat_below.copy_(factors[..., rows, columns].flatten())
        if self.flat_shares is not None:
            self.flat_shares.zero_()

    @torch.no_grad()
    def fit(self, z: Float[Tensor, "images latent"], labels: Int[Tensor, " images"], classes: int, seed: int = 0) -> None:
        """Fit the distributions to the codes of their classes: mean, and standard deviations or Cholesky factor of the covariance.

        Where a class has several prototypes or components, its codes are parted by k-means, one part for each.

        Args:
            z: codes, computed in evaluation mode.
            labels: their classes; prototypes belong to the classes in turn, as many to each.
            classes: number of classes.
            seed: of k-means.

        Raises:
            DataError: if a class has fewer than two images: they have no covariance.
        """
        each = self.number // classes * self.components
        means, factors = [], []
        for k in range(classes):
            own = z[labels == k].double()
            if len(own) < 2:
                raise DataError(
                    f"prob_psenn: class {k} has {len(own)} training images, and a covariance needs two at least. "
                    "Give more images, or leave the class out."
                )
            parts = torch.zeros(len(own), dtype=torch.long)
            if each > 1:
                from sklearn.cluster import KMeans  # takes a second to import

                parts = torch.as_tensor(
                    KMeans(min(each, len(own.unique(dim=0))), n_init=1, random_state=seed).fit_predict(own.cpu().numpy())
                ).long()
            whole = _factor(own, self.family)
            for part in range(each):
                some = own[parts.to(own.device) == part] if part <= int(parts.max()) else own
                means.append(some.mean(0))
                factors.append(_factor(some, self.family) if len(some) > 1 else whole)
        shape = (self.number, self.components, self.latent_dim)
        self.set_to(torch.stack(means).view(shape).to(self.flat_means), torch.stack(factors).view(*shape, -1).to(self.flat_means))


def _factor(codes: Tensor, family: Family) -> Tensor:
    variance = torch.atleast_2d(codes.T.cov()) + JITTER * torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
    return variance.diagonal().sqrt().diag() if family == "gauss_diag" else torch.linalg.cholesky(variance)
