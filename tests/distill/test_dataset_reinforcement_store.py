"""The store of a reinforced data set: built twice alike, resumed at its shard, checked byte by byte; and what its builder refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import retinue
from retinue.data import Data, from_arrays, views
from retinue.distill.dataset_reinforcement import ReinforcedDataset, ReinforcementBuilder
from retinue.distill.reinforcement_store import (
    INDEX,
    ReinforcementStore,
    StoreWriter,
    id_type,
    map_safetensors,
    reopen_data,
    shard_names,
    write_store,
)
from retinue.distill.replayable import KeyedViews, ReplayableTransform
from retinue.errors import ArgumentError, CheckpointError, DataError
from retinue.models import tiny


@pytest.fixture(scope="module")
def data() -> Data:
    return retinue.data.open("digits", train_images=50, test_images=20)


def teacher(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return tiny("bare", num_classes=classes, in_chans=1).eval()


def builder(data: Data, recipe: Any = "crop(1), mixup", **changes: Any) -> ReinforcementBuilder:
    given: dict[str, Any] = {"num_samples": 3, "topk": 4, "shard_images": 20, "batch_size": 32}
    return ReinforcementBuilder(data, teacher(), recipe, **{**given, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def reseal(folder: Path, change: Any) -> None:
    """Change an index as a program would that knows its seal."""
    from retinue.distill.reinforcement_store import _sealed

    body = json.loads((folder / INDEX).read_text())
    body.pop("seal")
    change(body)
    (folder / INDEX).write_bytes(_sealed(body))


def test_the_same_seed_builds_the_same_bytes(data: Data, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        builder(data, seed=seed).build(tmp_path / name)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert content(tmp_path / "one") != content(tmp_path / "other")
    assert sorted(content(tmp_path / "one")) == ["index.json", "probe.safetensors", *shard_names(50, 20)]


def test_a_killed_build_goes_on_at_its_shard(data: Data, tmp_path: Path) -> None:
    builder(data).build(tmp_path / "whole")

    class Stop(BaseException):
        pass

    def kill(line: str) -> None:
        if line.startswith("shard-00001"):
            raise Stop

    with pytest.raises(Stop):
        builder(data).build(tmp_path / "killed", tell=kill)
    with pytest.raises(CheckpointError, match=r"killed is not finished: 1 of 3 shards are missing\. Give the command that built it again"):
        ReinforcementStore(tmp_path / "killed")
    told: list[str] = []
    builder(data).build(tmp_path / "killed", tell=told.append)
    assert told == ["shard-00002.safetensors: 3 of 3"]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    builder(data).build(tmp_path / "killed", tell=told.append)
    assert len(told) == 1
    (tmp_path / "killed" / "shard-00000.safetensors").unlink()
    builder(data).build(tmp_path / "killed", tell=told.append)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_record_is_a_function_of_seed_sample_and_image(data: Data, tmp_path: Path) -> None:
    store = builder(data).build(tmp_path)
    indices, samples = torch.tensor([0, 49, 19, 20]), torch.tensor([2, 0, 1, 1])
    packed, values, ids = store.rows(indices, samples)
    for row in range(4):
        assert packed[row].view(torch.int64) == views.keys(0, int(samples[row]), indices[row : row + 1])
    assert values.dtype == torch.float32
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert all(len(set(row)) == 4 for row in ids.tolist())
    torch.testing.assert_close(store.targets(indices, samples).sum(1), torch.ones(4), rtol=0, atol=1e-6)


def test_shards_that_do_not_fit_into_memory_are_read_in_place(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builder(data).build(tmp_path)
    monkeypatch.setattr(ReinforcementStore, "_fits", lambda self: False)
    parts = ReinforcementStore(tmp_path)
    assert len(parts._shards) == 3
    indices, samples = torch.randint(50, (200,)), torch.randint(3, (200,))
    for ours, theirs in zip(parts.rows(indices, samples), whole.rows(indices, samples)):
        assert torch.equal(ours, theirs)


def test_safetensors_itself_reads_a_shard(data: Data, tmp_path: Path) -> None:
    store = builder(data, dtype="float32").build(tmp_path)
    theirs = safetensors.torch.load_file(tmp_path / "shard-00001.safetensors")
    ours = map_safetensors(tmp_path / "shard-00001.safetensors", None)
    assert sorted(ours) == sorted(theirs) == ["augmentations", "ids", "values"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert theirs["values"].dtype == torch.float32
    assert store.bytes == sum(len(part) for part in content(tmp_path).values())
    assert [id_type(count) for count in (256, 257, 32768, 32769)] == [torch.uint8, torch.int16, torch.int16, torch.int32]


def test_the_data_of_a_store_is_opened_again(data: Data, tmp_path: Path) -> None:
    again = reopen_data(builder(data).build(tmp_path / "store"))
    assert again.train.fingerprint == data.train.fingerprint
    assert again.preprocessing == data.preprocessing
    made = from_arrays(torch.zeros(20, 1, 8, 8), torch.arange(20) % 2)
    store = ReinforcementBuilder(made, teacher(classes=2), "flip", num_samples=1, topk=1).build(tmp_path / "made")
    with pytest.raises(DataError, match=r"was made in memory and cannot be opened again\. Name a source of the same images"):
        reopen_data(store)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "probe.safetensors", "index.json"])
def test_one_altered_byte_is_noticed_and_the_file_named(data: Data, tmp_path: Path, name: str) -> None:
    builder(data).build(tmp_path)
    path = tmp_path / name
    for place in (0, len(path.read_bytes()) // 2, -1):
        kept = path.read_bytes()
        altered = bytearray(kept)
        altered[place] ^= 1
        path.write_bytes(bytes(altered))
        with pytest.raises(CheckpointError, match=rf"{name} was altered after it was written"):
            ReinforcementStore(tmp_path)
        with pytest.raises(CheckpointError, match=rf"{name} was altered after it was written"):
            builder(data).build(tmp_path)
        path.write_bytes(kept)
    ReinforcementStore(tmp_path)


def test_a_shard_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    for content_ in (b"", b"x", (99).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "shard").write_bytes(content_)
        with pytest.raises(CheckpointError, match=r"shard is (no safetensors file of a reinforcement store|missing or unreadable)"):
            map_safetensors(tmp_path / "shard", None)
    with pytest.raises(CheckpointError, match=r"holds no reinforcement store: index\.json is missing\. Build it: retinue reinforce build"):
        ReinforcementStore(tmp_path)


def test_records_that_cannot_be_are_refused(data: Data, tmp_path: Path) -> None:
    transform = ReplayableTransform(8, mixup=1.0)
    packed = transform.draw(views.keys(0, 0, torch.arange(100)), (8, 8), 50).view(50, 2, -1)
    values, ids = torch.full((50, 2, 2), 0.5), torch.arange(2).expand(50, 2, 2)
    store = write_store(tmp_path / "fine", data.train, transform, packed, values, ids)
    assert store.samples == store.topk == 2
    ReinforcedDataset(data, store)
    far = transform.draw(views.keys(0, 0, torch.arange(100)), (8, 8), 5000).view(50, 2, -1)
    with pytest.raises(DataError, match=r"partners to mix with run from \d+ to \d+, and there are 50 images"):
        write_store(tmp_path / "far", data.train, transform, far, values, ids)
    with pytest.raises(DataError, match=r"`ids` must lie between 0 and 9, as there are 10 classes; got 9 to 10\. Build the store anew"):
        write_store(tmp_path / "ids", data.train, transform, packed, values, ids + 9)
    with pytest.raises(DataError, match=r"`values` must be shares in \[0, 1\], not all 0 in a row"):
        write_store(tmp_path / "values", data.train, transform, packed, values + 1, ids)
    with pytest.raises(DataError, match=r"There are records too many or too few: build the store anew"):
        write_store(tmp_path / "few", data.train, transform, packed[:49], values[:49], ids[:49])


def test_another_version_or_interpolation_is_refused(data: Data, tmp_path: Path) -> None:
    builder(data, KeyedViews("random_resized_crop(8)")).build(tmp_path)
    kept = content(tmp_path)

    def other_views(body: dict[str, Any]) -> None:
        body["settings"]["augmentation"]["views"] = "random_resized_crop(8, interpolation='bicubic')"

    reseal(tmp_path, other_views)
    with pytest.raises(
        DataError, match=r"shows other pixels here than its teachers saw: it was built by retinue .* with torch .*Use those"
    ):
        ReinforcedDataset(data, tmp_path)
    (tmp_path / INDEX).write_bytes(kept[INDEX])
    reseal(tmp_path, lambda body: body["settings"]["augmentation"].update(format=7))
    with pytest.raises(DataError, match=r"augmentations have format 7, and this version of retinue carries out format 1"):
        ReinforcementStore(tmp_path)
    reseal(tmp_path, lambda body: body.update(format=2))
    with pytest.raises(DataError, match=r"index\.json has format 2, and this version of retinue reads 1\. Build the store anew"):
        ReinforcementStore(tmp_path)


def test_another_store_in_the_folder_is_refused(data: Data, tmp_path: Path) -> None:
    builder(data).build(tmp_path)
    with pytest.raises(ArgumentError, match=r"holds another store: samples was 3 and now is 5; topk was 4 and now is 2\. Choose another"):
        builder(data, num_samples=5, topk=2).build(tmp_path)
    with pytest.raises(ArgumentError, match=r"holds another store: teachers was \[\{\"name\": \"Bare\""):
        ReinforcementBuilder(data, teacher(1), "crop(1), mixup", num_samples=3, topk=4, shard_images=20).build(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written"):
        StoreWriter(tmp_path / "file", {}, {})


def test_what_a_builder_cannot_work_with_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`topk` must lie between 1 and the 10 classes of digits, got 11"):
        builder(data, topk=11)
    with pytest.raises(ArgumentError, match=r"`num_samples` must be a whole number of at least 1, got 0"):
        builder(data, num_samples=0)
    with pytest.raises(ArgumentError, match=r'no `dtype` is called "float8"\. Did you mean float32, float16'):
        builder(data, dtype="float8")
    with pytest.raises(ArgumentError, match=r'views: no view is called "flop"\. Did you mean flip'):
        builder(data, "flop")
    with pytest.raises(ArgumentError, match=r"`teachers` is empty\. Give one network at least"):
        ReinforcementBuilder(data, [])
    with pytest.raises(ArgumentError, match=r"the teacher Bare gives \(3,\) outputs and digits has 10 classes\. Train it on these first"):
        ReinforcementBuilder(data, teacher(classes=3))
    turned: Any = teacher()
    turned.classes = data.classes[::-1]
    with pytest.raises(
        ArgumentError, match=r"the teacher Bare has classes in another order: 9, 8, 7, 6, 5, \.\.\., and digits has 0, 1, 2"
    ):
        ReinforcementBuilder(data, turned)
    turned.classes = ["cat", "dog"]
    with pytest.raises(ArgumentError, match=r"the teacher Bare has classes of another data set: cat, dog, and"):
        ReinforcementBuilder(data, turned)


def test_teachers_are_frozen_and_see_images_as_in_their_own_training(data: Data, tmp_path: Path) -> None:
    colour = retinue.data.open("digits", input_size=16, channels=3, train_images=60, test_images=20)
    run = retinue.fit(
        tiny("ours", input_size=16), retinue.engine.Supervised(), colour, max_steps=2, run_dir=tmp_path / "run", progress=False
    )
    store = ReinforcementBuilder(data, [tmp_path / "run"], "flip(0.0)", num_samples=1, topk=10, dtype="float32").build(tmp_path / "store")
    assert store.settings["teachers"][0]["name"] == str(tmp_path / "run")
    network: Any = retinue.load(tmp_path / "run")
    images = data.train.images().expand(-1, 3, -1, -1)
    fitted = nn.functional.interpolate(images.float(), (16, 16), mode="bilinear", antialias=True).round().byte()
    with torch.no_grad():
        expected = network(network.preprocessing.normalize(fitted)).softmax(-1)
    indices = torch.arange(50)
    torch.testing.assert_close(store.targets(indices, torch.zeros_like(indices)), expected, rtol=0, atol=1e-4)
    model = teacher().train()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    ReinforcementBuilder(data, model, "flip", num_samples=1, topk=1).build(tmp_path / "frozen")
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert run.steps == 2
