"""IBN-Net: the layer's laws, the networks' sizes and places, published and plain weights."""

import itertools
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import Tensor, nn
from torchvision.models import resnet as peer

import retinue
from retinue.errors import ArgumentError, CheckpointError, ShapeError
from retinue.models import count_macs
from retinue.models.ibn_net import RELEASED, densenet_ibn, from_published, official_name, resnet_ibn, to_official
from retinue.models.ibn_net_layers import IBN, InstanceNorm, convert_to_ibn, parts

SIZES = {  # parameters, multiply-adds at 224 px in billions, entries of the state
    "resnet18_ibn_a": (11_689_512, 1.814, 134), "resnet18_ibn_b": (11_689_896, 1.814, 123), "resnet50_ibn_a": (25_557_032, 4.089, 346),
    "resnet50_ibn_b": (25_558_568, 4.089, 321), "resnet101_ibn_a": (44_549_160, 7.801, 686), "resnext50_ibn_a": (25_028_904, 4.230, 346),
    "resnext101_ibn_a": (44_177_704, 7.970, 686), "se_resnet50_ibn_a": (28_071_976, 4.092, 378),
    "se_resnet101_ibn_a": (49_292_328, 7.806, 752), "densenet121_ibn_a": (7_978_856, 2.834, 755),
    "densenet169_ibn_a": (14_149_480, 3.360, 1049),
}  # fmt: skip
PLAIN = {  # ours -> timm's network of as many parameters
    "resnet34_ibn_a": "resnet34", "resnet152_ibn_a": "resnet152", "resnext50_ibn_a": "resnext50_32x4d", "densenet161_ibn_a": "densenet161",
    "densenet201_ibn_a": "densenet201",
}  # fmt: skip
NAMES = [
    *(f"resnet{depth}_ibn_{variant}" for depth in (18, 34, 50, 101, 152) for variant in "ab"),
    *(f"{family}{depth}_ibn_a" for family in ("resnext", "se_resnet") for depth in (50, 101, 152)),
    *(f"densenet{depth}_ibn_a" for depth in (121, 161, 169, 201)),
]
TINY: dict[str, Any] = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "num_classes": 5}
TINY_DENSE: dict[str, Any] = {"depths": (4, 2, 4, 2), "growth_rate": 8, "num_classes": 5}


@cache
def published(name: str) -> Any:
    with torch.device("meta"):
        return retinue.create_model(name)


