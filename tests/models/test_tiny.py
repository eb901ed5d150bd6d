"""Four tiny backbones for tests, which must themselves be right."""

from typing import Any

import pytest
import torch
from support import images, parameters

from retinue.errors import ArgumentError
from retinue.models import adapt, feature_size, pooled_features, tiny
from retinue.models.protocol import PROTOCOL, Adapted
from retinue.models.tiny import KINDS


@pytest.mark.parametrize("size", [16, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_small_networks_of_four_kinds(kind: Any, channels: int, size: int) -> None:
    net = tiny(kind, num_classes=4, in_chans=channels, input_size=size)
    assert parameters(net) < 100_000
    x = images(2, channels, size, size)
    assert net(x).shape == (2, 4)
    assert all(hasattr(net, name) for name in PROTOCOL) == (kind != "bare")
    model: Any = adapt(net)
    assert pooled_features(model, x).shape == (2, feature_size(model))
    assert model.num_classes == 4
    assert model.in_chans == channels


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: Any) -> None:
    net = tiny(kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(4):  # timm's ResNet begins with branches that give nothing: the first steps wake them
        optimizer.zero_grad()
        net(images(4, 3, 32, 32, seed=step)).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.any()] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_network(kind: Any) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(tiny(kind))
    assert all(map(torch.equal, nets[0].state_dict().values(), nets[1].state_dict().values()))


def test_bare_knows_no_protocol_and_others_are_refused() -> None:
    assert isinstance(adapt(tiny("bare")), Adapted)
    with pytest.raises(ArgumentError, match=r'^tiny: no backbone is called "timm_vitt"\. Did you mean timm_vit'):
        tiny("timm_vitt")  # type: ignore[arg-type]
