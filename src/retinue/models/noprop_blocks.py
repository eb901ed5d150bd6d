"""The parts of a NoProp network: a block with its branches, the embedding of the labels, and the output layer (arXiv 2503.24322).

A block joins what it sees of the image with a noisy label: conv stack or backbone -> 256 features, label -> 256 features, both -> answer.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.errors import ArgumentError, DataError, ShapeError, unknown
from retinue.models.protocol import adapt, feature_size, pooled_features

Embed = Literal["onehot", "learned", "prototype"]
EMBEDS = ("onehot", "learned", "prototype")
READOUTS = ("linear", "distance")
LEARNED_DIM = 20  # of the embedding, in the paper's experiments

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]


def linear(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    """Build a linear layer with ReLU, and batch norm between them where `norm`."""
    return nn.Sequential(nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU())


class ConvStack(nn.Module):
    """3x3 convolutions (batch norm, ReLU, pooling by two, dropout), then one linear layer; without convolutions, the linear layer alone.

    Args:
        shape: channels, height and width of the images.
        widths: channels of each convolution; a map of one pixel is not pooled any more.
        hidden: features that come out.
        norm: with batch norms.
        drop_rate: share of each map dropped in training.
    """

    def __init__(self, shape: tuple[int, int, int], widths: Sequence[int], hidden: int, norm: bool, drop_rate: float) -> None:
        super().__init__()
        (channels, height, width), layers = shape, []
        for out in widths:
            layers += [nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU()]
            if min(height, width) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            if drop_rate:
                layers.append(nn.Dropout(drop_rate))
            channels = out
        self.maps = nn.Sequential(*layers)
        self.out = linear(channels * height * width, hidden, norm)

    def forward(self, x: Images) -> Float[Tensor, "batch hidden"]:
        """Compute the features."""
        return self.out(self.maps(x).flatten(1))


class BackboneBranch(nn.Module):
    """Any network without its classifier, its pooled features, and one linear layer.

    Args:
        backbone: the network; its classifier is taken off.
        hidden: features that come out.
        norm: with a batch norm behind the linear layer.
    """

    def __init__(self, backbone: nn.Module, hidden: int, norm: bool) -> None:
        super().__init__()
        adapted: Any = adapt(backbone)
        adapted.reset_classifier(0)
        self.backbone = adapted
        self.out = linear(feature_size(adapted), hidden, norm)

    def forward(self, x: Images) -> Float[Tensor, "batch hidden"]:
        """Compute the features."""
        return self.out(pooled_features(self.backbone, x))


class LabelBranch(nn.Module):
    """Linear layers on a noisy label, each but the first with a skip; a label that is an image goes through a `ConvStack` instead.

    Args:
        dim: length of the label's embedding.
        hidden: features that come out.
        layers: number of linear layers.
        norm: with batch norms.
        images: for embeddings that are images, their stack.
        shape: of those images.
    """

    def __init__(self, dim: int, hidden: int, layers: int, norm: bool, images: ConvStack | None, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.images, self.shape = images, shape
        self.layers = nn.ModuleList([] if images is not None else [linear(dim if i == 0 else hidden, hidden, norm) for i in range(layers)])

    def forward(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch hidden"]:
        """Compute the features."""
        if self.images is not None:
            return self.images(z.unflatten(1, self.shape))
        for i, layer in enumerate(self.layers):
            z = z + layer(z) if i else layer(z)
        return z


class Block(nn.Module):
    """What cleans a noisy label, given the image (and the time, where one network serves all times).

    Args:
        image: the image's branch, to `hidden` features.
        label: the label's branch, to as many.
        hidden: features of each branch and of the layer that joins them.
        outputs: length of the answer: logits over the classes, or an embedding.
        norm: with batch norms in the joint layer.
        timed: with a branch for the time: sine waves and a linear layer.
    """

    def __init__(self, image: nn.Module, label: nn.Module, hidden: int, outputs: int, norm: bool, timed: bool) -> None:
        super().__init__()
        self.image, self.label = image, label
        self.time = linear(hidden, hidden, norm=False) if timed else None
        self.joint = nn.Sequential(linear((3 if timed else 2) * hidden, hidden, norm), nn.Linear(hidden, outputs))

    def forward(
        self, z: Float[Tensor, "batch dim"], features: Float[Tensor, "batch hidden"], t: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch out"]:
        """Compute the answer from a noisy label and the image's features (`self.image(x)`, the same at every time)."""
        parts = [features, self.label(z)]
        if self.time is not None and t is not None:
            parts.append(self.time(time_waves(t, features.shape[1])))
        return self.joint(torch.cat(parts, 1))