def on_meta(build: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return build(*arguments, **options)


def randomise_norms(model: nn.Module) -> Any:
    """Fresh norms are all alike: two of them swapped would go unnoticed."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


# The layer


def test_the_layer_has_the_parameters_of_a_batch_norm_and_seven_entries() -> None:
    assert parameters(IBN(64)) == 128
    assert list(IBN(64).state_dict()) == [
        "IN.weight", "IN.bias", "BN.weight", "BN.bias", "BN.running_mean", "BN.running_var", "BN.num_batches_tracked",
    ]  # fmt: skip
    dense = IBN(64, 0.4, in_first=False)
    assert next(iter(dense.state_dict())) == "BN.weight"
    assert dense.sizes == [38, 26]  # int(64 * 0.6)
    assert (len(dense.BN.weight), len(dense.IN.weight)) == (38, 26)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("in_first", [True, False])
def test_the_layer_is_its_formula(training: bool, in_first: bool) -> None:
    layer = randomise_norms(IBN(10, 0.4, in_first)).train(training)
    x = images(4, 10, 5, 7)
    order = (slice(0, 4), slice(4, 10)) if in_first else (slice(6, 10), slice(0, 6))
    part, rest = x[:, order[0]], x[:, order[1]]
    var, mean = torch.var_mean(part, (2, 3), keepdim=True, correction=0)
    instance = (part - mean) / (var + 1e-5).sqrt() * layer.IN.weight[:, None, None] + layer.IN.bias[:, None, None]
    mean, var = layer.BN.running_mean.clone(), layer.BN.running_var.clone()
    if training:
        var, mean = torch.var_mean(rest, (0, 2, 3), correction=0)
    batch = (rest - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None] * layer.BN.weight[:, None, None] + layer.BN.bias[
        :, None, None
    ]
    expected = torch.cat([instance, batch] if in_first else [batch, instance], 1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)  # sums in another order


def test_instance_norm_is_torchs() -> None:
    ours, theirs = randomise_norms(InstanceNorm(6)), nn.InstanceNorm2d(6, affine=True)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer.train()
    x = images(3, 6, 4, 5) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    assert not ours.track_running_stats
    assert set(ours.state_dict()) == {"weight", "bias"}


@settings(max_examples=10)
@given(st.floats(0.5, 3), st.floats(-2, 2), st.booleans())
def test_the_instance_half_does_not_see_a_gain_and_an_offset(a: float, b: float, training: bool) -> None:
    layer, x = IBN(8).train(training), images(4, 8, 8, 8)
    torch.testing.assert_close(layer(a * x + b)[:, :4], layer(x)[:, :4], rtol=0, atol=1e-4)  # eps, against the variance of 64 places


def test_the_batch_half_bears_a_gain_and_an_offset_of_the_batch_in_training_alone() -> None:
    layer, x = IBN(8), images(4, 8, 8, 8)
    instance = (layer(3 * x + 2)[:, :4] - layer(x)[:, :4]).abs().max()
    assert instance < 5e-5  # the page's 2.3e-5
    assert (layer(3 * x + 2)[:, 4:] - layer(x)[:, 4:]).abs().max() < 1e-4
    fresh = IBN(8).eval()
    assert (fresh(3 * x + 2)[:, 4:] - fresh(x)[:, 4:]).abs().max() > 5


def test_gains_of_each_image_leave_the_instance_half_alone() -> None:
    layer, x = IBN(8), images(4, 8, 8, 8)
    gains = torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None, None]
    difference = (layer(gains * x) - layer(x)).abs()
    assert difference[:, :4].max() < 2e-4
    assert difference[:, 4:].max() > 1


def test_ratio_zero_is_batch_norm_and_ratio_one_is_instance_norm() -> None:
    x = images(4, 6, 5, 5) + 1
    for in_first in (True, False):
        batch, instance = IBN(6, 0.0, in_first), IBN(6, 1.0, in_first)
        assert torch.equal(batch(x), nn.BatchNorm2d(6)(x))
        assert torch.equal(instance(x), InstanceNorm(6)(x))
        assert (len(batch.state_dict()), len(instance.state_dict())) == (5, 2)


def test_synchronised_batch_norm_leaves_instance_norm_alone() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(resnet_ibn(18, "a", **TINY))
    assert isinstance(model.stages[0][0].bn1.BN, nn.SyncBatchNorm)
    assert type(model.stages[0][0].bn1.IN) is InstanceNorm


# The networks


@pytest.mark.parametrize("name", SIZES)
def test_every_network_has_the_size_of_the_page(name: str) -> None:
    model = published(name)
    assert (parameters(model), round(count_macs(model, 224) / 1e9, 3), len(model.state_dict())) == SIZES[name]


@pytest.mark.parametrize(("ours", "theirs"), PLAIN.items())
def test_variant_a_never_changes_the_number_of_parameters(ours: str, theirs: str) -> None:
    assert parameters(published(ours)) == parameters(on_meta(timm.create_model, theirs))


def test_they_are_found_by_name_and_the_released_ones_have_an_address() -> None:
    assert set(retinue.list_models("*_ibn_?")) == set(NAMES)
    assert set(RELEASED) <= set(NAMES)
    assert RELEASED["resnet50_ibn_a"].endswith("/v1.0/resnet50_ibn_a-d9d0bb7b.pth")


def test_variant_b_adds_an_instance_norm_behind_two_stages() -> None:
    extra = parameters(published("resnet50_ibn_b")) - parameters(published("resnet50_ibn_a"))
    assert extra == 2 * (256 + 512)
    found = [name for name, module in published("resnet50_ibn_b").named_modules() if isinstance(module, InstanceNorm)]
    assert found == ["stem.1", "stages.0.2.act3.IN", "stages.1.3.act3.IN"]


def test_variant_a_has_the_layer_after_the_first_convolution_of_every_block_but_the_last_stages() -> None:
    found = [name for name, module in published("resnet50_ibn_a").named_modules() if isinstance(module, IBN)]
    assert found == [f"stages.{stage}.{block}.bn1" for stage, count in enumerate((3, 4, 6)) for block in range(count)]
    assert all(module.sizes[0] == module.sizes[1] for module in published("resnet50_ibn_a").modules() if isinstance(module, IBN))


def test_a_densenet_has_it_in_every_third_layer_with_batch_norm_first() -> None:
    model = published("densenet121_ibn_a")
    found = {name: module for name, module in model.named_modules() if isinstance(module, IBN)}
    assert list(found) == [
        f"stages.{2 * block}.denselayer{layer}.norm1" for block, count in enumerate((6, 12, 24)) for layer in range(1, count + 1, 3)
    ]
    first = found["stages.0.denselayer1.norm1"]
    assert (len(first.BN.weight), len(first.IN.weight), first.in_first) == (38, 26, False)


def test_the_pages_small_network() -> None:
    build: dict[str, Any] = {"in_chans": 1, "num_classes": 10, "input_size": 16, "depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
    assert [parameters(resnet_ibn(18, variant, **build)) for variant in (None, "a", "b")] == [31_538, 31_538, 31_586]


@pytest.mark.parametrize(
    ("side", "maps"), [(28, [28, 28, 14, 7, 4]), (32, [32, 32, 16, 8, 4]), (48, [48, 48, 24, 12, 6]), (64, [32, 32, 16, 8, 4])]
)
@pytest.mark.parametrize("dense", [False, True])
def test_small_images_have_a_small_stem(side: int, maps: list[int], dense: bool) -> None:
    build: Any = densenet_ibn if dense else resnet_ibn
    model = build(input_size=side, in_chans=1, **(TINY_DENSE if dense else TINY)).eval()
    _, taps = model.forward_intermediates(images(1, 1, side, side))
    assert [tap.shape[-1] for tap in taps] == (
        maps if not dense else [*maps[:-1], side // (16 if side == 64 else 8)]
    )  # its pools round down
    assert [tap.shape[1] for tap in taps] == [info["num_chs"] for info in model.feature_info]
    assert [info["reduction"] for info in model.feature_info] == ([2, 2, 4, 8, 16] if side == 64 else [1, 1, 2, 4, 8])
    stride = 2 if side == 64 else 1
    assert model.adaptation == [f"stem.0: 7x7 convolution of stride 2 -> 3x3 of stride {stride}", "stem.3: max pool removed"]
    assert build(input_size=65, **(TINY_DENSE if dense else TINY)).adaptation == []


def test_small_input_means_32_px_where_no_size_is_given() -> None:
    assert str(resnet_ibn(18, small_input=True, **TINY)) == str(resnet_ibn(18, input_size=32, **TINY))


def test_convolutions_start_as_in_the_official_code() -> None:
    model = resnet_ibn(50, family="resnext", num_classes=0, depths=(1, 1, 1, 1))
    for conv in (model.stem[0], model.stages[3][0].conv2):
        deviation = (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5
        assert abs(conv.weight.std().item() / deviation - 1) < 0.03
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_stages_can_be_chosen_one_by_one() -> None:
    model = resnet_ibn(18, ibn_cfg=("b", "a", None, "a"), ratio=0.25, **TINY)
    found = [name for name, module in model.named_modules() if isinstance(module, IBN | InstanceNorm) and not name.endswith("bn1.IN")]
    assert found == ["stem.1", "stages.0.0.act2.IN", "stages.1.0.bn1", "stages.1.1.bn1", "stages.3.0.bn1"]
    assert model.stages[1][0].bn1.sizes == [4, 12]


@settings(max_examples=5)
@given(st.floats(0.3, 3.0))
def test_variant_b_does_not_see_a_gain_of_the_image(gain: float) -> None:
    model = randomise_norms(resnet_ibn(18, "b", input_size=32, **TINY))
    x = images(2, 3, 32, 32)
    expected = logits(model, x)
    torch.testing.assert_close(logits(model, gain * x), expected, rtol=0, atol=2e-4)  # eps
    plain = randomise_norms(resnet_ibn(18, None, input_size=32, **TINY))
    assert gain == pytest.approx(1, abs=0.05) or (logits(plain, gain * x) - logits(plain, x)).abs().max() > 1e-3


def test_variant_b_sees_an_offset_only_at_the_padded_border() -> None:
    model = randomise_norms(resnet_ibn(18, "b", input_size=32, **TINY))
    x = images(2, 3, 32, 32)
    assert (logits(model, x + 2) - logits(model, x)).abs().max() > 1e-3
    model.stem[0].padding_mode = "reflect"
    model.stem[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    torch.testing.assert_close(logits(model, x + 2), logits(model, x), rtol=0, atol=2e-4)


def test_stochastic_depth_grows_to_the_last_block() -> None:
    model = resnet_ibn(18, drop_path_rate=0.4, **TINY)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert resnet_ibn(18, drop_rate=0.3, **TINY).head.drop.p == 0.3


# Weights: torchvision's networks with the layers of the paper put in by hand, under the names of the official files


class Halves(nn.Module):
    """The layer as the paper draws it, on torch's own norms."""

    def __init__(self, channels: int, batch: int = 0) -> None:
        super().__init__()
        self.first = batch or channels - channels // 2
        self.BN = nn.BatchNorm2d(batch or channels // 2)
        self.IN = nn.InstanceNorm2d(channels - self.BN.num_features, affine=True)
        self.batch_first = bool(batch)

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return torch.cat([self.BN(x[:, : self.first]), self.IN(x[:, self.first :])], 1)
        return torch.cat([self.IN(x[:, : self.first]), self.BN(x[:, self.first :])], 1)


def reference(depth: int, variant: str, **options: Any) -> Any:
    """Build torchvision's ResNet of 1, 2, 1, 1 blocks and put the paper's norms in."""
    block: Any = peer.BasicBlock if depth < 50 else peer.Bottleneck
    model: Any = peer.ResNet(block, [1, 2, 1, 1], num_classes=5, **options)
    if variant == "a":
        for one in itertools.chain(model.layer1, model.layer2, model.layer3):
            one.bn1 = Halves(one.bn1.num_features)
    else:
        model.bn1 = nn.InstanceNorm2d(64, affine=True)
        for one in (model.layer1[-1], model.layer2[-1]):
            one.IN = nn.InstanceNorm2d((one.bn2 if depth < 50 else one.bn3).num_features, affine=True)
            norm_before_last_relu(one, calls=2 if depth < 50 else 3)
    return randomise_norms(model)


def norm_before_last_relu(block: Any, calls: int) -> None:
    count = itertools.count(1)
    block.relu.inplace = False
    block.relu.register_forward_pre_hook(lambda _, args: (block.IN(args[0]),) if next(count) % calls == 0 else None)


@pytest.mark.parametrize(
    ("depth", "variant", "family"),
    [(18, "a", "resnet"), (18, "b", "resnet"), (50, "a", "resnet"), (50, "b", "resnet"), (50, "a", "resnext")],
)
def test_official_weights_give_the_logits_of_torchvisions_network_with_the_papers_norms(depth: int, variant: Any, family: Any) -> None:
    theirs = reference(depth, variant, **({"groups": 32, "width_per_group": 4} if family == "resnext" else {}))
    ours = resnet_ibn(depth, variant, num_classes=5, family=family, depths=(1, 2, 1, 1))
    ours.load_state_dict(from_published(theirs.state_dict(), ours))
    x = images(2, 3, 96, 64)
    expected = logits(theirs, x)
    assert expected.std() > 0.01  # so that 1e-4 of it is a statement
    torch.testing.assert_close(logits(ours, x), expected, rtol=1e-4, atol=1e-4)
    back = to_official(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.state_dict().items())


def test_dilated_stages_keep_the_size_of_the_map_as_in_torchvision() -> None:
    theirs = reference(50, "a", replace_stride_with_dilation=[False, True, True])
    ours = resnet_ibn(50, "a", num_classes=5, depths=(1, 2, 1, 1), output_stride=8)
    ours.load_state_dict(from_published(theirs.state_dict(), ours))
    assert [info["reduction"] for info in ours.feature_info] == [2, 4, 8, 8, 8]
    x = images(1, 3, 64, 96)
    assert ours.eval().forward_features(x).shape == (1, 2048, 8, 12)
    torch.testing.assert_close(logits(ours, x), logits(theirs, x), rtol=1e-4, atol=1e-4)


def test_official_densenet_weights_give_the_logits_of_torchvisions_network_with_the_papers_norms() -> None:
    theirs = torchvision.models.DenseNet(8, (4, 2, 4, 2), 16, num_classes=5)
    for block in (1, 2, 3):
        for name, layer in getattr(theirs.features, f"denseblock{block}").named_children():
            if int(name.removeprefix("denselayer")) % 3 == 1:
                layer.norm1 = Halves(layer.norm1.num_features, int(layer.norm1.num_features * 0.6))
    randomise_norms(theirs)
    ours = densenet_ibn(**TINY_DENSE)
    ours.load_state_dict(from_published({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, ours))
    x = images(2, 3, 64, 96)
    torch.testing.assert_close(logits(ours, x), logits(theirs, x), rtol=1e-4, atol=1e-4)
    assert to_official(ours).keys() == theirs.state_dict().keys()


def test_official_squeeze_excite_is_linear_without_bias() -> None:
    ours = randomise_norms(resnet_ibn(50, family="se_resnet", **TINY))
    official = to_official(ours)
    assert official["layer1.0.se.fc.0.weight"].shape == (2, 32)
    assert official["layer1.0.se.fc.2.weight"].shape == (32, 2)
    assert "layer1.0.se.fc.0.bias" not in official
    again = resnet_ibn(50, family="se_resnet", **TINY)
    again.load_state_dict(from_published(official, again))
    x = images(2, 32, 5, 5)
    gate = official["layer1.0.se.fc.2.weight"] @ (official["layer1.0.se.fc.0.weight"] @ x.mean((2, 3)).T).relu()
    torch.testing.assert_close(again.stages[0][0].se(x), x * gate.T.sigmoid()[:, :, None, None], rtol=0, atol=1e-6)


def test_the_names_of_tensors_are_the_official_ones() -> None:
    assert official_name("stages.0.0.downsample.1.running_var") == "layer1.0.downsample.1.running_var"
    assert official_name("stages.3.2.se.fc2.weight") == "layer4.2.se.fc.2.weight"
    assert official_name("stages.5.conv.weight", dense=True) == "features.transition3.conv.weight"
    assert official_name("tail.bias", dense=True) == "features.norm5.bias"


@pytest.mark.parametrize("variant", ["a", "b"])
def test_a_plain_networks_weights_start_an_ibn_net(variant: Any) -> None:
    plain = randomise_norms(peer.ResNet(peer.BasicBlock, [1, 2, 1, 1], num_classes=7))
    ours = resnet_ibn(18, variant, num_classes=5, in_chans=1, depths=(1, 2, 1, 1))
    ours.load_state_dict(from_published(plain.state_dict(), ours))
    torch.testing.assert_close(ours.stem[0].weight, plain.conv1.weight.sum(1, keepdim=True), rtol=0, atol=1e-6)
    converted: Any = convert_to_ibn(plain, variant)
    mine, theirs = to_official(ours), converted.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if not name.startswith(("fc.", "conv1.")))
    if variant == "a":
        assert torch.equal(mine["layer1.0.bn1.IN.weight"], plain.layer1[0].bn1.weight[:32])
        assert torch.equal(mine["layer1.0.bn1.BN.running_var"], plain.layer1[0].bn1.running_var[32:])
    else:
        assert torch.equal(mine["bn1.bias"], plain.bn1.bias)
        assert "bn1.running_mean" not in mine


def test_a_plain_densenets_weights_start_an_ibn_net() -> None:
    plain = randomise_norms(torchvision.models.DenseNet(8, (4, 2, 4, 2), 16, num_classes=5))
    ours = densenet_ibn(**TINY_DENSE)
    ours.load_state_dict(from_published(plain.state_dict(), ours))
    old = plain.features.denseblock1.denselayer1.norm1.weight
    assert torch.equal(ours.stages[0].denselayer1.norm1.BN.weight, old[:9])
    assert torch.equal(ours.stages[0].denselayer1.norm1.IN.weight, old[9:])


def test_weights_of_another_network_are_refused_with_the_tensors_name() -> None:
    a, b = resnet_ibn(18, "a", **TINY), resnet_ibn(18, "b", **TINY)
    with pytest.raises(
        CheckpointError, match=r'lacks the tensor "layer1\.0\.bn1\.weight"\. Build the network of the same family, depth and variant\.'
    ):
        from_published(to_official(a), b)
    with pytest.raises(CheckpointError, match=r'the network lacks the tensor "layer2\.1\..*"\. Build the network of the same'):
        from_published(to_official(a), resnet_ibn(18, "a", **{**TINY, "depths": (1, 1, 1, 1)}))
    with pytest.raises(CheckpointError, match=r'"conv1\.weight" has shape \(8, 3, 7, 7\) in the checkpoint.*no `input_size` up to 64'):
        from_published(to_official(a), resnet_ibn(18, "a", input_size=32, **TINY))


# What is refused


@pytest.mark.parametrize("training", [True, False])
def test_maps_of_one_position_are_refused_with_the_layers_name(training: bool) -> None:
    model = resnet_ibn(18, "a", **TINY).train(training)
    with pytest.raises(
        ShapeError, match=r"^stages\.2\.0\.bn1\.IN: instance norm needs more than one position, got a map of 1x1\. Give larger"
    ):
        model(images(2, 3, 16, 16))
    assert IBN(4)(images(2, 4, 1, 2)).shape == (2, 4, 1, 2)
    with pytest.raises(ShapeError, match=r"^InstanceNorm: instance norm needs"):
        IBN(4)(images(2, 4, 1, 1))
    converted = convert_to_ibn(timm.create_model("resnet18", num_classes=3))
    with pytest.raises(ShapeError, match=r"^layer3\.0\.bn1\.IN: "):
        converted(images(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IBN(8, 1.5), r"IBN: `ratio` must lie in \[0, 1\], got 1\.5\. It is the share of channels with instance norm\."),
        (lambda: IBN(0), r"IBN: `num_channels` must be at least 1, got 0\."),
        (lambda: resnet_ibn(18, ratio=-0.1), r"`ratio` must lie in \[0, 1\], got -0\.1"),
        (lambda: resnet_ibn(19), r"`depth` must be one of 18, 34, 50, 101, 152, got 19\."),
        (lambda: resnet_ibn(18, "c"), r'no `variant` is called "c"\. There is a, b\.'),
        (lambda: resnet_ibn(18, family="resnet_se"), r'no `family` is called "resnet_se"\. Did you mean .*se_resnet'),
        (lambda: resnet_ibn(34, family="resnext"), r"a ResNeXt has bottlenecks, so `depth` must be 50, 101 or 152, got 34\."),
        (lambda: resnet_ibn(18, depths=(1, 2, 3)), r"`depths` must be four positive numbers, one a stage, got \[1, 2, 3\]\."),
        (lambda: resnet_ibn(18, widths=(8, 0, 8, 8)), r"`widths` must be four positive numbers"),
        (lambda: resnet_ibn(18, ibn_cfg=("a", None)), r"`ibn_cfg` must name a variant or None for each of four stages, got \['a', N"),
        (lambda: resnet_ibn(18, drop_path_rate=1.0), r"`drop_path_rate` must lie in \[0, 1\), got 1\.0\."),
        (lambda: resnet_ibn(18, output_stride=4), r"`output_stride` must be 8, 16 or 32, got 4\."),
        (lambda: densenet_ibn(121, "b"), r'stands after the sum of a residual block, and a DenseNet has no sums\. Take variant "a"\.'),
        (lambda: densenet_ibn(120), r"densenet_ibn: `depth` must be one of 121, 161, 169, 201, got 120\."),
        (lambda: densenet_ibn(121, "x"), r'densenet_ibn: no `variant` is called "x"'),
        (lambda: densenet_ibn(121, ratio=2), r"`ratio` must lie in \[0, 1\], got 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()


def test_parts_of_a_batch_norm() -> None:
    first, second = parts(nn.BatchNorm2d(5).state_dict(), [2, 3])
    assert (first["weight"].shape, second["running_mean"].shape, second["num_batches_tracked"].item()) == ((2,), (3,), 0)
