"""N2N: rewards, policies, and what each edit of a network gives, by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retinue.compress.n2n_edits import apply_removal, apply_shrinkage, layer_descriptions, uniform_width
from retinue.compress.n2n_policies import (
    TABLE,
    RemovalPolicy,
    ShrinkagePolicy,
    load_policy,
    policy_loss,
    save_policy,
    uniform_actions,
)
from retinue.compress.n2n_reward import compression_reward, milliseconds, softness
from retinue.compress.n2n_students import TeachersAnswers, logit_error, tempered_error
from retinue.errors import ArgumentError, CheckpointError, ShapeError

EXAMPLE = torch.zeros(1, 3, 16, 16)


def plain() -> nn.Sequential:
    """Two convolutions, a pool and a classifier: leaves 0 to 6 and 8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """A stem, and one residual block with or without a convolution in its shortcut."""

    def __init__(self, stem: int, middle: int, out: int, gate: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(stem, middle, 3, padding=1),
            nn.BatchNorm2d(middle),
            nn.Conv2d(middle, out, 3, padding=1),
        )
        self.shortcut = nn.Identity() if stem == out else nn.Conv2d(stem, out, 1)
        self.gate = nn.Conv2d(out, out, 1) if gate else None
        self.fc = nn.Linear(out, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv2(torch.relu(self.norm(self.conv1(x))))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.fc((y + self.shortcut(x)).mean((2, 3)))


def only(count: int, **places: Any) -> list[list[float]]:
    """Factors of 1, but for one layer or more: l3=[...]."""
    rows = [[1.0] * 5 for _ in range(count)]
    for name, row in places.items():
        rows[int(name[1:])] = row
    return rows


def shapes(model: nn.Module | None) -> dict[str, tuple[int, ...]]:
    assert model is not None
    return {name.removeprefix("module."): tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}


def test_rewards_by_hand() -> None:
    assert compression_reward(0.90, 50, 0.92, 100) == pytest.approx(0.733696, abs=5e-7)
    assert compression_reward(0.92, 10, 0.92, 100) == pytest.approx(0.99, abs=1e-12)
    assert compression_reward(0.80, 90, 0.92, 100) == pytest.approx(0.165217, abs=5e-7)
    assert compression_reward(0.92, 100, 0.92, 100) == 0


def test_softness_by_hand_and_clipped() -> None:
    assert [round(softness(e), 6) for e in (0, 1, 5, 10, 15, 20)] == [1, 0.758835, 0.197531, 0.012346, 0, 0]


def test_a_broken_limit_is_punished_more_and_more() -> None:
    def broken(epoch: int | None) -> float:
        return compression_reward(0.9, 50, 0.92, 100, max_params=49, epoch=epoch)

    assert broken(5) == pytest.approx(-0.657542, abs=5e-7)
    assert broken(0) == compression_reward(0.9, 50, 0.92, 100)
    assert broken(15) == broken(20) == broken(None) == -1
    assert compression_reward(0.9, 50, 0.92, 100, min_acc=0.91) == -1
    assert compression_reward(0.9, 50, 0.92, 100, max_params=50, min_acc=0.9, epoch=20) == compression_reward(0.9, 50, 0.92, 100)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 99), st.integers(1, 100))
def test_rewards_rise_with_accuracy_and_compression(acc: float, more: float, params: int, fewer: int) -> None:
    least, most = sorted((acc, more))
    assert compression_reward(least, params, 0.9, 100) <= compression_reward(most, params, 0.9, 100)
    assert compression_reward(acc, params, 0.9, 100) <= compression_reward(acc, max(params - fewer, 0), 0.9, 100)


