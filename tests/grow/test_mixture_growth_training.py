"""MixtureGrowth in the engine: phases that leave each other alone, the procedure of stages, costs, and ordinary networks."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import same
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Data
from retinue.errors import ArgumentError, CheckpointError
from retinue.grow.mixture_growth import MixtureGrowth, convert, grow, materialise
from retinue.grow.mixture_growth_costs import GrowthPlan, multiply_adds, sizes
from retinue.grow.mixture_growth_stages import (
    ensemble,
    fresh,
    optimizer_state,
    refresh_norms,
    remembered,
    save_ordinary,
    train_mixture_growth,
)
from retinue.models import tiny
from retinue.models.export import export
from retinue.models.mixture_growth_networks import wide_resnet
from retinue.train import Supervised

NET: dict[str, Any] = {"backbone": "small_convnet", "backbone_args": {"widths": [8, 8, 16]}}


def digits() -> Data:
    return retinue.data.open("digits", train_images=96, test_images=100, val_fraction=0.0)


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return retinue.create_model("mixture_growth", num_classes=10, in_chans=1, input_size=8, **NET)


def trained(network: nn.Module, objective: nn.Module, steps: int = 3, **options: Any) -> Any:
    settings = {"batch_size": 32, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.1, "progress": False, **options}
    return retinue.fit(network, objective, digits(), max_steps=steps, epochs=steps, **settings).model


def of_member(network: Any, member: int) -> dict[str, torch.Tensor]:
    """All that a member is made of, by name: templates, coefficients, norms, biases and statistics."""
    keys = [f"banks.{key}.{member}" for key in network.banks] + [f"weights.{key}.coefficients.{member}" for key in network.weights]
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if name in keys or name.startswith(f"members.{member}.")}


def unlike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


def test_training_member_1_leaves_member_0_bit_for_bit() -> None:
    network = trained(model(), MixtureGrowth(0))
    first, other = of_member(network, 0), of_member(network, 1)
    assert len(first) == 4 + 4 + (3 * 5 + 1)  # templates and coefficients of four layers, three norms of five tensors, a bias
    network = trained(network, MixtureGrowth(1))
    assert unlike(first, of_member(network, 0)) == set()
    assert unlike(other, of_member(network, 1)) == set(other)
    assert network.trained.tolist() == [True, True]


def test_only_what_a_member_is_made_of_is_handed_to_the_optimiser() -> None:
    network = model()
    for member in (0, 1):
        own = {id(p) for name, p in network.named_parameters() if name in of_member(network, member)}
        assert {id(p) for p in MixtureGrowth(member).players(network)["model"]} == own
    both = MixtureGrowth(1, other_weight=0.1).players(network)
    assert [set(map(id, both[player])) for player in ("model", "other")] == [set(map(id, network.own_parameters(m))) for m in (1, 0)]


def test_both_can_be_trained_with_member_0_at_a_tenth() -> None:
    network = trained(model(), MixtureGrowth(0))
    first = of_member(network, 0)
    moved = trained(copy.deepcopy(network), MixtureGrowth(1, other_weight=0.1))
    assert unlike(first, of_member(moved, 0)) == set(first)
    batch = next(digits().train.loader(16).batches())
    network.eval()
    losses = {player: numbers["loss"] for player, numbers in MixtureGrowth(1, other_weight=0.1).losses(network, batch, 0)}
    assert torch.equal(losses["model"], MixtureGrowth(1)(network, batch)["loss"])
    assert_close(losses["other"], 0.1 * MixtureGrowth(0)(network, batch)["loss"])


def test_only_the_templates_of_the_trained_member_are_decayed() -> None:
    network, options = model(), {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
    plain, decayed = (
        trained(copy.deepcopy(network), MixtureGrowth(1, other_weight=0.1), 1, players={"other": {"weight_decay": 0.0}}, **options, **more)
        for more in ({"weight_decay": 0.0}, {"weight_decay": 0.5})
    )
    before = dict(network.state_dict())
    assert unlike(of_member(plain, 0), of_member(decayed, 0)) == set()
    one, other = of_member(plain, 1), of_member(decayed, 1)
    assert unlike(one, other) == {name for name in one if name.startswith("banks")}  # no coefficient, norm or bias
    for name in unlike(one, other):
        assert_close(other[name] - one[name], -0.1 * 0.5 * before[name], atol=1e-6, rtol=1e-4)  # float32: a difference of numbers near 1


def test_norm_decay_is_the_weight_decay_of_sgd() -> None:
    network, options = model(), {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "weight_decay": 0.0}
    plain, decayed = (trained(copy.deepcopy(network), MixtureGrowth(1, norm_decay=decay), 1, **options) for decay in (0.0, 0.5))
    one, other = of_member(plain, 1), of_member(decayed, 1)
    norms = {name for name in one if name.endswith("bn.weight")}  # biases of norms are 0 yet, so there is nothing to decay
    assert unlike(one, other) == norms
    for name in norms:
        assert_close(other[name] - one[name], torch.full_like(one[name], -0.1 * 0.5), atol=1e-6, rtol=0)


def test_what_a_member_s_optimiser_remembers_is_read_and_carried_on(tmp_path: Path) -> None:
    network = model()
    before = of_member(network, 0)
    trained(network, MixtureGrowth(0), 1, run_dir=tmp_path, momentum=0.9, lr=0.1, weight_decay=0.0)
    after = of_member(network, 0)
    state = optimizer_state(tmp_path, MixtureGrowth(0), network, "sgd")
    assert {*state} == {*network.own_parameters(0)}
    names = {parameter: name for name, parameter in network.named_parameters()}
    for parameter, own in state.items():  # Nesterov's first step is -lr (1 + 0.9) g, and g is what is remembered
        moved = after[names[parameter]] - before[names[parameter]]
        assert_close(own["momentum_buffer"], -moved / (0.1 * 1.9), atol=2e-6, rtol=1e-3)
    weight, fresh_one = next(iter(state)), nn.Parameter(torch.zeros(2))
    at = weight.detach().clone()
    with remembered(state):
        optimizer = torch.optim.SGD([weight, fresh_one], lr=0.5, momentum=0.9)
        for _ in range(2):  # the second step begins with nothing new
            weight.grad, fresh_one.grad = torch.zeros_like(weight), torch.ones(2)
            optimizer.step()
    assert_close(weight.detach(), at - 0.5 * (0.9 + 0.81) * state[weight]["momentum_buffer"])
    assert_close(fresh_one.detach(), torch.full((2,), -0.5 * (1 + 1.9)))
    unlike_it = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    at = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    unlike_it.step()
    assert torch.equal(weight, at), "outside nothing is carried"
    with pytest.raises(CheckpointError, match=r"has no whole checkpoint\. .*Use keep_optimizer=False\."):
        optimizer_state(tmp_path / "nowhere", MixtureGrowth(0), network, "sgd")


def test_after_growth_everything_wide_learns_and_the_members_rest() -> None:
    network = model()
    network.trained.fill_(True)
    before = dict(copy.deepcopy(grow(network)).state_dict())
    with pytest.raises(ArgumentError, match="has grown, so there is no member 0 any more"):
        trained(network, MixtureGrowth(0))
    network = trained(network, MixtureGrowth(None))
    same_still = set(before) - unlike(before, dict(network.state_dict()))
    assert all(name.startswith("members.") or name in ("grown", "trained", "active") for name in same_still)


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "bare"])
def test_any_network_that_fits_is_converted_by_the_objective(kind: Any) -> None:
    network = tiny(kind)
    data = retinue.data.open("digits", train_images=32, test_images=32, channels=3, input_size=32)
    run = retinue.fit(network, MixtureGrowth(), data, max_steps=1, batch_size=8, progress=False)
    assert run.model.trained.tolist() == [True, False]
    assert {"top1", "loss"} <= set(run.metrics)


def test_a_transformer_is_refused_before_anything_is_trained() -> None:
    data = retinue.data.open("digits", train_images=32, test_images=32, channels=3, input_size=32)
    with pytest.raises(ArgumentError, match="mixes channels of several parts, or tokens"):
        retinue.fit(tiny("timm_vit"), MixtureGrowth(), data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"member=None trains what has grown, and this network has not. Call grow\(model\) first"):
        trained(model(), MixtureGrowth(None))


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = trained(model(), MixtureGrowth(1), 6, run_dir=tmp_path / "whole")
    trained(model(), MixtureGrowth(1), 6, run_dir=tmp_path / "cut", checkpoint_every=2)
    last = tmp_path / "cut" / "checkpoints" / "step-000000006"  # without it, the run was killed after step 4
    last.rename(tmp_path / "gone")
    again = trained(model(), MixtureGrowth(1), 6, run_dir=tmp_path / "cut", checkpoint_every=2)
    assert same(whole.state_dict(), again.state_dict())


def test_ensemble_is_where_zero_begins() -> None:
    data = digits()
    network = trained(trained(model(), MixtureGrowth(0), 8), MixtureGrowth(1), 8)
    together = ensemble(network, data.test.loader(64))
    assert MixtureGrowth(None).evaluate(grow(network, "zero"), data.test.loader(64)) == pytest.approx(together, abs=1e-5)


def test_refreshed_norms_hold_the_means_of_the_data() -> None:
    data = digits()
    network = grow(trained(trained(model(), MixtureGrowth(0)), MixtureGrowth(1)))
    refresh_norms(network, data.train.loader(96))
    images = next(data.train.loader(96).batches()).images
    norm = network.full.stem[0].bn
    with network.running() as wide:
        raw = nn.functional.conv2d(images, wide.stem[0].conv.weight, padding=1)
    assert_close(norm.running_mean, raw.mean((0, 2, 3)))
    assert_close(norm.running_var, raw.var((0, 2, 3)))
    assert norm.momentum == 0.1


def test_costs_count_both_members() -> None:
    torch.manual_seed(0)
    network = convert(retinue.create_model("mlp", widths=[48, 48, 48], num_classes=10, in_chans=1, input_size=8))
    macs = multiply_adds(network, 8)
    assert macs == {"member": 64 * 24 + 2 * 24 * 24 + 24 * 10, "wide": 64 * 48 + 2 * 48 * 48 + 48 * 10}
    plan = GrowthPlan((2, 3), 4)
    costs = plan.costs(macs, 100)
    narrow = 3 * macs["member"] * 100
    assert costs == {
        "member 0": 2 * narrow, "member 1": 3 * narrow, "growth": 3 * macs["wide"] * 400, "total": 5 * narrow + 3 * macs["wide"] * 400,
    }  # fmt: skip
    assert GrowthPlan((2, 3), 4, train_both=True).costs(macs, 100)["member 1"] == 2 * costs["member 1"]
    assert plan.twin_epochs(macs, "cost") * macs["wide"] == pytest.approx(5 * macs["member"] + 4 * macs["wide"])
    assert plan.twin_epochs(macs, "steps") == 4


def test_the_procedure_gives_ordinary_networks_beside_their_twin_and_resumes(tmp_path: Path) -> None:
    data = digits()
    settings: dict[str, Any] = {
        "member_epochs": (3, 3), "grown_epochs": 2, "lr_member": 0.05, "lr_grown": 0.01, "batch_size": 32, "progress": False,
    }  # fmt: skip
    numbers = train_mixture_growth(model(), data, run_dir=tmp_path / "a", refresh=True, **settings)
    assert list(numbers) == [
        "member 0", "member 1", "ensemble", "at growth", "grown", "narrow twin", "twin", "cost", "macs", "parameters", "sizes",
    ]  # fmt: skip
    assert numbers["cost"]["narrow twin"] == numbers["cost"]["member 0"]
    assert numbers["cost"]["twin"] == pytest.approx(numbers["cost"]["total"], rel=1e-6)
    for name, told in (("member-0", "member 0"), ("member-1", "member 1"), ("grown", "grown")):
        ordinary = retinue.load(tmp_path / "a" / "ordinary" / name)
        assert type(ordinary).__name__ == "Network"
        assert retinue.evaluate(ordinary, data.test)["top1"] == pytest.approx(numbers[told]["top1"], abs=1e-6)
    assert ordinary.retinue_config["name"] == "small_convnet"
    narrow = retinue.load(tmp_path / "a" / "ordinary" / "member-0")
    assert (narrow.num_features, narrow.retinue_config["name"]) == (8, "mixture_growth_member")
    whole = retinue.load(tmp_path / "a" / "grown")
    assert bool(whole.grown)
    images = next(data.test.loader(8).batches()).images
    assert_close(whole(images), ordinary(images), atol=1e-5, rtol=1e-5)
    for row, told in zip(sizes(numbers), ("member-0", "member-1", "grown"), strict=True):
        ordinary = retinue.load(tmp_path / "a" / "ordinary" / told)
        assert row["parameters"] == sum(p.numel() for p in ordinary.parameters())
        assert row["macs"] == retinue.models.count_macs(ordinary, 8)
    last = sizes(numbers)[2]
    assert (last["cost"], last["twin_top1"], last["twin_cost"]) == (
        numbers["cost"]["total"], numbers["twin"]["top1"], numbers["cost"]["twin"],
    )  # fmt: skip
    written = list(csv.DictReader((tmp_path / "a" / "sizes.csv").open()))
    assert [{key: str(value) for key, value in row.items()} for row in sizes(numbers)] == written
    assert [{"size": name, **row} for name, row in numbers["sizes"].items()] == sizes(numbers)
    again = train_mixture_growth(model(), data, run_dir=tmp_path / "a", refresh=True, **settings)
    assert again == numbers
    for gone in ("grown", "twin"):  # killed after growth: what stands is read back, the rest is computed
        (tmp_path / "a" / "stages" / gone).rename(tmp_path / f"stage-{gone}")
        (tmp_path / "a" / gone).rename(tmp_path / f"run-{gone}")
    assert train_mixture_growth(model(), data, run_dir=tmp_path / "a", refresh=True, **settings) == numbers


def test_kept_momentum_resumes_bit_for_bit_and_changes_what_is_grown(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "member_epochs": (2, 2), "grown_epochs": 2, "lr_member": 0.05, "lr_grown": 0.01, "batch_size": 32, "progress": False, "twin": None,
        "other_weight": 0.1, "decay_norms": True, "warmup_grown": 0,
    }  # fmt: skip
    fresh_start = train_mixture_growth(model(), digits(), run_dir=tmp_path / "fresh", **settings)
    kept = train_mixture_growth(model(), digits(), run_dir=tmp_path / "kept", keep_optimizer=True, **settings)
    told = {name: json.loads((tmp_path / "kept" / name / "config.json").read_text()) for name in ("member-0", "member-1", "grown")}
    assert [one["objective"]["norm_decay"] for one in told.values()] == [5e-4] * 3
    assert [one["fit"]["players"] for one in told.values()] == [None, {"other": {"weight_decay": 0.0}}, None]
    assert kept["at growth"] == fresh_start["at growth"]
    assert kept["grown"]["loss"] != fresh_start["grown"]["loss"]
    for gone in ("growth", "grown"):  # killed before growth
        (tmp_path / "kept" / "stages" / gone).rename(tmp_path / f"stage-{gone}")
    (tmp_path / "kept" / "grown").rename(tmp_path / "run-grown")
    assert train_mixture_growth(model(), digits(), run_dir=tmp_path / "kept", keep_optimizer=True, **settings) == kept
    (tmp_path / "kept" / "stages" / "grown").rename(tmp_path / "stage-grown-again")  # killed in the middle of the last phase
    newest = sorted((tmp_path / "kept" / "grown" / "checkpoints").glob("step-*"))[-1]
    newest.rename(tmp_path / "newest")
    assert train_mixture_growth(model(), digits(), run_dir=tmp_path / "kept", keep_optimizer=True, **settings) == kept


def test_the_ways_to_grow_reach_the_procedure() -> None:
    settings: dict[str, Any] = {"member_epochs": (1, 1), "grown_epochs": 0, "twin": None, "batch_size": 32, "progress": False}
    drawn = [[vector.detach().clone() for vector in weight.coefficients] for weight in model().weights.values()]
    for init, more, law in (
        ("copy", {}, lambda c, old: torch.equal(c[2], c[0]) and torch.equal(c[3], c[1])),
        ("copy", {"noise": 0.1}, lambda c, old: 0 < float((c[2] - c[0]).abs().max()) < 1),
        ("orthogonal", {"scale": 0.5}, lambda c, old: abs(float(c[2] @ c[0])) < 1e-6 and float(c[3].norm()) == pytest.approx(0.5)),
        ("orthogonal", {"orthogonal_mode": "reference"}, lambda c, old: torch.equal(c[2], old[2]) and not torch.equal(c[3], old[3])),
        ("none", {}, lambda c, old: torch.equal(c[2], old[2]) and torch.equal(c[3], old[3])),
        ("zero", {}, lambda c, old: not c[2].any() and not c[3].any()),
    ):
        network = model()
        train_mixture_growth(network, digits(), init=init, **more, **settings)  # type: ignore[arg-type]
        for weight, old in zip(network.weights.values(), drawn, strict=True):
            c = [vector.detach() for vector in weight.coefficients]
            assert len(c) == 2 or law(c, old), (init, more)


def test_a_network_of_anyone_s_goes_through_the_procedure() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    numbers = train_mixture_growth(
        net, digits(), member_epochs=(1, 1), grown_epochs=0, lr_member=0.05, init="zero", twin=None, batch_size=32, progress=False
    )
    assert list(numbers) == ["member 0", "member 1", "ensemble", "at growth", "cost", "macs", "parameters", "sizes"]
    assert [row["size"] for row in sizes(numbers)] == ["member 0", "member 1", "grown"]
    assert sizes(numbers)[2]["top1"] == numbers["at growth"]["top1"]
    assert "twin_top1" not in sizes(numbers)[2]
    assert numbers["at growth"] == pytest.approx(numbers["ensemble"], abs=1e-5)
    assert numbers["cost"]["growth"] == 0


def test_a_twin_has_weights_of_its_own() -> None:
    named = fresh(model())
    assert (named.retinue_config["name"], type(named).__name__) == ("small_convnet", "Network")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    converted = convert(net, input_size=8)
    twin, plain = fresh(converted), converted.plain(None)
    assert twin.module[1].weight.shape == (16, 64)
    assert not torch.equal(twin.module[1].weight, plain.module[1].weight)


def test_ordinary_networks_export_and_train_on(tmp_path: Path) -> None:
    data = digits()
    network = trained(trained(model(), MixtureGrowth(0)), MixtureGrowth(1))
    ordinary: Any = save_ordinary(grow(network), None, data, tmp_path / "grown")
    assert (ordinary.classes, ordinary.preprocessing) == (data.classes, data.preprocessing)
    loaded = retinue.load(tmp_path / "grown")
    assert same(dict(loaded.state_dict()), dict(ordinary.state_dict()))
    assert export(loaded, tmp_path / "grown.pt", "torchscript").exists()
    assert export(loaded, tmp_path / "grown.onnx").exists(), "which compares the file's answers with the network's"
    before = materialise(network)
    after = trained(loaded, Supervised())
    assert unlike(dict(before.state_dict()), dict(after.state_dict()))


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`member_epochs` must be two numbers above 0 and `grown_epochs` 0 or more, got \[3\] and 1"):
        GrowthPlan((3,), 1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"learning rates must be above 0, got 0 and 0\.1"):
        GrowthPlan(lr_member=0, lr_grown=0.1)
    with pytest.raises(ArgumentError, match=r'`twin`.*"step"'):
        train_mixture_growth(model(), digits(), twin="step")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"keep_optimizer=True needs a `run_dir`, from whose checkpoints .* Name one\."):
        train_mixture_growth(model(), digits(), keep_optimizer=True)
    with pytest.raises(ArgumentError, match=r"`norm_decay` must be 0 or more, got -1\. The released code has its weight decay\."):
        MixtureGrowth(norm_decay=-1)
    late: Any = {"optimizer": "none such", "progress": False}  # what cannot grow is said before a member is trained
    with pytest.raises(ArgumentError, match=r'grow: no `init` is called "ortogonal"\. Did you mean orthogonal'):
        train_mixture_growth(model(), digits(), init="ortogonal", **late)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'no `orthogonal_mode` is called "exakt"'):
        train_mixture_growth(model(), digits(), orthogonal_mode="exakt", **late)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"train_mixture_growth: there are no test and no validation images to measure on\. Open the"):
        train_mixture_growth(model(), retinue.data.open("digits", val_fraction=0, test_fraction=0))


def test_bad_objectives_are_refused() -> None:
    with pytest.raises(ArgumentError, match="`member` must be 0, 1, or None for the network that has grown, got 3"):
        MixtureGrowth(3)
    with pytest.raises(ArgumentError, match=r"above 0 only with member=1, got 0\.1 with member=0"):
        MixtureGrowth(0, other_weight=0.1)
    with pytest.raises(ArgumentError, match="`depth` must be 6n \\+ 4"):
        wide_resnet(depth=12)
