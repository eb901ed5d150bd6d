"""timm's protocol as every network of ours has it."""

import contextlib
import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from support import images, parameters
from timm.models import group_parameters
from torch import nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models import create_model
from retinue.models.layers import Concat, conv_norm_act, same_padding
from retinue.models.network import Network, frozen_statistics

NETS: dict[str, dict[str, Any]] = {"small_convnet": {"widths": [8, 8, 16, 16]}, "cifar_resnet": {"depth": 8, "width": 8}}


def build(name: str = "cifar_resnet", **more: Any) -> Any:
    return create_model(name, **{"num_classes": 5, "input_size": 16, **NETS[name], **more})


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def test_the_protocol(net: Any) -> None:
    x = images(3, 3, 16, 16)
    net.eval()
    features = net.forward_features(x)
    assert features.shape[:2] == (3, net.num_features)
    assert torch.equal(net.forward_head(features, pre_logits=True), features.mean((2, 3)))
    assert torch.equal(net.forward_head(features), net(x))
    assert torch.equal(net(x), nn.functional.linear(features.mean((2, 3)), net.get_classifier().weight, net.get_classifier().bias))
    assert (net.num_classes, net.in_chans, net.head_hidden_size, net.adaptation) == (5, 3, net.num_features, [])


def test_another_classifier_or_none(net: Any) -> None:
    net.eval()
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items() if not name.startswith("head")}
    net.reset_classifier(2)
    assert net(images(1, 3, 16, 16)).shape == (1, 2)
    net.reset_classifier(0)
    assert isinstance(net.get_classifier(), nn.Identity)
    assert net(images(1, 3, 16, 16)).shape == (1, net.num_features)
    net.reset_classifier(0, "max")
    x = images(2, 3, 16, 16)
    assert torch.equal(net(x), net.forward_features(x).amax((2, 3)))
    net.reset_classifier(4, "catavgmax")
    assert net.head_hidden_size == 2 * net.num_features
    assert net(x).shape == (2, 4)
    net.reset_classifier(0, "")
    assert torch.equal(net(x), net.forward_features(x)), "no pooling at all"
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in kept.items())


