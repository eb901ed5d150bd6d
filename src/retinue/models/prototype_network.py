"""PrototypeDL's network: an autoencoder, prototypes among its codes, and a linear layer on distances to them (arXiv 1710.04806)."""

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import image_size, register
from retinue.models.modes import evaluating
from retinue.models.protocol import config
from retinue.models.prototype_autoencoders import (
    BackboneEncoder,
    ConvDecoder,
    ConvEncoder,
    Output,
    Padding,
    PixelRange,
    backbone_encoder,
    paired,
)

log = logging.getLogger(__name__)
CODE = 40  # numbers in a code where nobody says: the paper's for MNIST
CFG: dict[str, Any] = {
    "input_size": (1, 28, 28),
    "crop_pct": 1.0,
    "mean": (0.0,),
    "std": (1.0,),
    "first_conv": None,
    "classifier": "classifier",
}


class Evidence(NamedTuple):
    """Why: one prototype's part in an answer.

    Attributes:
        prototype: its number.
        label: the class that it stands for: the one whose logit rises most as the image comes nearer.
        distance: squared, from the image's code.
        weight: of the distance in the logit of the class that is explained.
        contribution: weight times distance; the logit is the sum of all prototypes' contributions.
        image: the prototype, decoded, in [0, 1].
    """

    prototype: int
    label: int
    distance: float
    weight: float
    contribution: float
    image: Float[Tensor, "channels height width"]


def squared_distances(z: Float[Tensor, "*batch latent"], points: Float[Tensor, "points latent"]) -> Float[Tensor, "*batch points"]:
    """Compute the squared Euclidean distance of each code to each point, without holding their differences in memory.

    Differences are taken number by number, so equal points are at distance 0 exactly and a common shift of all does not matter.

    Args:
        z: codes.
        points: points of the same space.

    >>> squared_distances(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 2.0]])).round(decimals=5)
    tensor([[2., 1.]])
    """
    half = torch.amp.is_autocast_available(z.device.type)
    with torch.autocast(z.device.type, enabled=False) if half else nullcontext():
        z, points = (x if x.dtype == torch.float64 else x.float() for x in (z, points))
        flat = z.reshape(-1, z.shape[-1])
        if torch.compiler.is_exporting():  # other runtimes have no cdist; centred, the expanded form loses least
            flat, points = flat - points.mean(0), points - points.mean(0)
            expanded = flat.square().sum(1, keepdim=True) + points.square().sum(1) - 2 * flat @ points.T
            return expanded.clamp_min(0).unflatten(0, z.shape[:-1])
        return torch.cdist(flat, points, compute_mode="donot_use_mm_for_euclid_dist").square().unflatten(0, z.shape[:-1])


