"""Relative representations: compare two networks' spaces, or put one's head on the other, without training (Moschella et al. 2022).

arXiv 2209.15430. `RelativeProjection` replaces features by similarities to anchors, `select_anchors` chooses them, `Relative` trains a
network on similarities, `stitch` exchanges heads, and `compare_spaces` says how alike two spaces are.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor, nn

from retinue.data import Data, Split
from retinue.engine import Supervised, evaluating
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.metrics.spaces import affine_map, compare_spaces, procrustes
from retinue.models.protocol import adapt, pooled_features
from retinue.models.relative import Head as RelativeHead
from retinue.models.relative import RelativeModel, RelativeProjection, Similarity, around

__all__ = [
    "Relative",
    "RelativeModel",
    "RelativeProjection",
    "affine_map",
    "compare_spaces",
    "encode",
    "procrustes",
    "select_anchors",
    "stitch",
]

Choice = Literal["uniform", "stratified", "kmeans", "fps"]
CHOICES: tuple[Choice, ...] = ("uniform", "stratified", "kmeans", "fps")


def select_anchors(
    among: Float[Tensor, "samples features"] | Int[Tensor, " samples"], k: int, method: Choice = "uniform", seed: int = 0
) -> Int[Tensor, " {k}"]:
    """Choose anchors (section 5 of the appendix).

    Args:
        among: labels for "stratified", features for "kmeans" and "fps"; of "uniform" only the number counts.
        k: how many; each is chosen once.
        method: "uniform"; "stratified", with a share for each class as equal as its images allow; "kmeans", the samples nearest to the
            centres of k clusters; "fps", farthest points: each is the one farthest from all before it, by Euclidean distance, ties by the
            lowest index, beginning with the first sample.
        seed: of the draw; "fps" draws nothing.

    Returns:
        Their positions; in rising order, but for "fps", which gives them in the order of choice.

    Raises:
        ArgumentError: if there are fewer samples than anchors, fewer anchors than classes, or no such method.

    >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [5.0, 4.0]])
    >>> select_anchors(points, 3, "fps").tolist()
    [0, 3, 2]
    """
    if method not in CHOICES:
        raise unknown("select_anchors", "`method`", method, CHOICES)
    if not 1 <= k <= len(among):
        raise ArgumentError(f"select_anchors: `k` must lie between 1 and the number of samples, {len(among)}, got {k}.")
    if method in ("kmeans", "fps") and among.ndim != 2:
        raise ArgumentError(f'select_anchors: "{method}" chooses by features, one row a sample, got shape {tuple(among.shape)}.')
    generator = torch.Generator().manual_seed(seed)
    if method == "stratified":
        return _stratified(among, k, generator)
    if method == "kmeans":
        return _nearest_to_centres(among, k, seed)
    if method == "fps":
        return _farthest(among, k)
    return torch.randperm(len(among), generator=generator)[:k].sort().values


class Relative(Supervised):
    """Train any network on the similarities of its features to those of anchors, which are training images (section 4.3).

    Give the networks that are to exchange heads the same `anchor_seed` on the same data.

    Args:
        num_anchors: K; the released vision settings have 500.
        anchors: how they are chosen, as in `select_anchors`; by the images' pixels for "kmeans" and "fps".
        anchor_seed: of that choice.
        similarity: as in `RelativeProjection`; None trains the same head on the features themselves.
        center: as there.
        step: as there.
        norm: "layer" or "none".
        head: "linear", "mlp" or "tanh".
        hidden: units of the hidden layer of "mlp".
        frozen: train the head alone, on an encoder that was trained before; the anchors are then encoded once.
        label_smoothing: as in `retinue.train.Supervised`.

    Raises:
        ArgumentError: if an option cannot be.

    >>> objective = Relative(num_anchors=20)
    """

    def __init__(
        self,
        num_anchors: int = 500,
        anchors: Choice = "stratified",
        anchor_seed: int = 0,
        similarity: Similarity | None = "cosine",
        center: bool = False,
        step: float | None = None,
        norm: Literal["layer", "none"] = "layer",
        head: RelativeHead = "linear",
        hidden: int = 64,
        frozen: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        if anchors not in CHOICES:
            raise unknown("Relative", "`anchors`", anchors, CHOICES)
        if num_anchors < 1:
            raise ArgumentError(f"Relative: `num_anchors` must be at least 1, got {num_anchors}.")
        self.num_anchors, self.choice, self.anchor_seed, self.frozen = num_anchors, anchors, anchor_seed, frozen
        self.built: dict[str, Any] = {
            "similarity": similarity,
            "center": center,
            "step": step,
            "norm": norm,
            "head": head,
            "hidden": hidden,
        }
        if similarity is not None:
            RelativeProjection(similarity, center, step=step)

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network on similarities: the model, or one built around it; its anchors are chosen among the training images."""
        seen, train = data.preprocessing, data.train
        if not isinstance(model, RelativeModel):
            shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
            model = around(model, num_anchors=self.num_anchors, **self.built, **shape)
        if self.frozen:
            model.encoder.requires_grad_(False)
        if model.projection is None:
            return model
        among = {"uniform": train.labels, "stratified": train.labels}.get(self.choice)
        if among is None:
            among = train.images().flatten(1).float()
        chosen = select_anchors(among, len(model.anchors), self.choice, self.anchor_seed)
        model.fill(seen.normalize(seen.centre(train.images(chosen))).to(model.anchors.device))
        return model


