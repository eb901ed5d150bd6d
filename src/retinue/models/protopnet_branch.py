"""One set of part prototypes: what is compared with them, how, and the training patches that they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Similarity = Literal["log", "cosine", "projection"]
SIMILARITIES: tuple[Similarity, ...] = ("log", "cosine", "projection")
BRANCHES = ("plain", "trivial", "support")
EPSILON = 1e-4  # of the logarithm (ProtoPNet)
OTHERS = -0.5  # first weight of a prototype for the classes that it does not belong to
NAME_BYTES = 200  # kept of a file's name, from its end
PICTURE_SIDE = 64  # longest side of the small pictures that a network carries


class Seen(NamedTuple):
    """What a branch sees in images.

    `nearness` is what the losses pull and push: the best cosine (or minus the smallest squared distance) of each prototype.
    """

    logits: Float[Tensor, "batch classes"]
    activations: Float[Tensor, "batch prototypes"]
    maps: Float[Tensor, "batch prototypes mapheight mapwidth"]
    nearness: Float[Tensor, "batch prototypes"]


@dataclass
class Sources:
    """Where prototypes come from, one row for each.

    Attributes:
        images: position of the training image in its split.
        places: row and column on the map.
        boxes: the patch (top, left, bottom, right) in pixels, the last two exclusive: around the hottest 5 percent of the prototype's map.
        fields: all pixels on which the place depends, as such a box (the receptive field).
        similarities: nearness of the patch before the prototype was put there.
        names: files of the images.
        patches: pixels of the patch, brought to one square size, bytes.
        pictures: the whole image, made small, bytes.
    """

    images: Tensor
    places: Tensor
    boxes: Tensor
    fields: Tensor
    similarities: Tensor
    names: list[str]
    patches: Tensor
    pictures: Tensor


class Branch(nn.Module):
    """Add-on layers, prototypes and a last layer without bias.

    What `push` finds is kept in buffers, so that checkpoints hold it: the image's position, file name, place, boxes and small pictures.

    Args:
        in_features: channels of the map.
        dim: D, the length of a prototype.
        counts: prototypes of each class.
        similarity: as in `ProtoPNet`.
        image: channels, height and width of the images.
    """

    def __init__(self, in_features: int, dim: int, counts: Sequence[int], similarity: Similarity, image: tuple[int, int, int]) -> None:
        super().__init__()
        self.similarity = similarity
        between: dict[Similarity, tuple[list[nn.Module], list[nn.Module]]] = {
            "log": ([nn.ReLU()], [nn.Sigmoid()]),
            "cosine": ([], []),
            "projection": ([nn.Tanh()], [nn.Tanh()]),
        }
        first, second = between[similarity]
        self.addon = nn.Sequential(nn.Conv2d(in_features, dim, 1), *first, nn.Conv2d(dim, dim, 1), *second)
        for layer in self.addon:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        owner = torch.repeat_interleave(torch.tensor(counts, device="cpu"))  # a shape must not depend on values of the meta device
        total = len(owner)
        self.prototypes = nn.Parameter(torch.rand(total, dim))
        if similarity != "log":
            with torch.no_grad():
                self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        self.identity: Tensor  # which class a prototype belongs to
        self.register_buffer("identity", F.one_hot(owner, len(counts)).bool().to(self.prototypes.device))
        self.last = nn.Linear(total, len(counts), bias=False)
        with torch.no_grad():
            self.last.weight.copy_(torch.where(self.identity.T, 1.0, OTHERS))
        channels, height, width = image
        scale = min(1.0, PICTURE_SIDE / max(height, width))
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        blank: dict[str, Tensor] = {
            "source_images": torch.full((total,), -1),
            "source_places": torch.full((total, 2), -1),
            "source_boxes": torch.zeros(total, 4, dtype=torch.int64),
            "source_fields": torch.zeros(total, 4, dtype=torch.int64),
            "source_similarities": torch.zeros(total),
            "source_names": torch.zeros(total, NAME_BYTES, dtype=torch.uint8),
            "source_patches": torch.zeros(total, channels, max(small), max(small), dtype=torch.uint8),
            "source_pictures": torch.zeros(total, channels, *small, dtype=torch.uint8),
        }
        for name, tensor in blank.items():
            self.register_buffer(name, tensor)

    @property
    def owner(self) -> Int[Tensor, " prototypes"]:
        """The class of each prototype."""
        return self.identity.long().argmax(1)

    @property
    def pushed(self) -> bool:
        """Whether every prototype is a training patch (or was, before further training)."""
        return bool((self.get_buffer("source_images") >= 0).all())

    def counts(self) -> list[int]:
        """Return the number of prototypes of each class."""
        return self.identity.sum(0).tolist()

    def embed(self, features: Float[Tensor, "batch features mapheight mapwidth"]) -> Float[Tensor, "batch dim mapheight mapwidth"]:
        """Turn a backbone's map into what is compared with the prototypes."""
        return self.addon(features)

    def nearness(self, z: Float[Tensor, "batch dim mapheight mapwidth"]) -> Float[Tensor, "batch prototypes mapheight mapwidth"]:
        """Compare every place with every prototype: the cosine, or minus the squared distance where the similarity is its logarithm."""
        if self.similarity != "log":
            return torch.einsum("bdhw,md->bmhw", F.normalize(z, dim=1), F.normalize(self.prototypes, dim=1))
        lengths = z.square().sum(1, keepdim=True) + self.prototypes.square().sum(1)[:, None, None]
        return -(lengths - 2 * torch.einsum("bdhw,md->bmhw", z, self.prototypes)).relu()

    def activation(
        self, nearness: Float[Tensor, "batch prototypes mapheight mapwidth"], z: Float[Tensor, "batch dim mapheight mapwidth"]
    ) -> Float[Tensor, "batch prototypes mapheight mapwidth"]:
        """Turn nearness into the similarity whose maximum enters the last layer."""
        if self.similarity == "log":
            return ((1 - nearness) / (EPSILON - nearness)).log()
        return nearness.relu() if self.similarity == "cosine" else nearness * z.norm(dim=1, keepdim=True)

    def forward(self, z: Float[Tensor, "batch dim mapheight mapwidth"]) -> Seen:
        """Compare an embedded map with the prototypes, take each one's best place, and weigh."""
        near = self.nearness(z)
        maps = self.activation(near, z)
        activations = maps.amax((2, 3))
        return Seen(self.last(activations), activations, maps, near.amax((2, 3)))

    @torch.no_grad()
    def place(self, prototypes: Float[Tensor, "prototypes dim"], sources: Sources) -> None:
        """Put the prototypes on training patches."""
        self.prototypes.copy_(prototypes)
        encoded = torch.zeros(len(prototypes), NAME_BYTES, dtype=torch.uint8)
        for row, name in zip(encoded, sources.names):
            tail = name.encode()[-NAME_BYTES:]
            row[: len(tail)] = torch.tensor(list(tail), dtype=torch.uint8)
        own = self._buffers
        for name in ("images", "places", "boxes", "fields", "similarities", "patches", "pictures"):
            own[f"source_{name}"].copy_(getattr(sources, name))  # type: ignore[union-attr]
        own["source_names"].copy_(encoded)  # type: ignore[union-attr]

    def sources(self) -> Sources:
        """Return where the prototypes come from."""
        own: Any = {name.removeprefix("source_"): tensor.cpu() for name, tensor in self.named_buffers() if name.startswith("source_")}
        names = [bytes(row[row != 0].tolist()).decode(errors="replace") for row in own.pop("names")]
        return Sources(names=names, **own)

    def keep(self, mask: Bool[Tensor, " prototypes"]) -> None:
        """Throw away the prototypes outside a mask."""
        mask = mask.to(self.identity.device)
        self.prototypes = nn.Parameter(self.prototypes.detach()[mask], requires_grad=self.prototypes.requires_grad)
        learns = self.last.weight.requires_grad
        self.last.weight = nn.Parameter(self.last.weight.detach()[:, mask].contiguous(), requires_grad=learns)
        self.last.in_features = int(mask.sum())
        for name, tensor in list(self.named_buffers()):
            setattr(self, name, tensor[mask])
