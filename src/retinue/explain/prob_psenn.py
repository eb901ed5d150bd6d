"""Prob-PSENN: a classifier by random prototypes, which says how sure it is of its explanation (Vadillo et al. 2024, arXiv 2403.13740).

`train_prob_psenn` trains it in the three stages of the released code: autoencoder, fit of the distributions, all together.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader, Split
from retinue.engine import Objective, evaluating, fit, judge, stages
from retinue.engine.evaluation import as_trained
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.explain.prototype_dl import check_images
from retinue.models.prob_psenn_autoencoder import PSENNDecoder, PSENNEncoder
from retinue.models.prob_psenn_distributions import PrototypeDistributions
from retinue.models.prob_psenn_network import REMEMBERED, ProbPSENN, around, prob_psenn
from retinue.models.prob_psenn_uncertainty import by_class, entropies, overlaps, typicality

__all__ = [
    "PSENNDecoder",
    "PSENNEncoder",
    "ProbPSENN",
    "ProbPSENNLoss",
    "PrototypeDistributions",
    "entropies",
    "overlaps",
    "prob_psenn",
    "prob_psenn_loss",
    "train_prob_psenn",
    "training_distances",
    "typicality",
]
CLIP = (-1.0, 10000.0)  # of R2: below, a density would grow without bound


def prob_psenn_loss(
    network: ProbPSENN,
    out: dict[str, Tensor],
    images: Float[Tensor, "batch channels height width"],
    shares: Float[Tensor, "batch classes"],
    weights: dict[str, float],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Compute the weighted sum of the losses of a batch.

    Args:
        network: whose losses they are.
        out: what it returned with `num_samples`.
        images: in the range in which the decoder paints.
        shares: of the classes in each image; one of them is 1 where nothing was mixed.
        weights: of "nll", "rec", "r1", "r2", "kl" and "vae"; of a weight 0 nothing is computed.

    Returns:
        The sum, and its parts unweighted: "nll", the mean over images and samples of -log probability (a mean of logarithms); "rec", the
        mean over images and pixels of the squared error; "r1", the mean over prototypes of -log density at the likeliest image of the
        batch; "r2", the mean over images of -log density of their own class's prototypes, cut off below -1; "kl", the distributions'
        divergence from the prior; "vae", the codes' divergence from a standard Gaussian.
    """
    parts = {"rec": (out["reconstruction"] - images).square().mean()}
    if weights["nll"]:
        parts["nll"] = -(shares[:, None] * out["logits"].log_softmax(-1)).sum(-1).mean()
    if weights["r1"] or weights["r2"]:
        density = -network.distributions.log_density(out["latent"])
        parts["r1"] = density.amin(0).mean()
        own = density.unflatten(1, (-1, network.prototypes_per_class)).amin(2)
        parts["r2"] = (shares * own.clamp(*CLIP)).sum(1).mean()
    if weights["kl"]:
        parts["kl"] = network.distributions.divergence()
    if weights["vae"] and "log_variance" in out:
        mean, logs = out["mean"], out["log_variance"]
        parts["vae"] = 0.5 * (mean.square() + logs.exp() - 1 - logs).sum(1).mean()
    return torch.stack([weights[name] * part for name, part in parts.items() if weights[name]]).sum(), parts


