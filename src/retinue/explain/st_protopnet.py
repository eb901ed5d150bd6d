"""What part prototypes are trained by: cross-entropy, cluster and separation, and how the prototypes lie to each other (ST-ProtoPNet)."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Objective, evaluating, judge
from retinue.errors import ArgumentError, unknown
from retinue.models.protopnet import Branch, ProtoPNet, around

Stage = Literal["warm", "joint", "last"]
LEARNING: dict[str, tuple[str, ...]] = {
    "warm": ("addon", "prototypes"),
    "joint": ("backbone", "addon", "prototypes"),
    "last": ("last",),
}
PAPER_CLASSES = 200  # of CUB, over which the paper's orthogonality is a sum
Vectors = Float[Tensor, "prototypes dim"]


def cluster(nearness: Float[Tensor, "batch prototypes"], own: Bool[Tensor, "batch prototypes"], least: float = 0.0) -> Float[Tensor, ""]:
    """Compute the mean over the images of the best nearness among the prototypes of a mask.

    With the prototypes of the image's class it is Clst, with all others Sep.

    Args:
        nearness: of each image to each prototype.
        own: the mask.
        least: what the others count as: 0 for similarities, as in the papers' code, and minus infinity for negative distances.
    """
    return nearness.masked_fill(~own, least).amax(1).mean()


def orthogonality(prototypes: Vectors, owner: Int[Tensor, " prototypes"]) -> Float[Tensor, ""]:
    """Compute Orth, the sum over the classes of ||P_c P_c^T - I||_1, which keeps the parts of a class apart."""
    unit = torch.eye(len(prototypes), device=prototypes.device, dtype=prototypes.dtype)
    return ((prototypes @ prototypes.T - unit).abs() * (owner[:, None] == owner)).sum()


def class_pairs(
    prototypes: Vectors, owner: Int[Tensor, " prototypes"], classes: int, of: Literal["amin", "amax"]
) -> Float[Tensor, "classes classes"]:
    """Compute the smallest or largest dot product between the prototypes of every two classes."""
    pair = (owner[:, None] * classes + owner).flatten()
    table = prototypes.new_zeros(classes * classes)
    products = (prototypes @ prototypes.T).flatten()
    return table.scatter_reduce(0, pair, products, of, include_self=False).view(classes, classes)


def between(table: Float[Tensor, "classes classes"]) -> Float[Tensor, ""]:
    """Compute the mean over ordered pairs of different classes."""
    return (table.sum() - table.diagonal().sum()) / (len(table) * (len(table) - 1))


def closeness(prototypes: Vectors, owner: Int[Tensor, " prototypes"], classes: int) -> Float[Tensor, ""]:
    """Compute the closeness loss of support prototypes: minus the mean over class pairs of their smallest dot product."""
    return -between(class_pairs(prototypes, owner, classes, "amin"))


def discrimination(prototypes: Vectors, owner: Int[Tensor, " prototypes"], classes: int) -> Float[Tensor, ""]:
    """Compute the discrimination loss of trivial prototypes: the mean over class pairs of their largest dot product."""
    return between(class_pairs(prototypes, owner, classes, "amax"))


class PartPrototypes(Objective):
    """Train one stage of a `ProtoPNet` or `STProtoPNet`, or of one that is built around any other network.

    Batches alternate between the branches: batch 0 is the first branch's, batch 1 the second's. What learns are the players "backbone",
    "addon" and "prototypes" in the stage "joint", the last two in "warm", and "last" (the last layers) in "last"; each has an optimiser of
    its own, and all gradients of a step are those at the same point. What does not learn stays as in evaluation.

    Args:
        kind: what is built around a network that is none of them: "st_protopnet" or "protopnet".
        options: of that network, such as {"prototypes_per_class": 3, "dim": 32}.
        stage: "warm", "joint" or "last".
        cluster_weight: pulls images to prototypes of their class (0.8).
        separation_weights: pushes images from other classes' prototypes, in trivial (or plain) and in support branches.
        orth_weight: of `orthogonality`, in trivial and support branches. The paper's 1e-3 is a sum over 200 classes; None scales it to the
            number of classes there are, 1e-3 * 200 / K.
        closeness_weight: in support branches.
        discrimination_weight: in trivial branches.
        l1_weight: of the weights from prototypes to other classes, in the stage "last".

    Raises:
        ArgumentError: if there is no such stage or kind, or a weight is negative.

    >>> objective = PartPrototypes(options={"prototypes_per_class": 3, "dim": 32})
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        kind: Literal["st_protopnet", "protopnet"] = "st_protopnet",
        options: dict[str, Any] | None = None,
        stage: Stage = "joint",
        cluster_weight: float = 0.8,
        separation_weights: tuple[float, float] = (0.08, 0.48),
        orth_weight: float | None = 1e-3,
        closeness_weight: float = 1.0,
        discrimination_weight: float = 1.0,
        l1_weight: float = 1e-4,
    ) -> None:
        super().__init__()
        if kind not in ("st_protopnet", "protopnet"):
            raise unknown("PartPrototypes", "`kind`", kind, ("st_protopnet", "protopnet"))
        if stage not in LEARNING:
            raise unknown("PartPrototypes", "stage", stage, LEARNING)
        weights = {
            "cluster_weight": cluster_weight, "separation_weights": min(separation_weights), "orth_weight": orth_weight or 0.0,
            "closeness_weight": closeness_weight, "discrimination_weight": discrimination_weight, "l1_weight": l1_weight,
        }  # fmt: skip
        for name, weight in weights.items():
            if not weight >= 0:
                raise ArgumentError(f"PartPrototypes: `{name}` must be 0 or more, got {weight}. Its sign is part of the loss.")
        self.kind, self.options, self.stage = kind, dict(options or {}), stage
        self.cluster_weight, self.separation_weights = cluster_weight, tuple(separation_weights)
        self.orth_weight, self.closeness_weight, self.discrimination_weight = orth_weight, closeness_weight, discrimination_weight
        self.l1_weight = l1_weight

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network, the model or one built around it, in which nothing learns but what the stage trains."""
        seen = data.preprocessing
        if not isinstance(model, ProtoPNet):
            shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
            model = around(model, self.kind, **shape, **self.options)
        for name, parameters in parts(model).items():
            for parameter in parameters:
                parameter.requires_grad_(name in LEARNING[self.stage])
        return model

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse another number of classes, or images of other channels than the network was built for."""
        network, seen = _network(model), data.preprocessing
        if network.num_classes != len(data.classes):
            raise ArgumentError(
                f"PartPrototypes: the network has {network.num_classes} classes and {data.name} has {len(data.classes)}. "
                f"Build it with num_classes={len(data.classes)}."
            )
        if (network.in_chans, network.input_size) != (seen.channels, seen.input_size):
            raise ArgumentError(
                f"PartPrototypes: the network was built for images of {network.input_size} px with {network.in_chans} channels, these are "
                f"{seen.input_size} px with {seen.channels}. Build it with in_chans={seen.channels}, input_size={seen.input_size}."
            )

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name what learns in this stage."""
        found = parts(_network(model))
        return {name: found[name] for name in LEARNING[self.stage]}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the loss of the batch's branch once for each player.

        A player's loss is computed from what the players before it have not moved, so all gradients are those of one joint step.
        """
        network = _network(model)
        kinds = list(network.branches)
        kind = kinds[step % len(kinds)]
        branch = network.branches[kind]
        features = network.forward_features(batch.images)
        z = branch.embed(features)
        for player in LEARNING[self.stage]:
            if player == "backbone":
                numbers = self.terms(branch, kind, z, batch)
            elif player == "addon":
                numbers = self.terms(branch, kind, branch.embed(features.detach()), batch)
            else:
                numbers = self.terms(branch, kind, z.detach(), batch)
            yield player, {"loss": numbers["loss"], **{name: value.detach() for name, value in numbers.items() if name != "loss"}}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the sum of the branches' losses for one batch."""
        network = _network(model)
        features = network.forward_features(batch.images)
        each = [self.terms(branch, kind, branch.embed(features), batch)["loss"] for kind, branch in network.branches.items()]
        return {"loss": torch.stack(each).sum()}

    def terms(
        self, branch: Branch, kind: str, z: Float[Tensor, "batch dim mapheight mapwidth"], batch: Batch
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute a branch's loss and its parts, from an embedded map."""
        seen = branch(z)
        ce = F.cross_entropy(seen.logits, batch.labels if batch.targets is None else batch.targets)
        top1 = (seen.logits.argmax(1) == batch.labels).float().mean()
        if self.stage == "last":
            l1 = branch.last.weight[~branch.identity.T].abs().sum()
            return {"loss": ce + self.l1_weight * l1, "ce": ce, "l1": l1, "top1": top1}
        own = branch.identity.T[batch.labels]
        least = -math.inf if branch.similarity == "log" else 0.0
        near, far = cluster(seen.nearness, own, least), cluster(seen.nearness, ~own, least)
        parted = self.separation_weights[kind == "support"]
        told = {"ce": ce, "cluster": near, "separation": far, "top1": top1}
        loss = ce - self.cluster_weight * near + parted * far
        if kind != "plain":
            vectors, owner, classes = branch.prototypes, branch.owner, branch.identity.shape[1]
            weight = 1e-3 * PAPER_CLASSES / classes if self.orth_weight is None else self.orth_weight
            told["orth"] = orthogonality(vectors, owner)
            loss = loss + weight * told["orth"]
            if kind == "support":
                told["closeness"] = closeness(vectors, owner, classes)
                loss = loss + self.closeness_weight * told["closeness"]
            else:
                told["discrimination"] = discrimination(vectors, owner, classes)
                loss = loss + self.discrimination_weight * told["discrimination"]
        return {"loss": loss, **told}

    def after_step(self, model: nn.Module, step: int) -> None:
        """Bring the prototypes back to length 1."""
        if self.stage != "last":
            _network(model).normalise()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the cross-entropy of the summed logits over a held-out split."""
        with evaluating(model):
            pairs = [(model(batch.images).float(), batch.labels) for batch in loader.batches()]
        return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def parts(network: ProtoPNet) -> dict[str, list[nn.Parameter]]:
    """Name the parameters of the backbone, the add-on layers, the prototypes, and the last layers."""
    branches = list(network.branches.values())
    return {
        "backbone": list(network.backbone.parameters()),
        "addon": [parameter for branch in branches for parameter in branch.addon.parameters()],
        "prototypes": [branch.prototypes for branch in branches],
        "last": [branch.last.weight for branch in branches],
    }


def _network(model: nn.Module) -> ProtoPNet:
    if not isinstance(model, ProtoPNet):
        raise ArgumentError(
            f"PartPrototypes: the model must be a ProtoPNet or STProtoPNet, got {type(model).__name__}. retinue.fit builds one around any "
            "network; by hand: PartPrototypes().prepare(model, data)."
        )
    return model
