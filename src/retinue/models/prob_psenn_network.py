"""Prob-PSENN's network: prototypes are random, so distances, answers and explanations are too (Vadillo et al. 2024, arXiv 2403.13740)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import image_size, register
from retinue.models.modes import evaluating
from retinue.models.prob_psenn_autoencoder import PSENNDecoder, PSENNEncoder
from retinue.models.prob_psenn_distributions import Family, PrototypeDistributions
from retinue.models.prob_psenn_uncertainty import entropies, overlaps, typicality
from retinue.models.protocol import config
from retinue.models.prototype_autoencoders import BackboneEncoder, ConvDecoder, ConvEncoder, PixelRange, backbone_encoder, paired
from retinue.models.prototype_network import CODE, finite, remembered, squared_distances, symbolic

REMEMBERED = 100  # training images of each class whose distances a checkpoint keeps
AT_A_TIME = 1 << 24  # distances and logits in memory at once
SEED = 0  # of the samples that evaluation uses, the same for every image and every call
CFG: dict[str, Any] = {
    "input_size": (1, 32, 32),
    "crop_pct": 1.0,
    "mean": (0.5,),
    "std": (0.5,),
    "first_conv": None,
    "classifier": "classifier",
}


class ProbPSENN(nn.Module):
    """Classify an image by its squared distances to samples of random prototypes; with timm's protocol.

    Each joint sample of all prototypes gives distances, logits d W and probabilities; the answer is the mean of the probabilities, whose
    logarithm `forward` returns. In training, samples are drawn anew for each batch; in evaluation they are always the same ones.

    Args:
        encoder: images to codes; a variational one gives means and log-variances, one behind the other.
        decoder: codes to images; its attribute `output` ("sigmoid" where it has none) says in which range it paints.
        num_classes: K; 0 leaves the last layer out.
        latent_dim: length of a code.
        family: "gauss_diag", "gauss_full" or "mixture", see `PrototypeDistributions`.
        prototypes_per_class: prototypes of each class; they stand class by class.
        train_w: let W learn; else it stays at minus a half between a prototype and its class, and 0 elsewhere.
        samples: of the prototypes in training, shared by a batch.
        test_samples: of the prototypes in evaluation.
        prior: standard deviation of the Gaussian from which the first means are drawn.
        image_shape: channels, height and width of the images; None asks the encoder for its `image_shape`.

    Raises:
        ArgumentError: if a number cannot be, or there is no such family.
        ShapeError: if encoder, decoder and `latent_dim` do not fit together.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_classes: int,
        latent_dim: int,
        family: Family = "gauss_full",
        prototypes_per_class: int = 1,
        train_w: bool = True,
        samples: int = 10,
        test_samples: int = 200,
        prior: float = 1.0,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("prototypes_per_class", prototypes_per_class), ("samples", samples), ("test_samples", test_samples)):
            if value < 1:
                raise ArgumentError(f"ProbPSENN: `{name}` must be at least 1, got {value}.")
        self.image_shape, numbers = paired(encoder, decoder, image_shape)
        if numbers not in (latent_dim, 2 * latent_dim):
            raise ShapeError(
                f"ProbPSENN: the encoder gives {numbers} numbers, which is neither `latent_dim`={latent_dim} nor, for a "
                "variational one, twice that."
            )
        self.encoder, self.decoder, self.variational = encoder, decoder, numbers == 2 * latent_dim
        self.pixels = PixelRange(self.image_shape[0], getattr(decoder, "output", "sigmoid"))
        # without a classifier there are no classes, and one class's prototypes are left
        self.distributions = PrototypeDistributions(max(1, num_classes) * prototypes_per_class, latent_dim, family, prior)
        self.prototypes_per_class, self.num_prototypes = prototypes_per_class, self.distributions.number
        self.num_features, self.head_hidden_size = latent_dim, self.num_prototypes
        self.in_chans, self.num_classes, self.train_w = self.image_shape[0], num_classes, train_w
        self.samples, self.test_samples = samples, test_samples
        self.adaptation = list(getattr(encoder, "adaptation", []))
        self.feature_info: list[dict[str, Any]] = []
        self.classifier = self._weights(num_classes)
        self.fitted: Tensor
        self.typical: Tensor
        self.normal: Tensor
        self.gumbel: Tensor
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))  # whether the distributions have seen codes
        self.register_buffer("typical", torch.full((max(1, num_classes), REMEMBERED), -1.0))
        self._keep_noise()

    def _weights(self, classes: int) -> nn.Module:
        if not classes:
            return nn.Identity()
        layer = nn.Linear(self.num_prototypes, classes, bias=False)
        with torch.no_grad():
            own = torch.arange(self.num_prototypes) // self.prototypes_per_class
            layer.weight.copy_(-0.5 / self.prototypes_per_class * (own == torch.arange(classes)[:, None]))
            layer.weight.add_(2e-8 * torch.rand_like(layer.weight) - 1e-8)
        layer.requires_grad_(self.train_w)
        return layer

    def _keep_noise(self) -> None:
        normal, gumbel = self.distributions.noise(self.test_samples, torch.Generator().manual_seed(SEED))
        device = self.distributions.flat_means.device
        self.register_buffer("normal", normal.to(device), persistent=False)
        self.register_buffer("gumbel", gumbel.to(device), persistent=False)

    def get_classifier(self) -> nn.Module:
        """Return the layer W."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Make W and the prototypes anew for another number of classes; encoder and decoder stay. 0 leaves W out."""
        old = self.distributions
        if num_classes and num_classes != self.num_classes:
            fresh = PrototypeDistributions(num_classes * self.prototypes_per_class, old.latent_dim, old.family, old.prior)
            self.distributions = fresh.to(old.flat_means.device)
            self.num_prototypes = self.head_hidden_size = fresh.number
            self.fitted.fill_(False)
            self.typical = self.typical.new_full((num_classes, REMEMBERED), -1.0)
            self._keep_noise()
        self.num_classes = num_classes
        self.classifier = self._weights(num_classes).to(old.flat_means.device)

    def encode(self, x: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, Tensor | None]:
        """Compute codes (of a variational encoder their means), and the logarithms of their variances, if there are any.

        Raises:
            ShapeError: if the images have another shape.
        """
        if tuple(x.shape[1:]) != self.image_shape:
            raise ShapeError(
                f"ProbPSENN: images must be of shape {self.image_shape}, got {tuple(x.shape[1:])}. Build the network with this "
                "`in_chans` and `input_size`: its decoder paints images of one size."
            )
        z = self.encoder(x).flatten(1)
        return (z[:, : self.num_features], z[:, self.num_features :]) if self.variational else (z, None)

    def sample_prototypes(self, n: int) -> Float[Tensor, "{n} prototypes latent"]:
        """Draw joint samples of all prototypes: new ones in training, the same ones at each call in evaluation.

        Raises:
            ArgumentError: if `n` is below 1.
        """
        if n < 1:
            raise ArgumentError(f"ProbPSENN: `num_samples` must be at least 1, got {n}. In evaluation 200 are usual.")
        if self.training:
            return self.distributions.sample(*self.distributions.noise(n))
        if n == self.test_samples:
            return self.distributions.sample(self.normal, self.gumbel)
        normal, gumbel = self.distributions.noise(n, torch.Generator().manual_seed(SEED))
        return self.distributions.sample(normal.to(self.normal.device), gumbel.to(self.normal.device))

    def distances(
        self, z: Float[Tensor, "batch latent"], prototypes: Float[Tensor, "samples prototypes latent"]
    ) -> Float[Tensor, "batch samples prototypes"]:
        """Compute the squared distance of each code to each sample of each prototype; memory is that of the result."""
        return squared_distances(z, prototypes.flatten(0, 1)).unflatten(1, prototypes.shape[:2])

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch latent"]:
        """Compute the codes; of a variational encoder the means."""
        return self.encode(x)[0]

    def forward_head(self, x: Float[Tensor, "batch latent"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Compute the logarithm of the mean probabilities of codes, or their mean distances to the prototypes where `pre_logits`.

        Raises:
            ArgumentError: in evaluation, if a distance is not a number.
        """
        prototypes = self.sample_prototypes(self.samples if self.training else self.test_samples)
        if self.training or symbolic(x):
            return self._answer(x, prototypes, pre_logits)
        finite(x)
        rows = self.rows(len(prototypes))
        return torch.cat([self._answer(part, prototypes, pre_logits) for part in x.split(rows)])

    def rows(self, samples: int) -> int:
        """Return how many images can be looked at together with so many samples, for the memory of their distances."""
        return max(1, AT_A_TIME // (samples * max(self.num_prototypes, self.num_classes)))

    def _answer(self, z: Tensor, prototypes: Tensor, pre_logits: bool) -> Tensor:
        distances = self.distances(z, prototypes)
        if pre_logits or not self.num_classes:
            return distances.mean(1)
        return mean_of_log_probabilities(self.classifier(distances))

    def forward(self, x: Float[Tensor, "batch channels height width"], num_samples: int | None = None) -> Any:
        """Compute the logarithm of the mean probabilities [batch, classes]; or, where a number of samples is given, all there is.

        Args:
            x: normalised images.
            num_samples: S.

        Returns:
            With `num_samples`: "logits" [batch, S, K], "probs" [batch, K], "distances" [batch, S, m], "latent" (sampled for a variational
            encoder in training), "reconstruction" in the decoder's range, "mean", and "log_variance" for a variational encoder.

        Raises:
            ArgumentError: if `num_samples` is below 1.
        """
        if num_samples is None:
            return self.forward_head(self.forward_features(x))
        mean, log_variance = self.encode(x)
        latent = mean
        if log_variance is not None and self.training:
            latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        distances = self.distances(latent, self.sample_prototypes(num_samples))
        logits = self.classifier(distances)
        out = {
            "logits": logits,
            "probs": logits.softmax(-1).mean(1),
            "distances": distances,
            "latent": latent,
            "mean": mean,
            "reconstruction": self.decoder(latent),
        }
        return out if log_variance is None else {**out, "log_variance": log_variance}

    @torch.no_grad()
    def predict(
        self, x: Float[Tensor, "batch channels height width"], num_samples: int = 200, mode: bool = False
    ) -> Float[Tensor, "batch classes"]:
        """Compute class probabilities: the mean over samples of the prototypes.

        Args:
            x: normalised images.
            num_samples: S.
            mode: take the modes of the prototypes instead of samples.

        Raises:
            ArgumentError: if `num_samples` is below 1, or a code is not a number.
        """
        prototypes = self.distributions.modes()[None] if mode else self.sample_prototypes(num_samples)
        z = self.forward_features(x)
        finite(z)
        return torch.cat([self._answer(part, prototypes, False) for part in z.split(self.rows(len(prototypes)))]).exp()

    @torch.no_grad()
    def fit_prototypes(self, loader: Any, seed: int = 0) -> None:
        """Fit the distributions to the codes of their classes, computed in evaluation mode.

        Args:
            loader: of the training images, without views.
            seed: of k-means, where a class has several prototypes or components.

        Raises:
            DataError: if a class has fewer than two images.
        """
        codes, labels = self.codes(loader)
        self.distributions.fit(codes, labels, max(1, self.num_classes), seed)
        self.fitted.fill_(True)

    @torch.no_grad()
    def codes(self, loader: Any) -> tuple[Float[Tensor, "images latent"], Int[Tensor, " images"]]:
        """Compute the codes of a loader's images in evaluation mode, and give their labels."""
        with evaluating(self):
            pairs = [(self.forward_features(batch.images).float(), batch.labels) for batch in loader.batches()]
        return torch.cat([z for z, _ in pairs]), torch.cat([labels for _, labels in pairs])

    @torch.no_grad()
    def decode(self, codes: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch channels height width"]:
        """Paint codes in evaluation mode; in [0, 1]."""
        with evaluating(self.decoder):
            return self.pixels.unit(self.decoder(codes.flatten(0, -2))).unflatten(0, codes.shape[:-1])

    def decode_prototypes(self, n: int) -> Float[Tensor, "{n} prototypes channels height width"]:
        """Paint joint samples of the prototypes; in [0, 1]."""
        return self.decode(self.sample_prototypes(n))

    def prototype_labels(self) -> Int[Tensor, " prototypes"]:
        """Return the class of each prototype."""
        return torch.arange(self.num_prototypes) // self.prototypes_per_class

    def class_distances(self, distances: Float[Tensor, "batch samples prototypes"]) -> Float[Tensor, "batch samples classes"]:
        """Return the distance to each class's nearest prototype."""
        return distances.unflatten(2, (-1, self.prototypes_per_class)).amin(3)

    @torch.no_grad()
    def uncertainty(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_samples: int = 200,
        train_stats: Float[Tensor, "classes images"] | None = None,
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Say how sure the network is of its answers and of their explanation.

        Args:
            x: normalised images.
            num_samples: S; a single one cannot disagree with itself, and is warned about.
            train_stats: from `training_distances`; None takes what the training left in the network (100 images of each class).

        Returns:
            "predictive", "aleatoric" and "epistemic" entropies in nats; "overlap" in [0, 1], the largest with any other class; "typicality"
            in [0, 1], not a number where no training images are known.

        Raises:
            ArgumentError: if `num_samples` is below 1.
        """
        prototypes, train = self.sample_prototypes(num_samples), self.typical if train_stats is None else train_stats
        rows: list[dict[str, Tensor]] = []
        for z in self.forward_features(x).split(self.rows(num_samples)):
            distances = self.distances(z, prototypes)
            probs = self.classifier(distances).softmax(-1)
            of_classes = self.class_distances(distances)
            other = overlaps(of_classes, probs.mean(1).argmax(1)).amax(1)
            rows.append({**entropies(probs), "overlap": other, "typicality": typicality(of_classes.mean(1), train.to(z.device))})
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def mean_of_log_probabilities(logits: Float[Tensor, "batch samples classes"]) -> Float[Tensor, "batch classes"]:
    """Return the logarithm of the mean over samples of the probabilities (of these, not of their logarithms)."""
    return logits.log_softmax(-1).logsumexp(1) - torch.tensor(float(logits.shape[1])).log()


@register(cfg=CFG)
def prob_psenn(
    encoder: str = "conv",
    encoder_args: Mapping[str, Any] | None = None,
    latent_dim: int = CODE,
    family: Family = "gauss_full",
    prototypes_per_class: int = 1,
    train_w: bool = True,
    samples: int = 10,
    test_samples: int = 200,
    prior: float = 1.0,
    widths: Sequence[int] | None = None,
    norm: bool = True,
    variational: bool = False,
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    input_size: int | tuple[int, int] | None = None,
) -> ProbPSENN:
    """Build a `ProbPSENN` for images of any size.

    Args:
        encoder: "conv" for the paper's, "prototype_dl" for the smaller pair of PrototypeDL, or the name of any network, whose pooled
            features a linear layer turns into the code; its decoder is the paper's.
        encoder_args: the network's own options.
        latent_dim: length of a code.
        family: "gauss_diag", "gauss_full" or "mixture".
        prototypes_per_class: prototypes of each class.
        train_w: let W learn.
        samples: of the prototypes in training.
        test_samples: of the prototypes in evaluation.
        prior: standard deviation of the first means.
        widths: channels of the layers of "conv" (see `PSENNEncoder`) or "prototype_dl" (see `ConvEncoder`), and of the decoder.
        norm: batch norms in "conv" and the paper's decoder.
        variational: make "conv" a variational autoencoder.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 32.

    Raises:
        ArgumentError: if an option cannot be.
    """
    size = image_size(input_size) or (32, 32)
    own_pair = encoder in ("conv", "prototype_dl")
    if own_pair and encoder_args:
        raise ArgumentError("prob_psenn: `encoder_args` are options of a network given by name. Leave them out, or name the network.")
    if variational and encoder != "conv":
        raise ArgumentError(f'prob_psenn: `variational` is of the encoder "conv", got "{encoder}". Leave it out.')
    network: nn.Module
    decoder: nn.Module
    if encoder == "prototype_dl":
        network = ConvEncoder(in_chans, size, widths, latent_dim)
        decoder = ConvDecoder(in_chans, size, widths, latent_dim)
    else:
        decoder = PSENNDecoder(in_chans, size, latent_dim, widths, norm)
        if encoder == "conv":
            network = PSENNEncoder(in_chans, size, latent_dim, widths, norm, variational)
        else:
            network = backbone_encoder(encoder, encoder_args, latent_dim, in_chans, size)
    more: Any = (family, prototypes_per_class, train_w, samples, test_samples, prior)
    return ProbPSENN(network, decoder, num_classes, latent_dim, *more)


def around(
    backbone: nn.Module, *, num_classes: int, in_chans: int, input_size: tuple[int, int], latent_dim: int = CODE, **options: Any
) -> ProbPSENN:
    """Build the network around a backbone that exists; a checkpoint can rebuild it where `create_model` made that.

    Args:
        backbone: any network; its own classifier is taken off.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: height and width of the images.
        latent_dim: length of a code.
        options: further ones of `ProbPSENN`.
    """
    made = config(backbone)
    encoder = BackboneEncoder(backbone, latent_dim, in_chans, input_size)
    network = ProbPSENN(encoder, PSENNDecoder(in_chans, input_size, latent_dim), num_classes, latent_dim, **options)
    shape = {"num_classes": num_classes, "in_chans": in_chans, "input_size": list(input_size)}
    return remembered(network, "prob_psenn", made, {**options, "latent_dim": latent_dim, **shape})
