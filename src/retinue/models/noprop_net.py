"""What all NoProp networks share (Li, Teh and Pascanu 2025, arXiv 2503.24322): blocks, embedding, output layer, and prediction.

A prediction runs from noise to a label: in training with fresh noise for each image; in evaluation with a few draws that are always the
same ones, for every image, whose mean probability is the answer. So it depends neither on the rest of the batch nor on chance.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.factory import image_size
from retinue.models.noprop_blocks import BackboneBranch, Block, ConvStack, Embed, Images, LabelBranch, LabelEmbedding, Readout

Draw = Callable[[int], Tensor]  # the noise of a step, one row a state; 0 is where the states start


class NoPropNet(nn.Module):
    """What the three forms share: embedding, output layer, prediction, and timm's protocol (its features are the labels' last states).

    Args:
        num_classes: classes, at least two.
        in_chans: channels of the images.
        img_size: side of the images, or height and width.
        embed: "onehot" (fixed), "learned", or "prototype" (an image of each class at first, then learned).
        embed_dim: length of a learned embedding.
        hidden: features of each branch of a block.
        widths: channels of the convolutions of the image's branch.
        label_layers: linear layers of the label's branch.
        drop_rate: share of each map dropped in training.
        backbone: makes the image's branch of a block instead of the convolutions.
        answer: "softmax" makes a block answer with a mean of the embeddings, "embedding" with a vector of its own.
        readout: "linear", or "distance" to the embeddings.
        samples: draws of noise that a prediction in evaluation averages.
        norm: with batch norms (not where one block serves all times).
        timed: a block knows the time.
        count: number of blocks.
    """

    noises: Tensor
    draws = 1  # draws of noise of a prediction: those after the start, too

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: int | tuple[int, int],
        embed: Embed = "onehot",
        embed_dim: int | None = None,
        *,
        hidden: int = 256,
        widths: Sequence[int] = (32, 64, 128),
        label_layers: int = 2,
        drop_rate: float = 0.0,
        backbone: Callable[[], nn.Module] | None = None,
        answer: Literal["softmax", "embedding"] = "softmax",
        readout: Literal["linear", "distance"] = "linear",
        samples: int = 8,
        norm: bool = True,
        timed: bool = False,
        count: int = 1,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ArgumentError(f"noprop: `num_classes` must be at least 2, got {num_classes}: the classes are built into every block.")
        if answer not in ("softmax", "embedding"):
            raise unknown("noprop", "`answer`", answer, ("softmax", "embedding"))
        for name, value in (("hidden", hidden), ("label_layers", label_layers), ("samples", samples)):
            if value < 1:
                raise ArgumentError(f"noprop: `{name}` must be at least 1, got {value}.")
        size = cast(tuple[int, int], image_size(img_size))
        self.shape = (in_chans, *size)
        self.in_chans, self.num_classes, self.samples, self.answer_kind = in_chans, num_classes, samples, answer
        self.adaptation: list[str] = []
        self.embedding = LabelEmbedding(num_classes, embed, embed_dim, self.shape)
        self.num_features = self.head_hidden_size = self.embedding.dim
        self.readout = Readout(self.num_features, num_classes, readout)

        def stack() -> ConvStack:
            return ConvStack(self.shape, widths, hidden, norm, drop_rate)

        def block() -> Block:
            image = stack() if backbone is None else BackboneBranch(backbone(), hidden, norm)
            label = LabelBranch(self.num_features, hidden, label_layers, norm, stack() if embed == "prototype" else None, self.shape)
            return Block(image, label, hidden, num_classes if answer == "softmax" else self.num_features, norm, timed)

        self.blocks = nn.ModuleList(block() for _ in range(count))

    def _remember_noise(self) -> None:
        """Draw the noise of all predictions in evaluation, the same on every machine."""
        noises = torch.randn(self.samples, self.draws, self.num_features, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("noises", noises.to(torch.get_default_device()), persistent=False)

    def check_images(self, x: Images) -> None:
        """Refuse images of another shape than the network was built for.

        Raises:
            ShapeError: naming both.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError(
                f"noprop: images must be of shape {self.shape}, got {tuple(x.shape[1:])}. Build the network with this `input_size`."
            )

    def cleaned(self, out: Float[Tensor, "batch out"]) -> Float[Tensor, "batch dim"]:
        """Turn a block's output into an embedding: by default softmax(out) W, a mean of the classes' embeddings."""
        return out.softmax(-1) @ self.embedding.weight if self.answer_kind == "softmax" else out

    def run(self, x: Images, z: Float[Tensor, "states dim"], draw: Draw, noise: bool, steps: int | None) -> Float[Tensor, "states dim"]:
        """Carry states from noise to label; an image has as many states in a row as there are draws."""
        raise TypeError(f"{type(self).__name__} does not define run")

    def sample(
        self,
        x: Images,
        steps: int | None = None,
        noise: bool = True,
        generator: torch.Generator | None = None,
        start: Float[Tensor, "batch dim"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Run from noise to a label's embedding once for each image.

        Args:
            x: normalised images.
            steps: of integration, for the forms that have no blocks to count; None takes the network's.
            noise: add noise on the way; without, the result is determined by the start.
            generator: of the noise; None is torch's own.
            start: the states at t = 0; None draws them.
        """
        self.check_images(x)

        def draw(step: int) -> Tensor:
            return torch.randn(len(x), self.num_features, device=x.device, dtype=x.dtype, generator=generator)

        return self.run(x, draw(0) if start is None else start, draw, noise, steps)

    def predict(self, x: Images, n_samples: int = 1, generator: torch.Generator | None = None, spread: bool = False) -> Any:
        """Compute the classes' mean probabilities over fresh draws of noise.

        Args:
            x: normalised images.
            n_samples: number of draws.
            generator: of the noise.
            spread: return each draw's probabilities (draws x batch x classes) instead of their mean (batch x classes).

        Raises:
            ArgumentError: if there is no draw.
        """
        if n_samples < 1:
            raise ArgumentError(f"noprop: `n_samples` must be at least 1, got {n_samples}.")
        each = [self.readout(self.sample(x, generator=generator), self.embedding.weight).softmax(-1) for _ in range(n_samples)]
        return torch.stack(each) if spread else torch.stack(each).mean(0)

    def forward_features(self, x: Images, generator: torch.Generator | None = None) -> Float[Tensor, "batch draws dim"]:
        """Compute the last states of each image: one from fresh noise in training or with a generator, else `samples` from fixed noise."""
        self.check_images(x)
        if self.training or generator is not None:
            return self.sample(x, generator=generator)[:, None]

        def draw(step: int) -> Tensor:
            return self.noises[:, step].to(x.dtype).repeat(len(x), 1)

        return self.run(x, draw(0), draw, True, None).unflatten(0, (len(x), self.samples))

    def forward_head(self, x: Float[Tensor, "batch draws dim"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Compute the logarithm of the mean probability of the states, or their mean where `pre_logits` or without classifier."""
        if pre_logits or not self.num_classes:
            return x.mean(1)
        each = self.readout(x.flatten(0, 1), self.embedding.weight).unflatten(0, x.shape[:2])
        return each[:, 0] if x.shape[1] == 1 else each.log_softmax(-1).logsumexp(1) - math.log(x.shape[1])

    def forward(self, x: Images, generator: torch.Generator | None = None) -> Float[Tensor, "batch out"]:
        """Compute the logits.

        Args:
            x: normalised images.
            generator: of fresh noise, one draw for each image; None in evaluation takes the fixed draws.
        """
        return self.forward_head(self.forward_features(x, generator))

    def get_classifier(self) -> nn.Module:
        """Return the output layer."""
        return self.readout.linear if self.num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """Leave the output layer out (0), or put it back; another number of classes would need other blocks.

        Raises:
            ArgumentError: for another number.
        """
        built = len(self.embedding.weight)
        if num_classes not in (0, built):
            raise ArgumentError(
                f"noprop: {built} classes are built into every block, so the classifier cannot have {num_classes}. Build a new network."
            )
        self.num_classes = num_classes

    def start_kl(self, u: Float[Tensor, "batch dim"], abar: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Compute KL(q(z_0 | y) || N(0, I)) = (abar |u|^2 + d (1 - abar) - d - d log(1 - abar)) / 2, averaged over the batch."""
        d = self.num_features
        return ((abar * u.square().sum(-1) + d * (1 - abar) - d - d * torch.log1p(-abar)) / 2).mean()


def integrate(rate: Callable[[Tensor, Tensor], Tensor], z: Tensor, steps: int, solver: str) -> Tensor:
    """Integrate dz/dt from 0 to 1 on an even grid, by Euler's rule or by Heun's (the mean of the rates at both ends of a step)."""
    grid = torch.arange(steps + 1, device=z.device, dtype=z.dtype) / steps
    for now, after in itertools.pairwise(grid):
        first = rate(z, now)
        reached = z + first / steps
        z = reached if solver == "euler" else z + (first + rate(reached, after)) / (2 * steps)
    return z


def check_eta(eta: float) -> None:
    """Refuse a weight that is not positive and finite."""
    if not 0 < eta < math.inf:
        raise ArgumentError(f"noprop: `eta` must be above 0 and finite, got {eta}. It weighs the denoising loss.")


def check_solver(steps: int, solver: str) -> None:
    """Refuse a grid without steps, and an unknown rule."""
    if steps < 1:
        raise ArgumentError(f"noprop: `steps` must be at least 1, got {steps}.")
    if solver not in ("euler", "heun"):
        raise unknown("noprop", "`solver`", solver, ("euler", "heun"))
