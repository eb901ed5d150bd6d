"""Building a store: augment each image N times, ask the teachers, keep the largest shares (Faghri et al. 2023, section 3)."""

import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor, nn

from retinue.data import Data, Preprocessing, Split
from retinue.data import views as kit
from retinue.data.preprocessing import resized, with_channels
from retinue.distill.reinforcement_store import (
    VALUES,
    ReinforcementStore,
    StoreWriter,
    describe_split,
    id_type,
    map_safetensors,
    shard_names,
)
from retinue.distill.replayable import RECIPES, Augmentation, KeyedViews
from retinue.distill.replayable import recipe as named_recipe
from retinue.engine import evaluating, load
from retinue.errors import ArgumentError, DataError, unknown
from retinue.losses.sparse_targets import sparsify
from retinue.models import create_model

log = logging.getLogger(__name__)

PROBE = "probe.safetensors"  # what the first records looked like
PROBED = 4
Shown = Shaped[Tensor, "batch channels height width"]


class ReinforcementBuilder:
    """Writes the store of a data set.

    Args:
        dataset: the data, whose training images are reinforced.
        teachers: networks, or folders of runs, or names of networks with published weights ("timm:..."); the mean of their shares is kept.
        recipe: the augmentation: a variant of the paper by name ("RRC", "+M*", "+RA/RE", "+M*+R*", whose parameters are stored), views as
            text ("random_resized_crop(32), flip, mixup(1.0)", whose keys are stored), or a `ReplayableTransform` or `KeyedViews`.
        num_samples: N, augmentations of each image. The paper has 50 to 8,000.
        topk: K, how many shares are kept; None keeps 10, or all where there are fewer classes.
        seed: of the augmentations. Stores of several seeds can be used together.
        dtype: "float16" or "float32", how shares are stored.
        shard_images: images of a file; a killed build goes on at its shard.
        batch_size: augmented images that the teachers see at a time.
        device: where they run, such as "cuda"; None takes a GPU if there is one.

    Raises:
        ArgumentError: if an argument cannot be, or a teacher does not fit the data.
    """

    def __init__(
        self,
        dataset: Data,
        teachers: Sequence[nn.Module | str | Path] | nn.Module | str | Path,
        recipe: str | Augmentation = "+RA/RE",
        num_samples: int = 50,
        topk: int | None = None,
        seed: int = 0,
        *,
        dtype: str = "float16",
        shard_images: int = 1024,
        batch_size: int = 256,
        device: str | torch.device | None = None,
    ) -> None:
        classes = len(dataset.classes)
        topk = min(10, classes) if topk is None else topk
        for name, value in (("num_samples", num_samples), ("shard_images", shard_images), ("batch_size", batch_size)):
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(f"ReinforcementBuilder: `{name}` must be a whole number of at least 1, got {value!r}.")
        if not 1 <= topk <= classes:
            raise ArgumentError(f"ReinforcementBuilder: `topk` must lie between 1 and the {classes} classes of {dataset.name}, got {topk}.")
        if dtype not in VALUES:
            raise unknown("ReinforcementBuilder", "`dtype`", dtype, VALUES)
        if isinstance(recipe, str):
            seen = dataset.preprocessing
            recipe = named_recipe(recipe, seen.input_size) if recipe.lower() in RECIPES else KeyedViews(recipe)
        several = [teachers] if isinstance(teachers, nn.Module | str | Path) else list(teachers)
        if not several:
            raise ArgumentError("ReinforcementBuilder: `teachers` is empty. Give one network at least, or the folder of its run.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.split, self.augmentation, self.batch_size, self.dtype = dataset.train, recipe, batch_size, dtype
        self.num_samples, self.topk, self.seed, self.shard_images = num_samples, topk, seed, shard_images
        self.teachers = [_teacher(one, dataset) for one in several]
        self.origin = {
            "name": dataset.name, "opened_with": dataset.opened_with, "preprocessing": dataset.preprocessing.to_dict(),
        }  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """What defines the content of the store."""
        return {
            "data": describe_split(self.split), "augmentation": self.augmentation.describe(), "samples": self.num_samples,
            "topk": self.topk, "seed": self.seed, "dtype": self.dtype, "shard_images": self.shard_images,
            "teachers": [{"name": teacher.name, "sha256": teacher.sha256} for teacher in self.teachers],
        }  # fmt: skip

    def build(self, out_dir: str | Path, tell: Callable[[str], None] = lambda line: None) -> ReinforcementStore:
        """Write the store, or go on with one that was begun; the same call on a finished one only opens it.

        Args:
            out_dir: the folder.
            tell: is given a line for each file that is written.

        Raises:
            ArgumentError: if the folder holds a store with other settings.
            CheckpointError: if it cannot be written, or a file of it was altered.
        """
        versions = {name: importlib.metadata.version(name) for name in ("retinue", "torch")}
        writer = StoreWriter(out_dir, self.settings, {"versions": {**versions, "device": self.device.type}, **self.origin})
        count = len(self.split)
        if not writer.has(PROBE):
            writer.write(PROBE, {"images": _probe(self.split, self.augmentation, self._draw(torch.arange(min(PROBED, count)))[:, 0])})
        names = shard_names(count, self.shard_images)
        for number, name in enumerate(names):
            if not writer.has(name):
                first = number * self.shard_images
                writer.write(name, self._shard(torch.arange(first, min(first + self.shard_images, count))))
                tell(f"{name}: {number + 1} of {len(names)}")
        return ReinforcementStore(out_dir, check=False)

    def _draw(self, indices: Tensor) -> UInt8[Tensor, "images samples bytes"]:
        """Draw the records of some images; record s of an image depends on (seed, s, image) alone."""
        keys = torch.stack([kit.keys(self.seed, sample, indices) for sample in range(self.num_samples)], 1)
        packed = self.augmentation.draw(keys.flatten(), self.split.preprocessing.stored_size, len(self.split))
        return packed.view(len(indices), self.num_samples, -1)

    def _shard(self, indices: Tensor) -> dict[str, Tensor]:
        packed = self._draw(indices)
        flat, images = packed.flatten(0, 1), self.split.images(indices)
        kept = []
        for rows in torch.arange(len(flat)).split(self.batch_size):
            place = rows // self.num_samples
            mine, some = indices[place].to(self.device), images[place].to(self.device)
            shown = replayed(self.split, self.augmentation, some, mine, flat[rows].to(self.device))
            values, ids = sparsify(self._shares(self.split.preprocessing.centre(shown)), self.topk)
            kept.append((values.cpu().to(VALUES[self.dtype]), ids.cpu().to(id_type(len(self.split.classes)))))
        values, ids = (torch.cat(part).view(len(indices), self.num_samples, self.topk) for part in zip(*kept))
        return {"augmentations": packed, "values": values, "ids": ids}

    def _shares(self, images: Shown) -> Float[Tensor, "batch classes"]:
        """Compute the mean of the teachers' shares."""
        total = torch.zeros(len(images), len(self.split.classes), device=self.device)
        for teacher in self.teachers:
            total += teacher.shares(images, self.device)
        return total / len(self.teachers)


@dataclass
class Teacher:
    """A trained network, and how it sees images.

    Attributes:
        network: gives logits.
        preprocessing: its own size, channels and normalisation.
        name: for the record.
        sha256: of its weights.
    """

    network: nn.Module
    preprocessing: Preprocessing
    name: str
    sha256: str

    @torch.inference_mode()
    def shares(self, images: Shown, device: torch.device) -> Float[Tensor, "batch classes"]:
        """Compute its shares of the classes for images that are not normalised."""
        own, network = self.preprocessing, self.network.to(device)
        fitted = resized(with_channels(images, own.channels), own.input_size, "stretch", "bilinear")
        with evaluating(network):
            return network(own.normalize(fitted)).float().softmax(-1)


def replayed(
    split: Split, augmentation: Augmentation, images: Shown, indices: Int64[Tensor, " batch"], packed: Tensor
) -> Shaped[Tensor, "batch channels newheight newwidth"]:
    """Carry records out, with the partners that they name.

    Args:
        split: where partners are.
        augmentation: of the records.
        images: the split's images with the numbers `indices`, as bytes.
        indices: numbers of the images.
        packed: the records.
    """
    partners = augmentation.partners(packed, len(split))
    if partners is None:
        return augmentation.replay_packed(images, packed)
    partners = torch.where(partners < 0, indices, partners)
    if hasattr(split.store, "on"):
        others = split.store.on(images.device).index_select(0, split.positions.to(images.device)[partners])
    else:
        others = split.images(partners.cpu()).to(images.device)
    return augmentation.replay_packed(images, packed, others)


def same_pixels(store: ReinforcementStore, split: Split) -> None:
    """Refuse a store whose records come out otherwise here than where it was built: another version, back end or interpolation.

    Raises:
        DataError: if more than one value in a thousand is off by more than one of 255.
    """
    if not (store.folder / PROBE).exists():  # written elsewhere, by `write_store`
        return
    then = map_safetensors(store.folder / PROBE, None)["images"]
    first = torch.arange(len(then))
    now = _probe(split, store.augmentation, store.rows(first, torch.zeros_like(first))[0])
    if then.shape == now.shape and then.dtype == now.dtype:
        scale = 1 if now.dtype == torch.uint8 else 255
        off = (now.float() - then.float()).abs().mul(scale)
        if float((off > 1.001).float().mean()) <= 1e-3:
            if off.any():
                log.warning("%s: replayed pixels differ by up to %.3g of 255 from those that the teachers saw.", store.folder, off.max())
            return
    versions = store.about.get("versions", {})
    here = importlib.metadata.version("retinue"), importlib.metadata.version("torch")
    raise DataError(
        f"{store.folder} shows other pixels here than its teachers saw: it was built by retinue {versions.get('retinue')} with torch "
        f"{versions.get('torch')}, and this is {here[0]} with {here[1]}. Use those versions, or build the store anew."
    )


def _probe(split: Split, augmentation: Augmentation, packed: Tensor) -> Tensor:
    indices = torch.arange(len(packed))
    return replayed(split, augmentation, split.images(indices), indices, packed)


def _teacher(given: nn.Module | str | Path, data: Data) -> Teacher:
    """Load a teacher, and refuse one that does not fit the data."""
    seen, classes = data.preprocessing, len(data.classes)
    name = type(given).__name__ if isinstance(given, nn.Module) else str(given)
    network: Any
    if isinstance(given, nn.Module):
        network = given
    elif (Path(given) / "config.json").is_file():
        network = load(given)
    else:
        network = create_model(str(given), pretrained=True)
        cfg = network.pretrained_cfg
        size = tuple(cfg["input_size"][-2:])
        network.preprocessing = Preprocessing(size, cfg["input_size"][0], tuple(cfg["mean"]), tuple(cfg["std"]))
    own = getattr(network, "preprocessing", None) or seen
    own = replace(own, read_size=None)
    known = getattr(network, "classes", None)
    if known is not None and list(known) != list(data.classes):
        how = "in another order" if sorted(known) == sorted(data.classes) else "of another data set"
        raise ArgumentError(
            f"ReinforcementBuilder: the teacher {name} has classes {how}: {_few(known)}, and {data.name} has {_few(data.classes)}. Its "
            "answers would be taken for other classes."
        )
    network.requires_grad_(False)
    like = next(network.parameters(), torch.empty(0))
    with torch.inference_mode(), evaluating(network):
        answer = network(torch.zeros(1, own.channels, *own.input_size, device=like.device, dtype=like.dtype))
    if not isinstance(answer, Tensor) or answer.shape != (1, classes):
        raise ArgumentError(
            f"ReinforcementBuilder: the teacher {name} gives {tuple(getattr(answer, 'shape', ()))[1:]} outputs and {data.name} has "
            f"{classes} classes. Train it on these first, and give the folder of its run."
        )
    return Teacher(network, own, name, _weights_hash(network))


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