def test_parameters_of_the_policies() -> None:
    removal, shrinkage = RemovalPolicy(), ShrinkagePolicy()
    count = {part: sum(p.numel() for p in part.parameters()) for part in (removal.lstm, removal.head, *shrinkage.cells, shrinkage.head)}
    assert list(count.values()) == [30960, 122, 4440, 7440, 341]
    assert TABLE == (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize("policy", [RemovalPolicy(), ShrinkagePolicy()], ids=["removal", "shrinkage"])
def test_the_probability_of_a_rollout_is_that_of_all_its_decisions(policy: Any) -> None:
    layers = layer_descriptions(plain(), EXAMPLE)
    torch.manual_seed(1)
    actions, log_prob = policy(layers)
    again, given_prob = policy(layers, actions)
    assert torch.equal(actions, again)
    assert torch.allclose(log_prob, given_prob)
    with torch.no_grad():
        for part in policy.head.parameters():
            part.zero_()  # then every choice is as probable as the others
    choices = policy.head.out_features
    assert float(policy(layers, actions)[1].detach()) == pytest.approx(
        -actions.numel() * torch.tensor(float(choices)).log().item(), rel=1e-6
    )


def test_every_cell_of_the_shrinkage_policy_learns() -> None:
    """The authors' code leaves its cells out of the optimiser."""
    policy = ShrinkagePolicy()
    policy(torch.ones(2, 5), torch.ones(2, 5, dtype=torch.int64))[1].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in policy.parameters())


def test_a_shrunk_number_is_what_the_policy_sees_next() -> None:
    policy, layers = ShrinkagePolicy(table=(0.5, 1.0)), torch.tensor([[1.0, 3.0, 1.0, 64.0, 1.0]])
    whole, half = torch.tensor([[1, 1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1, 1]])
    # the type is never changed, so choosing "half" for it changes nothing of what follows
    first = [float(policy(layers, actions)[1].detach()) for actions in (whole, half)]
    logits = policy.head(policy.cells[1](policy.cells[0](layers.log1p())[0])[0])[0].log_softmax(0)
    assert first[0] - first[1] == pytest.approx(float((logits[1] - logits[0]).detach()), abs=1e-5)
    assert policy.factors(torch.tensor([[0, 0, 1, 0, 1]])) == [[1.0, 0.5, 1.0, 0.5, 1.0]]


def test_no_gradient_where_rewards_are_the_baseline() -> None:
    policy = RemovalPolicy()
    log_probs = torch.stack([policy(torch.ones(4, 5))[1] for _ in range(3)])
    policy_loss(log_probs, torch.full((3,), 0.25), 0.25).backward()
    assert all(bool((p.grad == 0).all()) for p in policy.parameters() if p.grad is not None)
    assert float(policy_loss(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 0.0]), 0.5)) == pytest.approx(0.5 * (0.5 - 1.5))


def test_policies_are_written_and_read(tmp_path: Any) -> None:
    for policy in (RemovalPolicy(7, 4), ShrinkagePolicy((0.5, 1.0), hidden=4)):
        save_policy(policy, tmp_path / policy.kind)
        again = load_policy(tmp_path / policy.kind)
        assert type(again) is type(policy)
        assert again.input == policy.input
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    assert load_policy(tmp_path / "shrinkage").table == (0.5, 1.0)  # type: ignore[union-attr]


def test_uniform_actions_have_the_shape_of_the_policys() -> None:
    assert uniform_actions(RemovalPolicy(), 9).shape == (9,)
    assert uniform_actions(ShrinkagePolicy(), 9).shape == (9, 5)


def test_descriptions_by_hand() -> None:
    rows = layer_descriptions(plain(), EXAMPLE).tolist()
    assert rows[:3] == [[1, 3, 1, 64, 1], [4, 0, 0, 64, 0], [3, 0, 0, 0, 0]]
    assert rows[6:] == [[8, 0, 0, 0, 0], [0, 0, 0, 0, 0], [5, 0, 0, 10, 0]]


def test_places_in_a_residual_block() -> None:
    rows = layer_descriptions(Block(16, 24, 16), EXAMPLE, skips=True)
    assert rows[:, 5:].tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [0, 0]]  # stem; conv1, norm, conv2; fc


def test_keeping_all_and_factors_of_one_are_no_candidates() -> None:
    net = plain()
    parameters = sum(p.numel() for p in net.parameters())
    for made in (apply_removal(net, [True] * 9, EXAMPLE), apply_shrinkage(net, torch.ones(9, 5), EXAMPLE)):
        assert made.parameters == parameters
        assert made.invalid == f"no fewer parameters ({parameters}) than the teacher ({parameters})"


