"""MixtureGrowth's layers for networks built by hand, and what `create_model` builds: exact checks, the meta device, and what is refused."""

import json
from typing import Any

import pytest
import torch
from support import images, parameters
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.grow.mixture_growth import (
    MemberBatchNorm2d,
    MixtureGrowthNet,
    TemplateConv2d,
    TemplateLinear,
    convert,
    fresh_templates,
    grow,
    materialise,
    run_member,
)
from retinue.models import config


def by_hand(**options: Any) -> nn.Sequential:
    """Stem, norm, a convolution that strides, pooling, two linear layers: all kinds of grids, with every value drawn."""
    torch.manual_seed(0)
    net = nn.Sequential(
        TemplateConv2d(3, 12, 3, padding=1, fixed_in=True, **options),
        MemberBatchNorm2d(12, options.get("member_frac", 0.5)),
        nn.ReLU(),
        TemplateConv2d(12, 24, 3, stride=2, padding=1, **options),
        MemberBatchNorm2d(24, options.get("member_frac", 0.5)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        TemplateLinear(24, 12, bias=True, **options),
        nn.ReLU(),
        TemplateLinear(12, 5, fixed_out=True, bias=True, **options),
    )
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and ".full." not in name:
                tensor.add_(0.3 * torch.rand(tensor.shape))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(1)
    return net.eval()


def set_scalars(layer: Any) -> None:
    """Let block b of a layer's weight be filled with b + 1: one template of ones in each set, and coefficient b + 1."""
    with torch.no_grad():
        for part in layer.templates:
            part.fill_(1)
        for number, vector in enumerate(layer.mixture.coefficients):
            vector.fill_(number + 1)


def test_a_grown_linear_layer_has_its_members_on_the_diagonal() -> None:
    layer = TemplateLinear(4, 4, templates=1)
    set_scalars(layer)
    grow(layer, "none")
    whole = materialise(layer).weight
    assert whole[0:2, 0:2].unique().tolist() == [1]  # W_0
    assert whole[0:2, 2:4].unique().tolist() == [3]  # W_2
    assert whole[2:4, 0:2].unique().tolist() == [4]  # W_3
    assert whole[2:4, 2:4].unique().tolist() == [2]  # W_1


def test_a_grid_of_three_by_three_is_numbered_row_by_row() -> None:
    layer = TemplateConv2d(6, 3, 1, templates=1, member_frac=1 / 3)
    set_scalars(layer)
    grow(layer, "none")
    whole: Tensor = materialise(layer).weight[..., 0, 0]  # type: ignore[assignment]
    assert (whole[:, ::2] - 1).tolist() == [[0, 2, 3], [4, 5, 6], [7, 8, 1]]
    assert torch.equal(whole[:, ::2], whole[:, 1::2])


def test_a_stem_stacks_its_members_and_a_classifier_puts_them_side_by_side() -> None:
    stem, head = TemplateConv2d(3, 4, 1, templates=1, fixed_in=True), TemplateLinear(4, 5, templates=1, fixed_out=True, bias=True)
    for layer in (stem, head):
        set_scalars(layer)
    with torch.no_grad():
        head.biases[0].fill_(10)
        head.biases[1].fill_(1)
    grow(stem)
    grow(head)
    assert materialise(stem).weight[:, :, 0, 0].tolist() == [[1] * 3] * 2 + [[2] * 3] * 2  # type: ignore[index]
    assert materialise(head).weight.tolist() == [[1, 1, 2, 2]] * 5  # type: ignore[operator]
    assert materialise(head).bias.tolist() == [11] * 5, "of both members, and each once"  # type: ignore[operator]
    assert head(torch.zeros(1, 4)).tolist() == [[11] * 5]


def test_the_number_of_values_is_that_of_the_page() -> None:
    layer = TemplateConv2d(6, 8, 3, templates=2)
    assert parameters(layer) == 2 * 2 * (8 // 2) * (6 // 2) * 3**2 + 4 * 2 == 8 * 6 * 3**2 + 8
    assert parameters(TemplateConv2d(6, 8, 3, templates=5)) == 2 * 5 * 4 * 3 * 9 + 4 * 5
    assert parameters(materialise(grow(layer))) == 8 * 6 * 3**2


@pytest.mark.parametrize("member_frac", [1 / 2, 1 / 3, 1 / 4])
def test_with_zeros_a_network_by_hand_gives_the_sum_of_its_members_logits(member_frac: float) -> None:
    net, x = by_hand(member_frac=member_frac), images(3, 3, 8, 8)
    with torch.no_grad():
        first, last = net(x), run_member(net, 1)(x)
        assert not torch.allclose(first, last)
        for member, logits in ((0, first), (1, last)):
            assert_close(materialise(net, member)(x), logits, atol=1e-5, rtol=1e-5)
        grow(net, "zero")
        assert_close(net(x), first + last, atol=1e-5, rtol=1e-5)
        ordinary = materialise(net)
        assert_close(ordinary(x), first + last, atol=1e-5, rtol=1e-5)
    assert {type(layer) for layer in ordinary} >= {nn.Conv2d, nn.BatchNorm2d, nn.Linear}
    assert ordinary[3].weight.shape == (24, 12, 3, 3)
    if member_frac < 1 / 3:  # two quarters of a norm belong to nobody
        assert net[1].full.weight[3:9].tolist() == [1] * 6
        assert net[1].full.running_mean[3:9].tolist() == [0] * 6
    net.train()(x)
    assert int(net[1].full.num_batches_tracked) == 2


def test_training_one_member_by_hand_leaves_the_other_bit_for_bit() -> None:
    net = run_member(by_hand(), 1).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images(4, 3, 8, 8)), torch.arange(4)).backward()
        optimizer.step()
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".", 1)[1] for name in moved} == {
        "templates.1", "mixture.coefficients.1", "biases.1", "members.1.weight", "members.1.bias", "members.1.running_mean",
        "members.1.running_var", "members.1.num_batches_tracked",
    }  # fmt: skip