class ProbPSENNLoss(Objective):
    """Train a `ProbPSENN`, or one that is built around any other network.

    Alone, with `retinue.fit`, the distributions begin at the codes of the training images by the untrained encoder; `train_prob_psenn` has
    the stage before.

    Args:
        stage: "autoencoder" trains encoder and decoder to reconstruct, "joint" everything.
        nll: weight of the classification's loss.
        rec: weight of the reconstruction's error, a mean over pixels.
        r1: weight of R1, which wants each prototype to be likely at some image.
        r2: weight of R2, which wants each image to be likely under its own class's prototypes.
        kl: weight of the distributions' divergence from the prior; 0 in the released code.
        vae: weight of the codes' divergence from a standard Gaussian, for a variational encoder.
        options: of the network that is built around another one, such as {"family": "gauss_diag", "latent_dim": 16}.

    Raises:
        ArgumentError: if there is no such stage, or a weight is negative.

    >>> objective = ProbPSENNLoss(r2=0.1)
    """

    def __init__(
        self,
        stage: Literal["joint", "autoencoder"] = "joint",
        nll: float = 1.0,
        rec: float = 10.0,
        r1: float = 0.0,
        r2: float = 0.05,
        kl: float = 0.0,
        vae: float = 0.05,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if stage not in ("joint", "autoencoder"):
            raise unknown("ProbPSENNLoss", "`stage`", stage, ("joint", "autoencoder"))
        self.stage = stage
        self.weights = {"nll": nll, "rec": rec, "r1": r1, "r2": r2, "kl": kl, "vae": vae}
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise ArgumentError(f"ProbPSENNLoss: `{name}` must be 0 or more, got {weight}.")
        self.options = dict(options or {})
        self.monitor, self.mode = ("top1", "max") if stage == "joint" else ("rec", "min")
        self._train: Split | None = None

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network: the model, or one built around it; it takes over how the data is normalised, and fits its distributions."""
        seen = data.preprocessing
        if not isinstance(model, ProbPSENN):
            shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
            model = around(model, **{**self.options, **shape})
        check_images("ProbPSENNLoss", model.image_shape, data)
        model.pixels.remember(seen.mean, seen.std)
        self.check(model, data)
        self._train = data.train
        if self.stage == "joint" and not bool(model.fitted):
            model.fit_prototypes(data.train.loader(256, device=next(model.parameters()).device))
        return model

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse another number of classes than the network was built for."""
        if model.num_classes != len(data.classes):
            raise ArgumentError(
                f"ProbPSENNLoss: the model has {model.num_classes} outputs and {data.name} has {len(data.classes)} classes. "
                f"Build it with num_classes={len(data.classes)}."
            )

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name what learns: in the first stage, encoder and decoder alone."""
        network: Any = model
        if self.stage == "joint":
            return super().players(model)
        both = [*network.encoder.parameters(), *network.decoder.parameters()]
        return {"model": [parameter for parameter in both if parameter.requires_grad]}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, its parts, and the share of right answers."""
        network: Any = model
        images = network.pixels.painted(batch.images)
        shares = batch.targets if batch.targets is not None else nn.functional.one_hot(batch.labels, network.num_classes).float()
        if self.stage == "autoencoder":
            weights = {**dict.fromkeys(self.weights, 0.0), "rec": self.weights["rec"], "vae": self.weights["vae"]}
            mean, log_variance = network.encode(batch.images)
            noise = (0.5 * log_variance).exp() * torch.randn_like(mean) if log_variance is not None and model.training else 0.0
            out = {"mean": mean, "latent": mean + noise, "reconstruction": network.decoder(mean + noise)}
            total, parts = prob_psenn_loss(
                network, out if log_variance is None else {**out, "log_variance": log_variance}, images, shares, weights
            )
            return {"loss": total, **{name: value.detach() for name, value in parts.items()}}
        out = network(batch.images, num_samples=network.samples)
        total, parts = prob_psenn_loss(network, out, images, shares, self.weights)
        told = {name: value.detach() for name, value in parts.items()}
        return {"loss": total, **told, "top1": (out["probs"].argmax(1) == batch.labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute the numbers of `retinue.evaluate` and "rec"; the network keeps how far training images are from their prototypes."""
        if self.stage == "autoencoder":
            return super().evaluate(model, loader)
        network: Any = model
        logits, labels, errors = [], [], []
        with evaluating(model):
            for batch in loader.batches():
                z = network.forward_features(batch.images)
                logits.append(network.forward_head(z).float())
                labels.append(batch.labels)
                errors.append((network.decoder(z) - network.pixels.painted(batch.images)).square().flatten(1).mean(1))
        if self._train is not None:
            remember(network, self._train)
        return {**judge(torch.cat(logits), torch.cat(labels)), "rec": float(torch.cat(errors).mean())}


@torch.no_grad()
def training_distances(model: nn.Module, split: Split, num_samples: int = 200, batch_size: int = 256) -> Float[Tensor, "classes images"]:
    """Compute how far training images are from their own class's prototypes, in the mean over samples; `typicality` compares with it.

    Args:
        model: a `ProbPSENN`.
        split: the images it was trained on; others would make every image look typical.
        num_samples: S.
        batch_size: images at a time.

    Returns:
        A sorted row for each class, filled up with -1.
    """
    network: Any = model
    device = next(model.parameters()).device
    found, labels = [], []
    with evaluating(model):
        prototypes = network.sample_prototypes(num_samples)
        for batch in as_trained(model, split).loader(batch_size, device=device).batches():
            for z, own in zip(
                network.forward_features(batch.images).split(network.rows(num_samples)), batch.labels.split(network.rows(num_samples))
            ):
                mean = network.class_distances(network.distances(z, prototypes)).mean(1)
                found.append(mean.gather(1, own[:, None])[:, 0])
                labels.append(own)
    return by_class(found, labels, network.num_classes)


@torch.no_grad()
def remember(network: ProbPSENN, train: Split) -> None:
    """Leave the distances of the first 100 training images of each class in the network, for `uncertainty` without the data."""
    chosen = torch.cat([(train.labels == k).nonzero()[:REMEMBERED, 0] for k in range(network.num_classes)])
    table = training_distances(network, train.subset(chosen), network.test_samples)
    network.typical.fill_(-1.0)
    network.typical[:, : table.shape[1]] = table


def train_prob_psenn(
    model: nn.Module,
    data: Data,
    *,
    epochs: tuple[float, float] = (40, 40),
    lr: float = 1e-3,
    batch_size: int = 128,
    nll: float = 1.0,
    rec: float = 10.0,
    r1: float = 0.0,
    r2: float = 0.05,
    kl: float = 0.0,
    vae: float = 0.05,
    optimizer: str = "adam",
    schedule: str = "constant",
    views: str | Callable[..., Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train a `ProbPSENN` in three stages: the autoencoder alone, a fit of the distributions to its codes, everything together.

    Args:
        model: a `ProbPSENN`, or any other network, around which one is built; it is trained in place.
        data: labelled images.
        epochs: of the autoencoder, and of the joint training.
        lr: learning rate of both.
        batch_size: images of an update.
        nll: weight of the classification's loss.
        rec: weight of the reconstruction's error.
        r1: weight of R1.
        r2: weight of R2.
        kl: weight of the distributions' divergence from the prior.
        vae: weight of the codes' divergence, for a variational encoder.
        optimizer: of both, by timm's name.
        schedule: of both.
        views: how training images are shown, as in `retinue.fit`.
        seed: of everything random.
        run_dir: the folder; the runs stand in its `autoencoder` and `joint` (which is the one to load), and a finished stage is not
            computed again.
        progress: show a live bar.

    Returns:
        "autoencoder" and "joint", the numbers of their best evaluation, and "test": those of the test images, with the means of the
        five uncertainties.

    Raises:
        ArgumentError: if a setting cannot be, or the network does not fit the data.
        DataError: if a class has fewer than two training images.
    """
    if len(epochs) != 2 or not all(number > 0 for number in epochs):
        raise ArgumentError(
            f"train_prob_psenn: `epochs` must be two positive numbers, of the autoencoder and of the rest, got {list(epochs)}."
        )
    weights: dict[str, Any] = {"nll": nll, "rec": rec, "r1": r1, "r2": r2, "kl": kl, "vae": vae}
    first, last = ProbPSENNLoss("autoencoder", **weights), ProbPSENNLoss("joint", **weights)
    with own_randomness():
        seed_all(seed)
        network: Any = first.prepare(model, data)
    finished = stages(run_dir)

    def phase(name: str, objective: ProbPSENNLoss, number: float) -> dict[str, Any]:
        run = fit(
            network, objective, data, epochs=number, batch_size=batch_size, optimizer=optimizer, lr=lr, weight_decay=0.0, schedule=schedule,
            views=views, seed=seed, run_dir=finished.folder(name), progress=progress,
        )  # fmt: skip
        return {"weights": dict(run.model.state_dict()), "numbers": dict(run.metrics)}

    def fitting() -> dict[str, Any]:
        network.fit_prototypes(data.train.loader(256, device=next(network.parameters()).device), seed)
        return {"weights": dict(network.state_dict())}

    numbers = {}
    for name, work in (
        ("autoencoder", lambda: phase("autoencoder", first, epochs[0])),
        ("distributions", fitting),
        ("joint", lambda: phase("joint", last, epochs[1])),
    ):
        done = finished(name, work)
        network.load_state_dict(done["weights"])
        if "numbers" in done:
            numbers[name] = done["numbers"]
    network.eval()
    if len(data.test):
        numbers["test"] = measured(network, data.test)
    return numbers


@torch.no_grad()
def measured(network: ProbPSENN, split: Split, batch_size: int = 256) -> dict[str, float]:
    """Compute the numbers of `retinue.evaluate` on a split, and the means of the uncertainties."""
    device = next(network.parameters()).device
    answers, labels, doubts = [], [], []
    with evaluating(network):
        for batch in split.loader(batch_size, device=device).batches():
            answers.append(network(batch.images))
            labels.append(batch.labels)
            doubts.append(network.uncertainty(batch.images, network.test_samples))
    means = {name: float(torch.cat([doubt[name] for doubt in doubts]).nanmean()) for name in doubts[0]}
    return {**judge(torch.cat(answers), torch.cat(labels)), **means}
