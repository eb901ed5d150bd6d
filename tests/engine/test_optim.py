"""Optimisers and schedules: exact numbers of the papers, timm's and torch's own numbers, and what is refused."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import timm.scheduler
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retinue.engine.checkpoint import read_plain
from retinue.engine.optim import SCHEDULES, Schedule, make_optimizer
from retinue.errors import ArgumentError

SGD: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor([values], dtype=torch.float64))


def rates(name: str, steps: int, per_epoch: int, warmup: float = 0.0, lr: float = 0.1, order: Any = None, **arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([weight(1.0)], lr=lr)
    schedule = Schedule(optimizer, name, steps=steps, steps_per_epoch=per_epoch, warmup_epochs=warmup, **arguments)
    found = {}
    for step in order or range(steps):
        schedule.set(step)
        found[step] = optimizer.param_groups[0]["lr"]
    return [found[step] for step in sorted(found)]


# --- optimisers -------------------------------------------------------------------------------------------------------------------


def test_the_first_two_steps_of_rmsprop_as_tensorflow_has_it() -> None:
    # Inception-v4, section 4: decay 0.9, epsilon 1.0. The mean square begins at one, and epsilon stands under the root.
    parameter = weight(1.0)
    optimizer = make_optimizer("rmsproptf", [parameter], lr=0.045, weight_decay=0.0, momentum=0.9, alpha=0.9, eps=1.0)
    parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    first = 0.045 * 2 / math.sqrt(0.9 * 1 + 0.1 * 4 + 1.0)
    assert parameter.item() == pytest.approx(1 - first, rel=1e-12)
    parameter.grad = torch.full_like(parameter, -1.0)
    optimizer.step()
    second = 0.9 * first + 0.045 * -1 / math.sqrt(0.9 * 1.3 + 0.1 * 1 + 1.0)
    assert parameter.item() == pytest.approx(1 - first - second, rel=1e-12)


def test_sgd_has_nesterov_and_momentum_has_not() -> None:
    ends = {}
    for name in ("sgd", "momentum"):
        parameter = weight(0.0)
        optimizer = make_optimizer(name, [parameter], lr=0.5, weight_decay=0.0, momentum=0.5)
        for _ in range(2):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        ends[name] = parameter.item()
    # momentum: v = 1, 1.5; x = -(1 + 1.5) / 2. Nesterov: g + 0.5 v = 1.5, 1.75; x = -(1.5 + 1.75) / 2
    assert ends == {"momentum": -1.25, "sgd": -1.625}


def test_biases_and_scales_are_not_decayed_unless_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decays = [
        group["weight_decay"]
        for group in make_optimizer("sgd", list(net.parameters()), lr=0.1, weight_decay=0.01, momentum=0.9).param_groups
    ]
    assert decays == [0.01, 0.0]
    every = make_optimizer("sgd", list(net.parameters()), lr=0.1, weight_decay=0.01, momentum=0.9, filter_bias_and_bn=False)
    assert [(group["weight_decay"], len(group["params"])) for group in every.param_groups] == [(0.01, 4)]
    for parameter in net.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer("sgd", list(net.parameters()), lr=0.5, weight_decay=0.5, momentum=0.0).step()
    assert [parameter.unique().tolist() for parameter in net.parameters()] == [[0.75], [1.0], [1.0], [1.0]]


@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "adamw", "adam", "lars", "rmsprop", "rmsproptf", "nadamw", "adafactor", "lion", "muon"]
)
def test_an_optimizer_is_timms_own(name: str) -> None:
    nets = []
    for build in ("ours", "timm"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        if build == "ours":
            optimizer = make_optimizer(name, list(net.parameters()), lr=0.01, weight_decay=0.1, momentum=0.9)
        else:
            optimizer = timm.optim.create_optimizer_v2(net, opt=name, lr=0.01, weight_decay=0.1, momentum=0.9, filter_bias_and_bn=True)
        for step in range(3):
            optimizer.zero_grad()
            net(torch.linspace(-1, 1 + step, 20).reshape(5, 4)).square().sum().backward()
            optimizer.step()
        nets.append(net)
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_wrong_optimizers_and_settings_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r'^fit: no optimizer is called "adamm"\. Did you mean adam'):
        make_optimizer("adamm", [weight(1.0)], **SGD)
    with pytest.raises(
        ArgumentError, match=r'^fit: the optimizer "sgd" does not take `betas`\. Leave it out, or take another optimizer\.$'
    ):
        make_optimizer("sgd", [weight(1.0)], **SGD, betas=(0.9, 0.99))
    with pytest.raises(ArgumentError, match=r'^fit: the optimizer "lion" does not take `eps`\.'):
        make_optimizer("lion", [weight(1.0)], **SGD, eps=1.0)
    with pytest.raises(
        ArgumentError, match=r'^fit: the optimizer "sgd" does not take \[\'alpha\'\]: .*unexpected keyword argument \'alpha\'\.$'
    ):
        make_optimizer("sgd", [weight(1.0)], **SGD, alpha=0.9)
    with pytest.raises(ArgumentError, match=r'^fit: the optimizer "sgd" refuses its settings: optimizer got an empty parameter list\.'):
        make_optimizer("sgd", [], **SGD)
    with pytest.raises(ArgumentError, match=r'^fit: the optimizer "sgd" refuses its settings: Invalid learning rate: -1\.'):
        make_optimizer("sgd", [weight(1.0)], **{**SGD, "lr": -1.0})
    with pytest.raises(ArgumentError, match=r'^fit: the optimizer "adamw" refuses its settings: Invalid beta parameter at index 0: 2'):
        make_optimizer("adamw", [weight(1.0)], **SGD, betas=(2.0, 0.9))


# --- schedules: exact numbers -----------------------------------------------------------------------------------------------------


def test_the_staircase_of_the_inception_papers() -> None:
    # Inception-v4, section 4: 0.045, decayed every two epochs using an exponential rate of 0.94
    per_epoch = 3
    found = rates("step", 30, per_epoch, lr=0.045, decay_epochs=2, decay_rate=0.94)
    assert found == pytest.approx([0.045 * 0.94 ** (step // per_epoch // 2) for step in range(30)], rel=1e-14)
    assert [round(rate / 0.045, 4) for rate in found[::6]] == [1, 0.94, 0.8836, 0.8306, 0.7807]


@given(st.integers(1, 40), st.integers(1, 9), st.floats(0.001, 10))
def test_cosine_by_its_formula(steps: int, per_epoch: int, lr: float) -> None:
    expected = [lr / 2 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    assert rates("cosine", steps, per_epoch, lr=lr) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_constant_multistep_poly_and_tanh_by_their_formulas() -> None:
    assert rates("constant", 10, 5) == [0.1] * 10
    # timm's milestones come one update early: it asks for the rate at the end of the update
    assert rates("multistep", 8, 2, decay_milestones=[1, 3], decay_rate=0.1) == pytest.approx([0.1] + [0.01] * 4 + [0.001] * 3)
    assert rates("poly", 8, 2, decay_rate=0.5) == pytest.approx([0.1 * (1 - step / 8) ** 0.5 for step in range(8)])
    tanh = [0.1 * 0.5 * (1 - math.tanh(-7 * (1 - step / 8) + 3 * step / 8)) for step in range(8)]  # from lb=-7 to ub=3
    assert rates("tanh", 8, 2) == pytest.approx(tanh, rel=1e-9)


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "multistep", "poly", "tanh", "plateau"])
@pytest.mark.parametrize("warmup", [0.5, 1, 1.25, 2])
def test_the_warm_up_is_linear_from_zero(name: str, warmup: float) -> None:
    more = {"multistep": {"decay_milestones": [3]}, "step": {"decay_epochs": 3}}.get(name, {})
    found = rates(name, 16, 4, warmup=warmup, **more)
    length = int(warmup * 4)
    assert found[length] == rates(name, 16, 4, **more)[length], "the schedule itself is not moved by its warm-up"
    end = 0.1 if name != "tanh" else found[length]  # timm's tanh begins where the warm-up ends
    assert found[:length] == pytest.approx([end * step / length for step in range(length)], abs=1e-15)
    if name in ("constant", "plateau"):
        assert found[length:] == [0.1] * (16 - length)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_depends_on_the_step_alone(name: str) -> None:
    more: dict[str, Any] = {"multistep": {"decay_milestones": [1, 2]}, "step": {"decay_epochs": 1}}.get(name, {})
    forwards = rates(name, 12, 4, warmup=1, **more)
    assert rates(name, 12, 4, warmup=1, **more, order=[7, 8, 9, 10, 11]) == (forwards[7:] if name != "plateau" else [0.1] * 5)
    if name != "plateau":
        assert rates(name, 12, 4, warmup=1, **more, order=range(11, -1, -1)) == forwards


# --- schedules: peers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cosine", {}),
        ("cosine", {"min_lr": 0.01}),
        ("cosine", {"cycle_limit": 2, "cycle_decay": 0.5}),
        ("step", {"decay_epochs": 2, "decay_rate": 0.94}),
        ("step", {"decay_epochs": 1.5, "decay_rate": 0.5}),
        ("multistep", {"decay_milestones": [1, 4], "decay_rate": 0.1}),
        ("poly", {"decay_rate": 0.9}),
        ("tanh", {}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 1])
def test_schedules_are_timms_own(name: str, arguments: dict[str, Any], warmup: int) -> None:
    optimizer = torch.optim.SGD([weight(1.0)], lr=0.1)
    theirs, epochs = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=6,
        warmup_epochs=warmup,
        cooldown_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=5,
        **{"min_lr": 0.0, "warmup_lr": 0.0, **arguments},
    )
    expected = []
    for step in range(30):
        theirs.step_update(step)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(name, 30, 5, warmup=warmup, **arguments) == expected
    assert epochs in (6, 12)


@pytest.mark.parametrize("arguments", [{}, {"pct_start": 0.2, "div_factor": 10.0, "anneal_strategy": "linear"}])
def test_onecycle_is_torchs_own(arguments: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([weight(1.0)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=21, cycle_momentum=False, **arguments)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates("onecycle", 20, 5, **arguments) == pytest.approx(expected, rel=1e-14)
    assert 0 < rates("onecycle", 1, 1)[0] <= 0.1


# --- plateau ----------------------------------------------------------------------------------------------------------------------


def plateau(**arguments: Any) -> tuple[torch.optim.Optimizer, Schedule]:
    optimizer = torch.optim.SGD([weight(1.0)], lr=0.1)
    return optimizer, Schedule(optimizer, "plateau", steps=100, steps_per_epoch=10, **arguments)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_plateau_cuts_after_its_patience_and_is_torchs_own(mode: str) -> None:
    optimizer, schedule = plateau(patience_epochs=1, decay_rate=0.5)  # timm's words, as for the others
    other = torch.optim.SGD([weight(1.0)], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(other, mode=mode, patience=1, factor=0.5, threshold_mode="abs")  # type: ignore[arg-type]
    found = []
    for epoch, better in enumerate([1.0, 2.0, 2.0, 1.5, 3.0, 3.0, 3.0, 3.0, 3.0]):
        metric = better if mode == "max" else -better
        schedule.evaluated(epoch, metric, mode)
        theirs.step(metric)
        schedule.set(10 * (epoch + 1))
        found.append(optimizer.param_groups[0]["lr"])
        assert found[-1] == other.param_groups[0]["lr"]
    assert found == [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.0125]


def test_plateau_sees_a_loss_that_grows_below_zero() -> None:
    optimizer, schedule = plateau(patience=0)
    for loss in (-5.0, -4.9, -4.8):
        schedule.evaluated(1, loss, "min")
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_plateau_waits_for_the_end_of_the_warm_up_and_for_numbers() -> None:
    optimizer, schedule = plateau(patience=0, warmup_epochs=2)
    schedule.set(20)
    for epoch, metric in ((0, 9.0), (1, 8.0), (2, 7.0), (3, None), (3, 7.5)):
        schedule.evaluated(epoch, metric)
    assert optimizer.param_groups[0]["lr"] == 0.1
    schedule.evaluated(4, 7.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_resumed_plateau_goes_on_where_it_stopped(tmp_path: Path) -> None:
    metrics = [1.0, 0.9, 1.2, 1.1, 1.1, 1.1, 1.3, 1.2, 1.2, 1.2]
    optimizer, schedule = plateau(patience=1, factor=0.5, cooldown=1)
    whole = []
    for epoch, metric in enumerate(metrics):
        schedule.evaluated(epoch, metric)
        whole.append(optimizer.param_groups[0]["lr"])
    assert len(set(whole)) == 3
    for stop in range(len(metrics)):
        optimizer, schedule = plateau(patience=1, factor=0.5, cooldown=1)
        for epoch in range(stop):
            schedule.evaluated(epoch, metrics[epoch])
        torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
        state = read_plain(tmp_path / "state.pt")  # plain numbers: no code is needed to read them
        optimizer, schedule = plateau(patience=1, factor=0.5, cooldown=1)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        for epoch in range(stop, len(metrics)):
            schedule.evaluated(epoch, metrics[epoch])
            assert optimizer.param_groups[0]["lr"] == whole[epoch]


def test_all_others_have_nothing_to_remember() -> None:
    for name in set(SCHEDULES) - {"plateau"}:
        optimizer = torch.optim.SGD([weight(1.0)], lr=0.1)
        schedule = Schedule(optimizer, name, steps=10, steps_per_epoch=5, warmup_epochs=1)
        schedule.evaluated(1, 0.5)
        assert schedule.state_dict() == {}
        schedule.load_state_dict({})


def test_the_optimizers_state_round_trips_under_a_schedule(tmp_path: Path) -> None:
    def train(first: int, last: int, state: dict[str, Any] | None) -> tuple[dict[str, Any], torch.Tensor]:
        parameter = weight(1.0, -2.0)
        optimizer = make_optimizer("adamw", [parameter], lr=0.1, weight_decay=0.01, momentum=0.9)
        schedule = Schedule(optimizer, "cosine", steps=8, steps_per_epoch=4, warmup_epochs=0.5)
        if state is not None:
            parameter.data = state["parameter"]
            optimizer.load_state_dict(state["optimizer"])
        for step in range(first, last):
            schedule.set(step)
            optimizer.zero_grad()
            parameter.square().sum().backward()
            optimizer.step()
        return {"parameter": parameter.detach(), "optimizer": optimizer.state_dict()}, parameter.detach()

    whole = train(0, 8, None)[1]
    torch.save(train(0, 5, None)[0], tmp_path / "state.pt")
    assert torch.equal(train(5, 8, read_plain(tmp_path / "state.pt"))[1], whole)


def test_wrong_schedules_and_arguments_are_refused() -> None:
    optimizer = torch.optim.SGD([weight(1.0)], lr=0.1)
    common = {"steps": 10, "steps_per_epoch": 5}
    with pytest.raises(ArgumentError, match=r'^fit: no schedule is called "cosin"\. Did you mean cosine'):
        Schedule(optimizer, "cosin", **common)
    with pytest.raises(
        ArgumentError, match=r'^fit: the schedule "cosine" does not take \[\'decay\'\]: .*unexpected keyword argument \'decay\'\.$'
    ):
        Schedule(optimizer, "cosine", **common, decay=3)
    with pytest.raises(ArgumentError, match=r'^fit: the schedule "onecycle" does not take \[\'decay_rate\'\]: '):
        Schedule(optimizer, "onecycle", **common, decay_rate=3)
    with pytest.raises(ArgumentError, match=r'^fit: the schedule "plateau" refuses its settings: Factor should be < 1\.0\.'):
        Schedule(optimizer, "plateau", **common, factor=3.0)
