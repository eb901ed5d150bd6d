"""ResNet-RS: sizes and laws of the networks, and published weights."""

import math
from functools import cache
from typing import Any

import pytest
import timm
import timm.models._builder
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, CheckpointError, ShapeError
from retinue.models import count_macs, resnet_rs, resnet_rs_50
from retinue.models.resnet_rs import Block, Gate, from_timm, timm_name, to_timm
from retinue.models.resnet_rs_training import POINTS

COUNTS = {50: 35_691_912, 101: 63_618_696, 152: 86_621_576, 200: 93_209_992, 270: 129_861_448, 350: 163_956_168, 420: 191_891_656}
ENTRIES = {50: 402, 101: 776, 152: 1150, 200: 1502, 270: 2030, 350: 2602, 420: 3108}
NARROW: dict[str, Any] = {"stem_width": 8, "channels": (16, 32, 64, 128)}  # what width_mult=0.25 is to timm
TINY: dict[str, Any] = {"num_classes": 5, "depths": [1, 2, 1, 1], "width_mult": 0.125}


def on_meta(build: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return build(**options).eval()


@cache
def published(depth: int) -> Any:
    """Build a network of the paper on the meta device, once."""
    with torch.device("meta"):
        return retinue.create_model(f"resnet_rs_{depth}")


def randomise_norms(model: nn.Module) -> Any:
    """Fresh norms are all alike, and the last of each block is zero: two of them swapped would go unnoticed."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)  # type: ignore[union-attr]
    return model.eval()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("depth", list(COUNTS))
def test_every_depth_has_the_parameters_and_tensors_of_the_page(depth: int) -> None:
    ours, theirs = published(depth), on_meta(timm.create_model, model_name=f"resnetrs{depth}")
    assert parameters(ours) == COUNTS[depth]
    renamed = {name: tensor.shape for name, tensor in to_timm(ours).items()}
    assert len(renamed) == ENTRIES[depth]
    assert renamed == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_multiply_adds_of_the_operating_points(point: Any) -> None:
    assert round(count_macs(published(point.depth), point.input_size) / 1e9, 3) == point.macs / 1e9


def test_the_named_networks_have_the_regularisation_of_their_largest_point() -> None:
    built = {depth: published(depth) for depth in (50, 200, 350, 420)}
    assert {depth: model.drop_rate for depth, model in built.items()} == {50: 0.25, 200: 0.25, 350: 0.4, 420: 0.4}
    assert built[50].default_cfg["input_size"] == (3, 160, 160)
    assert built[420].default_cfg["input_size"] == (3, 320, 320)
    assert isinstance(built[50].stages[3][0].drop_path, nn.Identity)
    assert built[420].stages[3][0].drop_path.drop_prob == 0.1


@pytest.mark.parametrize(("side", "last"), [(160, 5), (256, 8), (33, 2)])
def test_the_last_map_has_a_thirty_second_of_the_side(side: int, last: int) -> None:
    features = published(50).eval().forward_features(torch.empty(2, 3, side, side, device="meta"))
    assert features.shape == (2, 2048, last, last)


def test_a_block_without_projection_begins_as_the_identity() -> None:
    model = resnet_rs(**TINY)
    x = torch.rand(2, model.stages[1][1].convs[0].conv.in_channels, 5, 5)  # what comes out of ReLU is not negative
    for block in (model.stages[1][1].train(), model.stages[1][1].eval()):
        assert torch.equal(block(x), x)
    nn.init.ones_(block.convs[2].bn.weight)
    assert not torch.equal(block(x), x)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_a_block_is_its_formula(kind: Any) -> None:
    block = randomise_norms(Block(16, 32, 2, kind=kind, se=True, resnet_d=True, drop_path=0.0, bn_momentum=0.1))
    x = torch.rand(2, 16, 7, 7)
    branch = block.convs(x)
    means = branch.mean((2, 3))
    inner = torch.relu(means @ block.gate.fc1.weight[:, :, 0, 0].T + block.gate.fc1.bias)
    factors = torch.sigmoid(inner @ block.gate.fc2.weight[:, :, 0, 0].T + block.gate.fc2.bias)
    pooled = torch.stack([x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(4) for j in range(4)], -1)
    shortcut = block.shortcut[1](pooled.view(2, 16, 4, 4))  # the odd seventh pixel is averaged over what there is
    expected = torch.relu(branch * factors[:, :, None, None] + shortcut)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)  # sums in another order
    torch.testing.assert_close(block.train().requires_grad_(False).eval()(x), expected, rtol=0, atol=1e-5)


def test_training_and_evaluation_compute_the_same_but_for_the_statistics() -> None:
    block = randomise_norms(Block(32, 32, 1, kind="bottleneck", se=True, resnet_d=True, drop_path=0.0, bn_momentum=0.1))
    x = torch.rand(4, 32, 6, 6)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = False
    expected = block(x)
    block.training = True  # the branch of the forward pass that is made for gradients
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-6)


def test_squeeze_excite_of_zeros_halves_the_branch() -> None:
    gate = Gate(8)
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(gate(torch.randn(2, 8, 3, 3)), torch.full((2, 8, 1, 1), 0.5))


def test_squeeze_excite_has_a_quarter_of_the_blocks_output() -> None:
    model = published(50)
    assert model.stages[0][0].gate.fc1.weight.shape == (64, 256, 1, 1)
    assert model.stages[3][0].gate.fc1.weight.shape == (512, 2048, 1, 1)


def test_stochastic_depth_is_constant_within_a_stage() -> None:
    model = on_meta(resnet_rs, depth=50, drop_path_rate=0.1)
    rates = [[block.drop_path.drop_prob for block in stage] for stage in model.stages]
    assert rates == [[0.04] * 3, [0.06] * 4, [0.08] * 6, [0.1] * 3]


def test_stochastic_depth_can_grow_block_by_block_as_in_timm() -> None:
    ours = on_meta(resnet_rs, depth=50, drop_path_rate=0.1, drop_path_rule="block")
    theirs = on_meta(timm.create_model, model_name="resnetrs50", drop_path_rate=0.1)
    got = [getattr(block.drop_path, "drop_prob", 0.0) for stage in ours.stages for block in stage]
    layers = [theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4]
    assert got == [getattr(block.drop_path, "drop_prob", 0.0) for layer in layers for block in layer]


def test_stochastic_depth_leaves_whole_branches_out_and_keeps_the_mean() -> None:
    block: Any = Block(32, 32, 1, kind="bottleneck", se=True, resnet_d=True, drop_path=0.5, bn_momentum=0.1)
    nn.init.ones_(block.convs[2].bn.bias)
    for module in block.convs.modules():
        module.training = False
    x = torch.rand(64, 32, 2, 2)
    grown = block(x) - x
    alone = torch.sigmoid(block.gate.fc2(torch.relu(block.gate.fc1(torch.ones(1, 32, 1, 1)))))
    kept = grown.abs().amax((1, 2, 3)) > 1e-6
    assert 16 < kept.sum() < 48
    torch.testing.assert_close(grown[kept], (2 * alone).expand(int(kept.sum()), 32, 2, 2), rtol=0, atol=1e-5)


def test_the_plain_network_is_torchvisions_resnet() -> None:
    ours = on_meta(resnet_rs, depth=50, se=False, resnet_d=False)
    assert parameters(ours) == 25_557_032
    small = resnet_rs(depths=[1, 1, 1, 1], num_classes=5, se=False, resnet_d=False)
    theirs = randomise_norms(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5))
    small.load_state_dict(dict(zip(small.state_dict(), theirs.state_dict().values(), strict=True)))
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(logits(small, x), logits(theirs, x), rtol=0, atol=1e-5)


def test_the_network_with_timms_weights_computes_timms_logits() -> None:
    theirs = randomise_norms(timm.create_model("resnetrs50", num_classes=7, **NARROW))
    ours = resnet_rs_50(num_classes=7, width_mult=0.25)
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    for size in ((64, 97), (96, 96)):
        x = images(1, 3, *size)
        expected = logits(theirs, x)
        assert expected.std() > 0.01  # so that 1e-4 of it is a statement
        torch.testing.assert_close(logits(ours, x), expected, rtol=1e-4, atol=1e-5)
    back = to_timm(ours)
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.state_dict().items())


def test_pretrained_fetches_by_timms_name_and_fits_channels_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("resnetrs50", **NARROW).state_dict()
    asked: list[Any] = []

    def hub(place: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(place)
        return dict(theirs)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", hub)
    ours: Any = retinue.create_model("resnet_rs_50", pretrained=True, in_chans=1, num_classes=3, input_size=32, width_mult=0.25)
    assert asked == ["timm/resnetrs50.tf_in1k"]
    torch.testing.assert_close(ours.stem[0].conv.weight, theirs["conv1.0.weight"].sum(1, keepdim=True), rtol=0, atol=1e-6)
    assert torch.equal(ours.stages[2][3].gate.fc2.bias, theirs["layer3.3.se.fc2.bias"])
    assert ours.head.fc.weight.shape == (3, 512)
    assert ours.default_cfg["mean"] == (0.485, 0.456, 0.406)


def test_names_of_tensors_are_timms() -> None:
    assert timm_name("stem.2.bn.running_var") == "bn1.running_var"
    assert timm_name("stem.3.conv.weight") == "maxpool.0.weight"
    assert timm_name("stages.0.0.gate.fc1.bias") == "layer1.0.se.fc1.bias"
    assert timm_name("head.fc.weight") == "fc.weight"


def test_weights_of_another_network_are_refused_with_the_tensors_name() -> None:
    model = resnet_rs(**TINY)
    tensors = to_timm(model)
    with pytest.raises(CheckpointError, match=r'lacks the tensor "layer2\.2\.conv1\.weight"\. Build the resnet_rs of the same depth\.'):
        from_timm(tensors, resnet_rs(**{**TINY, "depths": [1, 3, 1, 1]}))
    with pytest.raises(CheckpointError, match=r'the network lacks the tensor "layer2\.1\..*"\. Build the resnet_rs of the same depth\.'):
        from_timm(tensors, resnet_rs(**{**TINY, "depths": [1, 1, 1, 1]}))
    with pytest.raises(CheckpointError, match=r'"conv1\.1\.weight" has shape \(8,\) in the checkpoint and \(32,\).*width_mult=1'):
        from_timm(tensors, resnet_rs(**{**TINY, "width_mult": 1.0}))
    with pytest.raises(CheckpointError, match=r"lacks the tensor"):  # a plain ResNet's weights do not fit
        from_timm(on_meta(timm.create_model, model_name="resnet50").state_dict(), on_meta(resnet_rs_50))


@pytest.mark.parametrize(
    ("side", "maps"), [(28, [28, 28, 14, 7, 4]), (32, [32, 32, 16, 8, 4]), (48, [48, 24, 12, 6, 3]), (64, [64, 32, 16, 8, 4])]
)
@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_small_images_give_up_the_strides_of_the_stem(side: int, maps: list[int], kind: Any) -> None:
    model: Any = retinue.create_model("resnet_rs", input_size=side, in_chans=1, kind=kind, **TINY).eval()
    _, taps = model.forward_intermediates(torch.randn(1, 1, side, side))
    assert [tap.shape[-1] for tap in taps] == maps
    assert [tap.shape[1] for tap in taps] == [info["num_chs"] for info in model.feature_info]
    assert [info["reduction"] for info in model.feature_info] == ([1, 1, 2, 4, 8] if side < 48 else [1, 2, 4, 8, 16])
    assert model.adaptation == ["stem.0: stride 2 -> 1", "stem.3: stride 2 -> 1"][: 2 if side < 48 else 1]


def test_small_input_means_32_px_where_no_size_is_given() -> None:
    assert str(resnet_rs(small_input=True, **TINY)) == str(resnet_rs(input_size=32, **TINY))
    large = resnet_rs(input_size=65, **TINY)
    assert str(large) == str(resnet_rs(**TINY))
    assert large.adaptation == []


def test_the_plain_network_gives_up_its_strides_too() -> None:
    model = resnet_rs(input_size=32, se=False, resnet_d=False, **TINY)
    assert model.adaptation == ["stem.0: stride 2 -> 1", "stem.1: stride 2 -> 1"]
    assert model.eval().forward_features(torch.randn(1, 3, 32, 32)).shape[2:] == (4, 4)


@settings(max_examples=6)
@given(st.sampled_from([18, 26, 34]), st.floats(0.1, 0.5))
def test_basic_blocks_have_two_convolutions_each(depth: int, width_mult: float) -> None:
    model = on_meta(resnet_rs, depth=depth, kind="basic", width_mult=width_mult)
    convs = [m for m in model.stages.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) + 2 == depth  # the stem, which counts as one, and the classifier
    assert all(conv.out_channels % 8 == 0 for conv in convs)


def test_the_classifier_starts_small_and_dropout_comes_before_it() -> None:
    model = resnet_rs(num_classes=1000, depths=[1, 1, 1, 1], width_mult=0.125)
    assert abs(model.head.fc.weight.std().item() - 0.01) < 1e-4
    assert not model.head.fc.bias.any()
    ones = torch.ones(200, model.num_features, 2, 2)
    dropped = (model.forward_head(ones, pre_logits=True) == 0).float().mean()
    assert abs(dropped - 0.25) < 0.01  # of 51,200 draws: 5 standard errors


def test_an_average_of_the_weights_reaches_a_constant_by_the_closed_form() -> None:
    target = nn.Linear(1, 1, bias=False).double()
    ema = timm.utils.ModelEmaV3(target, decay=0.9999)
    nn.init.zeros_(ema.module.weight)
    nn.init.ones_(target.weight)
    ema.update(target)
    assert math.isclose(ema.module.weight.item(), 1e-4, rel_tol=1e-9)
    for _ in range(9_999):
        ema.update(target)
    assert round(ema.module.weight.item(), 6) == 0.632139


REFUSED = [
    ({"depth": 51}, r"resnet_rs: `depth` must be one of 26, 50, 101, 152, 200, 270, 350, 420 with bottleneck blocks, got 51\."),
    ({"depth": 50, "kind": "basic"}, r"`depth` must be one of 18, 26, 34 with basic blocks, got 50\. Or: depths=\[3, 4, 6, 3\]\."),
    ({"kind": "basics"}, r'resnet_rs: no `kind` of block is called "basics"\. Did you mean basic\?'),
    ({"depths": [3, 4, 6]}, r"`depths` must be four positive numbers of blocks, one for each stage, got \[3, 4, 6\]\."),
    ({"depths": [3, 4, 0, 3]}, r"`depths` must be four positive numbers"),
    ({"drop_rate": 1.0}, r"`drop_rate` must lie in \[0, 1\), got 1\.0"),
    ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1\.0\. It is the share dropped, not the share kept\."),
    ({"drop_path_rate": -0.1}, r"`drop_path_rate` must lie in \[0, 1\), got -0\.1"),
    ({"drop_path_rule": "layer"}, r'no `drop_path_rule` is called "layer"\. There is block, stage\.'),
    ({"width_mult": 0}, r"`width_mult` must be positive, got 0\. It is a factor on the numbers of filters\."),
    ({"bn_momentum": 1.5}, r"`bn_momentum` must lie in \(0, 1\], got 1\.5\. It is the weight of the newest batch\."),
    ({"dephts": [1, 1, 1, 1]}, r'resnet_rs: no option is called "dephts"\. Did you mean depths, depth'),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        retinue.create_model("resnet_rs", **options)


def test_a_misspelt_option_of_a_named_network_is_noticed() -> None:
    with pytest.raises(ArgumentError, match=r'resnet_rs_50: no option is called "widht_mult"\. Did you mean width_mult\?'):
        retinue.create_model("resnet_rs_50", widht_mult=2)


def test_images_that_are_too_small_are_refused_and_those_of_other_channels() -> None:
    model = resnet_rs(**TINY).eval()
    with pytest.raises(ShapeError, match=r"at least 32x32 px, got 31x40\. Build it for small images: .*input_size=31\)"):
        model(torch.zeros(1, 3, 31, 40))
    with pytest.raises(ShapeError, match=r"takes 3 channels, got 1\. Build it with in_chans=1"):
        model(torch.zeros(1, 1, 40, 40))


def test_a_single_image_cannot_be_the_whole_statistics() -> None:
    model = resnet_rs(bn_momentum=1.0, input_size=32, **TINY)
    with pytest.raises(ShapeError, match=r"bn_momentum=1, so the running statistics would be those of a batch of one\. Train on batches"):
        model(images(1, 3, 32, 32))
    model(images(2, 3, 32, 32))
    assert model.stem[0].bn.momentum == 1.0
    model.eval()(images(1, 3, 32, 32))