@torch.no_grad()
def encode(model: nn.Module, split: Split, batch_size: int = 256) -> Float[Tensor, "images features"]:
    """Compute what a head gets of each image of a split, in evaluation mode; on the CPU.

    Args:
        model: any network; a `RelativeModel` gives similarities, any other the vector that enters its classifier.
        split: the images.
        batch_size: images at a time.

    Raises:
        ArgumentError: if the split is empty.
    """
    if not len(split):
        raise ArgumentError("encode: the split is empty. Open the data with a larger test_fraction or val_fraction.")
    network: Any = adapt(model, input_size=split.preprocessing.input_size)
    device = next(network.parameters()).device
    with evaluating(network):
        batches = split.loader(batch_size, device=device).batches()
        represent = network.forward_features if isinstance(network, RelativeModel) else lambda images: pooled_features(network, images)
        return torch.cat([represent(batch.images).float().cpu() for batch in batches])


@torch.no_grad()
def stitch(
    encoders: Sequence[nn.Module], split: Split, heads: Sequence[nn.Module] | None = None, batch_size: int = 256
) -> Float[Tensor, "encoders heads"]:
    """Measure the accuracy of every head behind every encoder, without training (section 4.2).

    Args:
        encoders: networks; of a `RelativeModel` the similarities are used, of any other what enters its classifier.
        split: labelled images, none of which should be an anchor.
        heads: networks whose heads are used; None takes the encoders'.
        batch_size: images at a time.

    Returns:
        Accuracy of the encoder of row i with the head of column j; not a number where the head takes features of another length.

    Raises:
        ArgumentError: if there is no network, or no image.
    """
    heads = list(encoders) if heads is None else list(heads)
    if not encoders or not heads:
        raise ArgumentError("stitch: there is no network. Give two at least.")
    accuracy = torch.full((len(encoders), len(heads)), torch.nan)
    for i, encoder in enumerate(encoders):
        z = encode(encoder, split, batch_size)
        for j, network in enumerate(heads):
            taken: Any = adapt(network, input_size=split.preprocessing.input_size)
            head = taken.forward_head if isinstance(taken, RelativeModel) else taken.get_classifier()
            device = next(taken.parameters()).device
            if z.shape[1] == _taken(taken):
                with evaluating(taken):
                    logits = torch.cat([head(rows.to(device)) for rows in z.split(batch_size)])
                accuracy[i, j] = (logits.argmax(-1).cpu() == split.labels).float().mean()
    return accuracy


def _taken(network: Any) -> int:
    """Return how many features a network's head takes."""
    if isinstance(network, RelativeModel):
        return network.num_features
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ShapeError(
            f"stitch: the classifier of {type(network).__name__} is no linear layer. Give it one: reset_classifier(num_classes)."
        )
    return classifier.in_features


def _stratified(labels: Tensor, k: int, generator: torch.Generator) -> Tensor:
    if labels.ndim != 1:
        raise ArgumentError(f'select_anchors: "stratified" chooses by labels, one a sample, got shape {tuple(labels.shape)}.')
    classes, counts = labels.unique(return_counts=True)
    if k < len(classes):
        raise ArgumentError(f'select_anchors: "stratified" needs an anchor of each of {len(classes)} classes at least, got `k`={k}.')
    take = torch.zeros_like(counts)
    while int(take.sum()) < k:  # a further one for each class that has one left, the classes with most left first
        left = counts - take
        open_ = (left > 0).nonzero()[:, 0]
        open_ = open_[left[open_].argsort(descending=True, stable=True)][: k - int(take.sum())]
        take[open_] += 1
    chosen = []
    for one, number in zip(classes, take.tolist()):
        members = (labels == one).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:number]])
    return torch.cat(chosen).sort().values


def _nearest_to_centres(features: Tensor, k: int, seed: int) -> Tensor:
    flat = features.double().numpy()
    centres = KMeans(k, n_init=1, random_state=seed).fit(flat).cluster_centers_
    distance = torch.cdist(torch.as_tensor(centres), features.double())
    chosen = np.zeros(k, dtype=np.int64)
    for i in range(k):  # one after the other, so that no sample stands for two clusters
        chosen[i] = int(distance[i].argmin())
        distance[:, chosen[i]] = torch.inf
    return torch.as_tensor(chosen).sort().values


def _farthest(features: Tensor, k: int) -> Tensor:
    points = features.double()
    chosen = [0]
    nearest = (points - points[0]).square().sum(-1)
    while len(chosen) < k:
        nearest[chosen[-1]] = -1  # never chosen again, also where points coincide
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(-1))
    return torch.tensor(chosen)
