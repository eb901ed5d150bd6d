"""Networks that train badly by themselves, the targets of guidance (Subramaniam et al. 2024, arXiv 2410.20035), and a guide for sequences.

Two fully connected networks (very deep, very wide), a ResNet-50 without its shortcuts, and a plain recurrent network. The last one and the
transformer beside it read an image row by row: an image one pixel wide is a sequence of numbers, such as the bits of the parity task.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import image_size, register
from retinue.models.layers import conv_norm_act
from retinue.models.mlp import MLP
from retinue.models.network import Network

FLAT = {"crop_pct": 1.0, "first_conv": None, "classifier": "head"}
SMALL_SIDE = 64  # at most so many pixels: a stem of stride 4 would leave too little


def _fully_connected(
    widths: Sequence[int], num_classes: int, in_chans: int, input_size: int | tuple[int, int] | None, drop_rate: float
) -> MLP:
    """An `MLP` with batch norm between every linear layer and its ReLU, and dropout behind it."""
    network = MLP((in_chans, *(image_size(input_size) or (224, 224))), widths, num_classes)
    for layer, width in zip(network.layers, widths):
        layer.insert(1, nn.BatchNorm1d(width))  # type: ignore[operator]
        if drop_rate:
            layer.append(nn.Dropout(drop_rate))  # type: ignore[operator]
    return network


@register(cfg=FLAT)
def deep_fcn(
    depth: int = 48,
    width: int = 1024,
    first_width: int | None = None,
    drop_rate: float = 0.1,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> MLP:
    """Build the deep fully connected network: 48 hidden layers (359,788,520 parameters for 224 px and 1,000 classes).

    Args:
        depth: number of hidden layers.
        width: units of each but the first.
        first_width: units of the first; None is twice `width`.
        drop_rate: share of each hidden layer's outputs dropped in training.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 224.
    """
    _positive("deep_fcn", depth=depth, width=width, first_width=2 * width if first_width is None else first_width)
    _share("deep_fcn", drop_rate)
    first = 2 * width if first_width is None else first_width
    return _fully_connected([first, *[width] * (depth - 1)], num_classes, in_chans, input_size, drop_rate)


@register(cfg=FLAT)
def wide_fcn(
    depth: int = 3,
    width: int = 8192,
    drop_rate: float = 0.0,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> MLP:
    """Build the wide fully connected network: 3 hidden layers (1,375,609,832 parameters for 224 px and 1,000 classes).

    Args:
        depth: number of hidden layers.
        width: units of each.
        drop_rate: share of each hidden layer's outputs dropped in training.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 224.
    """
    _positive("wide_fcn", depth=depth, width=width)
    _share("wide_fcn", drop_rate)
    return _fully_connected([width] * depth, num_classes, in_chans, input_size, drop_rate)


@register
def plain_resnet50(
    depths: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
) -> Network:
    """Build a ResNet-50 from which every shortcut was taken (22,780,456 parameters for 1,000 classes).

    Args:
        depths: bottlenecks (1x1, 3x3 and 1x1 convolutions) of each stage; all but the first stage halve the map in their first 3x3.
        width: channels inside the first stage's bottlenecks, and of the stem; each stage has twice those of the one before.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; up to 64 px the stem is a 3x3 convolution that keeps the size.
        drop_rate: share of the pooled features dropped in training.
    """
    if not depths:
        raise ArgumentError("plain_resnet50: `depths` is empty. Give the number of bottlenecks of each stage, such as [3, 4, 6, 3].")
    if min(depths) < 1:
        raise ArgumentError(f"plain_resnet50: every entry of `depths` must be at least 1, got {list(depths)}.")
    _positive("plain_resnet50", width=width)
    size = image_size(input_size)
    small = size is not None and min(size) <= SMALL_SIDE
    stem: list[nn.Module] = [conv_norm_act(in_chans, width, 3 if small else 7, stride=1 if small else 2)]
    if not small:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    stages, taps, before = [], [], width
    for i, depth in enumerate(depths):
        inner, layers = width * 2**i, []
        for j in range(depth):
            layers += [
                conv_norm_act(before, inner, 1),
                conv_norm_act(inner, inner, 3, stride=2 if i and not j else 1),
                conv_norm_act(inner, 4 * inner, 1),
            ]
            before = 4 * inner
        stages.append(nn.Sequential(*layers))
        taps.append({"num_chs": before, "reduction": 2**i * (1 if small else 4), "module": f"stages.{i}"})
    network = Network(
        nn.Sequential(*stem), nn.Sequential(*stages), taps=taps, num_features=before, num_classes=num_classes, in_chans=in_chans,
        drop_rate=drop_rate,
    )  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's ResNet-50
    if small:
        network.adaptation = ["stem: 7x7 of stride 2 and pooling -> 3x3 of stride 1"]
    return network


class RowReader(nn.Module):
    """Reads an image as a sequence of its rows, from the top; timm's protocol as far as it makes sense for sequences.

    Args:
        shape: channels, height and width of the images.
        embed_dim: length of each embedded row.
        layers: each takes (batch, rows, features); what an `nn.RNN` returns beside its outputs is left aside.
        num_features: features of a row after the last layer.
        num_classes: outputs of the classifier.
        last: classify the last row, as a recurrent network must; otherwise the mean of all rows.
        positions: add sine waves to the embedded rows (Vaswani et al. 2017, section 3.5).
    """

    waves: Tensor | None

    def __init__(
        self, shape: tuple[int, int, int], embed_dim: int, layers: Sequence[nn.Module], num_features: int, num_classes: int,
        last: bool, positions: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.in_chans, self.last = shape, shape[0], last
        self.num_features = self.head_hidden_size = num_features
        self.num_classes = num_classes
        self.adaptation: list[str] = []
        self.embed = nn.Linear(shape[0] * shape[2], embed_dim)
        self.layers = nn.ModuleList(layers)
        self.head: nn.Module = nn.Linear(num_features, num_classes) if num_classes else nn.Identity()
        self.register_buffer("waves", sine_waves(shape[1], embed_dim) if positions else None, persistent=False)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place of the old one; 0 leaves it out."""
        self.num_classes = num_classes
        like = self.embed.weight
        self.head = nn.Linear(self.num_features, num_classes).to(like.device, like.dtype) if num_classes else nn.Identity()

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Compute the features of the last row, or the mean of all rows."""
        if x.shape[1:] != self.shape:
            raise ShapeError(f"images must be of shape {self.shape}, got {tuple(x.shape[1:])}. Build the network with this `input_size`.")
        rows = self.embed(x.transpose(1, 2).flatten(2))
        if self.waves is not None:
            rows = rows + self.waves
        for layer in self.layers:
            out: Any = layer(rows)
            rows = out[0] if isinstance(out, tuple) else out
        return rows[:, -1] if self.last else rows.mean(1)

    def forward_head(self, x: Float[Tensor, "batch features"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify the features, or return them as they are where `pre_logits`."""
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


