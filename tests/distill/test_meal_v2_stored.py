"""MEAL V2 from a store of answers: what is stored, several crops of each image, the loss by hand, resume, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import same
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.data import Data, from_arrays
from retinue.distill.dataset_reinforcement import ReinforcedDataset
from retinue.distill.ensemble import EnsembleTeacher
from retinue.distill.meal_v2 import PLAYER, adversarial_loss, similarity_loss
from retinue.distill.teacher_store import StoredCrop, StoredMEALv2, store_teachers
from retinue.engine import checkpoint
from retinue.errors import ArgumentError
from retinue.models import create_model, tiny
from retinue.models.tiny import KINDS

SETTINGS: dict[str, Any] = {"batch_size": 4, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "schedule": "constant", "progress": False}
CLASSES = 7


def net(seed: int = 0, outputs: int = CLASSES) -> Any:
    torch.manual_seed(seed)
    return create_model("mlp", widths=[8], num_classes=outputs, in_chans=1, input_size=6)


@pytest.fixture
def data() -> Data:
    """Fifty-six images of 6 px in seven classes."""
    pixels = torch.randint(0, 255, (56, 6, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(56) % CLASSES
    return from_arrays(pixels.byte().numpy(), labels, split=["train"] * 28 + ["val"] * 14 + ["test"] * 14, name="noise", val_fraction=0.0)


@pytest.fixture
def plus(data: Data, tmp_path: Path) -> ReinforcedDataset:
    store_teachers(data, [net(1), net(2)], tmp_path / "store", crops=4)
    return ReinforcedDataset(data, tmp_path / "store", p=1.0)


def test_boxes_flips_and_the_five_largest_mean_shares_are_stored(data: Data, plus: ReinforcedDataset) -> None:
    store = plus.stores[0]
    assert (store.samples, store.topk, store.images) == (4, 5, 28)
    assert set(store.augmentation.layout.names) == {"crop", "flip"}  # type: ignore[attr-defined]
    indices, sample = torch.arange(28), torch.full((28,), 2)
    packed, values, _ = store.rows(indices, sample)
    shown = data.preprocessing.normalize(data.preprocessing.centre(store.augmentation.replay_packed(data.train.images(), packed)))
    shares, _ = EnsembleTeacher([net(1), net(2)])(shown)
    kept = shares.topk(5)
    assert_close(values, kept.values, rtol=0, atol=3e-4)  # half precision
    target = store.targets(indices, sample)
    rest = (1 - kept.values.sum(1)) / (CLASSES - 5)
    for row, (expected, those) in enumerate(zip(target, kept.indices)):
        others = [c for c in range(CLASSES) if c not in those.tolist()]
        assert_close(expected[others], rest[row].expand(2), rtol=0, atol=1e-3)
        assert_close(expected[those], kept.values[row], rtol=0, atol=3e-4)


def test_a_batch_shows_several_crops_of_each_image_with_the_answer_to_each(plus: ReinforcedDataset) -> None:
    objective = StoredMEALv2(plus, num_crops=3)
    batch = next(iter(plus.data.train.loader(28, views=objective.views).batches()))
    assert len(batch.views) == 3
    assert not torch.equal(batch.views[0], batch.views[1])
    teacher = EnsembleTeacher([net(1), net(2)])
    targets = []
    for crop, shown in zip(objective._crops, batch.views):
        targets.append(crop.targets(batch.indices))
        assert_close(targets[-1].max(1).values, teacher(shown)[0].max(1).values, rtol=0, atol=3e-4)
    student = net().train()
    found = dict(objective.losses(student, batch, 0))
    logits = student(torch.cat(batch.views))
    assert_close(found["model"]["similarity"], similarity_loss(logits, torch.cat(targets)).detach())
    told, _ = adversarial_loss(objective.discriminator, logits.softmax(1), torch.cat(targets))  # type: ignore[arg-type]
    assert_close(found["model"]["loss"], found["model"]["similarity"] + told)
    assert_close(found[PLAYER]["loss"], told)
    assert float(found["model"]["top1"]) == pytest.approx(float((logits.argmax(1) == batch.labels.repeat(3)).float().mean()))


def test_reversal_turns_the_students_gradient(plus: ReinforcedDataset) -> None:
    student, found = net(), {}
    for side in ("reverse", "joint", None):
        torch.manual_seed(0)
        objective = StoredMEALv2(plus, num_crops=2, adversarial=side)  # type: ignore[arg-type]
        if objective.discriminator is not None:
            for layer in objective.discriminator.layers[::2]:  # type: ignore[index,union-attr]
                nn.init.uniform_(layer.weight, 0.1, 1.0)
                nn.init.ones_(layer.bias)
        batch = next(iter(plus.data.train.loader(8, views=objective.views).batches()))
        numbers = next(objective.losses(student, batch, 0))[1]
        found[side] = torch.autograd.grad(numbers["loss"], list(student.parameters()))
        assert list(objective.players(student)) == (["model"] if side is None else ["model", PLAYER])
    for minus, plus_, middle in zip(found["reverse"], found["joint"], found[None]):
        assert_close(minus - middle, -(plus_ - middle), rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(found["joint"], found[None]))


@pytest.mark.parametrize("kind", KINDS)
def test_any_student_is_trained_stopped_and_resumed_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=16, test_images=8)
    torch.manual_seed(1)
    store_teachers(data, [tiny("timm_vit")], tmp_path / "store", crops=2)
    plus = ReinforcedDataset(data, tmp_path / "store", p=1.0)

    def train(folder: str, stop_at: int = -1) -> Any:
        torch.manual_seed(0)
        objective = StoredMEALv2(plus, num_crops=2)

        def stop(model: nn.Module, step: int) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        objective.after_step = stop  # type: ignore[method-assign]
        options = {**SETTINGS, "checkpoint_every": 1, "loggers": ("csv",), "max_steps": 3, "run_dir": tmp_path / folder}
        return retinue.fit(tiny(kind), objective, plus.data, players={PLAYER: {"lr": 1e-4}}, **options)

    train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", 2)
    train("stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000003") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)


def test_held_out_images_stay_as_they_are(data: Data, plus: ReinforcedDataset) -> None:
    shown = data.val.images() if len(data.val) else data.test.images()
    keys: Tensor = torch.arange(len(shown))
    assert StoredCrop(plus)(shown, keys) is shown
    objective, model = StoredMEALv2(plus, num_crops=2), net()
    loader = data.test.loader(5, views=objective.views)
    assert objective.evaluate(model, loader) == pytest.approx(retinue.evaluate(model, data.test), abs=1e-6)


def test_what_cannot_be_is_refused(data: Data, plus: ReinforcedDataset) -> None:
    with pytest.raises(ArgumentError, match=r"^StoredMEALv2: `num_crops` must be at least 1, got 0\. The official code has 8\.$"):
        StoredMEALv2(plus, num_crops=0)
    with pytest.raises(ArgumentError, match=r'^StoredMEALv2: no `adversarial` is called "join"\. Did you mean joint\?$'):
        StoredMEALv2(plus, adversarial="join")  # type: ignore[arg-type]
    mixed = ReinforcedDataset(data, plus.stores)
    with pytest.raises(ArgumentError, match=r"no image may be shown with its hard label, got a data set with p=0\.99\. Open it with p=1"):
        StoredMEALv2(mixed)
    with pytest.raises(ArgumentError, match=r"these are not the data that the store is shown through \(noise\)\. Give fit the"):
        retinue.fit(net(), StoredMEALv2(plus), data, max_steps=1, **SETTINGS)
    with pytest.raises(ArgumentError, match=r"the student has 4 outputs and noise has 7 classes"):
        retinue.fit(net(outputs=4), StoredMEALv2(plus), plus.data, max_steps=1, **SETTINGS)
    with pytest.raises(ArgumentError, match="`teachers` is empty"):
        store_teachers(data, [], "nowhere")
