"""hypernetworks: the regulariser's exact checks, training in the engine, tasks in sequence, and what is refused."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import same
from torch import nn
from twelve import NETWORKS, network

import retinue
from retinue.data import Batch, Data
from retinue.engine import checkpoint
from retinue.errors import ArgumentError, ShapeError
from retinue.grow.hypernetwork_tasks import learn_tasks, task_data
from retinue.grow.hypernetworks import HyperNetwork, HyperTraining, OutputRegulariser, diversity_loss, output_units, save_network
from retinue.models import tiny
from retinue.models.export import export
from retinue.models.hypernetwork_by_name import around


def digits(**options: Any) -> Data:
    return retinue.data.open("digits", **{"train_images": 200, "test_images": 100, "val_fraction": 0.0, **options})


def small(num_tasks: int = 4, **options: Any) -> HyperNetwork:
    target = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4))
    return HyperNetwork(target, num_tasks=num_tasks, hidden=(16,), chunk_size=20, **options)


def mlp(classes: int) -> nn.Module:
    torch.manual_seed(3)
    return retinue.create_model("mlp", widths=[16], num_classes=classes, in_chans=1, input_size=8)


def a_batch(rows: int = 8, classes: int = 10) -> Batch:
    return Batch(torch.randn(rows, 3, 32, 32), torch.arange(rows) % classes, torch.arange(rows))


def test_the_regulariser_is_zero_with_a_gradient_of_zero_when_a_task_begins() -> None:
    net = small()
    regulariser = OutputRegulariser(net, 0.1)
    regulariser.begin_task(0)
    assert regulariser.loss() == 0
    regulariser.begin_task(2)
    assert not regulariser.targets.requires_grad
    loss = regulariser.loss()
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_twice_the_error_is_four_times_the_loss_whatever_the_number_of_tasks() -> None:
    net = small()
    regulariser = OutputRegulariser(net, 0.5)
    found = []
    for task in (1, 2, 3):
        for size in (0.1, 0.2):
            regulariser.begin_task(task)
            regulariser.targets += size
            found.append(float(regulariser.loss().detach()))
    n = net.num_generated
    expected = [0.5 * n * 0.1**2, 0.5 * n * 0.2**2] * 3
    assert found == pytest.approx(expected, rel=1e-4)


def test_some_tasks_stand_for_all() -> None:
    net = small()
    regulariser = OutputRegulariser(net, 1.0, max_tasks=1)
    regulariser.begin_task(3)
    regulariser.targets += torch.tensor([[0.1], [0.2], [0.3]])
    drawn = {round(float(regulariser.loss().detach()) / net.num_generated, 4) for _ in range(30)}
    assert drawn == {0.01, 0.04, 0.09}


def test_what_is_unimportant_may_change() -> None:
    net = around(retinue.create_model("mlp", widths=[3], num_classes=4, in_chans=1, input_size=2), num_tasks=3, hidden=(8,))
    used = output_units(net, [0, 1])
    assert used.numel() == net.num_generated
    assert int((used == 0).sum()) == 2 * 3 + 2  # two rows of three weights, and their biases
    regulariser = OutputRegulariser(net, 1.0)
    regulariser.begin_task(2, torch.stack([used, 1 - used]))
    regulariser.targets += 1
    assert regulariser.loss().detach() == pytest.approx((float(used.sum()) + 8) / 2)
    regulariser.begin_task(2, used)
    regulariser.targets += 1 - used
    assert regulariser.loss() == 0


def test_looking_ahead_is_the_loss_after_the_step() -> None:
    net = small(2)
    regulariser = OutputRegulariser(net, 1.0)
    regulariser.begin_task(1)
    change = {name: 0.01 * torch.randn_like(p) for name, p in net.named_parameters()}
    ahead = regulariser.loss(change)
    ahead.backward()
    assert net.emitter.heads[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    with torch.no_grad():
        for name, p in net.named_parameters():
            p += change[name]
    assert float(ahead.detach()) == pytest.approx(float(regulariser.loss().detach()), rel=1e-5)
    assert float(ahead.detach()) > 0


def test_embeddings_of_earlier_tasks_can_be_frozen() -> None:
    net = small()
    OutputRegulariser(net, 0.1, freeze=True).begin_task(2)
    assert [embedding.requires_grad for embedding in net.condition.tasks] == [False, False, True, True]
    OutputRegulariser(net, 0.1).begin_task(2)
    assert all(embedding.requires_grad for embedding in net.condition.tasks)


def test_diversity_is_minus_the_mean_logarithm_of_distances() -> None:
    theta = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])  # mean squares 2, 8 and 10
    assert float(diversity_loss(theta)) == pytest.approx(-(math.log(2) + math.log(8) + math.log(10)) / 3, rel=1e-6)
    assert float(diversity_loss(torch.zeros(2, 3))) == pytest.approx(-math.log(1e-8), rel=1e-5)


def test_the_loss_of_drawn_networks_is_their_mean_and_the_diversitys() -> None:
    net = HyperNetwork(tiny("timm_vit"), "noise", hidden=(8,), chunk_size=5000).train()
    batch = a_batch()
    torch.manual_seed(5)
    numbers = HyperTraining(samples=3, diversity=0.2)(net, batch)
    torch.manual_seed(5)
    noise = torch.randn(3, 32)
    each = [nn.functional.cross_entropy(net(batch.images, noise=code), batch.labels) for code in noise]
    pulled = diversity_loss(net.weights(noise))
    torch.testing.assert_close(numbers["loss"], torch.stack(each).mean() + 0.2 * pulled)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_of_the_engine_on_each_of_the_twelve(name: str) -> None:
    data = digits(input_size=32, channels=3, train_images=20, test_images=10)
    target = network(name)
    objective = HyperTraining({"chunk_size": 2000, "hidden": [16]})
    run = retinue.fit(target, objective, data, max_steps=1, batch_size=8, lr=0.01, progress=False)
    assert isinstance(run.model, HyperNetwork)
    assert math.isfinite(run.history[-1]["train/loss"])
    plain = run.model.materialise()
    assert retinue.evaluate(plain, data.test)["loss"] == pytest.approx(retinue.evaluate(run.model, data.test)["loss"], rel=1e-4)


@pytest.mark.parametrize("options", [{"num_tasks": 1}, {"condition": "noise", "samples": 2}, {"condition": "data"}])
def test_a_run_is_loaded_and_what_it_makes_is_an_ordinary_network(options: dict[str, Any], tmp_path: Path) -> None:
    data = digits(val_fraction=0.1)
    objective = HyperTraining({"hidden": [16], "chunk_size": 200, "encoder": None, **options})
    del objective.options["encoder"]
    run = retinue.fit(mlp(10), objective, data, max_steps=2, batch_size=8, run_dir=tmp_path / "run", progress=False)
    model: Any = retinue.load(tmp_path / "run")
    assert isinstance(model, HyperNetwork)
    assert retinue.evaluate(model, data.test) == retinue.evaluate(run.model, data.test)
    asked: Any = {"task": None, "noise": torch.zeros(32), "data": torch.zeros(2, 1, 8, 8)}[options.get("condition", "task")]
    plain: Any = model.materialise(asked)
    assert (plain.classes, plain.preprocessing) == (data.classes, data.preprocessing)
    save_network(plain, data, tmp_path / "plain")
    loaded = retinue.load(tmp_path / "plain")
    assert type(loaded).__name__ == "MLP"
    assert retinue.evaluate(loaded, data.test) == retinue.evaluate(plain, data.test)
    file = export(plain, tmp_path / "plain.pt", "torchscript")
    x = data.preprocessing.normalize(data.test.images(range(3)))
    torch.testing.assert_close(torch.jit.load(file)(x), plain(x), rtol=0, atol=1e-5)


def test_a_stopped_task_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def train(folder: Path, stop_at: int = -1) -> None:
        torch.manual_seed(0)
        net = around(mlp(10), num_tasks=3, hidden=(8,), chunk_size=200)
        objective = HyperTraining(task=2, beta=0.1, max_tasks=1, look_ahead=0.01)

        def after_step(model: nn.Module, step: int) -> None:
            if step == stop_at:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        retinue.fit(net, objective, digits(), max_steps=5, batch_size=8, checkpoint_every=2, run_dir=folder, log_every=1, progress=False)

    train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "stopped", stop_at=3)
    train(tmp_path / "stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000005") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)
    assert whole.training is not None
    assert stopped.training is not None
    assert same({**whole.training, "seconds": 0}, {**stopped.training, "seconds": 0})
    assert set(whole.training["objective"]) == {"regulariser.targets", "regulariser.importance"}, "the model is not the objective's"


def test_tasks_of_a_source_are_numbered_anew() -> None:
    data = digits()
    task = task_data(data, [7, 3])
    assert task.classes == ["7", "3"]
    assert len(task.val) == 0
    assert len(task.train) == int(((data.train.labels == 7) | (data.train.labels == 3)).sum())
    first = int((data.train.labels == 3).nonzero()[0, 0])
    place = task.train.positions.tolist().index(int(data.train.positions[first]))
    assert int(task.train.labels[place]) == 1
    assert torch.equal(task.train.images([place]), data.train.images([first]))


def test_tasks_in_sequence_are_kept_by_the_regulariser_and_read_back(tmp_path: Path) -> None:
    data = digits(train_images=600)
    options = {"hidden": [32, 32], "chunk_size": 256, "init": "match"}
    settings: dict[str, Any] = {"tasks": 5, "options": options, "steps": 120, "lr": 2e-3, "progress": False}
    kept = learn_tasks(mlp(10), data, beta=0.1, run_dir=tmp_path, **settings)
    free = learn_tasks(mlp(10), data, beta=0.0, **settings)
    assert kept["all"]["accuracy"] > free["all"]["accuracy"] + 0.03
    assert kept["all"]["forgetting"] < free["all"]["forgetting"]
    assert list(kept["after task 2"]) == ["task 0", "task 1", "task 2"]
    each = [kept[f"after task {t}"][f"task {t}"] for t in range(4)]
    last = list(kept["after task 4"].values())
    assert kept["all"]["forgetting"] == pytest.approx(sum(a - b for a, b in zip(each, last)) / 4)
    assert kept["all"]["accuracy"] == pytest.approx(sum(last) / 5)
    assert kept["all"]["compression"] == kept["all"]["parameters"] / kept["all"]["generated"]
    assert learn_tasks(mlp(10), data, beta=0.1, run_dir=tmp_path, **settings) == kept
    (tmp_path / "stages" / "task-4").rename(tmp_path / "gone")
    shutil.rmtree(tmp_path / "task-4")
    assert learn_tasks(mlp(10), data, beta=0.1, run_dir=tmp_path, **settings) == kept, "the last task is learned again, and alike"
    loaded: Any = retinue.load(tmp_path / "networks" / "task-1")
    assert loaded.classes == ["2", "3"]
    found = retinue.evaluate(loaded, task_data(data, [2, 3]).test)["top1"]
    assert found == pytest.approx(last[1])


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_tasks_in_sequence_on_any_target(kind: Any, tmp_path: Path) -> None:
    data = digits(input_size=32, channels=3, train_images=60, test_images=30)
    options = {"hidden": [8], "chunk_size": 2000}
    settings: dict[str, Any] = {"tasks": 2, "steps": 2, "batch_size": 8, "max_tasks": 1, "freeze": True, "progress": False}
    told = []
    for name in ("first", "second"):  # the second time, others have drawn random numbers before
        target = tiny(kind)
        same_start = {key: torch.full_like(tensor, 0.1) for key, tensor in target.state_dict().items()}
        target.load_state_dict(same_start)
        learn_tasks(target, data, options=options, run_dir=tmp_path / name, **settings)
        told.append(checkpoint.read(tmp_path / name / "networks" / "task-1").tensors)
    assert same(told[0], told[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, r"`beta` must be 0 or more, got -1\.0"),
        ({"look_ahead": -0.1}, r"`look_ahead` must be 0 or more, got -0\.1"),
        ({"diversity": math.nan, "samples": 2}, r"`diversity` must be 0 or more, got nan"),
        ({"samples": 0}, r"`samples` must be at least 1, got 0\. It counts the networks drawn at each step"),
        ({"diversity": 0.1}, r"`diversity` is among a step's networks, so `samples` must be 2 or more, got 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        HyperTraining(**options)


def test_models_that_do_not_fit_are_refused() -> None:
    data = digits()
    with pytest.raises(ArgumentError, match=r"`samples` and `diversity` are of networks drawn by noise, and the condition is \"task\""):
        retinue.fit(mlp(10), HyperTraining(samples=2), data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"`task` must lie between 0 and 1, got None"):
        retinue.fit(mlp(10), HyperTraining({"num_tasks": 2}), data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"the model has 3 outputs and digits has 10 classes"):
        retinue.fit(mlp(3), HyperTraining(), data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"the model must be a HyperNetwork, got MLP\. retinue\.fit builds one around any network"):
        HyperTraining()(mlp(10), a_batch())


def test_regularisers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r'`hnet` needs condition="task", got "noise"'):
        OutputRegulariser(HyperNetwork(nn.Linear(3, 2), "noise"), 0.1)
    with pytest.raises(ArgumentError, match=r"OutputRegulariser: `beta` must be 0 or more, got -1"):
        OutputRegulariser(small(), -1)
    with pytest.raises(ArgumentError, match=r"`max_tasks` must be at least 1, got 0\. None takes all earlier tasks"):
        OutputRegulariser(small(), 0.1, 0)
    with pytest.raises(ArgumentError, match=r"`task` must lie between 0 and 3, got 4"):
        OutputRegulariser(small(), 0.1).begin_task(4)
    with pytest.raises(ShapeError, match=r"`importance` must be of shape \(106,\) or \(2, 106\), got \(3,\)"):
        OutputRegulariser(small(), 0.1).begin_task(2, torch.ones(3))
    with pytest.raises(ShapeError, match=r"there must be two weight sets at least, got 1"):
        diversity_loss(torch.zeros(1, 4))
    with pytest.raises(ArgumentError, match=r"`units` must lie between 0 and 9, and be one at least, got \[10\]"):
        output_units(around(mlp(10)), [10])


def test_tasks_that_cannot_be_cut_are_refused() -> None:
    for tasks in (1, 3, 10):
        message = rf"`tasks` must cut the 10 classes of digits into two tasks or more, of two classes or more, all alike, got {tasks}\."
        with pytest.raises(ArgumentError, match=message):
            learn_tasks(mlp(10), digits(), tasks=tasks)
    with pytest.raises(
        ArgumentError, match=r'must have condition="task", 5 tasks and 2 outputs, got "task", 2 and 10\. Give the target alone'
    ):
        learn_tasks(around(mlp(10), num_tasks=2), digits())
    with pytest.raises(ArgumentError, match=r"`classes` must be numbers between 0 and 9, each once, got \[1, 1\]"):
        task_data(digits(), [1, 1])
