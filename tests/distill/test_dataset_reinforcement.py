"""dataset-reinforcement: the page's exact checks, what a fit on data+ must keep, and what is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import retinue
from retinue.data import Batch, Data, from_arrays, views
from retinue.data.store import FileStore
from retinue.distill.dataset_reinforcement import ORIGINAL, Reinforced, ReinforcedDataset, ReinforcementBuilder
from retinue.distill.reinforced_training import reinforced_training
from retinue.distill.reinforcement_store import ReinforcementStore
from retinue.distill.replayable import recipe
from retinue.engine import checkpoint
from retinue.errors import ArgumentError, DataError
from retinue.losses import target_kl
from retinue.losses.sparse_targets import densify
from retinue.models import tiny

RECIPES = {"keys": "crop(1), color_jitter(0.3, 0.3), mixup(1.0, p=0.5)", "parameters": "+M*+R*"}


@pytest.fixture(scope="module")
def data() -> Data:
    return retinue.data.open("digits", input_size=12, channels=3, train_images=50, test_images=20)


def teacher(data: Data, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny("bare", num_classes=len(data.classes), in_chans=data.preprocessing.channels).eval()


@pytest.fixture(scope="module")
def stores(data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of each kind, of two teachers, in three shards."""
    made = {}
    for kind, augmentation in RECIPES.items():
        made[kind] = tmp_path_factory.mktemp("stores") / kind
        ReinforcementBuilder(
            data, [teacher(data, 0), teacher(data, 1)], augmentation, num_samples=4, topk=3, shard_images=20, batch_size=33
        ).build(made[kind])
    return made


def keys_of(count: int, epoch: int = 0) -> torch.Tensor:
    return views.keys(0, epoch, torch.arange(count))


