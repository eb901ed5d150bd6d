"""A reinforced data set on disk: for each image N augmentations as bytes, each with the largest shares that teachers gave it.

A folder with `index.json` (settings, and the SHA-256 of every file, itself included) and shards in safetensors, which hold nothing but
tensors: "augmentations" (images, N, bytes of a record), "values" and "ids" (images, N, K). A shard is there whole or not at all, so that a
killed build goes on where it stopped. Reading maps the files into memory.
"""

import hashlib
import json
import logging
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from retinue.data import Data, Preprocessing, Split
from retinue.data.dataset import open_again
from retinue.data.store import fits_in_memory
from retinue.distill.replayable import Augmentation, described
from retinue.engine.checkpoint import write_whole
from retinue.errors import ArgumentError, CheckpointError, DataError, RetinueError
from retinue.losses.sparse_targets import Densify, check_sparse, spread

log = logging.getLogger(__name__)

FORMAT = 1
TYPES = {"U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "F16": torch.float16, "F32": torch.float32}
VALUES = {"float16": torch.float16, "float32": torch.float32}
INDEX = "index.json"
READING = ("input_size", "channels", "read_size", "resize", "interpolation", "mean", "std")


class ReinforcementStore:
    """A finished store, opened for reading.

    Args:
        folder: where it was built.
        check: compare every file with its checksum, and every number with its range. It reads the whole store; for one of many gigabytes
            on a disk that you trust, False.

    Attributes:
        settings: what it was built with.
        about: what else is known: the versions that built it, and what its data was opened with.
        augmentation: what carries its records out.
        images: how many images it is of.
        samples: N, records of each image.
        topk: K, shares of each record.
        classes: names of the classes.
        bytes: size on disk.
        seal: a hash of all of it.

    Raises:
        CheckpointError: if there is no finished store, or a file was altered; the file is named.
        DataError: if its records cannot be, or are of another version.
    """

    def __init__(self, folder: str | Path, check: bool = True) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        self.seal: str = index["seal"]
        self.settings: dict[str, Any] = index["settings"]
        self.about: dict[str, Any] = index["about"]
        self.images, self.classes = self.settings["data"]["images"], self.settings["data"]["classes"]
        self.samples, self.topk, self.shard_images = (self.settings[name] for name in ("samples", "topk", "shard_images"))
        self.augmentation: Augmentation = described(self.settings["augmentation"])
        self.bytes = (self.folder / INDEX).stat().st_size
        names = shard_names(self.images, self.shard_images)
        missing = [name for name in names if name not in index["files"]]
        if missing:
            raise CheckpointError(
                f"{self.folder} is not finished: {len(missing)} of {len(names)} shards are missing. Give the command that built it again; "
                "it goes on from there."
            )
        self._shards = [self._open(name, index["files"][name], check) for name in names]
        if len(self._shards) > 1 and self._fits():
            joined = {name: torch.cat([shard[name] for shard in self._shards]) for name in self._shards[0]}
            self._shards, self.shard_images = [joined], self.images
        self._copies: dict[torch.device, dict[str, Tensor]] = {}
        for name in sorted(set(index["files"]) - set(names)):
            self.bytes += (self.folder / name).stat().st_size
            if check:
                map_safetensors(self.folder / name, index["files"][name])

    def rows(
        self, indices: Int64[Tensor, " batch"], samples: Int64[Tensor, " batch"]
    ) -> tuple[UInt8[Tensor, "batch bytes"], Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
        """Read record number `samples` of image number `indices` of each: the augmentation, the shares and their classes.

        A store that fits into memory is copied to the indices' device once.
        """
        if len(self._shards) == 1:
            parts = self._on(indices.device)
            place = indices * self.samples + samples
            packed, values, ids = (parts[name].flatten(0, 1).index_select(0, place) for name in ("augmentations", "values", "ids"))
            return packed, values.float(), ids.long()
        found = self._scattered(indices.cpu(), samples.cpu())
        return found[0].to(indices.device), found[1].float().to(indices.device), found[2].long().to(indices.device)

    def targets(
        self, indices: Int64[Tensor, " batch"], samples: Int64[Tensor, " batch"], method: Densify = "smooth"
    ) -> Float[Tensor, "batch classes"]:
        """Return targets over all classes; see `retinue.losses.densify`."""
        _, values, ids = self.rows(indices, samples)
        return spread(values, ids, len(self.classes), method)

    def check_data(self, split: Split) -> None:
        """Refuse images other than those that the store was built for.

        Raises:
            DataError: naming what differs.
        """
        own, theirs = self.settings["data"], describe_split(split)
        told = {
            "images": "another number of images",
            "classes": "other classes, or in another order",
            "channels": "another number of channels",
            "stored_size": "another image size",
            "input_size": "another image size",
            "fingerprint": "other images or labels",
        }
        for name, what in told.items():
            if own[name] != theirs[name]:
                raise DataError(
                    f"{self.folder} was built for {what}: {name} was {_short(own[name])} and now is {_short(theirs[name])}. Open the data "
                    "as it was then, or build a store for this one."
                )

    def _scattered(self, indices: Tensor, samples: Tensor) -> list[Tensor]:
        """Read rows from the shards in which they lie, and put them back in order."""
        shard = indices // self.shard_images
        order = shard.argsort(stable=True)
        counts = torch.bincount(shard, minlength=len(self._shards)).tolist()
        place = (indices % self.shard_images) * self.samples + samples
        parts: list[list[Tensor]] = [[], [], []]
        for number, rows in enumerate(place[order].split(counts)):
            if len(rows):
                for part, name in zip(parts, ("augmentations", "values", "ids")):
                    part.append(self._shards[number][name].flatten(0, 1).index_select(0, rows))
        back = order.argsort()
        return [torch.cat(part).index_select(0, back) for part in parts]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device.type == "cpu":
            return self._shards[0]
        if device not in self._copies:
            self._copies[device] = {name: part.to(device) for name, part in self._shards[0].items()}
        return self._copies[device]

    def _fits(self) -> bool:
        return fits_in_memory(self.bytes, Preprocessing((1, 1), 1))  # as many grey images of one pixel

    def _open(self, name: str, sha256: str, check: bool) -> dict[str, Tensor]:
        path = self.folder / name
        number = int(name.removeprefix("shard-").removesuffix(".safetensors"))
        images = min(self.shard_images, self.images - number * self.shard_images)
        tensors = map_safetensors(path, sha256 if check else None)
        self.bytes += path.stat().st_size
        widths = {"augmentations": self.augmentation.width, "values": self.topk, "ids": self.topk}
        shapes = {key: (images, self.samples, width) for key, width in widths.items()}
        if {key: tuple(part.shape) for key, part in tensors.items()} != shapes:
            raise DataError(
                f"{path} has records of { ({key: tuple(part.shape) for key, part in tensors.items()}) }, and {shapes} are expected. "
                "There are records too many or too few: build the store anew."
            )
        if check:
            self._check_records(path, tensors)
        return tensors

    def _check_records(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        try:
            check_sparse(tensors["values"].flatten(0, 1), tensors["ids"].flatten(0, 1), len(self.classes), str(path))
        except RetinueError as error:
            raise DataError(f"{error} Build the store anew.") from error
        partners = self.augmentation.partners(tensors["augmentations"].flatten(0, 1), self.images)
        if partners is not None and not -1 <= int(partners.min()) <= int(partners.max()) < self.images:
            raise DataError(
                f"{path}: partners to mix with run from {int(partners.min())} to {int(partners.max())}, and there are {self.images} "
                "images. The store is of another data set, or was written wrongly."
            )


class StoreWriter:
    """Writes a store, shard by shard; one that was begun with the same settings is continued.

    Args:
        folder: where it shall be.
        settings: JSON values that define its content: "data" (`describe_split`), "augmentation" (`describe` of it), "samples", "topk",
            "dtype" ("float16" or "float32"), "shard_images", and whatever else, such as seed and teachers.
        about: JSON values for the record that are not compared, such as versions.

    Raises:
        ArgumentError: if the folder holds another store.
        CheckpointError: if a shard that was written was altered.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))
        self.about, self.files = json.loads(json.dumps(about)), dict[str, str]()
        if (self.folder / INDEX).exists():
            there = read_index(self.folder)
            _refuse_another(self.folder, there["settings"], self.settings)
            self.about = there["about"]
            self.files = {name: sha256 for name, sha256 in there["files"].items() if (self.folder / name).exists()}
            for name, sha256 in self.files.items():
                map_safetensors(self.folder / name, sha256)
        else:
            self._write_index()

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        return name in self.files

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file of the store, whole or not at all.

        Raises:
            CheckpointError: if it cannot be written.
        """
        content = safetensors.torch.save({key: part.contiguous().cpu() for key, part in tensors.items()})
        write_whole(self.folder / name, content)
        self.files[name] = hashlib.sha256(content).hexdigest()
        self._write_index()

    def _write_index(self) -> None:
        body = {"format": FORMAT, "settings": self.settings, "about": self.about, "files": self.files}
        write_whole(self.folder / INDEX, _sealed(body))


def describe_split(split: Split) -> dict[str, Any]:
    """Return JSON values that say of what images a store is."""
    seen = split.preprocessing
    return {
        "images": len(split),
        "classes": list(split.classes),
        "channels": seen.channels,
        "stored_size": list(seen.stored_size),
        "input_size": list(seen.input_size),
        "fingerprint": split.fingerprint,
    }


def shard_names(images: int, shard_images: int) -> list[str]:
    """Return the names of the files in which the records of some images lie."""
    return [f"shard-{number:05d}.safetensors" for number in range(-(-images // shard_images))]


def id_type(classes: int) -> torch.dtype:
    """Return the smallest type that holds class numbers."""
    return torch.uint8 if classes <= 1 << 8 else torch.int16 if classes <= 1 << 15 else torch.int32


def read_index(folder: Path) -> dict[str, Any]:
    """Read what a store says of itself, finished or not.

    Raises:
        CheckpointError: if there is none, or it was altered.
        DataError: if it has another format.
    """
    path = folder / INDEX
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds no reinforcement store: {path.name} is missing. Build it: retinue reinforce build."
        ) from error
    try:
        body = json.loads(content)
        seal = body.pop("seal")
        whole = seal == _seal(body)
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path} was altered after it was written. Build the store anew.")
    if body["format"] != FORMAT:
        raise DataError(f"{path} has format {body['format']}, and this version of retinue reads {FORMAT}. Build the store anew.")
    return {**body, "seal": seal}


def map_safetensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """Map a safetensors file into memory: nothing is read before it is used, and nothing is ever executed.

    Args:
        path: the file.
        sha256: what its bytes must hash to; None does not look.

    Raises:
        CheckpointError: if it is missing, was altered, or is no such file.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is missing or unreadable: {error}. Build the store again; what is whole is kept.") from error
    if sha256 is not None and hashlib.sha256(mapped).hexdigest() != sha256:
        raise CheckpointError(f"{path} was altered after it was written: its SHA-256 is not the one in {INDEX}. Delete it and build again.")
    try:
        start = 8 + int.from_bytes(mapped[:8], "little")
        head = json.loads(mapped[8:start])
        head.pop("__metadata__", None)
        found = {}
        for name, about in head.items():
            kind, first = TYPES[about["dtype"]], start + about["data_offsets"][0]
            count = (about["data_offsets"][1] - about["data_offsets"][0]) // kind.itemsize
            found[name] = torch.frombuffer(mapped, dtype=kind, count=count, offset=first).view(about["shape"])
        if not found:
            raise ValueError("no tensors")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no safetensors file of a reinforcement store. Delete it and build again.") from error
    return found


def write_store(
    folder: str | Path,
    split: Split,
    augmentation: Augmentation,
    packed: UInt8[Tensor, "images samples bytes"],
    values: Float[Tensor, "images samples k"],
    ids: Shaped[Tensor, "images samples k"],
    about: Mapping[str, Any] | None = None,
) -> ReinforcementStore:
    """Write records that were made elsewhere as a store of one shard, and open it.

    Args:
        folder: where it shall be.
        split: the images.
        augmentation: what carries the records out.
        packed: the records.
        values: shares of the classes.
        ids: their class numbers.
        about: JSON values for the record, such as who made them.

    Raises:
        DataError: if the records cannot be.
    """
    settings = {
        "data": describe_split(split), "augmentation": augmentation.describe(), "samples": packed.shape[1], "topk": values.shape[2],
        "dtype": "float16" if values.dtype == torch.float16 else "float32", "shard_images": len(split),
    }  # fmt: skip
    writer = StoreWriter(folder, settings, about or {})
    kind = values.dtype if values.dtype == torch.float16 else torch.float32
    for name in shard_names(len(split), len(split)):
        writer.write(name, {"augmentations": packed, "values": values.to(kind), "ids": ids.to(id_type(len(split.classes)))})
    return ReinforcementStore(folder)


def _refuse_another(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    told = [
        f"{name} was {_short(before.get(name))} and now is {_short(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if told:
        raise ArgumentError(f"reinforcement: {folder} holds another store: {'; '.join(told)}. Choose another folder, or delete this one.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sealed(body: Mapping[str, Any]) -> bytes:
    return (json.dumps({**body, "seal": _seal(body)}, sort_keys=True, indent=1) + "\n").encode()


def reopen_data(store: ReinforcementStore) -> Data:
    """Open the data of a store again.

    Raises:
        DataError: if it was made in memory, or has changed.
    """
    opened = store.about.get("opened_with")
    if opened is None:
        raise DataError(f"the data of {store.folder} was made in memory and cannot be opened again. Name a source of the same images.")
    data = open_again(opened, {name: store.about["preprocessing"][name] for name in READING})
    store.check_data(data.train)
    return data


def open_stores(stores: "str | Path | ReinforcementStore | Sequence[str | Path | ReinforcementStore]") -> list[ReinforcementStore]:
    """Open one store or several.

    Raises:
        ArgumentError: if there is none.
    """
    several = [stores] if isinstance(stores, str | Path | ReinforcementStore) else list(stores)
    if not several:
        raise ArgumentError("reinforcement: `stores` is empty. Give the folder of a store, or several.")
    return [store if isinstance(store, ReinforcementStore) else ReinforcementStore(store) for store in several]
