"""Conversion of existing networks to IBN-Net, shifts of appearance, and the divergence of features."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from support import images, parameters
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import retinue
from retinue.data import views
from retinue.errors import ArgumentError, ShapeError
from retinue.models.ibn_net import resnet_ibn
from retinue.models.ibn_net_layers import IBN, InstanceNorm, NormedSum, convert_to_ibn
from retinue.models.ibn_net_shifts import appearance_shifts, channel_gain, evaluate_shifts, feature_divergence, gaussian_divergence

TINY: dict[str, Any] = {"layers": (1, 2, 1, 1), "channels": (8, 16, 24, 32), "num_classes": 5}
FINITE = st.floats(-3, 3)
POSITIVE = st.floats(0.3, 3)


def resnet(**options: Any) -> Any:
    """Build timm's ResNet-18 in small, with norms that are not fresh."""
    model = timm.create_model("resnet18", **{**TINY, **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            module.eps, module.momentum = 1e-3, 0.2
    return model


def places(model: nn.Module, kind: type = IBN) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is kind]


# Conversion


def test_a_converted_network_keeps_its_values_and_the_old_one_is_left_alone() -> None:
    plain = resnet().eval()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    converted: Any = convert_to_ibn(plain)
    assert places(converted) == ["layer1.0.bn1", "layer2.0.bn1", "layer2.1.bn1", "layer3.0.bn1"]
    assert parameters(converted) == parameters(plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert not places(plain)
    old, new = plain.layer2[0].bn1, converted.layer2[0].bn1
    assert torch.equal(torch.cat([new.IN.weight, new.BN.weight]), old.weight)
    assert torch.equal(torch.cat([new.IN.bias, new.BN.bias]), old.bias)
    assert torch.equal(new.BN.running_mean, old.running_mean[8:])
    assert (new.BN.eps, new.IN.eps, new.BN.momentum, new.training) == (1e-3, 1e-3, 0.2, False)
    x = images(2, 16, 5, 5)
    torch.testing.assert_close(new(x)[:, 8:], old(x)[:, 8:], rtol=0, atol=1e-6)  # the half that is still batch norm


def test_without_statistics_the_layers_start_afresh() -> None:
    converted: Any = convert_to_ibn(resnet(), copy_stats=False)
    layer = converted.layer1[0].bn1
    assert torch.equal(layer.IN.weight, torch.ones(4))
    assert torch.equal(layer.BN.running_mean, torch.zeros(4))
    assert converted.layer4[0].bn1.running_mean.abs().max() > 0


def test_conversion_gives_the_network_that_is_built_by_name() -> None:
    plain = resnet_ibn(18, None, num_classes=5, depths=(1, 2, 1, 1), widths=(8, 16, 24, 32))
    for variant in ("a", "b"):
        torch.manual_seed(0)
        built = resnet_ibn(18, variant, num_classes=5, depths=(1, 2, 1, 1), widths=(8, 16, 24, 32))
        converted = convert_to_ibn(plain, variant)
        built.load_state_dict(converted.state_dict())
        x = images(2, 3, 64, 64)
        assert torch.equal(built.eval()(x), converted.eval()(x))
        assert converted.retinue_config is None


@pytest.mark.parametrize("depth", [18, 50])
def test_variant_b_of_torchvisions_and_of_timms_network_is_the_same(depth: int) -> None:
    block: Any = torchvision.models.resnet.BasicBlock if depth == 18 else torchvision.models.resnet.Bottleneck
    theirs = torchvision.models.ResNet(block, [1, 2, 1, 1], num_classes=5)
    twin = timm.create_model(f"resnet{depth}", layers=(1, 2, 1, 1), num_classes=5)
    twin.load_state_dict(theirs.state_dict())
    first, second = convert_to_ibn(theirs, "b").eval(), convert_to_ibn(twin, "b").eval()
    assert places(first, NormedSum) == ["layer1.0", "layer2.1"]
    assert places(first, InstanceNorm) == ["bn1", "layer1.0.IN", "layer2.1.IN"]
    act = "act2" if depth == 18 else "act3"
    assert places(second, InstanceNorm) == ["bn1", f"layer1.0.{act}.IN", f"layer2.1.{act}.IN"]
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(first(x), second(x), rtol=0, atol=1e-5)
    assert (first(x) - theirs.eval()(x)).abs().max() > 1e-2


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_densenets_are_converted_in_every_third_layer(library: str) -> None:
    plain: Any
    if library == "timm":
        plain = timm.create_model("densenet121", growth_rate=8, block_config=(4, 2, 4, 2), num_classes=5)
    else:
        plain = torchvision.models.DenseNet(8, (4, 2, 4, 2), 16, num_classes=5)
    converted: Any = convert_to_ibn(plain)
    assert places(converted) == [
        f"features.denseblock{block}.denselayer{layer}.norm1" for block, layer in ((1, 1), (1, 4), (2, 1), (3, 1), (3, 4))
    ]
    layer = converted.features.denseblock1.denselayer1.norm1
    assert layer.sizes == [9, 7]  # int(16 * 0.6)
    x = images(2, 16, 5, 5) - 1
    if library == "timm":  # its norms end with ReLU
        assert isinstance(plain.features.denseblock1.denselayer1.norm1, BatchNormAct2d)
        assert layer(x).min() == 0
    assert converted.eval()(images(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("cifar_resnet", {"depth": 8}, "stages.0.0.conv1.bn"),
        ("resnet_rs", {"depths": [1, 1, 1, 1], "width_mult": 0.125}, "stages.0.0.convs.0.bn"),
        ("timm:regnetx_002", {}, "s1.b1.conv1.bn"),
        ("timm:efficientnet_b0", {}, "blocks.1.0.bn1"),
    ],
)
def test_other_networks_with_batch_norm_are_converted_too(name: str, options: dict[str, Any], first: str) -> None:
    model = retinue.create_model(name, num_classes=5, input_size=64, **options)
    converted = convert_to_ibn(model, stages=[2] if "efficient" in name else [1])
    assert places(converted)[0] == first
    assert parameters(converted) == parameters(model)
    act = getattr(model.get_submodule(first), "act", None)
    assert act is None or type(act) is type(converted.get_submodule(first).act[1])  # type: ignore[index]
    assert converted.eval()(images(2, 3, 64, 64)).shape == (2, 5)


def test_stages_are_chosen_by_number() -> None:
    assert places(convert_to_ibn(resnet(), stages=(2, 4))) == ["layer2.0.bn1", "layer2.1.bn1", "layer4.0.bn1"]


def test_a_converted_network_trains_and_keeps_the_precision() -> None:
    converted: Any = convert_to_ibn(resnet().double())
    loss = converted(images(4, 3, 64, 64).double()).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())
    assert converted.layer1[0].bn1.IN.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda: convert_to_ibn(resnet(), "c"), r'convert_to_ibn: no `variant` is called "c"\. There is a, b\.'),
        (lambda: convert_to_ibn(resnet(), stages=(0,)), r"`stages` count from 1 to 4 in this network, got 0\."),
        (lambda: convert_to_ibn(nn.Sequential(nn.Conv2d(3, 4, 3))), r"Sequential has no stages of residual blocks or dense"),
        (lambda: convert_to_ibn(timm.create_model("convnext_atto")), r"stages\.0\.blocks\.0 has no batch norm after its first conv"),
        (lambda: convert_to_ibn(convert_to_ibn(resnet())), r"this network is an IBN-Net already\. Convert the plain network"),
        (lambda: convert_to_ibn(timm.create_model("densenet121", growth_rate=4), "b"), r'a DenseNet has no sums\. Take variant "a"\.'),
        (
            lambda: convert_to_ibn(retinue.create_model("cifar_resnet", depth=8), "b"),
            r'"b" needs the residual blocks of timm.s or torchvision.s ResNet, and stages\.0\.0 is a BasicBlock\. Take variant "a"\.',
        ),
        (
            lambda: convert_to_ibn(timm.create_model("densenet121", growth_rate=4, norm_layer="groupnorm1")),
            r"only batch norm can be replaced, and features\.denseblock1\.denselayer1\.norm1 is a GroupNorm1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(convert: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert()


# Shifts


def keys(count: int) -> Tensor:
    return views.keys(0, 0, torch.arange(count))


def test_the_shifts_by_hand() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    results = {name: shift(x, keys(1)).flatten().tolist() for name, shift in appearance_shifts().items()}
    gain = results.pop("channel_gain")
    assert results == {
        "identity": [0, 0.5, 1], "contrast": pytest.approx([0.35, 0.5, 0.65]), "brightness": [0.5, 1, 1.5], "gamma": [0, 0.125, 1],
        "color_swap": [1, 0.5, 0], "invert": [1, 0.5, 0],
    }  # fmt: skip
    assert gain[0] == 0
    assert 0.25 <= gain[1] <= 0.75


def test_gains_depend_on_the_image_alone_and_fill_their_range() -> None:
    x = torch.ones(500, 3, 2, 2)
    gains = channel_gain(x, keys(500), 0.5, 1.5)
    assert torch.equal(gains[7:9], channel_gain(x[7:9], keys(500)[7:9]))
    assert gains.min() >= 0.5
    assert gains.max() < 1.5
    assert abs(gains[:, :, 0, 0].mean() - 1) < 0.03  # 4 standard errors of 1,500 uniform numbers
    assert torch.equal(gains[:, :, 0, 0], gains[:, :, 1, 1])
    assert gains[0, 0, 0, 0] != gains[0, 1, 0, 0]


class Brightest(nn.Module):
    """Answers by the mean of the normalised image: the brighter, the higher the class."""

    def forward(self, x: Tensor) -> Tensor:
        return -((x.mean((1, 2, 3))[:, None] - torch.linspace(-1, 1, 10)) ** 2)


def test_accuracy_under_shifts_is_that_of_the_shifted_images() -> None:
    data = retinue.data.open("digits", input_size=16, train_images=64, test_images=101, seed=0)
    model = Brightest().train()
    shifts = appearance_shifts()
    found = evaluate_shifts(model, data.test, shifts, batch_size=40)
    assert list(found) == list(shifts)
    assert model.training
    labels, x = data.test.labels, data.test.images().float() / 255
    for name, shift in shifts.items():
        answers = Brightest()(data.test.preprocessing.normalize(shift(x, keys(101)))).argmax(1)
        assert found[name] == pytest.approx((answers == labels).double().mean().item(), abs=1e-6)
    assert evaluate_shifts(model, data.test, batch_size=101) == found
    with pytest.raises(ArgumentError, match=r"evaluate_shifts: the split is empty\. Open the data with a larger test_fraction\."):
        evaluate_shifts(model, data.test.subset([]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": 0}, r"`contrast` must be positive, got 0\. Below 1 it weakens, above it strengthens\."),
        ({"gamma": -1.0}, r"`gamma` must be positive, got -1\.0"),
        ({"gain": (0.0, 1.0)}, r"`gain` must be positive, got 0\.0"),
        ({"gain": (1.5, 0.5)}, r"`gain` must be a range \(low, high\), got \(1\.5, 0\.5\)\."),
    ],
)
def test_shifts_that_cannot_be_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        appearance_shifts(**options)


# Divergence


def divergence(mean_a: float, std_a: float, mean_b: float, std_b: float) -> float:
    return gaussian_divergence(*(torch.tensor(value, dtype=torch.float64) for value in (mean_a, std_a, mean_b, std_b))).item()


def test_the_divergences_of_the_page() -> None:
    assert divergence(0, 1, 1, 1) == 1.0
    assert divergence(0, 1, 0, 2) == 1.125
    assert math.log(2) + 1 / 8 - 1 / 2 == pytest.approx(0.318147, abs=1e-6)
    assert -math.log(2) + 2 - 1 / 2 == pytest.approx(0.806853, abs=1e-6)


@settings(max_examples=10)
@given(FINITE, POSITIVE, FINITE, POSITIVE)
def test_the_divergence_is_the_integral_of_its_definition(mean_a: float, std_a: float, mean_b: float, std_b: float) -> None:
    a, b = norm(mean_a, std_a), norm(mean_b, std_b)
    expected, _ = quad(lambda x: (a.pdf(x) - b.pdf(x)) * (a.logpdf(x) - b.logpdf(x)), -40, 40, points=[mean_a, mean_b], limit=200)
    assert divergence(mean_a, std_a, mean_b, std_b) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert divergence(mean_a, std_a, mean_b, std_b) == pytest.approx(divergence(mean_b, std_b, mean_a, std_a), rel=1e-9, abs=1e-12)


def test_a_layers_divergence_is_the_mean_over_channels_of_its_means_over_space() -> None:
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2 * 9, 4))
    a, b = images(50, 2, 3, 3), 2 * images(70, 2, 3, 3, seed=1) + 1
    found = feature_divergence(model, a, b, ["0"], batch_size=16)
    rows = [x.mean((2, 3)).double().numpy() for x in (a, b)]
    by_channel = [divergence(rows[0][:, c].mean(), rows[0][:, c].std(), rows[1][:, c].mean(), rows[1][:, c].std()) for c in range(2)]
    assert found == {"0": pytest.approx(np.mean(by_channel), rel=1e-5)}
    assert feature_divergence(model, a, a.flip(0), ["0"])["0"] == pytest.approx(0, abs=1e-9)


