"""A small discrete autoencoder whose codes are tokens: its stride is the side of a patch (Ramesh et al. 2021, arXiv 2102.12092).

What stands here is small enough to be trained on the images at hand. The published one has the same interface: `PluggedTokenizer`.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data
from retinue.engine import Objective, fit
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, ShapeError

COLDEST = 1 / 16  # the temperature at the end of training (section 2.1 of the paper)


class DVAE(nn.Module):
    """An encoder to scores of the codes of each patch, and a decoder from codes to pixels.

    Args:
        codes: how many codes there are.
        patch: height and width of a patch.
        in_chans: channels of the images.
        hidden: channels of the layers between.

    Raises:
        ArgumentError: if there are fewer than two codes.
    """

    def __init__(self, codes: int, patch: tuple[int, int], in_chans: int = 3, hidden: int = 64) -> None:
        super().__init__()
        if codes < 2:
            raise ArgumentError(f"dvae: `codes` must be at least 2, got {codes}.")
        self.codes, self.patch, self.in_chans = codes, patch, in_chans
        self.encoder = nn.Sequential(
            nn.Conv2d(in_chans, hidden, patch, patch),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, codes, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(codes, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(hidden, in_chans, patch, patch),
        )

    def scores(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch codes rows columns"]:
        """Compute the codes' scores for each patch.

        Raises:
            ShapeError: if the patches do not divide the images.
        """
        height, width = images.shape[-2:]
        if height % self.patch[0] or width % self.patch[1]:
            raise ShapeError(f"dvae: images of {height}x{width} px cannot be cut into patches of {self.patch[0]}x{self.patch[1]}.")
        return self.encoder(images)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Int[Tensor, "batch places"]:
        """Compute the code of every patch, row by row."""
        return self.scores(images).argmax(1).flatten(1)

    def reconstruct(self, shares: Float[Tensor, "batch codes rows columns"]) -> Float[Tensor, "batch channels height width"]:
        """Decode shares of codes (or one code of each patch, as 1 among zeros) to images."""
        return self.decoder(shares)


class DVAETraining(Objective):
    """Reconstruct images through codes drawn by Gumbel-softmax, plus `kl_weight` times KL(codes || uniform), which keeps all codes in use.

    The temperature falls from 1 to 1/16 along a cosine over the training, as in the paper. In evaluation each patch has its best code.

    Args:
        steps: updates over which the temperature falls.
        kl_weight: 0 or more.

    Raises:
        ArgumentError: if a number lies outside its range.
    """

    def __init__(self, steps: int, kl_weight: float = 1e-3) -> None:
        super().__init__()
        if steps < 1 or not kl_weight >= 0:
            raise ArgumentError(f"dvae: `steps` must be at least 1 and `kl_weight` 0 or more, got {steps} and {kl_weight}.")
        self.steps, self.kl_weight = steps, kl_weight

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the autoencoder as it is."""
        return model

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the loss at the temperature of this step."""
        yield "model", self._numbers(model, batch, temperature(step, self.steps))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss at the lowest temperature."""
        return self._numbers(model, batch, COLDEST)

    def _numbers(self, model: nn.Module, batch: Batch, heat: float) -> dict[str, Tensor]:
        scores = model.scores(batch.images)  # type: ignore[operator]
        if self.training:
            shares = F.gumbel_softmax(scores, tau=heat, dim=1)
        else:
            shares = F.one_hot(scores.argmax(1), scores.shape[1]).permute(0, 3, 1, 2).to(scores.dtype)
        error = F.mse_loss(model.reconstruct(shares), batch.images)  # type: ignore[operator]
        logs = scores.log_softmax(1)
        spread = (logs.exp() * (logs + math.log(scores.shape[1]))).sum(1).mean()
        return {"loss": error + self.kl_weight * spread, "error": error.detach(), "kl": spread.detach()}


def temperature(step: int, steps: int) -> float:
    """Return the temperature before an update: a cosine from 1 to 1/16.

    >>> temperature(0, 100), temperature(100, 100)
    (1.0, 0.0625)
    """
    share = min(step / steps, 1.0)
    return COLDEST + (1 - COLDEST) * (1 + math.cos(math.pi * share)) / 2


def train_dvae(
    data: Data,
    patch: tuple[int, int],
    *,
    codes: int = 64,
    hidden: int = 64,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 3e-3,
    kl_weight: float = 1e-3,
    seed: int = 0,
) -> DVAE:
    """Train a small discrete autoencoder on the training images.

    Args:
        data: the images; labels are not looked at.
        patch: height and width of a patch.
        codes: how many codes there are.
        hidden: channels of its layers.
        steps: updates.
        batch_size: images of an update.
        lr: peak learning rate of AdamW.
        kl_weight: see `DVAETraining`.
        seed: of weights, order and codes drawn.

    Returns:
        The tokenizer, in evaluation mode.
    """
    with own_randomness():
        seed_all(seed)
        model = DVAE(codes, patch, data.preprocessing.channels, hidden)
    run = fit(
        model, DVAETraining(steps, kl_weight), data, max_steps=steps, batch_size=batch_size, lr=lr, weight_decay=0.0, clip_grad=1.0,
        eval_every=1 << 30, seed=seed, progress=False,
    )  # fmt: skip
    trained = run.model
    for name in ("classes", "preprocessing"):  # what `fit` notes on classifiers
        delattr(trained, name)
    assert isinstance(trained, DVAE)
    return trained