def test_half_of_a_convolution() -> None:
    made = apply_shrinkage(plain(), only(9, l0=[0.5] * 5), EXAMPLE)
    conv: Any = made.model.get_submodule("module.0")  # type: ignore[union-attr]
    assert (conv.out_channels, conv.kernel_size, conv.stride, conv.padding) == (32, (1, 1), (1, 1), (0, 0))
    assert shapes(made.model) == {"0.weight": (32, 3, 1, 1), "3.weight": (16, 32, 3, 3), "8.weight": (10, 64)}
    assert made.invalid == ""


def test_ten_channels_are_left() -> None:
    rows = torch.tensor(only(9, l3=[1, 1, 1, 0.25, 1]), dtype=torch.float32)
    made = apply_shrinkage(plain(), rows, EXAMPLE)
    assert shapes(made.model)["3.weight"] == (10, 64, 3, 3)
    assert shapes(made.model)["8.weight"] == (10, 40)
    assert made.model.get_submodule("module.4").num_features == 10  # type: ignore[union-attr]


def test_factors_in_float32_are_what_was_written() -> None:
    """20 * 0.9 is 17.999 in float32."""
    net = nn.Sequential(nn.Conv2d(3, 20, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 10))
    made = apply_shrinkage(net, torch.tensor(only(4, l0=[1, 1, 1, 0.9, 1])), EXAMPLE)
    assert shapes(made.model)["0.weight"] == (18, 3, 1, 1)


def test_a_removed_layer_is_an_identity_and_the_next_one_fits() -> None:
    keep = [True] * 9
    keep[3] = keep[4] = False  # the second convolution and its norm
    made = apply_removal(plain(), keep, EXAMPLE)
    assert shapes(made.model) == {"0.weight": (64, 3, 3, 3), "8.weight": (10, 256)}
    assert made.model.adaptation == ["2 of 9 layers are removed"]  # type: ignore[union-attr]


def test_what_is_fixed_stays() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 12),
        nn.Tanh(),
        nn.Linear(12, 10),
    )  # fmt: skip
    assert shapes(apply_removal(net, [False] * 7, EXAMPLE).model) == shapes(net)
    shrunk = apply_shrinkage(net, torch.full((7, 5), 0.5), EXAMPLE).model
    assert shapes(shrunk) == {"0.weight": (10, 3, 1, 1), "1.weight": (16, 10, 3, 3), "4.weight": (12, 256), "6.weight": (10, 12)}


def test_a_convolution_without_its_norm_gets_a_bias_and_it_is_said() -> None:
    keep = [True] * 9
    keep[4] = False
    made = apply_removal(plain(), keep, EXAMPLE)
    assert made.model.get_submodule("module.3").bias.shape == (16,)  # type: ignore[union-attr]
    assert made.model.adaptation[-1] == "1 convolutions have lost their norm and have a bias instead"  # type: ignore[union-attr]


def test_a_block_without_a_convolution_in_its_shortcut_keeps_the_width_of_its_input() -> None:
    made = apply_shrinkage(Block(32, 40, 32), only(5, l0=[1, 1, 1, 0.5, 1], l1=[0.5] * 5, l3=[0.25] * 5), EXAMPLE)
    found = shapes(made.model)
    assert (found["stem.weight"], found["conv2.weight"]) == ((16, 3, 3, 3), (16, 20, 3, 3))
    assert found["conv1.weight"] == (20, 16, 3, 3)  # only widths change in a block


def test_a_block_with_a_convolution_in_its_shortcut_follows_the_last_action() -> None:
    rows = only(6, l3=[1, 1, 1, 0.25, 1], l4=[1, 1, 1, 0.5, 1])  # conv2, then the shortcut
    found = shapes(apply_shrinkage(Block(16, 24, 40), rows, EXAMPLE).model)
    assert (found["conv2.weight"][0], found["shortcut.weight"][0], found["fc.weight"]) == (20, 20, (10, 20))


