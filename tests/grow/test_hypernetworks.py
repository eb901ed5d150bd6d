"""hypernetworks: the exact checks of what is generated, the laws of each form, and what is refused."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from twelve import NETWORKS, network

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import tiny
from retinue.models.hypernetwork import HyperNetwork
from retinue.models.hypernetwork_by_name import around
from retinue.models.hypernetwork_layout import find_slots

EMITS = ("full", "multi_head", "component", "chunk")
FORMS = [
    *((emit, trunk) for emit in EMITS for trunk in ("mlp", "linear")),
    *((emit, trunk) for emit in ("component", "chunk") for trunk in ("rnn", "attention", "cnn")), ("full", "cnn"),
]  # fmt: skip


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small(emit: str = "chunk", **options: Any) -> HyperNetwork:
    options = {"num_tasks": 3, "hidden": (16, 16), "chunk_size": 20, **options}
    if options.get("condition", "task").find("task") < 0:
        del options["num_tasks"]
    return HyperNetwork(mlp(12, 6, 4), emit=emit, **options)  # type: ignore[arg-type]


def numbers(net: HyperNetwork, condition: Any = None) -> dict[str, Any]:
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in net.generate(condition).items()}


def test_the_pages_numbers_of_weights_and_parameters() -> None:
    net = HyperNetwork(mlp(64, 32, 2), num_tasks=5, chunk_size=256, hidden=(64, 64))
    assert net.num_generated == 2146
    assert net.emitter.tokens == 9
    assert net.num_hyper == 5 * 8 + 9 * 8 + (16 * 64 + 64) + (64 * 64 + 64) + (64 * 256 + 256) == 22_000
    assert sum(p.numel() for p in net.parameters()) == 22_000
    assert net.compression == 22_000 / 2146
    assert HyperNetwork(mlp(64, 256, 256, 10), num_tasks=1).num_generated == 85_002


def test_a_full_head_and_the_heads_together_have_h_n_plus_n_parameters() -> None:
    h, n = 16, 12 * 6 + 6 + 6 * 4 + 4
    for emit in ("full", "multi_head"):
        net = small(emit)
        assert net.num_generated == n
        assert sum(p.numel() for p in net.emitter.heads.parameters()) == h * n + n
    assert len(small("multi_head").emitter.heads) == 4


def test_components_are_cut_from_the_largest_and_the_last_chunk_is_cut() -> None:
    assert small("component").emitter.heads[0].out_features == 72
    whole = small("component")
    assert whole.emitter.tokens == 4
    kept = whole.generate(0)
    with torch.no_grad():
        whole.emitter.embedding.view(4, 8)[2] += 1.0  # type: ignore[union-attr]
    assert [name for name, tensor in whole.generate(0).items() if not torch.equal(tensor, kept[name])] == ["3.weight"]
    net = small(chunk_size=25)  # 106 numbers: four chunks, and 6 of the fifth
    assert net.emitter.tokens == math.ceil(106 / 25)
    before = net.generate(0)
    with torch.no_grad():
        first = net.weights(net.code(0))
        token, size = net.emitter.embedding.view(5, 8), 25  # type: ignore[union-attr]
        token[4] += 1.0
        moved = (net.weights(net.code(0)) != first)[0].nonzero()[:, 0]
    assert moved.tolist() == list(range(4 * size, 106))
    assert torch.equal(net.generate(0)["1.weight"], before["1.weight"])


def test_what_the_last_chunk_does_not_use_changes_nothing() -> None:
    net = HyperNetwork(mlp(3, 2), num_tasks=1, chunk_size=10, hidden=(4,))  # 8 numbers of one chunk of 10
    before = net.weights(net.code())
    with torch.no_grad():
        net.emitter.heads[0].weight[8:] += 1  # type: ignore[index]
        net.emitter.heads[0].bias[8:] += 1  # type: ignore[index]
    assert torch.equal(net.weights(net.code()), before)


def test_a_full_head_of_zeros_with_a_checkpoint_as_bias_is_that_checkpoint() -> None:
    target = mlp(12, 6, 4)
    weights = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    x = torch.randn(5, 12)
    expected = target(x)
    net = HyperNetwork(target, num_tasks=2, emit="full", trunk="linear")
    head: Any = net.emitter.heads[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.cat([tensor.flatten() for tensor in weights.values()]))
    for task in (0, 1):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in net.generate(task).items())
        assert torch.equal(net(x, task=task), expected)


@pytest.mark.parametrize(("emit", "trunk"), FORMS)
def test_the_materialised_network_answers_alike_and_the_gradient_reaches_the_code(emit: str, trunk: str) -> None:
    net = small(emit, trunk=trunk)
    x = torch.randn(5, 12)
    assert [name for name, _ in net.target.named_parameters()] == []
    for task in range(3):
        plain = net.materialise(task)
        assert type(plain) is nn.Sequential
        assert sum(p.numel() for p in plain.parameters()) == net.num_generated
        torch.testing.assert_close(plain(x), net(x, task=task), rtol=0, atol=1e-6)
    net(x, task=1).square().sum().backward()
    gradients = [embedding.grad for embedding in net.condition.tasks]
    assert gradients[0] is None
    assert gradients[2] is None
    assert gradients[1].abs().max() > 0  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.emitter.parameters())
    assert not torch.equal(net(x, task=0), net(x, task=2))


@pytest.mark.parametrize("condition", ["data", "noise", "task+noise", "task+data", "data+noise"])
def test_a_row_with_weights_of_its_own_is_what_a_loop_over_rows_says(condition: str) -> None:
    target = tiny("timm_vit", num_classes=3)
    net = HyperNetwork(target, condition, 2 if "task" in condition else None, chunk_size=3000, hidden=(16, 16)).eval()
    x = torch.randn(4, 3, 32, 32)
    task = 1 if "task" in condition else None
    noise = torch.randn(4, 32) if "noise" in condition else None
    together = net(x, task=task, noise=noise)
    rows = [net(x[i : i + 1], task=task, noise=None if noise is None else noise[i]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(rows), rtol=0, atol=1e-5)
    if condition == "data":
        torch.testing.assert_close(net.materialise(x[2:3])(x[2:3]), together[2:3], rtol=0, atol=1e-5)
        assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (4, 32)


def test_support_images_make_one_set_of_weights() -> None:
    net = HyperNetwork(mlp(48, 6, 3), "data", hidden=(16,), chunk_size=50, encoder=nn.Sequential(nn.Flatten(), nn.Linear(48, 32))).eval()
    x, support = torch.randn(4, 3, 4, 4), torch.randn(6, 3, 4, 4)
    torch.testing.assert_close(net(x, support=support), net.materialise(support)(x))
    torch.testing.assert_close(net(x, support=support)[:2], net(x[:2], support=support.flip(0)))


def test_each_row_can_be_of_another_task() -> None:
    net = around(tiny("bare"), num_tasks=3, chunk_size=900, hidden=(8,), input_size=(32, 32)).eval()
    x, tasks = torch.randn(5, 3, 32, 32), torch.tensor([2, 0, 2, 1, 0])
    expected = torch.cat([net(x[i : i + 1], task=int(tasks[i])) for i in range(5)])
    torch.testing.assert_close(net(x, task=tasks), expected, rtol=0, atol=1e-5)
    both = small(condition="task+noise").eval()
    x, noise = torch.randn(5, 12), torch.randn(5, 32)
    expected = torch.cat([both(x[i : i + 1], task=int(tasks[i]), noise=noise[i]) for i in range(5)])
    torch.testing.assert_close(both(x, task=tasks, noise=noise), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("emit", ["full", "multi_head", "chunk"])
def test_hyperfan_gives_weights_the_variance_two_over_fan_in(emit: str) -> None:
    target = nn.Sequential(nn.Linear(200, 150, bias=False), nn.ReLU(), nn.Linear(150, 100, bias=False))
    net = HyperNetwork(target, "noise", emb_dim=64, emit=emit, trunk="linear", chunk_size=4000, token_dim=64)  # type: ignore[arg-type]
    theta = numbers(net, torch.randn(64) if emit == "chunk" else torch.ones(64))  # features of unit variance
    tolerance = 0.15 if emit == "chunk" else 0.05  # 12 chunk embeddings, of 64 numbers each, are few
    for name, fan_in in (("0.weight", 200), ("2.weight", 150)):
        assert theta[name].var() == pytest.approx(2 / fan_in, rel=tolerance)
    half = HyperNetwork(nn.Linear(200, 150), num_tasks=1, emb_dim=64, emit="full", trunk="linear")
    assert numbers(half)["weight"].var() == pytest.approx(1 / 200, rel=0.05)
    assert numbers(half)["bias"].var() == pytest.approx(1, rel=0.4)  # of 150 numbers
    out = HyperNetwork(nn.Linear(200, 150, bias=False), num_tasks=1, emit="full", trunk="linear", init="hyperfan_out")
    assert numbers(out)["weight"].var() == pytest.approx(2 / 150, rel=0.05)


@pytest.mark.parametrize("emit", EMITS)
def test_match_gives_each_tensor_the_moments_that_the_target_has(emit: str) -> None:
    target = nn.Sequential(nn.Linear(100, 80), nn.LayerNorm(80), nn.Linear(80, 60))
    net = HyperNetwork(target, num_tasks=1, emit=emit, init="match", hidden=(64, 64), chunk_size=700)  # type: ignore[arg-type]
    for name, ratio in net.spread_ratios().items():
        assert ratio == pytest.approx(1, rel=0.6 if "bias" in name else 0.35), name  # one draw of few features
    assert numbers(net)["1.weight"].mean() == pytest.approx(1, abs=0.1)
    assert "1.weight" not in net.spread_ratios()


def test_a_constant_tensor_starts_as_it_was_where_heads_are_not_shared() -> None:
    net = HyperNetwork(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), num_tasks=1, emit="multi_head", hidden=(8,))
    assert torch.equal(net.generate()["1.weight"], torch.ones(3))
    net.generate()["1.weight"].sum().backward()
    assert net.emitter.heads[2].weight.grad.abs().sum() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("residual", [True, "frozen"])
@pytest.mark.parametrize("emit", ["full", "chunk", "multi_head"])
def test_a_residual_starts_as_the_target(residual: Any, emit: str) -> None:
    x = torch.randn(5, 12)
    target = mlp(12, 6, 4)
    expected = target(x)
    net = HyperNetwork(target, num_tasks=2, emit=emit, residual=residual, hidden=(8,))  # type: ignore[arg-type]
    assert torch.equal(net(x, task=1), expected)
    net(x, task=1).square().sum().backward()
    assert net.emitter.heads[-1].bias.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert [p.grad is not None for p in target.parameters()] == [residual is True] * 4


def test_only_what_is_named_is_generated() -> None:
    net = HyperNetwork(tiny("timm_vit"), num_tasks=2, generate=["head.*", "blocks.0.attn.qkv.weight"], chunk_size=500)
    ordinary = dict(net.target.named_parameters())
    assert set(net.generate(0)) == {"head.weight", "head.bias", "blocks.0.attn.qkv.weight"}
    assert not set(net.generate(0)) & set(ordinary)
    net(torch.randn(2, 3, 32, 32), task=0).sum().backward()
    assert all(p.grad is not None for p in ordinary.values())
    made = net.materialise(1)
    assert torch.equal(made.get_parameter("blocks.1.mlp.fc1.weight"), ordinary["blocks.1.mlp.fc1.weight"])
    assert made.get_parameter("blocks.1.mlp.fc1.weight") is not ordinary["blocks.1.mlp.fc1.weight"]


def test_a_tied_tensor_is_generated_once_and_reaches_both_places() -> None:
    target = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    target[2].weight = target[0].weight
    net = HyperNetwork(target, num_tasks=1, emit="full", hidden=(8,))
    assert [slot.name for slot in net.slots] == ["0.weight", "0.bias", "2.bias"]
    assert net.num_generated == 35
    plain: Any = net.materialise()
    assert plain[0].weight is plain[2].weight
    x = torch.randn(3, 5)
    weights = net.generate()
    by_hand = (x @ weights["0.weight"].T + weights["0.bias"]).relu() @ weights["0.weight"].T + weights["2.bias"]
    torch.testing.assert_close(net(x), by_hand)
    torch.testing.assert_close(plain(x), by_hand)


def test_running_statistics_are_kept_for_each_task() -> None:
    net = around(network("bare"), num_tasks=2, hidden=(8,), chunk_size=100, input_size=(32, 32)).train()
    before = {name: buffer.clone() for name, buffer in net.statistics.named_buffers()}
    assert set(before) == {f"module/norm/{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    net(torch.randn(8, 3, 32, 32), task=1)
    after = dict(net.statistics.named_buffers())
    assert all(torch.equal(after[name][0], before[name][0]) for name in before)
    assert all(not torch.equal(after[name][1], before[name][1]) for name in before)
    assert int(net.target.get_buffer("module.norm.num_batches_tracked")) == 0
    assert torch.equal(net.materialise(1).get_buffer("module.norm.running_mean"), after["module/norm/running_mean"][1])
    assert torch.equal(net.materialise({"task": 0}).get_buffer("module.norm.running_mean"), torch.zeros(8))


def test_the_entropy_splits_into_noise_and_disagreement() -> None:
    net = small(condition="noise").eval()
    x = torch.randn(7, 12)
    told = net.predict(x, samples=5)
    assert all(value.shape == (7,) for name, value in told.items() if name != "probs")
    torch.testing.assert_close(told["probs"].sum(1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(told["entropy"], told["expected_entropy"] + told["mutual_information"], rtol=0, atol=1e-6)
    assert (told["mutual_information"] > 0).all()
    drawn = net.condition.draw(5, "cpu", torch.Generator().manual_seed(0))
    by_hand = torch.stack([net(x, noise=code).double().softmax(1) for code in drawn])
    torch.testing.assert_close(told["probs"], by_hand.mean(0))
    with torch.no_grad():
        net.emitter.trunk[0].weight[:, :32] = 0  # type: ignore[index]
    assert net.predict(x, samples=5)["mutual_information"].abs().max() < 1e-12
    assert small().predict(x, samples=3, task=0)["mutual_information"].abs().max() < 1e-12


def test_without_noise_the_answer_is_the_mean_over_fixed_codes() -> None:
    net = small(condition="noise", samples=4).eval()
    x = torch.randn(6, 12)
    by_hand = torch.stack([net(x, noise=code).softmax(1) for code in net.codes]).mean(0)
    torch.testing.assert_close(net(x).exp(), by_hand)
    assert torch.equal(net(x), net(x))
    assert not torch.equal(net.train()(x), net(x))


def test_the_task_with_the_surest_answer_is_found() -> None:
    net = HyperNetwork(nn.Linear(1, 2), num_tasks=2, emit="full", trunk="linear", emb_dim=2)
    head: Any = net.emitter.heads[0]
    with torch.no_grad():  # task 0 is sure of positive numbers alone, task 1 of negative ones
        head.weight.zero_()
        head.bias.zero_()
        for task, sign in enumerate((1.0, -1.0)):
            net.condition.tasks[task].copy_(torch.eye(2)[task])
            head.weight[0, task], head.weight[2, task] = 10 * sign, 10.0
    assert net.infer_task(torch.tensor([[1.0], [-1.0], [2.0]])).tolist() == [0, 1, 0]


def test_a_narrower_network_gets_the_leading_parts() -> None:
    net, narrow = small("component"), mlp(12, 3, 4)
    net.to_width(narrow, 1)
    wide = net.generate(1)
    assert torch.equal(narrow[1].weight, wide["1.weight"][:3])  # type: ignore[arg-type]
    assert torch.equal(narrow[3].weight, wide["3.weight"][:, :3])  # type: ignore[arg-type]
    assert torch.equal(narrow[3].bias, wide["3.bias"])  # type: ignore[arg-type]
    net.generate(0, like=narrow)["1.weight"].sum().backward()
    assert net.condition.tasks[0].grad is not None


@given(emit=st.sampled_from(EMITS), seed=st.integers(0, 99), chunk=st.integers(1, 200))
def test_every_number_is_generated_once_and_in_order(emit: str, seed: int, chunk: int) -> None:
    torch.manual_seed(seed)
    net = small(emit, chunk_size=chunk)
    theta = net.weights(net.code(2))[0]
    assert torch.equal(torch.cat([tensor.flatten() for tensor in net.generate(2).values()]), theta)
    assert theta.shape == (106,)


@pytest.mark.parametrize("condition", ["task", "noise", "data"])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_on_each_of_the_twelve(name: str, condition: str) -> None:
    target = network(name)
    options: dict[str, Any] = {"condition": condition, "chunk_size": 2000, "hidden": (16, 16), "input_size": (32, 32)}
    normed = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in target.modules())
    if condition == "data" and normed:
        with pytest.raises(ArgumentError, match=r"weights of their own for each image have no running statistics, and `.+` is a BatchNorm"):
            around(target, **options)
        return
    if condition == "task":
        options["num_tasks"] = 2
    net = around(target, **options).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = [p.detach().clone() for p in net.parameters()]
    loss = nn.functional.cross_entropy(net(torch.randn(4, 3, 32, 32), task=1 if condition == "task" else None), torch.arange(4))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters())]
    assert sum(moved) >= len(moved) - (condition == "task")  # the other task's embedding stays
    x = torch.randn(2, 3, 32, 32)
    net.eval()
    asked: Any = {"task": 1, "noise": torch.randn(32), "data": x}[condition]
    given_: dict[str, Any] = {condition if condition != "data" else "support": asked}
    torch.testing.assert_close(net.materialise(asked)(x), net(x, **given_), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_the_protocol_is_the_targets(kind: Any) -> None:
    net: Any = around(tiny(kind), chunk_size=3000, hidden=(8,), input_size=(32, 32)).eval()
    x = torch.randn(2, 3, 32, 32)
    features = net.forward_features(x)
    torch.testing.assert_close(net.forward_head(features), net(x))
    assert net.forward_head(features, pre_logits=True).shape[1] == net.num_features
    assert (net.num_classes, net.in_chans) == (10, 3)
    assert retinue.models.adapt(net) is net
    net.reset_classifier(4)
    assert net(x).shape == (2, 4)
    assert net.num_classes == 4


def test_create_model_builds_what_around_made() -> None:
    made: Any = around(tiny("timm_cnn"), condition="task+noise", num_tasks=2, hidden=(8, 8), samples=2, chunk_size=1000)
    again: Any = retinue.create_model(made.retinue_config["name"], **made.retinue_config["arguments"])
    again.load_state_dict(made.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(x, task=1), made.eval()(x, task=1))
    with torch.device("meta"):
        assert retinue.create_model("hypernetwork", target="mlp", input_size=8, in_chans=1, condition="noise").num_generated == 150_600
    assert around(tiny("bare"), hidden=(8,)).__dict__.get("retinue_config") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generate": ["1.wieght"]}, r'no parameter of the target is called "1\.wieght"\. Did you mean 1\.weight'),
        ({"generate": []}, r"there is nothing to generate in Sequential: no parameter that learns\. Unfreeze it, or name some"),
        ({"condition": "tusk"}, r'no `condition` is called "tusk"\. Did you mean task'),
        ({"condition": "task+task"}, r'`condition` names a part twice, got "task\+task"'),
        ({"num_tasks": None}, r'condition="task" needs `num_tasks`, a whole number of at least 1, got None\..*say num_tasks=1'),
        ({"condition": "noise"}, r'`num_tasks` belongs to condition="task", and it is "noise"\. Leave it out'),
        ({"emb_dim": 0}, r"`emb_dim` must be at least 1, got 0\. It is the length of a code"),
        ({"chunk_size": 0}, r"`chunk_size` must be at least 1, got 0\. It counts the numbers of a chunk"),
        ({"hidden": ()}, r"`hidden` must be one positive number of units or more, got \[\]"),
        ({"token_dim": 0}, r"`token_dim` must be at least 1, got 0"),
        ({"samples": 0}, r"`samples` must be at least 1, got 0\. It counts the networks that are drawn"),
        ({"emit": "chunks"}, r'no `emit` is called "chunks"\. Did you mean chunk'),
        ({"trunk": "lstm"}, r'no `trunk` is called "lstm"'),
        ({"init": "xavier"}, r'no `init` is called "xavier"'),
        ({"residual": "yes"}, r"`residual` must be False, True or \"frozen\", got 'yes'"),
        ({"emit": "full", "trunk": "rnn"}, r'the trunk "rnn" runs over tokens, and emit="full" has one\. Take "component" or "chunk"'),
        ({"emit": "multi_head", "trunk": "cnn"}, r'the trunk "cnn" is a head too, and "multi_head" has one a tensor'),
        ({"trunk": "rnn", "hidden": (8, 9)}, r'the layers of the trunk "rnn" are of one size, got `hidden`=\[8, 9\]'),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        HyperNetwork(mlp(12, 6, 4), **{"num_tasks": 2, **options})


def test_what_would_not_fit_into_memory_is_refused_with_the_way_out() -> None:
    with torch.device("meta"):
        target = retinue.create_model("timm:resnet50")
        with pytest.raises(
            ArgumentError, match=r'with emit="full" the hypernetwork would hold 2,\d{3},\d{3},\d{3} values.*Take emit="chunk"'
        ):
            HyperNetwork(target, num_tasks=1, emit="full")
        with pytest.raises(ArgumentError, match=r'with emit="component" the hypernetwork would emit .* values'):
            HyperNetwork(target, num_tasks=1, emit="component", hidden=(8,))
        assert HyperNetwork(target, num_tasks=1, chunk_size=10_000, hidden=(32,)).num_generated == 25_557_032


def test_tensors_that_cannot_be_generated_are_refused() -> None:
    target = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    target[1].weight = target[0].weight
    with pytest.raises(ArgumentError, match=r"`0\.weight` and `1\.weight` are one tied tensor, generated twice\. Name one of them"):
        find_slots(target, ["0.weight", "1.weight"])
    with pytest.raises(ArgumentError, match=r"`weight` of the target has no shape yet\. Run the target once on an image first"):
        find_slots(nn.LazyLinear(3), "all")
    with pytest.raises(ArgumentError, match="there is nothing to generate in Linear"):
        find_slots(nn.Linear(3, 3).requires_grad_(False), "all")


def test_conditions_that_are_missing_or_do_not_fit_are_refused() -> None:
    net, x = small(), torch.randn(4, 12)
    for task in (None, 3, -1):
        with pytest.raises(ArgumentError, match=rf"`task` must lie between 0 and 2, got {task}\. Say it, as in model\(images, task=0\)"):
            net(x, task=task)
    with pytest.raises(ArgumentError, match=r'a condition is needed, of "task", and "task" is missing\. Give the number of a task'):
        net.materialise()
    with pytest.raises(ArgumentError, match=r'of "task\+noise", and "noise" is missing'):
        small(condition="task+noise").materialise({"task": 0})
    with pytest.raises(ShapeError, match=r"`task` must be a number, or one for each of 4 images, got shape \(3,\)"):
        net(x, task=torch.tensor([0, 1, 2]))
    noisy = small(condition="noise")
    with pytest.raises(ShapeError, match=r"`noise` must be of length 32, got \(1, 5\)\. Draw it: torch\.randn\(32\)"):
        noisy(x, noise=torch.zeros(5))
    with pytest.raises(ShapeError, match=r"there are 4 images and 3 codes\. Give one code, or one for each image"):
        noisy(x, noise=torch.zeros(3, 32))
    with pytest.raises(ArgumentError, match=r"`samples` must be at least 1, got 0"):
        noisy.predict(x, samples=0)
    with pytest.raises(ArgumentError, match=r'condition "data" asks for images from which the code is made\. Give `support`'):
        HyperNetwork(mlp(12, 4), "data", encoder=nn.Linear(12, 32)).condition(None, None, None)


def test_targets_and_networks_that_do_not_fit_are_refused() -> None:
    normed = around(network("bare"), condition="noise", hidden=(8,), input_size=(32, 32))
    with pytest.raises(ArgumentError, match=r"no running statistics, and `module\.norm` is a BatchNorm2d\. Take a target with group"):
        normed(torch.randn(2, 3, 32, 32), noise=torch.randn(2, 32))
    with pytest.raises(ArgumentError, match=r"Sequential lacks timm's protocol\. Wrap it first: HyperNetwork\(retinue\.models\.adapt"):
        small().forward_features(torch.randn(2, 12), task=0)
    with pytest.raises(ArgumentError, match=r"the classifier's weights depend on the image, which features do not show"):
        HyperNetwork(mlp(12, 4), "data", encoder=nn.Linear(12, 32)).forward_head(torch.randn(2, 12))
    with pytest.raises(ShapeError, match=r"`1\.weight` is of shape \(7, 12\) in the narrower network, and \(6, 12\) is what is generated"):
        small().to_width(mlp(12, 7, 4), 0)
    with pytest.raises(ShapeError, match=r"`3\.weight` is missing in the narrower network"):
        small().to_width(mlp(12, 6), 0)
