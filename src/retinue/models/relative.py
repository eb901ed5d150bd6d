"""Networks whose features are similarities to anchors (Moschella et al. 2022, arXiv 2209.15430).

Features of two networks differ by a rotation and a scale, about; what they say of the likeness of images does not. So a head trained on
these similarities works behind another network with the same anchors.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.factory import create_model, image_size, register
from retinue.models.network import frozen_statistics
from retinue.models.protocol import adapt, config, feature_size, pooled_features

log = logging.getLogger(__name__)
Similarity = Literal["cosine", "angular", "euclidean", "l1", "inner", "basis"]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "angular", "euclidean", "l1", "inner", "basis")
Head = Literal["linear", "mlp", "tanh"]
HEADS: tuple[Head, ...] = ("linear", "mlp", "tanh")
NORMS = ("layer", "none")
STEEP = 1e-6  # from 1: where the slope of the arc cosine has no bound, none is passed on


class RelativeProjection(nn.Module):
    """Replace features by their similarities to the features of anchors (section 3).

    | similarity | of z with an anchor a | the same for z -> |
    | --- | --- | --- |
    | "cosine" | z a / (abs z abs a) | rotations, scales |
    | "angular" | arccos(cosine) / pi, in [0, 1] | rotations, scales |
    | "euclidean" | the distance | rotations, shifts |
    | "l1" | the sum of absolute differences | permutations of axes, shifts |
    | "inner" | z a / sqrt(length) | rotations |
    | "basis" | coordinates of z in the anchors, by least squares | invertible matrices, for as many independent anchors as features |

    Args:
        similarity: one of these.
        center: subtract the anchors' mean from both first; then shifts change none of them.
        eps: features of a smaller norm have cosine 0 with everything.
        step: round similarities to multiples of it, with the gradient of no rounding; None does not round.

    Raises:
        ArgumentError: if there is no such similarity, or `eps` or `step` is not positive.

    >>> project = RelativeProjection()
    >>> project(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, similarity: Similarity = "cosine", center: bool = False, eps: float = 1e-8, step: float | None = None) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise unknown("RelativeProjection", "`similarity`", similarity, SIMILARITIES)
        for name, value in (("eps", eps), ("step", step)):
            if value is not None and not value > 0:
                raise ArgumentError(f"RelativeProjection: `{name}` must be above 0, got {value}.")
        self.similarity, self.center, self.eps, self.step = similarity, center, eps, step
        self.warned = False

    def extra_repr(self) -> str:
        """Say how it projects."""
        return f"{self.similarity!r}, center={self.center}, eps={self.eps}, step={self.step}"

    def forward(self, z: Float[Tensor, "batch features"], anchors: Float[Tensor, "anchors features"]) -> Float[Tensor, "batch anchors"]:
        """Compute the similarities; both must come from the same network.

        Raises:
            ShapeError: if there is no anchor, or the two differ in length.
            ArgumentError: in evaluation, if a feature is no finite number.
        """
        if not len(anchors) or z.shape[-1] != anchors.shape[-1]:
            raise ShapeError(
                f"RelativeProjection: features and anchors must be of one length, and there must be an anchor, got {tuple(z.shape)} and "
                f"{tuple(anchors.shape)}. Encode both with the same network."
            )
        if not (self.training or _symbolic(z)):
            self._look_at(z, anchors)
        with torch.autocast(z.device.type, enabled=False):  # in half precision, cosines exceed 1
            z, anchors = (x if x.dtype == torch.float64 else x.float() for x in (z, anchors))
            if self.center:
                mean = anchors.mean(0)
                z, anchors = z - mean, anchors - mean
            relative = self._similarities(z, anchors)
        if self.step is not None:
            relative = relative + (self.step * (relative / self.step).round() - relative).detach()
        return relative

    def _similarities(self, z: Tensor, anchors: Tensor) -> Tensor:
        if self.similarity == "euclidean":
            return torch.cdist(z, anchors, compute_mode="donot_use_mm_for_euclid_dist")
        if self.similarity == "l1":
            return torch.cdist(z, anchors, p=1.0)
        if self.similarity == "inner":
            return z @ anchors.T / z.shape[-1] ** 0.5
        if self.similarity == "basis":
            return z @ torch.linalg.pinv(anchors)
        cosine = F.normalize(z, dim=-1, eps=self.eps) @ F.normalize(anchors, dim=-1, eps=self.eps).T
        if self.similarity == "cosine":
            return cosine
        cosine = torch.where(cosine.abs() < 1 - STEEP, cosine, cosine.detach().clamp(-1, 1))
        return cosine.arccos() / torch.pi

    def _look_at(self, z: Tensor, anchors: Tensor) -> None:
        for name, x in (("features", z), ("anchors' features", anchors)):
            if not bool(x.isfinite().all()):
                raise ArgumentError(f"RelativeProjection: the {name} hold values that are not finite. Look at the network that made them.")
            if self.similarity in ("cosine", "angular") and not self.warned and bool((x.norm(dim=-1) < self.eps).any()):
                log.warning("RelativeProjection: some %s are zero vectors, whose cosine is not defined; it counts as 0.", name)
                self.warned = True