def watched(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """The maps behind the layers that `feature_info` names, by hooks."""
    maps: list[torch.Tensor] = []
    hooks = [net.get_submodule(tap["module"]).register_forward_hook(lambda _, __, y: maps.append(y)) for tap in net.feature_info]
    net.forward_features(x)
    for hook in hooks:
        hook.remove()
    return maps


def test_intermediate_maps_are_those_of_the_named_layers(net: Any) -> None:
    net.eval()
    x = images(2, 3, 16, 16)
    expected = watched(net, x)
    last, maps = net.forward_intermediates(x)
    assert all(map(torch.equal, maps, expected))
    assert torch.equal(last, net.forward_features(x))
    for tap, one in zip(net.feature_info, maps, strict=True):
        assert one.shape == (2, tap["num_chs"], 16 // tap["reduction"], 16 // tap["reduction"])
    for indices, positions in ((1, [-1]), (2, [-2, -1]), ([0], [0]), ([-1, 0], [0, -1])):
        some = net.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert all(torch.equal(one, expected[position]) for one, position in zip(some, positions, strict=True))
    early, maps = net.forward_intermediates(x, indices=[0], stop_early=True)
    assert torch.equal(early, expected[0])
    with pytest.raises(ArgumentError, match=r'^forward_intermediates: `output_fmt` must be "NCHW", got "NHWC"\.$'):
        net.forward_intermediates(x, output_fmt="NHWC")


def test_features_only_gives_the_same_maps_by_both_doors(net: Any) -> None:
    net.eval()
    name, x = net.retinue_config["name"], images(2, 3, 16, 16)
    expected = watched(net, x)
    doors = [
        build(name, features_only=True),
        timm.create_model(f"retinue_{name}", features_only=True, input_size=16, **NETS[name]),
    ]
    for taps in doors:
        missing = taps.load_state_dict({f"model.{key}": tensor for key, tensor in net.state_dict().items()}, strict=False)
        assert not missing.missing_keys
        assert all("head" in key for key in missing.unexpected_keys)
        maps = taps.eval()(x)
        assert all(map(torch.equal, maps, expected))
        assert taps.feature_info.channels() == [one.shape[1] for one in expected]
        assert taps.feature_info.reduction() == [tap["reduction"] for tap in net.feature_info]
        assert taps.in_chans == 3
        assert taps.default_cfg["input_size"] == (3, 32, 32)
    some = build(name, features_only=True, out_indices=(0, 1)).eval()
    assert len(some(x)) == 2
    assert parameters(some) < parameters(doors[0]), "what lies behind the last map is thrown away"


def test_pruning_keeps_the_maps_and_throws_the_rest_away() -> None:
    net = build().eval()
    x = images(1, 3, 16, 16)
    expected = watched(net, x)
    assert net.prune_intermediate_layers([1]) == [1]
    assert [name for name, _ in net.named_children() if name.startswith("sta")] == ["stages"]
    assert len(net.stages) == 2
    assert torch.equal(net.forward_features(x), expected[1])
    assert net.num_features == net.head.in_features == expected[1].shape[1]
    assert torch.equal(net(x), expected[1])
    net.reset_classifier(3, "avg")
    assert net(x).shape == (1, 3), "the shorter network can be trained on"


def grown(checkpointing: bool, name: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    net = build(name)
    net.set_grad_checkpointing(checkpointing)
    loss = net(images(4, 3, 16, 16)).square().sum()
    loss.backward()
    return net, loss


@pytest.mark.parametrize("name", NETS)
def test_checkpointed_gradients_and_statistics_are_the_same_bit_for_bit(name: str) -> None:
    (plain, loss), (kept, again) = grown(False, name), grown(True, name)
    assert torch.equal(loss, again)
    for (key, a), b in zip(plain.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), b in zip(plain.named_buffers(), kept.buffers(), strict=True):
        assert torch.equal(a, b), key
    assert kept.get_buffer("stem.0.bn.num_batches_tracked") == 1
    assert all(module.track_running_stats for module in kept.modules() if isinstance(module, nn.BatchNorm2d))


def test_checkpointing_really_computes_again() -> None:
    calls = {}
    for checkpointing in (False, True):
        net, seen = build(), []
        net.set_grad_checkpointing(checkpointing)
        net.stages[0][0].register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        net(images(2, 3, 16, 16)).sum().backward()
        calls[checkpointing] = len(seen)
    assert calls == {False: 1, True: 2}


def test_frozen_statistics_come_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(2)
    with contextlib.suppress(KeyError), frozen_statistics(norm):
        norm(torch.ones(2, 2, 3, 3))
        raise KeyError
    assert norm.track_running_stats
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0]


@pytest.mark.parametrize(("coarse", "count"), [(False, 2 + 6), (True, 2 + 3)])
def test_parameters_are_grouped_by_depth_for_timms_layer_decay(coarse: bool, count: int) -> None:
    net = build(depth=14)
    groups = group_parameters(net, net.group_matcher(coarse))
    assert len(groups) == count, "stem, head, and blocks or stages"
    assert all(name.startswith("stem") for name in groups[0])
    assert sorted(name for group in groups.values() for name in group) == sorted(name for name, _ in net.named_parameters())


def test_images_that_do_not_fit_are_refused(net: Any) -> None:
    with pytest.raises(ShapeError, match=r"^this network takes 3 channels, got 1\. Build it with in_chans=1\.$"):
        net(images(1, 1, 16, 16))
    net.min_side = 20
    with pytest.raises(
        ShapeError,
        match=r"^this network needs images of at least 20x20 px, got 32x16\. Build it .*: create_model\(\.\.\., input_size=16\)\.$",
    ):
        net(images(1, 3, 32, 16))
    with pytest.raises(ShapeError, match="at least 20x20"):
        net.forward_intermediates(images(1, 3, 16, 16))


def test_a_drop_rate_is_a_share_below_one() -> None:
    for rate in (1.0, -0.1):
        with pytest.raises(
            ArgumentError, match=rf"^`drop_rate` must lie in \[0, 1\), got {rate}\. It is the share of features dropped, not"
        ):
            build(drop_rate=rate)
    net = build(drop_rate=0.5).eval()
    x = images(2, 3, 16, 16)
    assert torch.equal(net(x), net(x))
    net.train()
    features = net.forward_features(x)
    assert not torch.equal(net.forward_head(features), net.forward_head(features))


def test_a_tail_stands_between_the_stages_and_the_pooling() -> None:
    taps = [{"num_chs": 4, "reduction": 1, "module": "stages.0"}, {"num_chs": 6, "reduction": 1, "module": "tail"}]
    net = Network(
        nn.Sequential(nn.Conv2d(1, 4, 1)),
        nn.Sequential(nn.ReLU()),
        nn.Conv2d(4, 6, 1),
        taps=taps,
        num_features=6,
        num_classes=2,
        in_chans=1,
    )
    x = images(1, 1, 3, 3)
    assert torch.equal(net.forward_features(x), net.tail(net.stem(x).relu()))
    assert [one.shape[1] for one in net.forward_intermediates(x, intermediates_only=True)] == [4, 6]
    net.prune_intermediate_layers([0])
    assert isinstance(net.tail, nn.Identity)
    assert net.num_features == 4


def test_networks_are_copied_traced_exported_and_compiled_without_a_break(unchecked: None) -> None:
    net, x = build().eval(), images(2, 3, 16, 16)
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.trace(net, x)(x), net(x))
    assert torch.equal(torch.export.export(net, (x,)).module()(x), net(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_shared_layers_by_hand() -> None:
    assert same_padding(3) == (1, 1)
    assert same_padding((1, 7)) == (0, 3)
    layer: Any = conv_norm_act(2, 3, (1, 7), stride=2, eps=1e-3, momentum=0.2)
    assert list(layer.state_dict()) == ["conv.weight", *(f"bn.{name}" for name in nn.BatchNorm2d(3).state_dict())]
    assert (layer.bn.eps, layer.bn.momentum, layer.conv.padding) == (1e-3, 0.2, (0, 3))
    x = images(1, 2, 8, 8)
    by_hand = nn.functional.conv2d(x, layer.conv.weight, stride=2, padding=(0, 3)) / (1 + 1e-3) ** 0.5
    torch.testing.assert_close(layer.eval()(x), by_hand.relu(), rtol=1e-5, atol=1e-6)
    plain: Any = conv_norm_act(2, 4, 3, valid=True, groups=2, act=False).eval()
    assert plain(x).shape == (1, 4, 6, 6)
    assert plain.conv.weight.shape == (4, 1, 3, 3)
    assert plain(x).min() < 0
    both = Concat([nn.Identity(), nn.Conv2d(2, 1, 1)])
    assert torch.equal(both(x)[:, :2], x)
    assert torch.equal(both(x)[:, 2:], both.branch1(x))  # type: ignore[operator]
