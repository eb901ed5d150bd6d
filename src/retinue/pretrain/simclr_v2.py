"""SimCLRv2: pre-train any backbone by finding the other view of each image among all others (Chen et al. 2020, arXiv 2006.10029).

This is the first of three stages; `simclr_v2_stages` has all of them: pre-train on all images without labels, fine-tune from a layer in the
middle of the projection head on the few labels, and distil into a network of the same size or a smaller one.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from timm.layers import convert_sync_batchnorm  # torch's own loses the activation that timm's norms end with
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader, views
from retinue.engine import Objective, evaluating
from retinue.engine.lars import LARS
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.losses.contrastive import unit, view_losses
from retinue.losses.gathering import gather_with_gradient, processes
from retinue.models import feature_size, pooled_features
from retinue.models.projection import ProjectionHead

__all__ = ["LARS", "ProjectionHead", "SimCLRv2", "contrastive_views", "learning_rate"]

SMALL_SIDE = 32  # px; up to it images are not blurred
BLUR_SHARE = 10  # of the height, that a blurred pixel sees


def contrastive_views(
    size: tuple[int, int], strength: float = 1.0, crop_area: Sequence[float] = (0.08, 1.0), blur: bool | None = None
) -> str:
    """Write the views of section 3 and appendix: crop, flip, jitter of colours, grey and blur.

    The changes of colours come in one order for all images; the official code draws the order.

    Args:
        size: height and width of the views.
        strength: s of the jitter: 1 for ImageNet, 0.5 for CIFAR; 0 has none.
        crop_area: smallest and largest share of the image's area.
        blur: None blurs images above 32 px.

    Raises:
        ArgumentError: if the strength is negative.

    >>> contrastive_views((32, 32), strength=0.5).split(", flip, ")[1]
    'color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8), grayscale(0.2)'
    """
    if not strength >= 0:
        raise ArgumentError(f"SimCLRv2: `strength` must be 0 or more, got {strength}. It is 1 for ImageNet and 0.5 for CIFAR.")
    words = [f"random_resized_crop({tuple(size)}, scale={tuple(crop_area)}, interpolation='bicubic')", "flip"]
    if strength:
        factors = ", ".join(f"{round(factor * strength, 6):g}" for factor in (0.8, 0.8, 0.8, 0.2))
        words.append(f"color_jitter({factors}, p=0.8)")
    words.append("grayscale(0.2)")
    if min(size) > SMALL_SIDE if blur is None else blur:
        words.append(f"gaussian_blur({2 * (size[0] // BLUR_SHARE // 2) + 1}, sigma=(0.1, 2.0), p=0.5)")
    return ", ".join(words)


def learning_rate(base: float, batch_size: int, rule: Literal["sqrt", "linear"] = "sqrt") -> float:
    """Scale a learning rate with the size of all processes' batches: base sqrt(B), or base B / 256.

    >>> learning_rate(0.075, 4096), learning_rate(0.3, 4096, "linear")
    (4.8, 4.8)
    """
    if rule not in ("sqrt", "linear"):
        raise unknown("learning_rate", "`rule`", rule, ("sqrt", "linear"))
    if batch_size < 1:
        raise ArgumentError(f"learning_rate: `batch_size` must be at least 1, got {batch_size}.")
    return base * math.sqrt(batch_size) if rule == "sqrt" else base * batch_size / 256


class SimCLRv2(Objective):
    """NT-Xent between two views of each image, in the space behind a projection head.

    Its views are its own; open the data without normalisation (mean 0, std 1), as in the paper. Negatives are the views of all processes.

    Args:
        model: the backbone to pre-train.
        data: what is trained on, for the size of the views; without it, that is known once the training begins.
        temperature: tau: 0.1 for large batches, 0.2 to 0.5 for small ones.
        num_layers: of the projection head; 3 in SimCLRv2, 2 in SimCLR.
        hidden_dim: width of its layers but the last; None is that of the features.
        out_dim: length of the embedding.
        strength: of the jitter of colours; 0.5 for CIFAR.
        crop_area: smallest and largest share of the image's area that a view shows.
        blur: None blurs images above 32 px.
        shown_as: other views, as text, instead of those.
        memory: how many embeddings of earlier views, by a moving average of the network, are further negatives (section 2); the paper has
            65,536 in ablations, its released networks none.
        memory_decay: m of that moving average.
        chunk: anchors whose similarities are held at once; None takes as many as fit 16 MiB.
        sync_norms: compute batch norms over all processes, which must be on GPUs. Without, the network may find the other view by what
            batch norm tells of the half batch that they share.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> from retinue.models import tiny
    >>> SimCLRv2(tiny("ours"), out_dim=16).head.widths
    [32, 32, 32, 16]
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | None = None,
        *,
        temperature: float = 0.1,
        num_layers: int = 3,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        strength: float = 1.0,
        crop_area: Sequence[float] = (0.08, 1.0),
        blur: bool | None = None,
        shown_as: str | None = None,
        memory: int = 0,
        memory_decay: float = 0.999,
        chunk: int | None = None,
        sync_norms: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ArgumentError(f"SimCLRv2: `temperature` must be above 0, got {temperature}. The paper has 0.1; small batches need more.")
        if memory < 0 or not 0 <= memory_decay < 1:
            raise ArgumentError(
                f"SimCLRv2: `memory` must be 0 or more and `memory_decay` lie in [0, 1), got {memory} and {memory_decay}. The paper has "
                "65536 and 0.999."
            )
        self.temperature, self.strength, self.crop_area, self.blur = temperature, strength, list(crop_area), blur
        self.shown_as, self.memory, self.memory_decay, self.chunk, self.sync_norms = shown_as, memory, memory_decay, chunk, sync_norms
        self.head = ProjectionHead(feature_size(model), hidden_dim, out_dim, num_layers)
        self.slow: nn.ModuleList | None = None
        self.queue: Tensor
        self.place: Tensor
        if memory:
            self.slow = nn.ModuleList([copy.deepcopy(model), copy.deepcopy(self.head)]).requires_grad_(False).eval()
            self.register_buffer("queue", unit(torch.randn(memory, out_dim)))
            self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        views.parse(contrastive_views((64, 64), strength, crop_area, blur) if shown_as is None else shown_as)  # refused early
        if data is not None:
            self._show(data)

    def _show(self, data: Data) -> None:
        """Make the two views, which are drawn alike."""
        size = data.preprocessing.input_size
        view = views.parse(self.shown_as or contrastive_views(size, self.strength, self.crop_area, self.blur))
        self.views = (view, view)

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network with timm's protocol, and with batch norms over all processes where that is asked for."""
        network = super().prepare(model, data)
        if self.sync_norms:
            self.head, network = convert_sync_batchnorm(self.head), convert_sync_batchnorm(network)
        return network

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse data without negatives, and choose the views."""
        if len(data.train) < 2:
            raise ArgumentError(f"SimCLRv2: {data.name} has {len(data.train)} training image, and one image has no negatives. Give more.")
        self._show(data)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the mean cosine of the two views of an image."""
        if len(batch.views) != 2:
            raise ShapeError(
                f"SimCLRv2: a batch needs two views of each image, got {len(batch.views)}. Give the objective's own to the loader: "
                "split.loader(batch_size, views=objective.views)."
            )
        if len(batch) < 2:
            raise ShapeError(f"SimCLRv2: a batch needs 2 images at least, got {len(batch)}: one image has no negatives. Leave it out.")
        if self.sync_norms and processes() > 1 and not batch.images.is_cuda:
            raise ArgumentError("SimCLRv2: `sync_norms` needs GPUs, and the images are on the CPU. Leave it out, or take one process.")
        z1, z2 = self.head(pooled_features(model, torch.cat(batch.views))).chunk(2)
        queue = self.queue.clone() if self.memory else None
        losses = view_losses(z1, z2, self.temperature, queue, self.chunk, gather=self.training)
        if self.slow is not None and self.training:
            self._remember(self.slow, batch.views[1])
        return {"loss": losses.mean(), "positive_cosine": (unit(z1) * unit(z2)).sum(1).mean()}

    @torch.no_grad()
    def _remember(self, slow: nn.ModuleList, images: Tensor) -> None:
        """Put what the moving average makes of the second views of all processes in the place of the oldest entries."""
        fresh = gather_with_gradient(unit(slow[1](pooled_features(slow[0], images))))[-self.memory :]
        places = (self.place + torch.arange(len(fresh), device=fresh.device)) % self.memory
        self.queue.index_copy_(0, places, fresh)
        self.place.copy_((self.place + len(fresh)) % self.memory)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """Move the network of the memory: its weights by the moving average, its batch-norm statistics at once."""
        if self.slow is None:
            return
        for slow, fast in zip(self.slow, (model, self.head)):
            for own, other in zip(slow.parameters(), fast.parameters(), strict=True):
                own.lerp_(other, 1 - self.memory_decay)
            for buffer, newest in zip(slow.buffers(), fast.buffers(), strict=True):
                buffer.copy_(newest)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Average the numbers of `forward` over held-out images; a last batch of one image, which has no negatives, is left out."""
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        count = 0
        with evaluating(model, self):
            for batch in loader.batches():
                if len(batch) > 1:
                    for name, value in self(model, batch.to(device)).items():
                        sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
                    count += len(batch)
        return {name: total / count for name, total in sums.items()}
