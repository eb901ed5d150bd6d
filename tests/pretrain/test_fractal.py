"""The stream of fractals, its place in the engine, the multi-instance task and the fast classifier."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import same
from torch import nn

import retinue
from retinue.cli import recipes
from retinue.data import Batch, Data
from retinue.engine import checkpoint, reopen
from retinue.errors import ArgumentError, ShapeError
from retinue.models import tiny
from retinue.models.tiny import KINDS
from retinue.pretrain.fractal import FractalDataset
from retinue.pretrain.fractal_data import Names, fractals
from retinue.pretrain.fractal_objectives import FastHead, MultiInstance, multi_instance_loss, present
from retinue.pretrain.fractal_simsiam import SimSiam, simsiam_loss


def dataset(mode: Any = "multi", **changes: Any) -> FractalDataset:
    return FractalDataset(**{"num_classes": 5, "per_class": 8, "size": 16, "mode": mode, "n_points": 300, **changes})


def data(mode: Any = "multi", **changes: Any) -> Data:
    given = {"train_images": 40, "val_images": 10, "test_images": 5, "input_size": 16, "n_points": 300, **changes}
    return fractals(5, mode=mode, **given)


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_the_same_number_gives_the_same_bytes_in_any_order_and_process(mode: Any) -> None:
    stream = dataset(mode)
    numbers = [7, 0, 39, 12, 45]  # the last belongs to the next epoch
    together = stream.images(numbers)
    assert torch.equal(dataset(mode).images(numbers[::-1]), together.flip(0))
    assert torch.equal(torch.stack([dataset(mode)[number][0] for number in numbers]), together)
    assert torch.equal(pickle.loads(pickle.dumps(stream)).images(numbers), together)
    assert len(together.flatten(1).unique(dim=0)) == len(numbers)
    for changes in ({"seed": 1}, {"part": 1}):
        assert not (dataset(mode, **changes).images(numbers) == together).flatten(1).all(1).any()


@pytest.mark.parametrize("mode", ["single", "multi"])
def test_worker_processes_make_the_same_batches(mode: Any) -> None:
    train = data(mode).train
    here, there = (list(train.loader(16, shuffle=True, workers=workers).batches()) for workers in (0, 1))
    assert all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(here, there, strict=True))


def test_labels_go_class_by_class_and_begin_anew_in_every_epoch() -> None:
    stream = dataset("single", num_systems=10)
    assert stream.labels([0, 7, 8, 39, 40]).tolist() == [0, 0, 1, 4, 0]
    assert stream[9][1] == 1
    assert stream.multi_hot([9]).tolist() == [[0, 1, 0, 0, 0]]
    assert len(stream.systems) == 10


def test_every_label_belongs_to_a_fractal_that_was_pasted() -> None:
    stream = dataset(num_systems=10, per_class=40)
    numbers = torch.arange(200)
    hot = stream.multi_hot(numbers)
    renders, there = stream.plan(numbers)
    for row, shown, filled in zip(hot, renders, there):
        classes = {int(which) % 10 // 2 for which in shown[filled]}
        assert set(row.nonzero()[:, 0].tolist()) == classes
    assert set(there.sum(1).tolist()) == {1, 2, 3, 4, 5}
    assert hot.sum(1).min() >= 1
    assert hot.sum(1).max() <= 5
    assert hot.gather(1, stream.labels(numbers)[:, None]).all()
    assert torch.equal(stream[17][1], hot[17])
    assert there.sum(1).float().mean() == pytest.approx(3, abs=0.3)


def test_a_class_is_pasted_where_its_label_says(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = dataset(num_classes=3, per_class=30, size=32, n_objects=(1, 1))
    stream._render(0, range(stream.variants * 3))
    greys, _ = stream._renders[0]
    greys[:] = 0
    greys[1::3] = 255  # renders of class 1 alone are anything but black
    monkeypatch.setattr("retinue.pretrain.fractal.backgrounds", lambda size, rngs: np.zeros((len(rngs), 3, size, size), dtype=np.uint8))
    drawn = stream.images(range(90)).flatten(1).any(1)
    assert drawn.tolist() == (stream.labels(range(90)) == 1).tolist()


def test_an_epoch_shares_few_renders_and_the_next_has_others() -> None:
    stream = dataset(per_class=40, period=4)
    assert stream.variants == 10  # 200 images, one render for 4 of them, 5 systems
    assert dataset(per_class=40, cache=15).variants == 3
    assert dataset(per_class=1).variants == 1
    stream.images([0, 1, 200])
    assert list(stream._renders) == [0, 1]
    first, second = (stream._renders[epoch] for epoch in (0, 1))
    both = first[1] & second[1]
    stream._render(0, range(50))
    stream._render(1, range(50))
    assert not (first[0] == second[0]).all((1, 2)).any()
    assert both.sum() <= 5


def test_pictures_of_a_class_are_more_alike_than_those_of_others() -> None:
    stream = FractalDataset(6, 12, 32, "single", n_points=4000, jitter="none")
    lit = torch.stack([(stream.images([i]) != 0).float().mean() for i in range(3)])
    assert lit.min() > 0.5
    colours = stream.images(range(72)).float().std((2, 3)).mean()
    assert colours > 20


def test_the_data_fit_into_the_engine() -> None:
    opened = data(val_images=7)
    assert [len(split) for split in (opened.train, opened.val, opened.test)] == [40, 7, 5]
    assert opened.train.labels.bincount().tolist() == [8] * 5
    assert opened.preprocessing.normalize(torch.tensor([[[[0.0, 1.0]]]]).expand(1, 3, 1, 2)).flatten().tolist() == [-1, 1] * 3
    assert opened.describe()["images"] == {"train": 40, "val": 7, "test": 5}
    assert opened.train.name(9) == "fractal 1, picture 1"
    names: Any = opened.train.names
    assert isinstance(names, Names)
    assert names[38:] == ["fractal 4, picture 6", "fractal 4, picture 7"]
    assert opened.train.fingerprint != opened.val.fingerprint
    few = opened.train.subset([3, 30])
    assert torch.equal(few.images(), opened.train.images([3, 30]))
    assert opened.opened_with is not None
    again = fractals(**{name: value for name, value in opened.opened_with.items() if name != "source"})
    assert torch.equal(again.val.images(), opened.val.images())
    batch = next(iter(opened.train.loader(6, shuffle=True, views=retinue.views.parse("flip")).batches()))
    assert batch.images.shape == (6, 3, 16, 16)


def test_the_loss_of_zeros_and_the_loss_of_the_page() -> None:
    half = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert multi_instance_loss(torch.zeros(1, 4), half).item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    logits, truth = torch.tensor([[1.0, -1.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert multi_instance_loss(logits, truth).item() == pytest.approx(1.11325186, abs=1e-6)


def test_an_image_without_a_fractal_pays_for_what_it_claims() -> None:
    logits = torch.tensor([[1.0, -2.0]])
    assert multi_instance_loss(logits, torch.zeros(1, 2)).item() == pytest.approx(F.softplus(logits).mean().item(), abs=1e-6)


def test_the_loss_is_the_mean_over_images_of_torchs() -> None:
    logits, truth = torch.randn(6, 9), (torch.rand(6, 9) < 0.4).float()
    each = [F.binary_cross_entropy_with_logits(row, hot, pos_weight=9 / hot.sum().clamp_min(1)).item() for row, hot in zip(logits, truth)]
    assert multi_instance_loss(logits, truth).item() == pytest.approx(sum(each) / 6, abs=1e-6)


def test_batches_are_judged_by_all_classes_that_they_show() -> None:
    opened = data(val_images=10)
    objective = MultiInstance()
    hot = opened.val.store.targets(opened.val.positions)  # type: ignore[union-attr]

    class Knows(nn.Module):
        """Answers with what is there, image by image."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * (hot[: len(x)] * 40 - 20)

    numbers = objective.evaluate(Knows(), opened.val.loader(10))
    assert numbers == {"loss": pytest.approx(0, abs=1e-6), "top1": 1.0, "recall": 1.0}
    batch = next(iter(opened.train.loader(4, shuffle=True).batches()))
    assert torch.equal(present(batch, 5), opened.train.store.targets(batch.indices))  # type: ignore[union-attr]
    given = Batch(batch.images, batch.labels, batch.indices, targets=hot[:4])
    assert objective(Knows(), given)["top1"] == 1