def time_waves(t: Float[Tensor, " batch"], size: int) -> Float[Tensor, "batch size"]:
    """Compute sines and cosines of a time in [0, 1], counted in thousandths as diffusion networks do (Vaswani et al. 2017, section 3.5)."""
    half = (size + 1) // 2
    angles = 1000 * t[:, None] * torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / half))
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :size]


class LabelEmbedding(nn.Module):
    """The matrix W, whose row y stands for class y: "onehot" is the identity and fixed, the others are learned.

    Args:
        num_classes: rows.
        kind: "onehot", "learned" (orthogonal at first), or "prototype" (one image of each class at first, by `fill`).
        dim: columns; None is the only possible number, or 20 for "learned".
        shape: of the images, the embedding of "prototype".

    Raises:
        ArgumentError: if `dim` cannot be.
    """

    filled: Tensor

    def __init__(self, num_classes: int, kind: Embed, dim: int | None, shape: tuple[int, int, int]) -> None:
        super().__init__()
        if kind not in EMBEDS:
            raise unknown("noprop", "`embed`", kind, EMBEDS)
        pixels = shape[0] * shape[1] * shape[2]
        forced = {"onehot": num_classes, "prototype": pixels}.get(kind)
        if dim is not None and dim != (forced or dim):
            told = f"the number of classes, {num_classes}" if kind == "onehot" else f"the number of pixels, {pixels}"
            raise ArgumentError(f'noprop: with embed="{kind}" `embed_dim` must be {told}, got {dim}. Leave it out, or use embed="learned".')
        if dim is not None and dim < 1:
            raise ArgumentError(f"noprop: `embed_dim` must be at least 1, got {dim}.")
        self.kind, self.dim = kind, forced or dim or LEARNED_DIM
        weight = torch.eye(num_classes, self.dim)
        if self.dim != num_classes:
            nn.init.orthogonal_(weight)
        self.learns = kind != "onehot"
        if self.learns:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("filled", torch.tensor(kind != "prototype"))

    def forward(self, labels: Labels) -> Float[Tensor, "batch dim"]:
        """Look up class numbers, or average rows by shares of the classes (soft labels).

        Raises:
            DataError: if a number is no class.
            ShapeError: if shares are of another number of classes.
        """
        if labels.is_floating_point():
            if labels.ndim != 2 or labels.shape[1] != len(self.weight):
                raise ShapeError(
                    f"noprop: soft labels must have a row for each image and {len(self.weight)} columns, got {tuple(labels.shape)}."
                )
            return labels @ self.weight
        if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.weight):
            raise DataError(
                f"noprop: labels must be numbers from 0 to {len(self.weight) - 1}, got {int(labels.min())} to {int(labels.max())}. "
                f"Build the network with as many classes as there are."
            )
        return self.weight[labels]

    @torch.no_grad()
    def fill(self, rows: Float[Tensor, "classes dim"]) -> None:
        """Put prototypes in place of the random rows; once."""
        self.weight.copy_(rows)
        self.filled.fill_(True)


def prototypes(
    images: Float[Tensor, "count ..."], labels: Int[Tensor, " count"], num_classes: int, most: int = 2000
) -> Float[Tensor, "classes dim"]:
    """Choose an image of each class: the one whose median distance to the images of its class is smallest.

    Args:
        images: normalised images.
        labels: their classes.
        num_classes: number of classes.
        most: images of a class that are compared, the first ones.

    Raises:
        DataError: if a class has no image.
    """
    chosen = []
    for number in range(num_classes):
        own = images[labels == number][:most].flatten(1)
        if not len(own):
            raise DataError(f'noprop: class {number} has no training image, so it has no prototype. Use embed="learned" or "onehot".')
        chosen.append(own[torch.cdist(own, own).median(1).values.argmin()])
    return torch.stack(chosen)


class Readout(nn.Module):
    """The output layer p_out(y | z): a linear layer, or distances between a cleaned z and the embeddings.

    Args:
        dim: length of z.
        num_classes: classes.
        kind: "linear"; or "distance", log p = -|softmax(f(z)) W - u_y|^2 / (2 sigma^2) up to a constant.
        sigma: of "distance"; not in the paper, 0.3 lets one-hot embeddings differ by 11 nats.
    """

    def __init__(self, dim: int, num_classes: int, kind: str, sigma: float = 0.3) -> None:
        super().__init__()
        if kind not in READOUTS:
            raise unknown("noprop", "`readout`", kind, READOUTS)
        self.kind, self.sigma = kind, sigma
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, z: Float[Tensor, "batch dim"], weight: Float[Tensor, "classes dim"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        scores = self.linear(z)
        if self.kind == "linear":
            return scores
        cleaned = scores.softmax(-1) @ weight
        return -(cleaned[:, None] - weight).square().sum(-1) / (2 * self.sigma**2)