def test_layers_by_hand_and_a_converted_network_are_one_mechanism() -> None:
    net, x = by_hand(), images(2, 3, 8, 8)
    wide = nn.Sequential(*(layer.plain(None) if hasattr(layer, "plain") else layer for layer in net))
    converted: Any = convert(wide, input_size=8)
    with torch.no_grad():
        for place, layer in enumerate(net):
            if isinstance(layer, TemplateConv2d | TemplateLinear):
                key = f"module-{place}"
                for mine, theirs in zip(layer.templates, converted.banks[key], strict=True):
                    theirs.copy_(mine)
                for mine, theirs in zip(layer.mixture.coefficients, converted.weights[key].coefficients, strict=True):
                    theirs.copy_(mine)
                for member, bias in enumerate(layer.biases):
                    converted.members[member].module[place].bias.copy_(bias)
            if isinstance(layer, MemberBatchNorm2d):
                for member, norm in enumerate(layer.members):
                    converted.members[member].module[place].load_state_dict(norm.state_dict())
        converted.eval().trained.fill_(True)
        for member in (0, 1):
            assert torch.equal(converted(x, member=member), run_member(net, member)(x))
        for model in (net, converted):
            grow(model, "orthogonal")
        assert torch.equal(converted(x), net(x))


def test_the_released_code_s_templates_take_all_numbers_of_a_template_for_inputs() -> None:
    member = torch.cat([part.detach().flatten() for part in fresh_templates((64, 32, 3, 3), (3, 2))])
    stack = torch.cat([part.detach().flatten() for part in fresh_templates((64, 32, 3, 3), (3, 2), "stack")])
    assert len(member) == 5 * 64 * 32 * 9
    assert float(member.std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)
    assert float(stack.std()) == pytest.approx((2 / (64 * 32 * 9)) ** 0.5, rel=0.02)
    made: Any = retinue.create_model("mixture_growth", backbone="mlp", backbone_args={"widths": [256]}, template_init="stack", input_size=8)
    first = next(iter(made.banks.values()))[0].detach()
    assert first.shape == (2, 128, 3 * 64)
    assert float(first.std()) == pytest.approx((2 / (128 * 3 * 64)) ** 0.5, rel=0.02)


def test_networks_by_hand_are_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(TemplateConv2d(3, 4, 1, fixed_in=True), MemberBatchNorm2d(4))
    with pytest.raises(ArgumentError, match=r"^TemplateConv2d: `member` must be 0, 1 or None, got 2\.$"):
        net[0](images(1, 3, 4, 4), member=2)
    with pytest.raises(ArgumentError, match=r"`member` must be 0, 1 or None, got 3\.$"):
        run_member(net, 3)
    with pytest.raises(ArgumentError, match=r"run_member: Linear has no layer of members\. Build it of"):
        run_member(nn.Linear(2, 2), 0)
    with pytest.raises(ArgumentError, match=r'no `init` is called "zeros"\. Did you mean zero'):
        grow(net, "zeros")  # type: ignore[arg-type]
    net.train()(images(2, 3, 4, 4))  # member 0 alone
    grow(net)
    assert "not trained: member 1. That part of what is grown is as it was drawn." in caplog.text
    with pytest.raises(ArgumentError, match=r"has grown already\. Build it anew"):
        grow(net)
    with pytest.raises(ArgumentError, match=r"^TemplateConv2d: `member` is 1, and after growth there are no members any more\."):
        net[0](images(1, 3, 4, 4), member=1)
    with pytest.raises(ArgumentError, match="Sequential is in template form already"):
        convert(net)


