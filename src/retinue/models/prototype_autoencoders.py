"""Encoders and decoders of prototype networks: the convolutional pair of Li et al. (2018, arXiv 1710.04806), and any backbone.

A prototype is a point in the space of codes; the decoder is what makes a picture of it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.factory import create_model
from retinue.models.modes import evaluating
from retinue.models.protocol import adapt, feature_size, pooled_features

Padding = Literal["symmetric", "tf_same"]
PADDINGS: tuple[Padding, ...] = ("symmetric", "tf_same")
Output = Literal["sigmoid", "tanh"]
LOWEST: dict[Output, float] = {"sigmoid": 0.0, "tanh": -1.0}  # of what a decoder paints; the highest is 1


class PixelRange(nn.Module):
    """Knows how images were normalised, and which range a decoder paints in.

    Args:
        channels: of the images.
        output: the decoder's last function.

    Raises:
        ArgumentError: if there is no such function.
    """

    def __init__(self, channels: int, output: Output = "sigmoid") -> None:
        super().__init__()
        if output not in LOWEST:
            raise unknown("prototypes", "`output` of a decoder", output, LOWEST)
        self.low = LOWEST[output]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    @torch.no_grad()
    def remember(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take over mean and standard deviation of each channel, as the data's preprocessing has them."""
        self.mean.copy_(torch.tensor(mean).view(-1, 1, 1))
        self.std.copy_(torch.tensor(std).view(-1, 1, 1))

    def painted(self, images: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch channels height width"]:
        """Bring normalised images to the decoder's range."""
        return (images * self.std + self.mean) * (1 - self.low) + self.low

    def unit(self, decoded: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch channels height width"]:
        """Bring a decoder's images to [0, 1]."""
        return (decoded - self.low) / (1 - self.low)

    def normalized(self, decoded: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch channels height width"]:
        """Bring a decoder's images to what an encoder takes."""
        return (self.unit(decoded) - self.mean) / self.std


class ConvEncoder(nn.Module):
    """Convolutions 3x3 with stride 2, each with ReLU; their last map, flat, is the code, or a linear function of it.

    Args:
        in_chans: channels of the images.
        input_size: height and width of the images.
        widths: channels of each layer; None halves until no side is longer than 2, with 32 channels each and 10 at last (28 pixels:
            32, 32, 32, 10 and a code of 40 numbers, as in the paper).
        latent_dim: length of the code, by one linear layer; None takes the flat map, which is never negative.
        padding: "symmetric", or "tf_same": TensorFlow's, which for even sides pads below and on the right alone.
        weight_std: standard deviation of the convolutions' first weights, whose biases are then 0 (0.01 in the official code); None takes
            torch's way.

    Raises:
        ArgumentError: if an option cannot be.
    """

    def __init__(
        self,
        in_chans: int,
        input_size: tuple[int, int],
        widths: Sequence[int] | None = None,
        latent_dim: int | None = None,
        padding: Padding = "symmetric",
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        widths = _widths(widths, input_size)
        if padding not in PADDINGS:
            raise unknown("prototypes", "`padding`", padding, PADDINGS)
        self.padding, self.image_shape = padding, (in_chans, *input_size)
        self.sides = _sides(input_size, len(widths))
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1 if padding == "symmetric" else 0)
            for before, after in pairwise((in_chans, *widths))
        )
        flat = widths[-1] * self.sides[-1][0] * self.sides[-1][1]
        self.project = nn.Identity() if latent_dim is None else nn.Linear(flat, latent_dim)
        self.latent_dim = flat if latent_dim is None else latent_dim
        _start(self.layers, weight_std)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Compute the codes."""
        for layer, (height, width) in zip(self.layers, self.sides):
            if self.padding == "tf_same":
                x = F.pad(x, (width % 2, 1, height % 2, 1))
            x = layer(x).relu()
        return self.project(x.flatten(1))


class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: transposed convolutions 3x3 with stride 2 and ReLU, the last with `output`.

    Args:
        in_chans: channels of the images.
        input_size: height and width of the images.
        widths: as of the encoder, from the image inwards.
        latent_dim: length of the code, which a linear layer with ReLU turns into the first map; None takes the code as that map.
        padding: as of the encoder.
        output: "sigmoid" paints in [0, 1], "tanh" in [-1, 1].
        weight_std: as of the encoder.

    Raises:
        ArgumentError: if an option cannot be.
    """

    def __init__(
        self,
        in_chans: int,
        input_size: tuple[int, int],
        widths: Sequence[int] | None = None,
        latent_dim: int | None = None,
        padding: Padding = "symmetric",
        output: Output = "sigmoid",
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        widths = _widths(widths, input_size)
        if padding not in PADDINGS:
            raise unknown("prototypes", "`padding`", padding, PADDINGS)
        if output not in LOWEST:
            raise unknown("prototypes", "`output` of a decoder", output, LOWEST)
        self.padding, self.output = padding, output
        sides = _sides(input_size, len(widths))
        self.first, self.targets = (widths[-1], *sides[-1]), sides[-2::-1]
        flat = widths[-1] * sides[-1][0] * sides[-1][1]
        self.unfold = nn.Identity() if latent_dim is None else nn.Sequential(nn.Linear(latent_dim, flat), nn.ReLU())
        self.layers = nn.ModuleList()
        for (before, after), (small, large) in zip(pairwise((*widths[::-1], in_chans)), pairwise(sides[::-1])):
            spare = tuple(out - (2 * side - 1) for side, out in zip(small, large))
            own: dict[str, Any] = {"padding": 1, "output_padding": spare} if padding == "symmetric" else {}
            self.layers.append(nn.ConvTranspose2d(before, after, 3, stride=2, **own))
        _start(self.layers, weight_std)

    def forward(self, z: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch channels height width"]:
        """Paint images."""
        x = self.unfold(z).unflatten(1, self.first)
        for number, (layer, (height, width)) in enumerate(zip(self.layers, self.targets)):
            x = layer(x)
            if self.padding == "tf_same":  # what the encoder padded is cut off: for odd sides a pixel before, too
                x = x[..., height % 2 : height % 2 + height, width % 2 : width % 2 + width]
            x = x.relu() if number < len(self.layers) - 1 else getattr(x, self.output)()
        return x


class BackboneEncoder(nn.Module):
    """Any network's pooled features, and a linear layer that makes the code of them.

    Args:
        backbone: any network; its own classifier is taken off.
        latent_dim: length of the code.
        in_chans: channels of the images.
        input_size: height and width of the images.
    """

    def __init__(self, backbone: nn.Module, latent_dim: int, in_chans: int, input_size: tuple[int, int]) -> None:
        super().__init__()
        adapted: Any = adapt(backbone, input_size=input_size)
        adapted.reset_classifier(0)
        self.backbone = adapted
        self.project = nn.Linear(feature_size(adapted), latent_dim)
        self.latent_dim, self.image_shape = latent_dim, (in_chans, *input_size)
        self.adaptation = list(getattr(adapted, "adaptation", []))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Compute the codes."""
        return self.project(pooled_features(self.backbone, x))


def backbone_encoder(
    name: str, arguments: Mapping[str, Any] | None, latent_dim: int, in_chans: int, input_size: tuple[int, int]
) -> BackboneEncoder:
    """Build a backbone by name as an encoder.

    Args:
        name: one that `create_model` knows.
        arguments: its own options.
        latent_dim: length of the code.
        in_chans: channels of the images.
        input_size: height and width of the images.
    """
    network = create_model(name, **{"in_chans": in_chans, "input_size": input_size, **(arguments or {}), "num_classes": 0})
    return BackboneEncoder(network, latent_dim, in_chans, input_size)


def paired(encoder: nn.Module, decoder: nn.Module, image_shape: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], int]:
    """Try an encoder and a decoder on each other.

    Args:
        encoder: images to codes (or to maps, which are then taken flat).
        decoder: codes to images.
        image_shape: channels, height and width; None asks the encoder for its `image_shape`.

    Returns:
        The shape of the images, and the length of what the encoder makes of one.

    Raises:
        ArgumentError: if nobody says the shape of the images.
        ShapeError: if the decoder's images have another shape than the encoder's.
    """
    shape: Any = image_shape or getattr(encoder, "image_shape", None)
    if shape is None:
        raise ArgumentError(
            f"prototypes: {type(encoder).__name__} does not say which images it takes. Give image_shape=(channels, height, width)."
        )
    like = next(encoder.parameters(), torch.empty(0))
    with torch.no_grad(), evaluating(encoder, decoder):
        code = encoder(torch.zeros(2, *shape, device=like.device, dtype=like.dtype)).flatten(1)
        decoded = decoder(code[:, : getattr(encoder, "latent_dim", code.shape[1])])
    if tuple(decoded.shape[1:]) != tuple(shape):
        raise ShapeError(
            f"prototypes: the decoder must paint images of shape {tuple(shape)}, as the encoder takes, got {tuple(decoded.shape[1:])}. "
            "Give both the same image size, or take retinue's decoder."
        )
    return tuple(shape), code.shape[1]


def _widths(widths: Sequence[int] | None, size: tuple[int, int]) -> tuple[int, ...]:
    if widths is None:
        return (*[32] * (max(1, (max(size) - 1).bit_length() - 1) - 1), 10)
    if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ArgumentError(
            f"prototypes: `widths` must be positive whole numbers, one for each layer, got {list(widths)}. MNIST has 32, 32, 32, 10."
        )
    return tuple(widths)


def _sides(size: tuple[int, int], layers: int) -> list[tuple[int, int]]:
    """List height and width before, between and after the layers."""
    sides = [size]
    for _ in range(layers):
        sides.append((-(-sides[-1][0] // 2), -(-sides[-1][1] // 2)))
    return sides


def _start(layers: nn.ModuleList, std: float | None) -> None:
    if std is None:
        return
    if not std > 0:
        raise ArgumentError(f"prototypes: `weight_std` must be above 0, got {std}. The official code has 0.01.")
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