def test_the_targets_of_a_part_of_the_data_are_its_own() -> None:
    opened = data()
    part = opened.train.subset([30, 4])
    batch = next(iter(part.loader(2).batches()))
    assert torch.equal(present(batch, 5), opened.train.store.targets(torch.tensor([30, 4])))  # type: ignore[union-attr]


def test_labels_of_other_images_count_as_one_class_each() -> None:
    digits = retinue.data.open("digits", train_images=20, test_images=10)
    batch = next(iter(digits.train.loader(6).batches()))
    model: Any = tiny("ours", in_chans=1)
    model.reset_classifier(10)
    loss = MultiInstance()(model.eval(), batch)["loss"]
    truth = F.one_hot(batch.labels, 10).float()
    assert loss.item() == pytest.approx(multi_instance_loss(model(batch.images), truth).item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_learns_and_resumes_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    class Stop(BaseException):
        """Ends a training as a kill does."""

    def train(folder: Path, stop: int = -1) -> retinue.engine.Run:
        torch.manual_seed(0)
        opened = data(input_size=32)
        model: Any = retinue.models.adapt(tiny(kind), input_size=32)
        model.reset_classifier(5)
        objective = MultiInstance()

        def after_step(model: nn.Module, step: int) -> None:
            if step == stop:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        return retinue.fit(
            model, objective, opened, max_steps=4, batch_size=16, checkpoint_every=1, run_dir=folder, loggers=("csv",), progress=False
        )

    run = train(tmp_path / "whole")
    assert math.isfinite(run.metrics["loss"])
    with pytest.raises(Stop):
        train(tmp_path / "stopped", stop=3)
    train(tmp_path / "stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000004") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)


