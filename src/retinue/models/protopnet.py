"""Networks of part prototypes: "this part looks like that training patch" (Chen et al. 2019; Wang et al. 2023, arXiv 2301.04011).

A `ProtoPNet` compares each place of a backbone's last map with prototypes, of which every class has its own, and adds up the best
similarities. An `STProtoPNet` does it twice: with trivial prototypes, far from the other classes, and with support prototypes, close to the
boundary between the classes. After `push` each prototype is a patch of a training image, and the network carries that patch and its name.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.factory import create_model, image_size, register
from retinue.models.feature_maps import as_map, layout
from retinue.models.modes import evaluating
from retinue.models.protocol import adapt, config
from retinue.models.protopnet_branch import BRANCHES, SIMILARITIES, Branch, Seen, Similarity, Sources

__all__ = ["Branch", "ProtoPNet", "STProtoPNet", "Seen", "Similarity", "Sources", "around", "protopnet", "st_protopnet"]

PerClass = int | Sequence[Sequence[int]]
CFG: dict[str, Any] = {"crop_pct": 1.0, "first_conv": None, "classifier": None}


class ProtoPNet(nn.Module):
    """A network that classifies by how much the parts of an image are like the parts that it knows of each class.

    Args:
        backbone: any network whose last layers give a map (convolutions) or tokens (a transformer); its own classifier is taken off.
        num_classes: K, at least 2.
        prototypes_per_class: n; or, for each branch, the number of each class.
        dim: D, the length of a prototype.
        similarity: "log" of the squared distance (ProtoPNet), "cosine" (full images in the ST paper), or "projection" (its cropped images).
            It also decides what stands between the two 1x1 convolutions before the prototypes, as in the papers.
        branches: of which kind each set of prototypes is: "plain", "trivial" or "support". Their logits are added.
        upsample: factor by which the map is enlarged before (2 in the ST paper, for the 7x7 maps of ResNet and DenseNet).
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if an option cannot be.
        ShapeError: if the backbone gives no map of images of this size.
    """

    name = "protopnet"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        prototypes_per_class: PerClass = 10,
        dim: int = 128,
        similarity: Similarity = "log",
        branches: Sequence[str] = ("plain",),
        upsample: int = 1,
        *,
        in_chans: int = 3,
        input_size: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ArgumentError(f"{type(self).__name__}: `num_classes` must be at least 2, got {num_classes}: a part tells classes apart.")
        if dim < 1 or upsample < 1:
            raise ArgumentError(f"{type(self).__name__}: `dim` and `upsample` must be at least 1, got {dim} and {upsample}.")
        if similarity not in SIMILARITIES:
            raise unknown(type(self).__name__, "`similarity`", similarity, SIMILARITIES)
        for kind in branches:
            if kind not in BRANCHES:
                raise unknown(type(self).__name__, "kind of branch", kind, BRANCHES)
        if not branches or len(set(branches)) < len(branches):
            raise ArgumentError(f"{type(self).__name__}: `branches` must name one branch or more, each once, got {list(branches)}.")
        size = image_size(input_size) or (224, 224)
        made = config(backbone)
        network: Any = adapt(backbone, input_size=size)
        network.reset_classifier(0)
        self.backbone: Any = network
        self.num_classes, self.in_chans, self.input_size = num_classes, in_chans, size
        self.dim, self.similarity, self.upsample = dim, similarity, upsample
        self.adaptation = list(getattr(self.backbone, "adaptation", []))
        self.layout = layout(self.backbone)
        self.tap: str | None = None  # the layer that gives the map, where `forward_features` of the backbone does not
        self.map_channels, map_size = self._trial()
        self.branches: Any = nn.ModuleDict({kind: nn.Identity() for kind in branches})
        self._fill(prototypes_per_class)
        # what place of the map sees which rows and columns of the image; measured at the first push
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", torch.full((map_size[0], 2), -1))
        self.register_buffer("columns", torch.full((map_size[1], 2), -1))
        self.retinue_config: Any = None
        if made is not None:
            own = {name: value for name, value in copy.deepcopy(made["arguments"]).items() if name != "num_classes"}
            arguments = {
                "num_classes": num_classes, "in_chans": in_chans, "input_size": list(size), "backbone": made["name"], "backbone_args": own,
                "prototypes_per_class": _plain(prototypes_per_class), "dim": dim, "similarity": similarity, "branches": list(branches),
                "upsample": upsample,
            }  # fmt: skip
            self.retinue_config = {"name": self.name, "arguments": arguments}

    @property
    def num_features(self) -> int:
        """The number of all prototypes."""
        return sum(len(branch.prototypes) for branch in self.branches.values())

    @property
    def head_hidden_size(self) -> int:
        """The number of all prototypes, whose similarities enter the last layers."""
        return self.num_features

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The backbone's maps."""
        return getattr(self.backbone, "feature_info", [])

    def get_classifier(self) -> nn.Module:
        """Return the branches; each has prototypes and a last layer."""
        return self.branches

    def reset_classifier(self, num_classes: int) -> None:
        """Put in new prototypes, for other classes; as many for each class as the richest had."""
        most = max(max(branch.counts()) for branch in self.branches.values())
        device = self.rows.device
        self.num_classes = num_classes
        self._fill(most)
        self.branches.to(device)
        self._note_counts(most)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features mapheight mapwidth"]:
        """Compute the map whose places are compared with the prototypes.

        Raises:
            ShapeError: if the images have other channels, or are too small to have a map.
        """
        if x.shape[1] != self.in_chans:
            raise ShapeError(f"{type(self).__name__}: this network takes {self.in_chans} channels, got {x.shape[1]}.")
        found = as_map(self._last(x), (x.shape[-2], x.shape[-1]), **self.layout)
        if found is None:
            raise ShapeError(
                f"{type(self).__name__}: the backbone leaves no map of images of {x.shape[-2]}x{x.shape[-1]} px, of which places could be "
                "compared. Take larger images, or build the backbone for small ones: create_model(..., input_size=...)."
            )
        if self.upsample == 1:
            return found
        return F.interpolate(found, scale_factor=self.upsample, mode="bilinear", align_corners=False)

    def forward_head(self, x: Float[Tensor, "batch features mapheight mapwidth"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Compute the sum of the branches' logits from a map, or (`pre_logits`) the activation of each prototype."""
        seen = [branch(branch.embed(x)) for branch in self.branches.values()]
        if pre_logits:
            return torch.cat([one.activations for one in seen], 1)
        return torch.stack([one.logits for one in seen]).sum(0)

    def see(self, x: Float[Tensor, "batch channels height width"]) -> dict[str, Seen]:
        """Return all that each branch sees in images: logits, activations and maps."""
        features = self.forward_features(x)
        return {kind: branch(branch.embed(features)) for kind, branch in self.branches.items()}

    def forward(self, x: Float[Tensor, "batch channels height width"], return_all: bool = False) -> Any:
        """Compute the logits.

        Args:
            x: normalised images.
            return_all: return a dict instead: "logits"; of a single branch "act" (the activations) and "maps"; of two "logits_t", "act_t",
                "maps_t" for the trivial branch and the same with "_s" for the support branch.
        """
        if not return_all:
            return self.forward_head(self.forward_features(x))
        seen = self.see(x)
        told: dict[str, Tensor] = {"logits": torch.stack([one.logits for one in seen.values()]).sum(0)}
        for kind, one in seen.items():
            end = f"_{kind[0]}" if len(seen) > 1 else ""
            told |= {f"logits{end}": one.logits, f"act{end}": one.activations, f"maps{end}": one.maps}
        return told

    def probabilities(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the mean of the branches' softmax."""
        return torch.stack([one.logits.softmax(1) for one in self.see(x).values()]).mean(0)

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring all prototypes back to length 1, where they are compared by their direction."""
        if self.similarity != "log":
            for branch in self.branches.values():
                branch.prototypes.copy_(F.normalize(branch.prototypes, dim=1))

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """Throw prototypes away, with their columns of the last layer.

        Args:
            kept: for each branch, which of its prototypes stay.

        Raises:
            ArgumentError: if a class would lose all.
        """
        for kind, mask in kept.items():
            left = self.branches[kind].identity[mask].sum(0)
            if bool((left == 0).any()):
                raise ArgumentError(
                    f"{type(self).__name__}: class {int(left.argmin())} would have no {kind} prototype left. "
                    "Keep at least one of each class."
                )
        for kind, mask in kept.items():
            self.branches[kind].keep(mask)
        self._note_counts([branch.counts() for branch in self.branches.values()])

    def _fill(self, prototypes_per_class: PerClass) -> None:
        """Make the branches, with new prototypes."""
        classes, kinds = self.num_classes, list(self.branches)
        if isinstance(prototypes_per_class, int):
            prototypes_per_class = [[prototypes_per_class] * classes] * len(kinds)
        counts = [list(row) for row in prototypes_per_class]
        if len(counts) != len(kinds) or any(len(row) != classes for row in counts) or any(n < 1 for row in counts for n in row):
            raise ArgumentError(
                f"{type(self).__name__}: `prototypes_per_class` must be one number of at least 1, or for each of {len(kinds)} branches a "
                f"list of {classes} such numbers, one a class, got {counts}."
            )
        for kind, row in zip(kinds, counts):
            self.branches[kind] = Branch(self.map_channels, self.dim, row, self.similarity, (self.in_chans, *self.input_size))

    def _note_counts(self, prototypes_per_class: PerClass) -> None:
        """Write down how many prototypes there are, so that a checkpoint can rebuild the network."""
        if self.retinue_config is not None:
            arguments = {**self.retinue_config["arguments"], "prototypes_per_class": _plain(prototypes_per_class)}
            self.retinue_config = {**self.retinue_config, "arguments": arguments}

    def _trial(self) -> tuple[int, tuple[int, int]]:
        """Find where the backbone gives its last map, and return the map's channels and size."""
        like = next(self.backbone.parameters())
        trial = torch.zeros(2, self.in_chans, *self.input_size, device=like.device, dtype=like.dtype)
        taps = [None, *(tap["module"] for tap in reversed(self.feature_info))]
        with torch.no_grad(), evaluating(self.backbone):
            for self.tap in taps:
                output = self._last(trial)
                if isinstance(output, Tensor) and as_map(output, self.input_size, **self.layout) is not None:
                    found = self.forward_features(trial)
                    return found.shape[1], (found.shape[2], found.shape[3])
        raise ShapeError(
            f"{type(self).__name__}: {type(getattr(self.backbone, 'module', self.backbone)).__name__} gives no map of images of "
            f"{self.input_size[0]}x{self.input_size[1]} px, so there are no parts to compare. Take a convolutional network or a "
            "transformer, with larger images or built for small ones: create_model(..., input_size=...)."
        )

    def _last(self, x: Tensor) -> Any:
        """Run the backbone up to its last map."""
        if self.tap is None:
            return self.backbone.forward_features(x)
        seen: list[Any] = []
        hook = self.backbone.get_submodule(self.tap).register_forward_hook(lambda _, args, y: seen.append(y))
        try:
            self.backbone.forward_features(x)
        finally:
            hook.remove()
        return seen[-1]


class STProtoPNet(ProtoPNet):
    """A `ProtoPNet` with a branch of trivial and a branch of support prototypes; its arguments, with the ST paper's defaults."""

    name = "st_protopnet"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        prototypes_per_class: PerClass = 5,
        dim: int = 64,
        similarity: Similarity = "cosine",
        branches: Sequence[str] = ("trivial", "support"),
        upsample: int = 1,
        *,
        in_chans: int = 3,
        input_size: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__(
            backbone, num_classes, prototypes_per_class, dim, similarity, branches, upsample, in_chans=in_chans, input_size=input_size
        )


KINDS: dict[str, type[ProtoPNet]] = {"protopnet": ProtoPNet, "st_protopnet": STProtoPNet}


def around(
    backbone: nn.Module,
    kind: Literal["protopnet", "st_protopnet"],
    *,
    num_classes: int,
    in_chans: int,
    input_size: tuple[int, int],
    **options: Any,
) -> ProtoPNet:
    """Build a network of prototypes around one that exists; a checkpoint can rebuild it where `create_model` made that.

    Args:
        backbone: any network with a map.
        kind: "protopnet" or "st_protopnet".
        num_classes: classes.
        in_chans: channels of the images.
        input_size: height and width of the images.
        options: of `ProtoPNet`.

    Raises:
        ArgumentError: if an option is unknown or cannot be.
    """
    if kind not in KINDS:
        raise unknown("PartPrototypes", "`kind`", kind, KINDS)
    known = ("prototypes_per_class", "dim", "similarity", "branches", "upsample")
    for name in options:
        if name not in known:
            raise unknown(KINDS[kind].__name__, "option", name, known)
    return KINDS[kind](backbone, num_classes, in_chans=in_chans, input_size=input_size, **options)


@register(cfg=CFG)
def protopnet(
    backbone: str = "timm:resnet18",
    backbone_args: Mapping[str, Any] | None = None,
    prototypes_per_class: PerClass = 10,
    dim: int = 128,
    similarity: Similarity = "log",
    branches: Sequence[str] = ("plain",),
    upsample: int = 1,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> ProtoPNet:
    """Build a `ProtoPNet` by name.

    Args:
        backbone: name of any network with a map.
        backbone_args: its options.
        prototypes_per_class: as in `ProtoPNet`, as all that follow.
        dim: length of a prototype.
        similarity: "log", "cosine" or "projection".
        branches: kinds of the sets of prototypes.
        upsample: factor by which the map is enlarged.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 224.
    """
    return _by_name(
        "protopnet", backbone, backbone_args, num_classes, in_chans, input_size,
        prototypes_per_class=prototypes_per_class, dim=dim, similarity=similarity, branches=branches, upsample=upsample,
    )  # fmt: skip


@register(cfg=CFG)
def st_protopnet(
    backbone: str = "timm:resnet18",
    backbone_args: Mapping[str, Any] | None = None,
    prototypes_per_class: PerClass = 5,
    dim: int = 64,
    similarity: Similarity = "cosine",
    branches: Sequence[str] = ("trivial", "support"),
    upsample: int = 1,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> STProtoPNet:
    """Build an `STProtoPNet` by name; arguments as in `protopnet`."""
    return _by_name(
        "st_protopnet", backbone, backbone_args, num_classes, in_chans, input_size,
        prototypes_per_class=prototypes_per_class, dim=dim, similarity=similarity, branches=branches, upsample=upsample,
    )  # fmt: skip


def _by_name(
    kind: Any, backbone: str, backbone_args: Mapping[str, Any] | None, num_classes: int, in_chans: int, input_size: Any, **options: Any
) -> Any:
    shape: dict[str, Any] = {"in_chans": in_chans, "input_size": image_size(input_size) or (224, 224)}
    network = create_model(backbone, **{**shape, **(backbone_args or {}), "num_classes": 0})
    return around(network, kind, num_classes=num_classes, **shape, **options)


def _plain(prototypes_per_class: PerClass) -> int | list[list[int]]:
    return prototypes_per_class if isinstance(prototypes_per_class, int) else [list(row) for row in prototypes_per_class]