@register(cfg=FLAT)
def vanilla_rnn(
    depth: int = 4,
    width: int = 512,
    embed_dim: int = 256,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> RowReader:
    """Build a stack of plain recurrent layers (tanh, no gates) that reads an image row by row.

    Args:
        depth: number of layers, each an `nn.RNN` of its own, so that each one's outputs can be guided.
        width: units of each.
        embed_dim: length of an embedded row.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 224.
    """
    _positive("vanilla_rnn", depth=depth, width=width, embed_dim=embed_dim)
    layers = [nn.RNN(embed_dim if i == 0 else width, width, batch_first=True) for i in range(depth)]
    shape = (in_chans, *(image_size(input_size) or (224, 224)))
    return RowReader(shape, embed_dim, layers, width, num_classes, last=True, positions=False)


@register(cfg=FLAT)
def row_transformer(
    depth: int = 4,
    width: int = 512,
    num_heads: int = 16,
    drop_rate: float = 0.1,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> RowReader:
    """Build a transformer whose tokens are the rows of an image, the guide of a recurrent network (or guided by one).

    Args:
        depth: number of layers.
        width: length of a token; a multiple of `num_heads`.
        num_heads: of attention.
        drop_rate: share dropped in training.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 224.
    """
    _positive("row_transformer", depth=depth, width=width, num_heads=num_heads)
    _share("row_transformer", drop_rate)
    if width % num_heads:
        raise ArgumentError(f"row_transformer: `width` must be a multiple of `num_heads`, got {width} and {num_heads}.")
    layers = [nn.TransformerEncoderLayer(width, num_heads, 4 * width, drop_rate, batch_first=True) for _ in range(depth)]
    shape = (in_chans, *(image_size(input_size) or (224, 224)))
    return RowReader(shape, width, layers, width, num_classes, last=False, positions=True)


def sine_waves(length: int, size: int) -> Float[Tensor, "length size"]:
    """Compute the sinusoidal encoding of places (Vaswani et al. 2017, section 3.5): sines in the even columns, cosines in the odd ones."""
    places = torch.arange(length)[:, None] * torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    return torch.stack([places.sin(), places.cos()], -1).flatten(1)[:, :size]


def _positive(where: str, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ArgumentError(f"{where}: `{name}` must be at least 1, got {value}.")


def _share(where: str, drop_rate: float) -> None:
    if not 0 <= drop_rate < 1:
        raise ArgumentError(f"{where}: `drop_rate` must lie in [0, 1), got {drop_rate}. It is the share of outputs dropped.")