def test_a_network_learns_which_fractals_a_few_images_show() -> None:
    opened = data(n_objects=(1, 2), n_points=1000)
    batch = next(iter(opened.train.loader(12, shuffle=True).batches()))
    model = retinue.create_model("small_convnet", widths=[16, 16, 32], num_classes=5)
    objective = MultiInstance()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        numbers = objective(model, batch)
        optimizer.zero_grad()
        numbers["loss"].backward()
        optimizer.step()
    assert numbers["top1"] == 1
    assert numbers["loss"] < 0.2


def test_the_fast_head_moves_as_one_optimizer_with_two_groups() -> None:
    digits = retinue.data.open("digits", train_images=40, test_images=10)
    torch.manual_seed(0)
    model: Any = retinue.create_model("small_convnet", widths=[8, 8], num_classes=10, in_chans=1, input_size=8)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    retinue.fit(
        model, FastHead(), digits, max_steps=1, batch_size=16, optimizer="sgd", lr=0.01, momentum=0.0, weight_decay=0.0,
        schedule="constant", players={"head": {"lr": 0.1}}, progress=False,
    )  # fmt: skip
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    batch = next(iter(digits.train.loader(16, shuffle=True).batches()))
    model.zero_grad()
    F.cross_entropy(model.train()(batch.images), batch.labels).backward()
    for name, parameter in model.named_parameters():
        lr = 0.1 if any(parameter is one for one in model.get_classifier().parameters()) else 0.01
        torch.testing.assert_close(after[name], start[name] - lr * parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_head_parts_any_network(kind: Any) -> None:
    model: Any = retinue.models.adapt(tiny(kind), input_size=32)
    players = FastHead().players(model)
    assert {id(p) for p in players["head"]} == {id(p) for p in model.get_classifier().parameters()}
    assert len(players["model"]) + len(players["head"]) == len(list(model.parameters()))
    model.eval()
    images = torch.rand(2, 3, 32, 32)
    batch = Batch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    (_, first), (_, second) = FastHead().losses(model, batch, 0)
    torch.testing.assert_close(first["loss"], F.cross_entropy(model(images), batch.labels), rtol=1e-5, atol=1e-6)
    assert torch.equal(first["loss"], second["loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, r"`num_classes` must be at least 1, got 0"),
        ({"per_class": 0}, r"`per_class` must be at least 1, got 0"),
        ({"n_points": -1}, r"`n_points` must be at least 1, got -1"),
        ({"size": 7}, r"`size` must be 8 pixels or more, got 7"),
        ({"mode": "double"}, r'no `mode` is called "double"\. There is multi, pairs, single'),
        ({"jitter": "scales"}, r'no `jitter` is called "scales"\. Did you mean scale'),
        ({"n_objects": (3, 2)}, r"`n_objects` must be \(fewest, most\) with 1 <= fewest <= most, got \(3, 2\)"),
        ({"n_objects": (0, 2)}, r"got \(0, 2\)"),
        ({"num_systems": 7}, r"`num_systems` must be a multiple of the 5 classes, got 7\. Each class has as many systems"),
        ({"n": 1}, r"`n` must be 2 maps or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        dataset(**changes)


def test_what_else_cannot_be_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"images are numbered from 0, got -1"):
        dataset()[-1]
    with pytest.raises(ArgumentError, match=r"`train_images` must be at least the 5 classes, .*got 4, 10 and 5"):
        data(train_images=4)
    with pytest.raises(ShapeError, match=r"logits of shape \(2, 3\) and labels of shape \(2, 4\)\. Both must be \(images, classes\)"):
        multi_instance_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ArgumentError, match=r"labels must be 0 or 1 for each class\. Class numbers need"):
        multi_instance_loss(torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 1.0]]))
    with pytest.raises(ArgumentError, match=r"there are logits that are not finite\. Lower the learning rate"):
        multi_instance_loss(torch.full((1, 3), torch.nan), torch.ones(1, 3))
    opened = data()
    model: Any = tiny("ours")
    model.reset_classifier(9)
    with pytest.raises(ArgumentError, match=r"the model has 9 outputs and fractals has 5 classes\. Build it with num_classes=5"):
        retinue.fit(model, MultiInstance(), opened, max_steps=1, progress=False)
    model.reset_classifier(5)
    with pytest.raises(ArgumentError, match=r"mixes images, whose classes are sets\. Leave it out"):
        retinue.fit(model, MultiInstance(), opened, max_steps=1, views="mixup(0.2)", progress=False)