def test_channels_that_are_constant_have_no_gaussian() -> None:
    layer = nn.Conv2d(1, 2, 1)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, -1e6]))  # type: ignore[union-attr]
    model = nn.Sequential(layer, nn.ReLU())
    a, b = images(20, 1, 4, 4).abs() + 1, images(20, 1, 4, 4, seed=1).abs() + 2
    whole = feature_divergence(model, a, b, ["1"])["1"]
    assert whole == pytest.approx(feature_divergence(nn.Sequential(nn.Identity()), a, b, ["0"])["0"], rel=1e-3)
    assert math.isnan(feature_divergence(model, a - 1e3, b - 1e3, ["1"])["1"])


def test_instance_norm_in_the_stem_takes_the_look_out_of_the_features() -> None:
    x = images(24, 3, 32, 32)
    build: dict[str, Any] = {"num_classes": 5, "input_size": 32, "depths": (1, 1, 1, 1), "widths": (8, 8, 8, 8)}
    found = {}
    for variant in (None, "b"):
        torch.manual_seed(0)
        found[variant] = feature_divergence(resnet_ibn(18, variant, **build), x, 2 * x)
    assert list(found["b"]) == ["stem.2", "stages.0", "stages.1", "stages.2", "stages.3"]
    assert all(found["b"][name] < 1e-2 * found[None][name] for name in found["b"])


def test_any_network_has_its_divergences() -> None:
    x = images(6, 3, 32, 32)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert all(value > 0 for value in feature_divergence(bare, x, x + 1).values())
    vit = retinue.create_model("timm:vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=2, input_size=32, num_classes=5)
    assert list(feature_divergence(vit, x, x + 1)) == ["blocks.0", "blocks.1"]


def test_wrong_layers_and_too_few_images_are_refused() -> None:
    model = resnet()
    x = images(2, 3, 64, 64)
    with pytest.raises(
        ArgumentError, match=r'feature_divergence: no layer is called "layer5"\. Did you mean .*dict\(model\.named_modules\(\)\)'
    ):
        feature_divergence(model, x, x, ["layer5"])
    with pytest.raises(ShapeError, match=r"`images_b` must hold at least two images to fit a Gaussian to, got 1\."):
        feature_divergence(model, x, x[:1])
