"""The recipes of inception-v4: the paper's optimiser and schedule by hand, and settings that fit what they name."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from retinue.cli import recipes
from retinue.engine.optim import Schedule, make_optimizer
from retinue.models import create_model


def fit_settings(scale: str) -> dict[str, Any]:
    return recipes.load("inception-v4", scale).fit


def paper_optimizer(parameter: nn.Parameter, **changes: Any) -> torch.optim.Optimizer:
    fit = {**fit_settings("paper"), **changes}
    return make_optimizer(
        fit["optimizer"], [parameter], lr=fit["lr"], weight_decay=fit["weight_decay"], momentum=fit["momentum"], **fit["optimizer_args"]
    )


def test_the_first_step_has_epsilon_inside_the_root_and_starts_from_one() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = paper_optimizer(parameter, weight_decay=0.0)
    parameter.grad = torch.tensor([2.0])
    optimizer.step()
    assert math.isclose(-parameter.item(), 0.045 * 2 / math.sqrt(0.9 * 1 + 0.1 * 4 + 1.0), rel_tol=1e-6)
    assert round(-parameter.item(), 7) == 0.0593442
    other = nn.Parameter(torch.zeros(1))  # torch's own starts from zero and adds epsilon outside
    other.grad = torch.tensor([2.0])
    torch.optim.RMSprop([other], lr=0.045, alpha=0.9, eps=1.0).step()
    assert round(-other.item(), 7) == 0.0551317


@pytest.mark.parametrize("epoch", [0, 1, 2, 9, 10, 11, 37])
def test_the_learning_rate_falls_in_stairs_of_two_epochs(epoch: int) -> None:
    fit, steps_per_epoch = fit_settings("paper"), 5
    optimizer = paper_optimizer(nn.Parameter(torch.zeros(1)))
    schedule = Schedule(
        optimizer, fit["schedule"], steps=fit["epochs"] * steps_per_epoch, steps_per_epoch=steps_per_epoch, **fit["schedule_args"]
    )
    rates = []
    for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):  # the first and the last update of the epoch
        schedule.set(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.045 * 0.94 ** (epoch // 2)] * 2, rel=1e-12)
    if epoch == 10:
        assert round(rates[0], 7) == 0.0330257


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_setting_fits_what_it_names(scale: str) -> None:
    bound = recipes.bind(recipes.load("inception-v4", scale))
    assert bound.target.__name__ == "Supervised"


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    recipe = recipes.load("inception-v4", "paper")
    fit = recipe.fit
    assert (fit["lr"], fit["optimizer_args"]) == (0.045, {"alpha": 0.9, "eps": 1.0})
    assert fit["schedule_args"] == {"decay_rate": 0.94, "decay_epochs": 2}
    assert (fit["ema"], fit["clip_grad"], fit["weight_decay"]) == (0.9999, 2.0, 4e-5)
    assert (recipe.objective["label_smoothing"], recipe.data["input_size"], recipe.model["drop_rate"]) == (0.1, 299, 0.2)


def test_the_laptop_network_is_small() -> None:
    model = create_model(**{"num_classes": 10, "in_chans": 1, **recipes.load("inception-v4", "laptop").model})
    assert sum(parameter.numel() for parameter in model.parameters()) < 300_000