def test_each_epoch_shows_images_of_its_own_with_their_targets() -> None:
    opened = data()
    first, second, again = (next(iter(opened.train.loader(6).batches(epoch))) for epoch in (0, 1, 0))
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, second.labels)
    store: Any = opened.train.store
    assert second.targets is not None
    assert torch.equal(second.targets, store.dataset.multi_hot(second.indices + len(store.dataset)))
    assert next(iter(data("single").train.loader(6).batches())).targets is None


def test_a_view_that_mixes_labels_is_refused_by_the_loader() -> None:
    loader = data().train.loader(4, views=retinue.views.parse("mixup(0.2)"))
    with pytest.raises(ArgumentError, match=r"mixes labels, and these images show several classes each\. Leave it out\."):
        next(iter(loader.batches()))


def test_a_recipe_makes_its_data_and_a_run_makes_them_again(tmp_path: Path) -> None:
    changes = {"data.num_classes": 3, "data.train_images": 24, "data.val_images": 6, "data.n_points": 300, "data.input_size": 16}
    bound = recipes.bind(recipes.load("fractal-pretraining", changes={**changes, "fit.epochs": 1, "fit.batch_size": 8}))
    run = bound.run(tmp_path, progress=False)
    again = reopen(tmp_path)
    assert run.steps == 3
    assert torch.equal(again.val.images(), bound.open().val.images())
    with pytest.raises(ArgumentError, match='no argument of data is called "in_memory"'):
        recipes.bind(recipes.load("fractal-pretraining", changes={"data.in_memory": True}))
    with pytest.raises(ArgumentError, match=r"fractals is a function that makes data\. Call it, or name it under `data` of"):
        retinue.data.open("retinue.pretrain.fractals")


def test_pairs_are_two_pictures_of_one_fractal() -> None:
    pairs = dataset("pairs", size=32, n_points=2000)
    image, label = pairs[9]
    assert (image.shape, label) == ((6, 32, 32), 1)
    assert pairs.images([]).shape == (0, 6, 32, 32)
    assert torch.equal(pairs.images([9, 3])[0], image), "in any order"
    assert not torch.equal(image[:3], image[3:])
    opened = data("pairs")
    objective = SimSiam(tiny("ours"), out_dim=8, bottleneck=4)
    objective.check(tiny("ours"), opened)
    batch = next(iter(opened.train.loader(6, views=objective.views).batches()))
    shown = opened.preprocessing.normalize(opened.train.images(batch.indices.tolist())[:, 3:])
    assert torch.equal(batch.views[1], shown)


def test_the_simsiam_loss_by_hand_and_where_its_gradient_goes() -> None:
    p1, p2, z1, z2 = (torch.tensor([row], requires_grad=True) for row in ([3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [1.0, 0.0]))
    loss = simsiam_loss(p1, p2, z1, z2)
    assert loss.item() == pytest.approx(-(0.6 + 0.0) / 2)
    loss.backward()
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad is not None
    assert p1.grad.abs().sum() > 0


def test_embeddings_that_agree_are_spread_and_a_collapse_shows() -> None:
    objective, model = SimSiam(tiny("ours"), out_dim=8, bottleneck=4), tiny("ours")
    one = torch.rand(1, 3, 16, 16).expand(5, -1, -1, -1)
    batch = Batch(one, torch.zeros(5, dtype=torch.long), torch.arange(5), views=(one, one))
    assert objective.eval()(model.eval(), batch)["spread"].item() == pytest.approx(0, abs=1e-5)
    with pytest.raises(ShapeError, match=r"SimSiam: a batch needs two views of each image, got 1\."):
        objective(model, Batch(one, batch.labels, batch.indices, views=(one,)))
    with pytest.raises(ArgumentError, match="`bottleneck` must be at least 1, got 0"):
        SimSiam(tiny("ours"), bottleneck=0)
    objective.check(model, retinue.data.open("digits"))
    assert repr((objective.views or ())[0]).startswith("random_resized_crop((8, 8)")
