"""Anyone's network behind timm's protocol: nothing it computes changes, and what cannot be wrapped says why."""

import copy
import json
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from support import images
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models import adapt, config, create_model, feature_size, pooled_features, tiny
from retinue.models.protocol import PROTOCOL, Adapted, pool


def bare() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


class TwoHeads(nn.Module):
    """Registers its layers in another order than it runs them, and ends in a linear layer that is not the last one registered."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(4, 8, 3, stride=2)
        self.classify = nn.Linear(8, 3)
        self.early = nn.Conv2d(3, 4, 3, stride=2)
        self.unused = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.late(self.early(x).relu()).relu().amax((2, 3)))


MODULES: dict[str, tuple[Any, tuple[int, int, int], int, int]] = {  # build, image, features, classes
    "bare": (bare, (1, 32, 32), 4, 10),
    "two heads": (TwoHeads, (3, 32, 32), 8, 3),
    "perceptron": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 400, 7), nn.ReLU(), nn.Linear(7, 2)), (3, 20, 20), 7, 2),
    "resnet": (lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=6), (3, 32, 32), 512, 6),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), (3, 32, 32), 1024, 5),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), (3, 32, 32), 1024, 5),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_classifier_of_anyones_gets_the_protocol_and_computes_what_it_did(name: str) -> None:
    build, shape, features, classes = MODULES[name]
    module = build()
    x = images(3, *shape)
    before = copy.deepcopy(module.state_dict())
    expected = copy.deepcopy(module).eval()(x)
    model: Any = adapt(module)
    assert isinstance(model, Adapted)
    assert all(hasattr(model, part) for part in PROTOCOL)
    assert (model.num_features, model.num_classes, model.in_chans, model.adaptation) == (features, classes, shape[0], [])
    assert model.training, "the trial run leaves the mode"
    assert [key.removeprefix("module.") for key in model.state_dict()] == list(before)
    assert all(torch.equal(model.state_dict()[f"module.{key}"], tensor) for key, tensor in before.items()), "and the statistics"
    model.eval()
    assert torch.equal(model(x), expected)
    features_of = model.forward_features(x)
    assert torch.equal(model.forward_head(features_of), expected)
    assert torch.equal(model.forward_head(features_of, pre_logits=True), features_of)
    assert pooled_features(model, x).shape == (3, feature_size(model)) == (3, features)
    assert model.get_classifier().out_features == classes
    model.reset_classifier(4)
    assert model(x).shape == (3, 4)
    assert torch.equal(model.forward_features(x), features_of)
    model.reset_classifier(0)
    assert torch.equal(model(x), features_of)


def test_the_maps_that_it_makes_are_listed_with_their_strides() -> None:
    model: Any = adapt(MODULES["resnet"][0]())
    assert [(tap["reduction"], tap["num_chs"]) for tap in model.feature_info] == [(2, 64), (4, 64), (8, 128), (16, 256)]
    assert model.feature_info[1]["module"] == "module.layer1"
    maps: list[Tensor] = []
    model.get_submodule(model.feature_info[2]["module"]).register_forward_hook(lambda _, __, y: maps.append(y))
    model.eval()(images(1, 3, 32, 32))
    assert maps[0].shape == (1, 128, 4, 4)


class Tokens(nn.Module):
    """Ends in tokens, as a transformer without its head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU()), (6, 15, 15)),
        (nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (6,)),
        (Tokens(), (16, 6)),
    ],
    ids=["map", "vector", "tokens"],
)
def test_a_network_that_ends_in_features_can_be_given_a_classifier(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = images(2, 3, 32, 32)
    model: Any = adapt(module)
    assert (model.num_classes, model.num_features) == (0, 6)
    assert torch.equal(model(x), module(x))
    assert model(x).shape == (2, *shape)
    assert pooled_features(model, x).shape == (2, 6)
    model = adapt(module, num_classes=5)
    assert torch.equal(model(x), model.head(pooled_features(model, x)))
    assert model(x).shape == (2, 5)
    assert {key for key in model.state_dict() if key.startswith("head")} == {"head.weight", "head.bias"}
    model.reset_classifier(0)
    assert model(x).shape == (2, *shape)


def test_what_has_the_protocol_is_returned_as_it_is() -> None:
    for net in (tiny("ours"), tiny("timm_cnn"), tiny("timm_vit"), adapt(bare())):
        assert adapt(net) is net
        kept: Any = net.get_classifier()  # type: ignore[operator]
        assert adapt(net, num_classes=10) is net
        assert net.get_classifier() is kept  # type: ignore[operator]
        assert adapt(net, num_classes=4) is net
        assert net.get_classifier().out_features == net.num_classes == 4  # type: ignore[operator,union-attr]


def test_a_new_classifier_lies_where_the_network_lies() -> None:
    model: Any = adapt(bare().double(), num_classes=3)
    assert model.get_classifier().weight.dtype == torch.float64
    assert model(images(1, 1, 8, 8).double()).shape == (1, 3)
    assert adapt(bare(), num_classes=10).module[5].out_features == 10  # type: ignore[index,union-attr]


def test_modes_of_parts_and_gradients_are_left_alone() -> None:
    module = bare().requires_grad_(False)
    module[1].eval()
    module[5].requires_grad_(True)
    model = adapt(module)
    assert [part.training for part in module] == [True, False, True, True, True, True]
    model(images(2, 1, 8, 8)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["module.5.weight", "module.5.bias"]


def test_a_model_is_copied_with_its_hooks_in_order() -> None:
    model: Any = adapt(bare()).eval()
    other = copy.deepcopy(model)
    x = images(2, 1, 8, 8)
    assert torch.equal(other.forward_features(x), model.forward_features(x))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


class Picky(nn.Module):
    """Takes images of one size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.conv, self.linear = side, nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2 * side * side, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.side:
            raise AssertionError("wrong side")
        return self.linear(self.conv(x).flatten(1))


def test_the_usual_sizes_are_tried_and_others_can_be_said() -> None:
    for side in (32, 28, 8):
        assert adapt(Picky(side)).num_features == 2 * side * side
    assert adapt(Picky(20), input_size=20).num_features == 800
    assert adapt(Picky(20), input_size=(20, 20)).num_features == 800
    with pytest.raises(
        ArgumentError,
        match=r"^adapt: no trial image passed through Picky \(tried 3x32x32, 3x28x28, .*3x299x299; the first said: wrong side\)\. "
        r"Say which images it takes: adapt\(module, input_size=\(height, width\)\)\.$",
    ):
        adapt(Picky(20))
    with pytest.raises(ArgumentError, match=r"tried 3x21x21; the first said: wrong side"):
        adapt(Picky(20), input_size=21)


def test_what_is_no_image_network_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^adapt: Sequential has no convolution and no linear layer, so it is not an image network\.$"):
        adapt(nn.Sequential(nn.Flatten()))

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": self.conv(x)}

    with pytest.raises(ArgumentError, match=r"^adapt: Detector must return logits, features or a map as one tensor, got dict\.$"):
        adapt(Detector())

    class Pair(Detector):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return self.conv(x) + y

    with pytest.raises(ArgumentError, match=r"no trial image passed through Pair \(.*missing 1 required positional argument"):
        adapt(Pair())
    with pytest.raises(
        ArgumentError, match=r"^pooled_features: Sequential lacks timm's protocol\. Wrap it once: model = retinue\.models\.adapt"
    ):
        pooled_features(bare(), images(1, 1, 8, 8))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(5, 6), st.integers(1, 3))
def test_pooling_averages_places_in_every_layout(batch: int, side: int, channels: int, prefix: int) -> None:
    maps = images(batch, channels, side, side)
    vector = maps.mean((2, 3))
    tokens = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool(maps, channels), vector)
    torch.testing.assert_close(pool(maps.permute(0, 2, 3, 1), channels), vector)
    torch.testing.assert_close(pool(tokens, channels), vector)
    torch.testing.assert_close(pool(torch.cat([images(batch, prefix, channels), tokens], dim=1), channels, prefix), vector)
    assert pool(vector, channels) is vector


def test_features_are_as_long_as_is_said_also_where_a_head_has_a_layer_of_its_own() -> None:
    model: Any = create_model("timm:mobilenetv3_small_050", num_classes=3, input_size=32).eval()
    x = images(2, 3, 32, 32)
    assert feature_size(model) == 1024 != model.num_features
    assert pooled_features(model, x).shape == (2, 1024)
    torch.testing.assert_close(model.get_classifier()(pooled_features(model, x)), model(x))
    vit: Any = tiny("timm_vit").eval()
    torch.testing.assert_close(vit.get_classifier()(pooled_features(vit, x)), vit(x))


def test_config_rebuilds_a_network_with_its_present_classes() -> None:
    model: Any = create_model("small_convnet", widths=[4, 6], num_classes=3, input_size=8)
    made = config(model)
    assert made is not None
    assert json.loads(json.dumps(made)) == {
        "name": "small_convnet",
        "arguments": {"num_classes": 3, "in_chans": 3, "input_size": [8, 8], "widths": [4, 6]},
    }
    model.reset_classifier(7)
    made["arguments"]["widths"].append(9)
    again = config(model)
    assert again is not None
    assert (again["arguments"]["num_classes"], again["arguments"]["widths"]) == (7, [4, 6])
    other = create_model(again["name"], **again["arguments"])
    other.load_state_dict(model.state_dict())
    assert config(adapt(bare())) is None
