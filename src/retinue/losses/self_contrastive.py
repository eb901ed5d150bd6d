"""Self-contrastive losses over the exits of one network: supervised (Bae et al. 2021, arXiv 2106.15499), and the two terms of ImagiNet.

ImagiNet's loss (Boychev and Cholakov 2024, arXiv 2407.20020) pulls together what is real and what is synthetic, and, among the synthetic
images alone, what one family of generators has made.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.losses.contrastive import supcon
from retinue.losses.gathering import gather_with_gradient

TEMPERATURE = 0.07
LENGTH_TOLERANCE = 1e-3  # by which the length of an embedding may differ from 1


class SelfConLoss(nn.Module):
    """The supervised self-contrastive loss: all exits of all images of a class are positives, the other exits of the image among them.

    Each anchor i pays -1/|P(i)| sum_{p in P(i)} (z_i z_p / tau - log sum_{a != i} exp(z_i z_a / tau)); the mean is taken over all.

    Args:
        temperature: tau, above 0.

    >>> import torch
    >>> z = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> round(SelfConLoss(temperature=1.0)(z, torch.tensor([0, 1])).item(), 6)
    0.551445
    """

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ArgumentError(f"SelfConLoss: `temperature` must be above 0, got {temperature}. The paper has 0.07.")
        self.temperature = temperature

    def forward(self, z: Float[Tensor, "..."], labels: Int[Tensor, " images"] | None = None) -> Float[Tensor, ""]:
        """Compute the loss.

        Args:
            z: embeddings of length 1, (images, exits, dim).
            labels: classes, any whole numbers; None: each image is a class of its own.

        Raises:
            ShapeError: if `z` has not three dimensions, or the labels do not fit.
            ArgumentError: if an embedding has not length 1.
        """
        check_embeddings("SelfConLoss", z)
        return supcon(z, labels, self.temperature)


class ImagiNetLoss(nn.Module):
    """The sum of two self-contrastive losses: of all images by origin, and of the synthetic ones alone by family of generators.

    Without a synthetic image the second term is 0 with a gradient of 0. Over several processes, the images of all are compared.

    Args:
        weights: of the two terms.
        temperature: tau of both, above 0.

    Raises:
        ArgumentError: if there are not two weights, each 0 or more.
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0), temperature: float = TEMPERATURE) -> None:
        super().__init__()
        if len(weights) != 2 or not all(0 <= weight < float("inf") for weight in weights):
            raise ArgumentError(
                f"ImagiNetLoss: `weights` must be two numbers of 0 or more, for origin and family, got {list(weights)}. The paper has 1, 1."
            )
        self.weights = (float(weights[0]), float(weights[1]))
        self.temperature = SelfConLoss(temperature).temperature

    def forward(self, z: Float[Tensor, "..."], origin: Int[Tensor, " images"], model: Int[Tensor, " images"]) -> Float[Tensor, ""]:
        """Compute the weighted sum of `terms`."""
        by_origin, by_family = self.terms(z, origin, model)
        return self.weights[0] * by_origin + self.weights[1] * by_family

    def terms(
        self, z: Float[Tensor, "..."], origin: Int[Tensor, " images"], model: Int[Tensor, " images"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Compute both terms.

        Args:
            z: embeddings of length 1, (images, exits, dim).
            origin: 0 real, 1 synthetic.
            model: the family of the generator; what a real image has does not matter.

        Raises:
            ShapeError: if `z` has not three dimensions, or the labels do not fit.
            ArgumentError: if an embedding has not length 1, or an origin is neither 0 nor 1.
        """
        check_embeddings("ImagiNetLoss", z)
        if origin.shape != z.shape[:1] or model.shape != z.shape[:1]:
            raise ShapeError(
                f"ImagiNetLoss: `origin` and `model` must be {len(z)} whole numbers each, one for each image, got {tuple(origin.shape)} "
                f"and {tuple(model.shape)}."
            )
        if bool(((origin != 0) & (origin != 1)).any()):
            raise ArgumentError(f"ImagiNetLoss: `origin` must be 0 (real) or 1 (synthetic), got {sorted(set(origin.tolist()))}.")
        # Processes hold different numbers of synthetic images, so all rows are gathered before these are chosen: the loss of every process
        # is that of all images, and the mean of the gradients that the engine takes is its gradient.
        every, kinds, families = (gather_with_gradient(rows) for rows in (z, origin, model))
        synthetic = kinds == 1
        by_origin = supcon(every, kinds, self.temperature, gather=False)
        if not bool(synthetic.any()):
            return by_origin, z.sum() * 0
        return by_origin, supcon(every[synthetic], families[synthetic], self.temperature, gather=False)


def check_embeddings(where: str, z: Float[Tensor, "..."]) -> None:
    """Refuse embeddings that are not (images, exits, dim), or not of length 1.

    Raises:
        ShapeError: if there are not three dimensions.
        ArgumentError: if a length is off by more than 1e-3.
    """
    if z.ndim != 3:
        raise ShapeError(
            f"{where}: `z` must be (images, exits, dim), got {tuple(z.shape)}. Stack the exits: torch.stack([main, side], dim=1)."
        )
    off = (z.detach().float().norm(dim=-1) - 1).abs()
    worst = float(off.max()) if off.numel() else 0.0
    if worst > LENGTH_TOLERANCE:  # NaN passes here; the loss below names the image
        image = int(off.amax(1).argmax())
        raise ArgumentError(
            f"{where}: the embeddings of `z` must have length 1, and that of image {image} is off by {worst:.3g}. "
            "Divide them by their length: torch.nn.functional.normalize(z, dim=-1)."
        )