def test_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"5 outputs and 4 inputs cannot be divided into 2 and 2 equal parts\. Choose widths"):
        TemplateConv2d(4, 5, 3)
    with pytest.raises(ShapeError, match="4 outputs and 4 inputs cannot be divided into 3 and 3 equal parts"):
        TemplateLinear(4, 4, member_frac=1 / 3)
    with pytest.raises(ArgumentError, match=r"MemberBatchNorm2d: 5 channels cannot be divided into 2 equal parts\."):
        MemberBatchNorm2d(5)
    with pytest.raises(ArgumentError, match=r"`member_frac` must be 1/2, 1/3, 1/4, \.\.\., got 0\.4\. The paper has 0\.5"):
        TemplateConv2d(4, 4, 3, member_frac=0.4)
    with pytest.raises(ArgumentError, match="`templates` must be at least 1, or a pair of such for the two sets, got 0"):
        TemplateConv2d(4, 4, 3, templates=0)
    with pytest.raises(ArgumentError, match=r"a weight of \(4, 4\) in 1 x 1 parts has no place for two members"):
        TemplateLinear(4, 4, fixed_in=True, fixed_out=True)
    with pytest.raises(ArgumentError, match='"copy" needs as many templates in both sets, and a layer has 3 and 2'):
        grow(TemplateLinear(4, 4, templates=(3, 2)), "copy")


def test_the_network_of_the_page() -> None:
    model = MixtureGrowthNet("wrn", depth=10, widen=1, templates=3)
    x = images(2, 3, 32, 32)
    assert [model(x, member=member).shape for member in (0, 1, None)] == [(2, 10)] * 3
    assert (model.num_features, model.full.num_features) == (32, 64)
    assert {weight.counts for weight in model.weights.values()} == {(3, 3)}
    grown: Any = grow(model)
    assert (grown.num_features, config(grown)["name"], config(materialise(grown))["name"]) == (64, "mixture_growth", "wide_resnet")  # type: ignore[index]
    with pytest.raises(ArgumentError, match=r'no `arch` is called "wrm". Did you mean wrn\? For any other network: retinue\.grow\.convert'):
        MixtureGrowthNet("wrm")


def test_a_shared_bank_holds_as_many_as_its_largest_layer() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *layers, nn.Flatten(), nn.Linear(128, 4))
    table = {"*": 2, "module.1": 5, "module.3": [3, 4]}
    model: Any = convert(net, input_size=4, share=True, templates=table)
    bank = model.banks[model.bank_of["module-1"]]
    assert [tuple(part.shape) for part in bank] == [(5, 4, 4, 3, 3)] * 2
    with torch.no_grad():
        before = model.mixed(0)
        bank[0][3:] += 1  # of this bank only module.1 takes more than three of set 0
        bank[1][4:] += 1
    assert [name for name, weight in model.mixed(0).items() if not torch.equal(weight, before[name])] == ["module.1"]


def test_the_released_table_for_imagenet_fits_the_network_layer_by_layer() -> None:
    with torch.device("meta"):
        model = MixtureGrowthNet("resnet", depth=50, widen=4, templates="imagenet", share=True, num_classes=1000)
    counts = {name: model.weights[key].counts for key, name in model.names.items()}
    assert len(counts) == 56
    assert (counts["conv1.0"], counts["conv1.3"], counts["conv1.6"], counts["fc"]) == ((1, 1), (5, 5), (4, 4), (1, 1))
    assert (counts["layer2.0.downsample.0"], counts["layer2.0.conv2"], counts["layer4.2.conv3"]) == ((4, 3), (4, 4), (2, 2))
    # stem, then groups of 10, 13, 19 and 10 layers, then the classifier, added up from the released table
    assert sum(first for first, _ in counts.values()) == (1 + 5 + 4) + 49 + 51 + 73 + 30 + 1
    assert sum(second for _, second in counts.values()) == (1 + 5 + 4) + 49 + 49 + 73 + 28 + 1
    assert model.bank_of["layer1-0-conv2"] == model.bank_of["layer1-1-conv2"] == "32x32x3x3"
    assert model.weights["layer1-0-conv2"].coefficients is not model.weights["layer1-1-conv2"].coefficients


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return retinue.create_model(name, **options)


@pytest.mark.parametrize("name", ["mixture_growth", "mixture_growth_member", "resnet_v1_5", "wide_resnet"])
def test_networks_are_built_and_rebuilt_on_the_meta_device(name: str) -> None:
    model = on_meta(name, num_classes=5, in_chans=1, input_size=32)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert (model.num_classes, model.in_chans) == (5, 1)
    assert model(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 5)
    made = json.loads(json.dumps(config(model)))
    again = on_meta(made["name"], **made["arguments"])
    assert {key: value.shape for key, value in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    features = on_meta(name, num_classes=0, in_chans=1, input_size=32)
    assert features.num_classes == 0
    assert features(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, features.num_features)


def test_what_is_built_on_meta_has_the_tensors_of_what_is_built_on_the_cpu() -> None:
    options: dict[str, Any] = {
        "backbone": "timm:resnet10t",
        "backbone_args": {"channels": [8, 8, 16, 16]},
        "num_classes": 4,
        "input_size": 32,
    }
    there, here = on_meta("mixture_growth", **options), retinue.create_model("mixture_growth", **options)
    assert {k: v.shape for k, v in there.state_dict().items()} == {k: v.shape for k, v in here.state_dict().items()}
    assert there.places == here.places
    with pytest.raises(ArgumentError, match=r"what enters `blocks\.0\.norm1` \(LayerNorm\) mixes channels"):
        on_meta("mixture_growth", backbone="timm:test_vit", num_classes=4, input_size=32)