def test_a_gate_has_as_many_channels_as_what_it_gates() -> None:
    found = shapes(apply_shrinkage(Block(16, 24, 40, gate=True), only(7, l5=[1, 1, 1, 0.5, 1]), EXAMPLE).model)
    assert found["gate.weight"] == (20, 20, 1, 1)
    assert found["shortcut.weight"][0] == 20


def test_a_whole_block_can_go() -> None:
    keep = [True, False, False, False, True]
    made = apply_removal(Block(16, 24, 16), keep, EXAMPLE)
    assert shapes(made.model) == {"stem.weight": (16, 3, 3, 3), "fc.weight": (10, 16)}
    net = made.model.eval()  # type: ignore[union-attr]
    x = torch.randn(2, 3, 16, 16)
    inside: Any = net.get_submodule("module")
    stem = inside.stem(x)
    assert torch.allclose(net(x), inside.fc((torch.relu(stem) + stem).mean((2, 3))), atol=1e-6)  # a function is no layer


def test_concatenated_widths_add_up_and_depthwise_layers_follow() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 20, 1), nn.Conv2d(3, 40, 1)
            self.deep, self.groups = nn.Conv2d(60, 60, 3, padding=1, groups=60), nn.Conv2d(60, 24, 1, groups=4)
            self.fc = nn.Linear(24, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.groups(self.deep(torch.cat([self.a(x), self.b(x)], 1))).mean((2, 3)))

    found = shapes(apply_shrinkage(Wide(), only(5, l0=[1, 1, 1, 0.5, 1], l1=[1, 1, 1, 0.25, 1], l3=[1, 1, 1, 0.5, 1]), EXAMPLE).model)
    assert found["deep.weight"] == (20, 1, 3, 3)
    assert found["groups.weight"] == (12, 5, 1, 1)  # four groups still divide 20 and 12


def test_new_weights_and_untouched_teachers() -> None:
    net = plain()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(3)
    first = apply_removal(net, [True] * 9, EXAMPLE).model
    torch.manual_seed(3)
    again = apply_removal(net, [True] * 9, EXAMPLE).model
    assert first is not None
    assert again is not None
    assert not torch.equal(first.get_submodule("module.0").weight, net[0].weight)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert all(p.requires_grad for p in first.parameters())


def test_double_precision_stays_double() -> None:
    keep = [True] * 9
    keep[4] = False  # the norm whose convolution gets a bias
    made = apply_removal(plain().double(), keep, EXAMPLE.double())
    assert made.invalid == ""
    assert {tensor.dtype for tensor in made.model.parameters()} == {torch.float64}  # type: ignore[union-attr]


def test_impossible_actions_are_reported_and_never_raise() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.MaxPool2d(4), nn.Conv2d(12, 16, 3, padding=1), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16, 10)
    )
    shrunk = apply_shrinkage(net, only(6, l2=[1, 1, 1, 1, 0.5]), EXAMPLE)  # 3x3 without padding on a 4x4 map, then a 4x4 pool on 2x2
    assert shrunk.model is None
    assert shrunk.invalid.startswith("3 cannot take what arrives: Given input size: (16x2x2)")
    large = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.MaxPool2d(16), nn.Flatten(), nn.Linear(64 * 4, 10))
    grown = apply_removal(large, [True, False, True, True], torch.zeros(1, 3, 32, 32))
    assert (grown.model, grown.invalid) == (None, "3 would read 65536 numbers, and may read 10 to 50000")


def test_uniform_width_is_the_widest_that_fits() -> None:
    net = plain()
    total = sum(p.numel() for p in net.parameters())
    for limit in (total // 2, total // 8):
        made = uniform_width(net, limit, EXAMPLE)
        assert 0.8 * limit < made.parameters <= limit
        first, second = (made.model.get_submodule(f"module.{i}").out_channels for i in (0, 3))  # type: ignore[union-attr]
        assert abs(first / 64 - second / 16) < 1 / 16
    with pytest.raises(ArgumentError, match=r"`max_params` must be at least \d+, one channel everywhere, got 5\."):
        uniform_width(net, 5, EXAMPLE)


def test_errors_by_hand() -> None:
    z, v, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), torch.tensor([0])
    assert float(logit_error(z, v)) == 2
    soft = ((z / 3).log_softmax(1) - (v / 3).log_softmax(1)).square().mean()
    hard = -z.log_softmax(1)[0, 0]
    assert float(tempered_error(z, v, y)) == pytest.approx(float(0.7 * soft + 0.3 * hard), rel=1e-6)
    assert float(tempered_error(z, z, y, label_weight=0.0)) == 0
    with pytest.raises(ShapeError, match=r"logits of shapes \(1, 2\) and \(1, 3\)\."):
        logit_error(z, torch.zeros(1, 3))