class PrototypeClassifier(nn.Module):
    """Classify an image by its squared distances to prototypes, which a decoder can show; with timm's protocol.

    `forward_features` gives the code, `forward_head` makes the logits W d of it, without bias, and `pre_logits` the distances d.

    Args:
        encoder: images to codes.
        decoder: codes to images; its attribute `output` ("sigmoid" where it has none) says in which range it paints.
        num_prototypes: m; fewer than classes cannot stand for all of them, and are warned about.
        num_classes: K; 0 leaves the last layer out.
        image_shape: channels, height and width of the images; None asks the encoder for its `image_shape`.

    Raises:
        ArgumentError: if there is no prototype, or nobody says the images' shape.
        ShapeError: if the decoder paints images of another shape than the encoder takes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_prototypes: int,
        num_classes: int,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_prototypes < 1:
            raise ArgumentError(
                f"PrototypeClassifier: `num_prototypes` must be at least 1, got {num_prototypes}. The paper has 15 for 10 classes."
            )
        if num_prototypes < num_classes:
            log.warning("PrototypeClassifier: %d prototypes cannot stand for %d classes, one each. Take more.", num_prototypes, num_classes)
        self.image_shape, latent = paired(encoder, decoder, image_shape)
        self.encoder, self.decoder = encoder, decoder
        self.pixels = PixelRange(self.image_shape[0], getattr(decoder, "output", "sigmoid"))
        self.num_prototypes, self.num_features, self.head_hidden_size = num_prototypes, latent, num_prototypes
        self.in_chans, self.num_classes = self.image_shape[0], num_classes
        self.adaptation = list(getattr(encoder, "adaptation", []))
        self.feature_info: list[dict[str, Any]] = []
        # in one axis, as biases are, so that weight decay does not pull the prototypes to 0
        self.flat_prototypes = nn.Parameter(torch.rand(num_prototypes * latent))
        self.classifier = _weights(num_prototypes, num_classes)

    @property
    def prototypes(self) -> Float[Tensor, "prototypes latent"]:
        """The prototypes' codes."""
        return self.flat_prototypes.view(self.num_prototypes, self.num_features)

    def get_classifier(self) -> nn.Module:
        """Return the layer W."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Draw W anew for another number of classes; encoder, decoder and prototypes stay. 0 leaves it out."""
        self.num_classes = num_classes
        self.classifier = _weights(self.num_prototypes, num_classes).to(self.flat_prototypes.device)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Compute the codes.

        Raises:
            ShapeError: if the images have another shape.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ShapeError(
                f"PrototypeClassifier: images must be of shape {self.image_shape}, got {tuple(x.shape[1:])}. Build the network with this "
                "`in_chans` and `input_size`: its decoder paints images of one size."
            )
        return self.encoder(x).flatten(1)

    def forward_head(self, x: Float[Tensor, "batch latent"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Compute the logits of codes, or their distances to the prototypes alone where `pre_logits`.

        Raises:
            ArgumentError: in evaluation, if a distance is not a number.
        """
        distances = squared_distances(x, self.prototypes)
        if not (self.training or symbolic(distances)):
            finite(distances)
        return distances if pre_logits else self.classifier(distances)

    @overload
    def forward(self, x: Float[Tensor, "batch channels height width"], return_all: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Float[Tensor, "batch channels height width"], return_all: Literal[True]) -> dict[str, Tensor]: ...
    def forward(self, x: Float[Tensor, "batch channels height width"], return_all: bool = False) -> Tensor | dict[str, Tensor]:
        """Compute the logits, or with `return_all` also "distances", "latent" and "reconstruction" (in the decoder's range)."""
        latent = self.forward_features(x)
        if not return_all:
            return self.forward_head(latent)
        distances = self.forward_head(latent, pre_logits=True)
        return {"logits": self.classifier(distances), "distances": distances, "latent": latent, "reconstruction": self.decoder(latent)}

    @torch.no_grad()
    def decode(self, codes: Float[Tensor, "codes latent"]) -> Float[Tensor, "codes channels height width"]:
        """Paint codes in evaluation mode; in [0, 1]."""
        with evaluating(self.decoder):
            return self.pixels.unit(self.decoder(codes))

    def decode_prototypes(self) -> Float[Tensor, "prototypes channels height width"]:
        """Paint the prototypes; in [0, 1]."""
        return self.decode(self.prototypes)

    def prototype_labels(self) -> Int[Tensor, " prototypes"]:
        """Return the class that each prototype stands for: the one with the smallest weight, whose logit nearness raises most."""
        return self.classifier.weight.argmin(0)  # type: ignore[operator]

    @torch.no_grad()
    def explain(self, x: Float[Tensor, "batch channels height width"], top: int = 3, target: int | None = None) -> list[list[Evidence]]:
        """List the nearest prototypes of each image, with their part in the answer.

        Args:
            x: normalised images.
            top: how many prototypes, nearest first.
            target: the class whose logit is taken apart; None takes the predicted one.

        Raises:
            ArgumentError: if there are fewer prototypes than `top`, or a distance is not a number.
        """
        if not 1 <= top <= self.num_prototypes:
            raise ArgumentError(
                f"PrototypeClassifier: `top` must lie between 1 and the number of prototypes, {self.num_prototypes}, got {top}."
            )
        distances = self.forward_head(self.forward_features(x), pre_logits=True)
        finite(distances)
        told = self.classifier(distances).argmax(1).tolist() if target is None else [target] * len(x)
        weights, labels, images = self.classifier.weight, self.prototype_labels().tolist(), self.decode_prototypes()
        found = []
        for row, k in zip(distances, told):
            near = row.argsort(stable=True)[:top].tolist()
            w = weights[k]  # type: ignore[index]
            found.append([Evidence(j, labels[j], float(row[j]), float(w[j]), float(w[j] * row[j]), images[j]) for j in near])
        return found


def symbolic(x: Tensor) -> bool:
    """Tell whether a computation is only being recorded, so that no value can be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or isinstance(x, FakeTensor)


def finite(distances: Float[Tensor, "..."]) -> None:
    """Refuse distances that are not numbers.

    Raises:
        ArgumentError: if one is not.
    """
    if bool(distances.isnan().any()):
        raise ArgumentError("prototypes: distances are not numbers (NaN). Look for NaN in the images, or for a training that has diverged.")


def _weights(prototypes: int, classes: int) -> nn.Module:
    if not classes:
        return nn.Identity()
    layer = nn.Linear(prototypes, classes, bias=False)
    nn.init.uniform_(layer.weight)  # as the official code: the signs are left to learning
    return layer


@register(cfg=CFG)
def prototype_dl(
    encoder: str = "conv",
    encoder_args: Mapping[str, Any] | None = None,
    num_prototypes: int = 15,
    latent_dim: int | None = None,
    widths: Sequence[int] | None = None,
    padding: Padding = "symmetric",
    output: Output = "sigmoid",
    weight_std: float | None = None,
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    input_size: int | tuple[int, int] | None = None,
) -> PrototypeClassifier:
    """Build a `PrototypeClassifier` for images of any size.

    Args:
        encoder: "conv" for the paper's, or the name of any network, whose pooled features a linear layer turns into the code.
        encoder_args: the network's own options.
        num_prototypes: m.
        latent_dim: length of the code; None takes the last map of "conv" flat, and 40 for another network.
        widths: channels of the layers of "conv" and of the decoder, from the image inwards; see `ConvEncoder`.
        padding: of "conv" and the decoder; "tf_same" for parity with the official code.
        output: the decoder's last function.
        weight_std: standard deviation of the first weights of "conv" and the decoder; 0.01 in the official code.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 28.

    Raises:
        ArgumentError: if an option cannot be.
    """
    size = image_size(input_size) or (28, 28)
    network: nn.Module
    if encoder == "conv":
        if encoder_args:
            raise ArgumentError("prototype_dl: `encoder_args` are options of a network given by name. Leave them out, or name the network.")
        network = ConvEncoder(in_chans, size, widths, latent_dim, padding, weight_std)
    else:
        latent_dim = latent_dim or CODE
        network = backbone_encoder(encoder, encoder_args, latent_dim, in_chans, size)
    decoder = ConvDecoder(in_chans, size, widths, latent_dim, padding, output, weight_std)
    return PrototypeClassifier(network, decoder, num_prototypes, num_classes)


def around(
    backbone: nn.Module, *, num_classes: int, in_chans: int, input_size: tuple[int, int], num_prototypes: int = 15, latent_dim: int = CODE
) -> PrototypeClassifier:
    """Build the network around a backbone that exists; a checkpoint can rebuild it where `create_model` made that.

    Args:
        backbone: any network; its own classifier is taken off.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: height and width of the images.
        num_prototypes: m.
        latent_dim: length of the code.
    """
    made = config(backbone)
    encoder = BackboneEncoder(backbone, latent_dim, in_chans, input_size)
    network: Any = PrototypeClassifier(encoder, ConvDecoder(in_chans, input_size, None, latent_dim), num_prototypes, num_classes)
    own = {"num_prototypes": num_prototypes, "latent_dim": latent_dim, "num_classes": num_classes, "in_chans": in_chans}
    return remembered(network, "prototype_dl", made, {**own, "input_size": list(input_size)})


def remembered(network: Any, name: str, made: dict[str, Any] | None, arguments: dict[str, Any]) -> Any:
    """Note what rebuilds a network around a backbone, where it is known what rebuilds the backbone."""
    if made is not None:
        options = {key: value for key, value in copy.deepcopy(made["arguments"]).items() if key != "num_classes"}
        network.retinue_config = {"name": name, "arguments": {**arguments, "encoder": made["name"], "encoder_args": options}}
    return network
