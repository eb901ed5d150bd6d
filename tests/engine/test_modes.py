"""Training and evaluation modes which leave frozen parts alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retinue.engine.modes import evaluating, train_mode
from retinue.models import adapt, tiny

KINDS = ("ours", "timm_cnn", "timm_vit", "bare")


def net() -> nn.Sequential:
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.Dropout(0.5))
    return nn.Sequential(backbone, nn.Flatten(), nn.Dropout(0.5), nn.Linear(2 * 36, 3))


def test_what_learns_trains_and_what_is_frozen_does_not() -> None:
    model = net()
    model[0].requires_grad_(False)
    train_mode(model.eval())
    assert [part.training for part in model] == [False, True, True, True]
    assert not any(part.training for part in model[0].modules()), "dropout and norms without parameters inside a frozen part too"
    model[0].requires_grad_(True)
    train_mode(model)
    assert all(part.training for part in model.modules())


def test_a_part_that_learns_in_a_frozen_whole_trains() -> None:
    model = net().requires_grad_(False)
    model[0][1].requires_grad_(True)  # fine-tunes a norm alone
    train_mode(model)
    modes = {name: part.training for name, part in model.named_modules() if not list(part.children())}
    assert modes == {"0.0": False, "0.1": True, "0.2": True, "0.3": True, "1": True, "2": True, "3": False}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_frozen_backbone_moves(kind: str) -> None:
    model = adapt(tiny(kind, num_classes=3))  # type: ignore[arg-type]
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    train_mode(model)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    head = {id(parameter) for parameter in model.get_classifier().parameters()}  # type: ignore[operator]
    assert moved == {name for name, parameter in model.named_parameters() if id(parameter) in head}


@given(st.lists(st.booleans(), min_size=8, max_size=8))
def test_evaluating_gives_every_part_its_own_mode_back(modes: list[bool]) -> None:
    model = net()
    parts = list(model.modules())[:8]
    for part, mode in zip(parts, modes, strict=False):
        part.training = mode
    with evaluating(model[0], model[3]):
        assert not any(part.training for part in [*model[0].modules(), model[3]])
        assert model.training == modes[0]
    assert [part.training for part in parts] == modes[: len(parts)]


def test_modes_come_back_after_an_error_too() -> None:
    model = net()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert all(part.training for part in model.modules())