def test_time_is_measured() -> None:
    small, large = nn.Conv2d(3, 2, 1), nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3))
    slow, fast = milliseconds([large, small], torch.zeros(4, 3, 32, 32), rounds=5)
    assert slow > 5 * fast > 0
    assert large.training
    with pytest.raises(ArgumentError, match=r"`rounds` must be at least 1, got 0\."):
        milliseconds([small], torch.zeros(1, 3, 8, 8), rounds=0)


def test_what_is_refused(tmp_path: Any) -> None:
    for change, told in (
        ({"teacher_acc": 0.0}, r"`teacher_acc` must lie in \(0, 1\], got 0\.0\. A teacher that is never right has nothing to teach\."),
        ({"teacher_params": 0}, r"`teacher_params` must be at least 1, got 0\."),
        ({"max_params": 0}, r"`max_params` must be at least 1, got 0\. No student has fewer parameters\."),
        ({"min_acc": 90.0}, r"`min_acc` must lie in \[0, 1\], got 90\.0\. For 90 percent write min_acc=0\.9\."),
    ):
        with pytest.raises(ArgumentError, match=told):
            compression_reward(**{"acc": 0.5, "params": 1, "teacher_acc": 0.9, "teacher_params": 2, **change})  # type: ignore[arg-type]
    net = plain()
    with pytest.raises(ArgumentError, match=r"`keep` needs one action for each of the 9 layers, got 8\."):
        apply_removal(net, [True] * 8, EXAMPLE)
    with pytest.raises(ArgumentError, match=r"`factors` needs 5 numbers for each of the 9 layers, got 8 x 5\."):
        apply_shrinkage(net, torch.ones(8, 5), EXAMPLE)
    with pytest.raises(ArgumentError, match=r"`factors` needs 5 numbers for each of the 9 layers, got 9 x 4\."):
        apply_shrinkage(net, [[1.0] * 4] * 9, EXAMPLE)
    for factor in (0.0, 1.5):
        with pytest.raises(ArgumentError, match=r"factors must lie in \(0, 1\]\. 1 leaves a number as it is\."):
            apply_shrinkage(net, torch.full((9, 5), factor), EXAMPLE)
    with pytest.raises(
        ShapeError, match=r"`example_input` must be a batch of images \[batch, channels, height, width\], got \(3, 16, 16\)\."
    ):
        apply_removal(net, [True] * 9, EXAMPLE[0])
    with pytest.raises(ArgumentError, match=r"`table` must hold factors in \(0, 1\], got \[0\.5, 2\.0\]\."):
        ShrinkagePolicy((0.5, 2.0))
    with pytest.raises(ArgumentError, match=r"`hidden` must be at least 1, got 0\."):
        RemovalPolicy(hidden=0)
    with pytest.raises(ShapeError, match=r"`layers` needs a row of 5 numbers for each layer, got \(4, 7\)\."):
        RemovalPolicy()(torch.ones(4, 7))
    with pytest.raises(ShapeError, match=r"`actions` must be of shape \(4, 5\), one for each decision, got \(4,\)\."):
        ShrinkagePolicy()(torch.ones(4, 5), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(CheckpointError, match=r"model\.json is missing"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match=r"`temperature` must be above 0, got 0\.0\."):
        TeachersAnswers(torch.zeros(1, 2), 0.0)
    with pytest.raises(ArgumentError, match=r"`label_weight` must lie in \[0, 1\], got 3\."):
        TeachersAnswers(torch.zeros(1, 2), 3.0, 3)
