"""LARS of SimCLR: the page's steps, what is excluded, the place of the learning rate, timm's where both agree, and in a training."""

import math
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.engine.lars import EXEMPT, LARS, exempt
from retinue.engine.optim import make_optimizer
from retinue.errors import ArgumentError


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradient: Any) -> list[float]:
    weight.grad = torch.as_tensor(gradient, dtype=weight.dtype).view_as(weight)
    optimizer.step()
    return weight.detach().flatten().tolist()


def matrix(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor([values], dtype=torch.float64))


def test_two_steps_of_the_page() -> None:
    weight = matrix(3.0, 4.0)
    optimizer = LARS([weight], lr=0.5, weight_decay=1e-4)
    first = step(optimizer, weight, [0.6, 0.8])
    assert first == pytest.approx([2.9985, 3.998], abs=1e-12)
    assert math.dist(first, (3, 4)) == pytest.approx(0.5 * 0.001 * 5, abs=1e-12)
    assert step(optimizer, weight, [0.6, 0.8]) == pytest.approx([2.99565075, 3.99420100], abs=1e-10)


def test_the_trust_ratio_is_of_the_gradient_with_the_decay_in_it() -> None:
    weight = matrix(3.0, 4.0)
    step(LARS([weight], lr=1.0, momentum=0.0, weight_decay=0.1), weight, [-0.4, 0.3])  # g + wd w = (-0.1, 0.7)
    ratio = 0.001 * 5 / math.hypot(0.1, 0.7)
    assert weight.flatten().tolist() == pytest.approx([3 + 0.1 * ratio, 4 - 0.7 * ratio])


def test_a_length_of_zero_leaves_the_gradient_as_it_is() -> None:
    weight, still = matrix(0.0, 0.0), matrix(1.0, 2.0)
    optimizer = LARS([weight, still], lr=0.5)
    still.grad = torch.zeros_like(still)
    assert step(optimizer, weight, [1.0, 2.0]) == [-0.5, -1.0]
    assert still.flatten().tolist() == [1, 2]


def test_biases_norms_and_exempt_layers_are_moved_by_plain_momentum() -> None:
    bias, layer = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64)), nn.Linear(2, 1, dtype=torch.float64)
    nn.init.constant_(layer.weight, 2.0)
    exempt(layer)
    assert getattr(layer.bias, EXEMPT)
    optimizer = LARS([bias, *layer.parameters()], lr=0.5, weight_decay=0.1)
    layer.weight.grad = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert step(optimizer, bias, [0.6, 0.8]) == pytest.approx([2.7, 3.6])
    assert layer.weight.flatten().tolist() == [1.5, 2.5]
    assert step(optimizer, bias, [0.6, 0.8]) == pytest.approx([2.7 - 0.3 * 1.9, 3.6 - 0.4 * 1.9])


def test_the_learning_rate_is_inside_the_momentum() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = LARS([weight], lr=1.0, momentum=0.5)
    step(optimizer, weight, [1.0])
    optimizer.param_groups[0]["lr"] = 0.0
    assert step(optimizer, weight, [1.0]) == [-1.5], "what was learned before goes on at its own rate"


def test_where_the_rate_is_constant_and_nothing_decays_it_is_timms() -> None:
    start = torch.randn(4, 3, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pair: list[tuple[torch.optim.Optimizer, nn.Parameter]] = [
        (LARS([ours], lr=0.3), ours), (timm.optim.Lars([theirs], lr=0.3, momentum=0.9, eps=0.0, always_adapt=True), theirs),
    ]  # fmt: skip
    for number in range(4):
        gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        for optimizer, weight in pair:
            step(optimizer, weight, gradient)
    assert_close(ours, theirs)


def test_the_name_gives_it_and_not_timms() -> None:
    made = make_optimizer("simclrlars", [nn.Parameter(torch.zeros(2, 2))], lr=1.0, weight_decay=0.0, momentum=0.9)
    assert type(made) is LARS


def test_fit_knows_it_by_name_and_resumes_it(tmp_path: Any) -> None:
    data = retinue.data.open("digits", train_images=64, test_images=20)

    def train(folder: Any, steps: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = retinue.create_model("small_convnet", widths=[4, 4], num_classes=10, in_chans=1)
        settings: dict[str, Any] = {"optimizer": "simclrlars", "lr": 1.0, "batch_size": 16, "schedule": "constant", "progress": False}
        return dict(retinue.fit(model, retinue.train.Supervised(), data, max_steps=steps, run_dir=folder, **settings).model.state_dict())

    whole, again = train(None, 2), train(tmp_path, 2)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert any(not torch.equal(value, train(None, 1)[name]) for name, value in whole.items())


def test_a_closure_is_computed_with_gradients() -> None:
    weight = matrix(1.0, 1.0)
    optimizer = LARS([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert float(weight.detach().sum()) < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"`lr` must be 0 or more, got -1\.0\."),
        ({"weight_decay": -1.0}, r"`weight_decay` must be 0 or more, got -1\.0\."),
        ({"momentum": 1.0}, r"`momentum` must lie in \[0, 1\), got 1\.0\. SimCLR has 0\.9\."),
        ({"trust_coefficient": 0.0}, r"`trust_coefficient` must be above 0, got 0\.0\. SimCLR has 0\.001\."),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^LARS: {message}"):
        LARS([matrix(1.0)], **{"lr": 1.0, **options})
