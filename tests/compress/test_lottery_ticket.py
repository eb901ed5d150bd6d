"""Lottery tickets: rewinding, determinism, resumption, stability, the twelve networks, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from twelve import NETWORKS, network

import retinue
from retinue.compress.lottery_ticket import IMP, Level, _one_shot, lottery_ticket
from retinue.compress.masked_training import SpanTraining
from retinue.compress.masks import full_mask, magnitude_mask, masked
from retinue.compress.sparse_checkpoint import load_sparse
from retinue.compress.stability import angle_deg, error_barrier, l2_distance
from retinue.errors import ArgumentError, ShapeError


@pytest.fixture(scope="module")
def data() -> Any:
    return retinue.data.open("digits", train_images=64, test_images=40)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return retinue.create_model("mlp", widths=[16], num_classes=10, in_chans=1, input_size=8)


def test_rewinds_to_the_initial_weights_bit_for_bit(data: Any) -> None:
    starts = []
    training = SpanTraining(data, steps=4, batch_size=16)

    def train(model: nn.Module, mask: Any, start: int, end: int, seed: int) -> float:
        starts.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return training(model, mask, start, end, seed)

    levels = IMP(mlp, train, steps=4, levels=2).run()
    for level, start in zip(levels, starts, strict=True):
        for name, kept in level.mask.items():
            assert torch.equal(start[name], mlp().state_dict()[name] * kept)
            assert bool((level.weights[name][~kept] == 0).all())


def test_rewinding_to_the_end_trains_nothing(data: Any) -> None:
    search = IMP(mlp, SpanTraining(data, steps=4, batch_size=16), steps=4, rewind_step=4, levels=1)
    dense, ticket = search.run()
    assert all(torch.equal(ticket.weights[name], dense.weights[name] * kept) for name, kept in ticket.mask.items())


def test_a_whole_span_is_what_fit_does(data: Any) -> None:
    model, settings = mlp(), {"batch_size": 16, "optimizer": "momentum", "lr": 0.1, "weight_decay": 1e-4, "momentum": 0.9}
    SpanTraining(data, steps=6, schedule="cosine", **settings)(model, full_mask(model), 0, 6, 3)
    run = retinue.fit(
        mlp(), retinue.train.Supervised(), data, max_steps=6, schedule="cosine", seed=3, progress=False, eval_every=99, **settings
    )
    assert all(torch.equal(tensor, run.model.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_two_spans_are_one_training_without_momentum(data: Any) -> None:
    training = SpanTraining(data, steps=6, batch_size=16, momentum=0.0, schedule="cosine")
    whole, parts = mlp(), mlp()
    training(whole, full_mask(whole), 0, 6, 0)
    training(parts, full_mask(parts), 0, 3, 0)
    training(parts, full_mask(parts), 3, 6, 0)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_resumes_at_its_round(data: Any, tmp_path: Path) -> None:
    training = SpanTraining(data, steps=4, batch_size=16)
    calls = []

    def dies(model: nn.Module, mask: Any, start: int, end: int, seed: int) -> float:
        calls.append(start)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return training(model, mask, start, end, seed)

    with pytest.raises(KeyboardInterrupt):
        IMP(mlp, dies, steps=4, rewind_step=1, levels=3, run_dir=tmp_path).run()
    calls = [0] * 4
    resumed = IMP(mlp, dies, steps=4, rewind_step=1, levels=3, run_dir=tmp_path).run()
    assert len(calls) == 4 + 2  # the round that was killed, and the last
    straight = IMP(mlp, training, steps=4, rewind_step=1, levels=3).run()
    for a, b in zip(resumed, straight, strict=True):
        assert a.accuracy == b.accuracy
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in b.weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_pruned_and_rewound(name: str) -> None:
    model = network(name)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])

    def train(model: nn.Module, mask: Any, start: int, end: int, seed: int) -> float:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        with masked(model.train(), mask):
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return 0.0

    _, ticket = IMP(lambda: model, train, steps=1, levels=1).run()
    assert abs(ticket.density - 0.8) < 1e-3
    assert all(bool((ticket.weights[key][~kept] == 0).all()) for key, kept in ticket.mask.items())


def test_the_procedure_leaves_an_ordinary_and_a_small_checkpoint(data: Any, tmp_path: Path) -> None:
    model = retinue.create_model("mlp", widths=[100], num_classes=10, in_chans=1, input_size=8)
    found = lottery_ticket(
        model, data, tmp_path, steps=8, rewind_step=2, levels=2, fraction=0.6, tolerance=1.0, points=3, fit_args={"batch_size": 16}
    )
    assert found["chosen"] == 2
    assert set(found["reinit"]) == set(found["random"]) == set(found["one_shot"]) == {"1", "2"}
    assert found["sparse_bytes"] < found["bytes"] / 1.8
    for again in (retinue.load(tmp_path / "ticket"), load_sparse(tmp_path / "sparse")[0]):
        assert retinue.evaluate(again, data.test)["top1"] == found["ticket"][2]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_one_shot_removes_as_many_at_once(data: Any, tmp_path: Path, scope: Any) -> None:
    model = mlp()
    mask = magnitude_mask(model, full_mask(model), 0.3, scope, ["head.weight"])
    level = Level(1.0, full_mask(model), 0.0, model.state_dict())
    once = _one_shot(model, level, mask, scope, ["head.weight"])
    assert all(torch.equal(once[name], kept) for name, kept in mask.items())
    whole = lottery_ticket(mlp(), data, steps=1, levels=1, controls=["one_shot"], control_levels=[0], points=2, scope=scope)
    assert whole["one_shot"]["0"] == whole["ticket"][0]  # nothing is removed of the whole network


def test_distances_and_angles() -> None:
    w, mask = {"w": torch.tensor([3.0, 4.0, 9.0])}, {"w": torch.tensor([True, True, False])}
    assert l2_distance(w, {"w": torch.zeros(3)}, mask) == 5
    assert angle_deg(w, w, mask) == 0
    assert angle_deg(w, {"w": -w["w"]}, mask) == 180
    assert angle_deg(w, {"w": torch.tensor([-4.0, 3.0, 1.0])}, mask) == pytest.approx(90)
    with pytest.raises(ArgumentError, match=r'the weight "w" of the mask is missing\.'):
        l2_distance(w, {}, mask)
    with pytest.raises(ShapeError, match=r'"w" has shape \(2,\) and its mask has \(3,\)\.'):
        l2_distance(w, {"w": torch.zeros(2)}, mask)


def test_barriers() -> None:
    a, b = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
    hill = error_barrier(a, b, lambda w: 0.5 - 0.25 * abs(float(w["w"])), points=3)
    assert (hill.errors, hill.height, hill.stable) == ([0.25, 0.5, 0.25], 0.25, False)
    assert error_barrier(a, a, lambda w: float(w["w"]) ** 2).height == 0
    with pytest.raises(ArgumentError, match=r"`points` must be 2 or more, got 1\."):
        error_barrier(a, b, lambda w: 0.0, points=1)
    with pytest.raises(ArgumentError, match=r'"v" is in one network only\.'):
        error_barrier(a, {"v": b["w"]} | b, lambda w: 0.0)


def test_what_is_refused(data: Any) -> None:
    for k in (-1, 5):
        with pytest.raises(ArgumentError, match=rf"`rewind_step` must lie between 0 and the 4 steps of the training, got {k}\."):
            IMP(mlp, lambda *_: 0.0, steps=4, rewind_step=k)
    with pytest.raises(ArgumentError, match=r"`levels` must be 0 or more, got -1\."):
        IMP(mlp, lambda *_: 0.0, steps=4, levels=-1)
    with pytest.raises(ArgumentError, match=r"`steps` must be 1 or more, got 0\."):
        SpanTraining(data, steps=0)
    with pytest.raises(ArgumentError, match=r'"plateau" has no position to rewind to\.'):
        SpanTraining(data, steps=1, schedule="plateau")
    with pytest.raises(ArgumentError, match=r'no control is called "reinitt"\. Did you mean reinit'):
        lottery_ticket(mlp(), data, steps=4, controls=["reinitt"])
    with pytest.raises(ArgumentError, match=r"there is no level 9\. Levels go from 0, the whole network, to 2\."):
        lottery_ticket(mlp(), data, steps=4, levels=2, control_levels=[9])
    with pytest.raises(ArgumentError, match=r"lottery_ticket: `points` must be 2 or more, got 1\."):
        lottery_ticket(mlp(), data, steps=4, points=1)
    with pytest.raises(ArgumentError, match=r'no setting of `fit_args` is called "bath_size"\. Did you mean batch_size'):
        lottery_ticket(mlp(), data, steps=4, fit_args={"bath_size": 3})
    with pytest.raises(ArgumentError, match=r"`tolerance` must be 0 or more, got -1\."):
        lottery_ticket(mlp(), data, steps=4, tolerance=-1)