class RelativeModel(nn.Module):
    """An encoder, similarities to anchors in place of its features, and a head on them; with timm's protocol.

    `forward_features` gives the similarities, one for each anchor; `forward_head` normalises and classifies them, so that the normalisation
    goes with the head when heads are exchanged. In training the anchors are encoded anew at each step, in a pass of their own that
    does not move the encoder's running statistics, and the gradient flows through them (section 4.3); in evaluation their features are kept
    until a weight changes.

    Args:
        encoder: any network; its own classifier is not used.
        anchors: normalised images; more can be said later by `fill`.
        num_classes: outputs of the head; 0 leaves the last layer out.
        projection: how features are compared; None uses the encoder's features as they are ("absolute"), for comparison.
        norm: "layer" (a layer norm over the anchors, as in all released settings) or "none".
        head: "linear"; "mlp" with one hidden layer; or "tanh", the official decoder of frozen encoders, whose last normalisation is over
            the batch, so that an answer depends on the images beside it.
        hidden: units of the hidden layer of "mlp".

    Raises:
        ArgumentError: if there is no such norm or head.
    """

    def __init__(
        self,
        encoder: nn.Module,
        anchors: Float[Tensor, "anchors channels height width"],
        num_classes: int,
        projection: RelativeProjection | None,
        norm: str = "layer",
        head: Head = "linear",
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise unknown("RelativeModel", "`norm`", norm, NORMS)
        if head not in HEADS:
            raise unknown("RelativeModel", "`head`", head, HEADS)
        self.encoder = adapt(encoder, input_size=(anchors.shape[-2], anchors.shape[-1]))
        self.projection = projection
        self.anchors: Tensor
        self.register_buffer("anchors", anchors)
        self.num_features = len(anchors) if projection is not None else feature_size(self.encoder)
        self.in_chans, self.num_classes = anchors.shape[1], num_classes
        self.adaptation = list(getattr(self.encoder, "adaptation", []))
        width = self.num_features
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.Identity()
        layers: dict[Head, list[nn.Module]] = {
            "linear": [],
            "mlp": [nn.Linear(width, hidden), nn.ReLU()],
            "tanh": [nn.Linear(width, width), nn.Tanh(), OverBatch()],
        }
        self.hidden = nn.Sequential(*layers[head])
        self.head_hidden_size = hidden if head == "mlp" else width
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self._encoded: tuple[Any, Tensor] | None = None

    def fill(self, anchors: Float[Tensor, "anchors channels height width"]) -> None:
        """Take other anchors, as many and of the same size as before.

        Raises:
            ShapeError: if their shape is another.
        """
        if anchors.shape != self.anchors.shape:
            raise ShapeError(f"RelativeModel: the anchors must be of shape {tuple(self.anchors.shape)}, got {tuple(anchors.shape)}.")
        self.anchors.copy_(anchors)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new last layer in place of the old one; 0 leaves it out."""
        self.num_classes = num_classes
        fresh = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head = fresh.to(self.anchors.device)

    def encoded_anchors(self) -> Float[Tensor, "anchors features"]:
        """Encode the anchors with the present weights; outside of training (of the encoder), once for each state of the weights."""
        if self.training and any(parameter.requires_grad for parameter in self.encoder.parameters()):
            with frozen_statistics(self.encoder):
                return pooled_features(self.encoder, self.anchors)
        if self._encoded is not None and (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            return self._encoded[1]
        tensors = (self.anchors, *self.encoder.parameters(), *self.encoder.buffers())
        state = None if _symbolic(self.anchors) else tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._encoded is None or self._encoded[0] != state:
            with torch.no_grad():
                encoded = pooled_features(self.encoder, self.anchors)
            if _symbolic(encoded):
                return encoded
            self._encoded = (state, encoded)
        return self._encoded[1]

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Compute the similarities of images with the anchors (without `projection`, the encoder's features)."""
        z = pooled_features(self.encoder, x)
        return z if self.projection is None else self.projection(z, self.encoded_anchors()).to(z.dtype)

    def forward_head(self, x: Float[Tensor, "batch features"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify similarities, which may come from another encoder.

        Raises:
            ShapeError: if there is not one for each anchor.
        """
        if x.shape[-1] != self.num_features:
            raise ShapeError(
                f"RelativeModel: the head takes {self.num_features} features, got {x.shape[-1]}. Heads can be exchanged between networks "
                "with the same number of anchors."
            )
        x = self.hidden(self.norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


def _symbolic(x: Tensor) -> bool:
    """Tell whether a computation is only being recorded, so that no value can be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or isinstance(x, FakeTensor)


class OverBatch(nn.Module):
    """Normalise each feature over the batch, in training and evaluation alike (the official decoder's transposed instance norm)."""

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """Subtract the mean, and divide by the standard deviation."""
        return (x - x.mean(0)) * (x.var(0, correction=0) + 1e-5).rsqrt()


@register(cfg={"input_size": (1, 28, 28), "crop_pct": 1.0, "mean": (0.5,), "std": (0.5,), "first_conv": None, "classifier": "head"})
def relative(
    encoder: str = "mlp",
    encoder_args: Mapping[str, Any] | None = None,
    num_anchors: int = 100,
    similarity: Similarity | None = "cosine",
    center: bool = False,
    step: float | None = None,
    norm: str = "layer",
    head: Head = "linear",
    hidden: int = 64,
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    input_size: int | tuple[int, int] | None = None,
) -> RelativeModel:
    """Build a network by name that classifies similarities to anchors, which `retinue.explain.Relative` takes from the training images.

    Args:
        encoder: name of any network.
        encoder_args: its options.
        num_anchors: anchors.
        similarity: as in `RelativeProjection`; None uses the encoder's features themselves, with the same head.
        center: as there.
        step: as there.
        norm: as in `RelativeModel`.
        head: as there.
        hidden: as there.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 28.

    Raises:
        ArgumentError: if an option cannot be.
    """
    if num_anchors < 1:
        raise ArgumentError(f"relative: `num_anchors` must be at least 1, got {num_anchors}.")
    size = image_size(input_size) or (28, 28)
    shape: dict[str, Any] = {"in_chans": in_chans, "input_size": size}
    network = create_model(encoder, **{**shape, **(encoder_args or {}), "num_classes": 0})
    projection = None if similarity is None else RelativeProjection(similarity, center, step=step)
    return RelativeModel(network, torch.zeros(num_anchors, in_chans, *size), num_classes, projection, norm, head, hidden)


def around(encoder: nn.Module, *, num_classes: int, in_chans: int, input_size: tuple[int, int], **options: Any) -> RelativeModel:
    """Build the network of `relative` around a network that exists; a checkpoint can rebuild it where `create_model` made that.

    Args:
        encoder: any network; its own classifier is taken off.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: height and width of the images.
        options: of `relative`.
    """
    made = config(encoder)
    adapted = adapt(encoder, input_size=input_size)
    adapted.reset_classifier(0)  # type: ignore[operator]
    given = {"num_anchors": 100, "similarity": "cosine", "center": False, "step": None, **options}
    count, similarity, center, step = (given.pop(name) for name in ("num_anchors", "similarity", "center", "step"))
    projection = None if similarity is None else RelativeProjection(similarity, center, step=step)
    network: Any = RelativeModel(adapted, torch.zeros(count, in_chans, *input_size), num_classes, projection, **given)
    if made is not None:
        own = {name: value for name, value in copy.deepcopy(made["arguments"]).items() if name != "num_classes"}
        common = {"num_classes": num_classes, "in_chans": in_chans, "input_size": list(input_size)}
        network.retinue_config = {"name": "relative", "arguments": {**common, **options, "encoder": made["name"], "encoder_args": own}}
    return network
