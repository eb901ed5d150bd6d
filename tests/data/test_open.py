"""`open`: folders, parquet and npz files, named sets; splits; broken images all found before the first step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from data.test_decoding import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import retinue
from retinue.data import from_arrays, named
from retinue.data import open as open_data
from retinue.data.splits import split_indices, thinned
from retinue.data.store import FileStore, MemoryStore
from retinue.errors import ArgumentError, DataError


def folder_of(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 10)) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", size, (number * 40, i * 10, 7)).save(root / name / f"{i:02}.png")
    return root


def table(path: Path, **columns: Any) -> Path:
    metadata = {"class_names": json.dumps(columns.pop("class_names"))} if "class_names" in columns else None
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), path)
    return path


PICTURES = [encoded(Image.new("L", (6, 6), i * 10)) for i in range(10)]


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    data = open_data(folder_of(tmp_path, {"cat": 10, "dog": 20}))
    assert data.classes == ["cat", "dog"]
    assert (len(data.train), len(data.val), len(data.test)) == (21, 3, 6)
    assert data.preprocessing.input_size == (10, 12)
    assert data.preprocessing.channels == 3
    every = sorted(name for split in (data.train, data.val, data.test) for name in split.names)
    assert every == sorted([*(f"cat/{i:02}.png" for i in range(10)), *(f"dog/{i:02}.png" for i in range(20))])
    for split in (data.train, data.val, data.test):
        for i in range(len(split)):
            assert split.name(i).startswith(data.classes[split.labels[i]])
            assert split.images([i])[0, 0, 0, 0] == split.labels[i] * 40


def test_a_folder_with_splits(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 8, "b": 8})
    folder_of(tmp_path / "validation", {"a": 2, "b": 2})
    folder_of(tmp_path / "test", {"a": 3, "b": 3})
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)
    (tmp_path / "extra").mkdir()
    with pytest.raises(DataError, match=r"mixes splits \(test, train, validation\) with other folders \(extra\)"):
        open_data(tmp_path)


def test_images_without_class_folders_are_unlabelled(tmp_path: Path) -> None:
    folder_of(tmp_path, {".": 6})
    assert open_data(tmp_path).classes == ["unlabelled"]
    folder_of(tmp_path, {"a": 2})
    with pytest.raises(DataError, match=r"6 images lie beside the class folders, such as .*00\.png\. Move them into one"):
        open_data(tmp_path)


def test_an_empty_folder_and_a_missing_one_are_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="holds no images"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=r"there is no file or folder .*nowhere"):
        open_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither a folder, a \.parquet nor a \.npz file"):
        open_data(tmp_path / "notes.txt")


def broken_folder(root: Path) -> Path:
    folder_of(root, {"a": 6, "b": 6})
    (root / "a" / "text.png").write_text("I am no image")
    (root / "b" / "cut.png").write_bytes((root / "b" / "00.png").read_bytes()[:50])
    (root / "b" / "empty.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_broken_images_are_listed_or_left_out_and_never_replaced(tmp_path: Path, in_memory: bool) -> None:
    broken_folder(tmp_path)
    with pytest.raises(DataError) as told:
        open_data(tmp_path, in_memory=in_memory)
    text = str(told.value)
    assert text.startswith('data: 3 of 15 images cannot be used. Mend or remove them, or leave them out with on_bad="skip":')
    assert "a/text.png: not an image" in text
    assert "b/empty.jpg: not an image" in text
    assert "b/cut.png: " in text
    data = open_data(tmp_path, on_bad="skip", in_memory=in_memory, channels=3, input_size=12)
    assert sorted(name for name, _ in data.skipped) == ["a/text.png", "b/cut.png", "b/empty.jpg"]
    assert sum(map(len, (data.train, data.val, data.test))) == 12
    assert not {"a/text.png", "b/cut.png", "b/empty.jpg"} & {name for split in (data.train, data.val, data.test) for name in split.names}


def test_nothing_but_broken_images_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no")
    with pytest.raises(DataError, match="1 of 1 images cannot be used"):
        open_data(tmp_path, on_bad="skip")


def test_images_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 6, "b": 6})
    kept, read = open_data(tmp_path, in_memory=True), open_data(tmp_path, in_memory=False)
    assert isinstance(kept.train.store, MemoryStore)
    assert isinstance(read.train.store, FileStore)
    assert torch.equal(kept.train.images(), read.train.images())
    for workers in (0, 2):
        a = list(kept.train.loader(3, shuffle=True, seed=1).batches(2, start=1))
        b = list(read.train.loader(3, shuffle=True, seed=1, workers=workers).batches(2, start=1))
        assert all(torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in zip(a, b, strict=True))


def test_parquet_with_bytes_and_labels(tmp_path: Path) -> None:
    data = open_data(table(tmp_path / "x.parquet", image=PICTURES, label=[0, 1] * 5, class_names=["no", "yes"]))
    assert data.classes == ["no", "yes"]
    assert data.preprocessing.channels == 1
    assert data.train.name(0).startswith("row ")
    words = open_data(table(tmp_path / "y.parquet", img=PICTURES, category=["ape", "bee"] * 5, split=["train"] * 6 + ["test"] * 4))
    assert words.classes == ["ape", "bee"]
    assert len(words.test) == 4


def test_parquet_as_the_hub_writes_it(tmp_path: Path) -> None:
    structs = [{"bytes": picture, "path": "x.png"} for picture in PICTURES]
    features = {"info": {"features": {"label": {"names": ["zero", "one"], "_type": "ClassLabel"}}}}
    one = pyarrow.table({"image": structs, "label": [0, 1] * 5}).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(one, tmp_path / "train-00000-of-00001.parquet")
    pyarrow.parquet.write_table(one.slice(0, 4), tmp_path / "test-00000-of-00001.parquet")
    data = open_data(tmp_path)
    assert data.classes == ["zero", "one"]
    assert (len(data.train) + len(data.val), len(data.test)) == (10, 4)


def test_parquet_that_cannot_be_understood(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad\.parquet is not a readable parquet file"):
        open_data(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"has no image under a usual name; there is foto, label\. Name it by image_column="):
        open_data(table(tmp_path / "a.parquet", foto=PICTURES, label=[0] * 10))
    assert len(open_data(tmp_path / "a.parquet", image_column="foto").train) > 0
    with pytest.raises(DataError, match=r'has no "photo"\. There is foto, label'):
        open_data(tmp_path / "a.parquet", image_column="photo")
    with pytest.raises(DataError, match=r'the column "label" of .* holds int64, not encoded images'):
        open_data(tmp_path / "a.parquet", image_column="label")
    with pytest.raises(DataError, match=r"has 1 rows without a label, the first is row 3"):
        open_data(table(tmp_path / "b.parquet", image=PICTURES, label=[0, 1, 0, None, 1, 0, 1, 0, 1, 0]))
    with pytest.raises(DataError, match=r"has labels from 0 to 5 and 2 class names"):
        open_data(table(tmp_path / "c.parquet", image=PICTURES, label=[0, 5] * 5, class_names=["a", "b"]))
    with pytest.raises(DataError, match=r"for 5 not \(train, val or test\)"):
        open_data(table(tmp_path / "d.parquet", image=PICTURES, label=[0, 1] * 5, split=["train"] * 5 + ["other"] * 5))


def test_npz_of_every_habit(tmp_path: Path) -> None:
    pictures, labels = np.zeros((10, 6, 6, 3), dtype=np.uint8), np.arange(10) % 2
    np.savez(tmp_path / "a.npz", images=pictures, labels=labels)
    np.savez(tmp_path / "b.npz", x_train=pictures, y_train=labels, x_test=pictures[:4], y_test=labels[:4])
    np.savez(tmp_path / "c.npz", train_images=pictures, train_labels=labels, val_images=pictures[:2], val_labels=labels[:2])
    np.savez(tmp_path / "d.npz", images=pictures, labels=labels[:3])
    np.savez(tmp_path / "e.npz", images=np.array([{}], dtype=object), labels=[0])
    assert open_data(tmp_path / "a.npz").classes == ["0", "1"]
    assert len(open_data(tmp_path / "b.npz").test) == 4
    assert len(open_data(tmp_path / "c.npz").val) == 2
    with pytest.raises(DataError, match="10 images in images and 3 labels in labels"):
        open_data(tmp_path / "d.npz")
    with pytest.raises(DataError, match="not a readable npz file of plain arrays"):
        open_data(tmp_path / "e.npz")


def test_named_sets_are_looked_for_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    table(tmp_path / "mine" / "mine.parquet", image=PICTURES, label=[0, 1] * 5)
    folder_of(tmp_path / "yours", {"a": 5, "b": 5})
    monkeypatch.setenv("RETINUE_DATA", str(tmp_path))
    assert open_data("mine").name == "mine"
    assert open_data("yours").classes == ["a", "b"]
    with pytest.raises(DataError, match=r'no data set is called "yuors"\. Did you mean yours.*Give a folder of class folders'):
        open_data("yuors")
    with pytest.raises(DataError, match=r'no data set of torchvision is called "SVHM"\. Did you mean SVHN'):
        open_data("torchvision:SVHM")


def test_a_set_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    class FakeData:
        classes = ["left", "right"]

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            self.pairs = [(Image.new("L", (8, 8), i), i % 2) for i in range(10 if train else 4)]

        def __iter__(self) -> Any:
            return iter(self.pairs)

    monkeypatch.setattr(torchvision.datasets, "SVHN", FakeData)
    data = open_data("torchvision:SVHN")
    assert data.classes == ["left", "right"]
    assert (len(data.train) + len(data.val), len(data.test)) == (10, 4)


def test_a_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "default" / "train").mkdir(parents=True)
    table(tmp_path / "default" / "train" / "0000.parquet", image=PICTURES, label=[0, 1] * 5)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(tmp_path))
    assert len(open_data("hf:someone/something").classes) == 2

    def refuse(*args: Any, **options: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DataError, match="hf:someone/something could not be fetched: no network"):
        open_data("hf:someone/something")


def test_the_training_split_of_one_class_says_what_to_do(tmp_path: Path) -> None:
    path = table(
        tmp_path / "x.parquet", image=PICTURES, label=[0] * 6 + [1] * 4, split=["train"] * 6 + ["test"] * 4, class_names=["ok", "bad"]
    )
    with pytest.raises(DataError, match=r'has only the class "ok", the others have bad too\. Draw the splits anew with splits="drawn"'):
        open_data(path)
    assert set(open_data(path, splits="drawn").train.labels.tolist()) == {0, 1}


def test_arguments_are_checked() -> None:
    for options, message in [
        ({"input_size": 0}, r"`input_size` must be a positive side or a pair"),
        ({"val_fraction": 1.0}, r"`val_fraction` must lie in \[0, 1\), got 1\.0\. For ten percent write 0\.1"),
        ({"train_images": 10**6}, r"`train_images` must lie between 1 and the 1295 images"),
        ({"on_bad": "ignore"}, r'no `on_bad` is called "ignore"\. There is raise, skip'),
        ({"splits": "draw"}, r"Did you mean drawn"),
        ({"channels": 4}, r"`channels` must be 1 \(grey\) or 3"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            open_data("digits", **options)


def test_arrays_and_labels_must_fit() -> None:
    with pytest.raises(DataError, match="there are 2 images and 3 labels"):
        from_arrays(np.zeros((2, 4, 4), dtype=np.uint8), [0, 1, 0])
    with pytest.raises(DataError, match="labels run from 0 to 4, and there are 2 classes"):
        from_arrays(np.zeros((2, 4, 4), dtype=np.uint8), [0, 4], classes=["a", "b"])
    data = from_arrays(torch.rand(12, 3, 8, 8), [0, 1, 2] * 4, split=["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    assert (len(data.train), len(data.val), len(data.test), data.preprocessing.channels) == (6, 3, 3, 3)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 5))
def test_drawn_splits_are_disjoint_complete_stratified_and_seeded(labels: list[int], val: float, test: float, seed: int) -> None:
    numbers = np.array(labels, dtype=np.int64)
    parts = split_indices(numbers, None, val, test, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(labels)))
    for label in set(labels):
        count = labels.count(label)
        assert (numbers[parts["train"]] == label).sum() >= 1
        assert abs((numbers[parts["test"]] == label).sum() - count * test) <= 1
    again = split_indices(numbers, None, val, test, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_thinning_keeps_the_shares() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    chosen = thinned(np.arange(100), labels, 10, 0, "train_images")
    assert np.bincount(labels[chosen]).tolist() == [6, 3, 1]
    assert len(thinned(np.arange(100), labels, 7, 0, "train_images")) == 7


def test_what_was_opened_can_be_opened_again(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 6, "b": 6})
    data = open_data(tmp_path, input_size=8, seed=3)
    assert data.opened_with == {"source": str(tmp_path), "input_size": 8, "seed": 3}
    again = open_data(**data.opened_with)
    assert again.train.fingerprint == data.train.fingerprint
    Image.new("RGB", (12, 10), (1, 2, 3)).save(tmp_path / "a" / "00.png")
    changed = open_data(**data.opened_with)
    assert {split: getattr(changed, split).fingerprint for split in ("train", "val", "test")} != {
        split: getattr(data, split).fingerprint for split in ("train", "val", "test")
    }


@pytest.mark.needs_data("cifar10", "cifar100", "mnist", "cifake", "magnetic-tile")
@pytest.mark.parametrize(
    ("name", "options", "classes", "size", "channels", "test"),
    [
        ("cifar100", {}, 80, (32, 32), 3, 1600),
        ("mnist", {"train_images": 1000}, 10, (28, 28), 1, 8000),
        ("cifake", {"train_images": 500, "test_images": 100}, 2, (32, 32), 3, 100),
        ("cifar10", {"train_images": 500, "test_images": 100}, 10, (32, 32), 3, 100),
        ("magnetic-tile", {"splits": "drawn", "input_size": 64}, 6, (64, 64), 1, 214),
    ],
)
def test_real_sets_open(name: str, options: dict[str, Any], classes: int, size: tuple[int, int], channels: int, test: int) -> None:
    data = retinue.data.open(name, **options)
    assert len(data.classes) == classes
    assert data.preprocessing.input_size == size
    assert data.preprocessing.channels == channels
    assert len(data.test) == test
    assert data.train.images([0]).float().std() > 5


def test_the_home_of_named_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETINUE_DATA", raising=False)
    assert named.home() == Path.home() / ".cache" / "retinue"