@pytest.mark.parametrize("kind", RECIPES)
def test_the_targets_are_the_teachers_answers_to_what_is_replayed(data: Data, stores: dict[str, Path], kind: str) -> None:
    plus = ReinforcedDataset(data, stores[kind], p=1.0)
    indices = torch.arange(len(plus))
    images, targets = plus.batch(indices, keys_of(len(plus)))
    with torch.no_grad():
        answers = torch.stack([teacher(data, seed)(images).softmax(-1) for seed in (0, 1)]).mean(0)
    kept = answers.topk(3)
    expected = densify(kept.values, kept.indices, 10)
    torch.testing.assert_close(targets, expected, rtol=0, atol=6e-4)  # half precision: 2^-11 of shares below 1
    torch.testing.assert_close(targets.sum(1), torch.ones(len(plus)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", RECIPES)
def test_records_are_picked_evenly_and_anew_in_each_epoch(data: Data, stores: dict[str, Path], kind: str) -> None:
    plus = ReinforcedDataset(data, stores[kind], p=0.8)
    indices, images = torch.arange(50), data.train.images()
    drawn = torch.stack([plus.draw(indices, images, keys_of(50, epoch)).records for epoch in range(60)])
    shares = torch.bincount(drawn.flatten() + 1, minlength=5) / drawn.numel()
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.03)
    assert len({tuple(row) for row in drawn.tolist()}) == 60
    some = torch.tensor([7, 30])  # a row does not depend on the others
    alone = plus.draw(indices[some], images[some], keys_of(50, 59)[some])
    assert torch.equal(alone.records, drawn[59][some])
    assert torch.equal(alone.images, plus.draw(indices, images, keys_of(50, 59)).images[some])


def test_never_is_the_original_data_set_and_always_never_shows_it(data: Data, stores: dict[str, Path]) -> None:
    class Called(views.View):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            raise AssertionError("an image was shown with its label")

    plain = ReinforcedDataset(data, stores["keys"], p=0.0)
    images, targets = plain.batch(torch.arange(50))
    assert torch.equal(images, data.train.preprocessing.normalize(data.train.images()))
    assert torch.equal(targets, nn.functional.one_hot(data.train.labels, 10).float())
    always = ReinforcedDataset(data, stores["keys"], p=1.0, views=Called())
    for epoch in range(20):
        assert (always.draw(torch.arange(50), data.train.images(), keys_of(50, epoch)).records != ORIGINAL).all()
    half = ReinforcedDataset(data, stores["keys"], p=0.5, views="flip(1.0)")
    drawn = half.draw(torch.arange(50), data.train.images(), keys_of(50))
    rows = (drawn.records == ORIGINAL).nonzero()[:, 0]
    assert 10 < len(rows) < 40
    assert torch.equal(drawn.images[rows], data.train.images(rows).flip(-1))


def test_items_come_one_by_one_and_through_a_data_loader(data: Data, stores: dict[str, Path]) -> None:
    plus = ReinforcedDataset(data, stores["parameters"], p=1.0)
    image, target = plus[3]
    assert image.shape == (3, 12, 12)
    assert target.sum().item() == pytest.approx(1, abs=1e-6)
    loader = torch.utils.data.DataLoader(plus, batch_size=16, shuffle=True)
    first, second = ([targets for _, targets in loader] for _ in range(2))
    assert [len(part) for part in first] == [16, 16, 16, 2]
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_several_stores_are_picked_alike_whatever_they_keep(data: Data, stores: dict[str, Path], tmp_path: Path) -> None:
    ReinforcementBuilder(data, teacher(data), "rrc", num_samples=6, topk=5).build(tmp_path)
    plus = ReinforcedDataset(data, [stores["keys"], tmp_path], p=0.9)
    indices, images = torch.arange(50), data.train.images()
    records = torch.cat([plus.draw(indices, images, keys_of(50, epoch)).records for epoch in range(60)])
    shares = torch.bincount(records + 1, minlength=11) / len(records)
    assert shares.tolist() == pytest.approx([0.1] + [0.45 / 4] * 4 + [0.45 / 6] * 6, abs=0.03)
    shown, targets = plus.batch(indices, keys_of(50))
    torch.testing.assert_close(targets.sum(1), torch.ones(50), rtol=0, atol=1e-6)
    drawn = plus.draw(indices, images, keys_of(50))
    only = ReinforcementStore(tmp_path)
    for row in (drawn.records >= 4).nonzero()[:5, 0].tolist():
        record = drawn.records[row : row + 1] - 4
        packed, _, _ = only.rows(indices[row : row + 1], record)
        alone = only.augmentation.replay_packed(images[row : row + 1], packed)
        assert torch.equal(data.preprocessing.normalize(alone)[0], shown[row])
        torch.testing.assert_close(only.targets(indices[row : row + 1], record)[0], targets[row])


def test_the_loss_is_the_divergence_alone(data: Data, stores: dict[str, Path]) -> None:
    assert target_kl(torch.zeros(1, 10), densify(torch.tensor([[0.7, 0.2]]), torch.tensor([[3, 1]]), 10)).item() == pytest.approx(
        1.2928, abs=5e-5
    )
    plus = ReinforcedDataset(data, stores["parameters"], p=1.0)
    objective = Reinforced(plus)
    batches = list(plus.data.train.loader(16, shuffle=True, views=objective.views, seed=3).batches(epoch=2))
    model = teacher(data, 5)
    for batch in batches:
        keys = views.derive(views.keys(3, 2, batch.indices), 0)
        images, targets = plus.batch(batch.indices, keys)
        assert torch.equal(images, batch.images)
        expected = (targets * (targets.clamp_min(1e-30).log() - model(images).log_softmax(-1))).sum(1).mean()
        torch.testing.assert_close(objective(model, batch)["loss"], expected)
        assert torch.equal(batch.labels, data.train.labels[batch.indices])


def test_an_auxiliary_head_learns_the_same() -> None:
    class Two(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(images), 10), torch.zeros(len(images), 10)

    data = from_arrays(torch.zeros(12, 1, 4, 4), torch.arange(12) % 10)
    objective = Reinforced.__new__(Reinforced)
    retinue.engine.Supervised.__init__(objective, aux_weight=0.5)
    objective._replay = type("Replay", (), {"targets": lambda self, indices: torch.eye(10)[indices]})()  # type: ignore[assignment]
    batch = Batch(torch.zeros(2, 1, 4, 4), torch.arange(2), torch.arange(2))
    assert objective(Two(), batch)["loss"].item() == pytest.approx(1.5 * math.log(10))
    assert len(data.classes) == 10


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_any_backbone_trains_on_it_and_resumes_bit_for_bit(kind: Any, stores: dict[str, Path], tmp_path: Path) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=48, test_images=20)
    folder = tmp_path / "store"
    ReinforcementBuilder(data, teacher(data), "crop(2), mixup", num_samples=3, topk=3).build(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    class Stop(BaseException):
        pass

    def train(run_dir: Path, stop_at: int = -1) -> retinue.engine.Run:
        torch.manual_seed(0)
        plus = ReinforcedDataset(data, folder, p=0.9)
        objective = Reinforced(plus)

        def after_step(model: nn.Module, step: int) -> None:
            if step == stop_at:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        return retinue.fit(
            tiny(kind), objective, plus.data, max_steps=8, batch_size=8, accumulate=2, checkpoint_every=2, log_every=1, seed=1,
            loggers=("csv",), run_dir=run_dir, progress=False,
        )  # fmt: skip

    run = train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "stopped", stop_at=7)  # in the second epoch
    train(tmp_path / "stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000008") for name in ("whole", "stopped"))
    assert all(torch.equal(whole.tensors[name], stopped.tensors[name]) for name in whole.tensors)
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "stopped" / "metrics.csv").read_bytes()
    assert set(run.metrics) == {"top1", "top5", "ece", "loss"}
    assert list(run.objective.parameters()) == []  # no teacher, nothing that learns
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_images_that_are_decoded_when_asked_for_are_replayed_too(tmp_path: Path) -> None:
    from PIL import Image

    source = retinue.data.open("digits", train_images=30, test_images=20)
    for i, label in enumerate(source.train.labels.tolist()):
        (tmp_path / "photos" / f"digit-{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.train.images([i])[0, 0].numpy()).save(tmp_path / "photos" / f"digit-{label}" / f"{i:03}.png")
    memory, files = (
        retinue.data.open(tmp_path / "photos", val_fraction=0.0, test_fraction=0.0, in_memory=kept, read_size=10, input_size=8)
        for kept in (True, False)
    )
    assert isinstance(files.train.store, FileStore)
    for kind, augmentation in RECIPES.items():
        shown = []
        for number, one in enumerate((memory, files)):
            folder = tmp_path / f"{kind}-{number}"
            ReinforcementBuilder(one, teacher(one), augmentation, num_samples=2, topk=3).build(folder)
            plus = ReinforcedDataset(one, folder, p=0.8)
            objective = Reinforced(plus)
            batches = list(plus.data.train.loader(10, views=objective.views).batches())
            shown.append(torch.cat([batch.images for batch in batches]))
            assert all(torch.isfinite(objective(teacher(one), batch)["loss"]) for batch in batches)
        assert torch.equal(*shown)
        assert shown[0].shape[2:] == (8, 8)


def test_a_student_learns_from_the_store_what_it_cannot_from_few_labels(tmp_path: Path) -> None:
    """A store whose teacher always says class 3 teaches class 3, whatever the labels are."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(5.0 * nn.functional.one_hot(torch.tensor(3), 10))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.bias.expand(len(images), 10)

    data = retinue.data.open("digits", train_images=60, test_images=20)
    ReinforcementBuilder(data, Three(), "crop(1)", num_samples=2, topk=2).build(tmp_path)
    plus = ReinforcedDataset(data, tmp_path, p=1.0)
    model = retinue.create_model("mlp", widths=[16], num_classes=10, in_chans=1, input_size=(8, 8))
    run = retinue.fit(model, Reinforced(plus), plus.data, max_steps=60, batch_size=30, lr=0.05, progress=False, eval_every=99)
    found, _ = retinue.engine.logits(run.model, data.test)
    assert (found.argmax(1) == 3).all()
    assert found.softmax(1)[:, 3].mean().item() == pytest.approx(math.exp(5) / (math.exp(5) + 9), abs=0.05)


def test_the_procedure_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = retinue.data.open("digits", train_images=100, test_images=50)

    def run(folder: Path | None) -> dict[str, Any]:
        torch.manual_seed(0)
        model = retinue.create_model("mlp", widths=[16], num_classes=10, in_chans=1, input_size=(8, 8))
        return reinforced_training(
            model, data, folder, teachers=["small_convnet"] * 2, teacher_args={"widths": [8, 8]},
            teacher_fit={"max_steps": 5, "views": "crop(1), mixup"}, per_class=5, recipe="crop(1)", num_samples=2, topk=3,
            fit_args={"max_steps": 5, "batch_size": 16}, progress=False,
        )  # fmt: skip

    first = run(tmp_path / "run")
    assert set(first) == {"teachers", "student", "store"}
    assert ReinforcementStore(tmp_path / "run" / "store").images == 50
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "store").iterdir()}
    assert run(tmp_path / "run") == first
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "store").iterdir()} == kept
    assert run(None)["student"] == first["student"]


def test_what_a_data_set_cannot_be_is_refused(data: Data, stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`p` must lie in \[0, 1\], got 99\. The paper has 0\.99"):
        ReinforcedDataset(data, stores["keys"], p=99)
    with pytest.raises(ArgumentError, match=r'no `densify` is called "smoth"\. Did you mean smooth'):
        ReinforcedDataset(data, stores["keys"], densify="smoth")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"`views` are for images that keep their label, and mixup\(\) mixes labels"):
        ReinforcedDataset(data, stores["keys"], views="mixup")
    with pytest.raises(ArgumentError, match=r"`stores` is empty\. Give the folder of a store"):
        ReinforcedDataset(data, [])
    fewer = dataclasses.replace(data, train=data.train.subset(range(49)))
    with pytest.raises(DataError, match=r"was built for another number of images: images was 50 and now is 49\. Open the data as it was"):
        ReinforcedDataset(fewer, stores["keys"])
    turned = dataclasses.replace(data, train=data.train.subset(list(range(49, -1, -1))))
    with pytest.raises(DataError, match=r"was built for other images or labels: fingerprint was"):
        ReinforcedDataset(turned, stores["keys"])
    larger = retinue.data.open("digits", input_size=16, channels=3, train_images=50, test_images=20)
    with pytest.raises(DataError, match=r"was built for another image size: stored_size was \[12, 12\] and now is \[16, 16\]"):
        ReinforcedDataset(larger, stores["keys"])
    renamed = dataclasses.replace(data, train=dataclasses.replace(data.train, classes=[*data.classes[1:], data.classes[0]]))
    with pytest.raises(DataError, match=r"was built for other classes, or in another order: classes was"):
        ReinforcedDataset(renamed, stores["keys"])
    plus = ReinforcedDataset(data, stores["keys"])
    with pytest.raises(ArgumentError, match=r"Give fit the data of the data set: fit\(model, Reinforced\(plus\), plus\.data\)"):
        retinue.fit(teacher(data), Reinforced(plus), data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"the model has 7 outputs and digits has 10 classes\. Build it with num_classes=10"):
        retinue.fit(tiny("ours", num_classes=7), Reinforced(plus), plus.data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"reinforced_training: `teachers` is empty\. Name one network or run at least"):
        reinforced_training(teacher(data), data, teachers=[])
    with pytest.raises(ArgumentError, match=r"`teacher_args` are for teachers that are trained here\. Give `teacher_fit` too"):
        reinforced_training(teacher(data), data, teachers=["mlp"], teacher_args={"widths": [3]})
    assert recipe("rrc", 8).width == 9
