"""MixtureGrowth's templates, probe and network: exact checks, laws, twelve networks, and what is refused."""

import copy
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import Tensor, nn
from torch.testing import assert_close
from twelve import FITS, NETWORKS, network

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.grow.mixture_growth import (
    TemplateWeight,
    block_numbers,
    convert,
    fresh_templates,
    grow,
    least_covered,
    materialise,
)
from retinue.models.mixture_growth_networks import wide_resnet

HERE = FITS["mixture-growth"]
IN_TEMPLATES = {"ours": 4, "resnet": 16, "mobilenetv3": 54, "efficientnet": 18, "convnext": 32, "vgg": 7, "bare": 3}  # layers


class Dense(nn.Module):
    """A network that puts maps one behind the other, so that the parts' channels alternate, and that gates and groups channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grow = nn.Conv2d(12, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(18)
        self.mix = nn.Conv2d(18, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=6)
        self.gate = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.rand(12, 1, 1))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.norm(torch.cat([x, self.grow(torch.relu(x))], 1))
        x = torch.relu(self.grouped(self.mix(x)) * self.scale)
        return self.fc(x.mean((2, 3)) * torch.sigmoid(self.gate(x.mean((2, 3)))))


def stirred(model: Any) -> Any:
    """Give every parameter and running statistic of the members a value of its own."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("full."):
                tensor.add_(0.3 * torch.rand(tensor.shape)) if "var" in name else tensor.add_(0.2 * torch.randn(tensor.shape))
    return model.eval()


def ready(module: nn.Module, **options: Any) -> Any:
    model = stirred(convert(module, **options))
    model.trained.fill_(True)
    return model


def test_blocks_are_numbered_members_first() -> None:
    assert block_numbers(2, 2) == [[0, 2], [3, 1]]
    assert block_numbers(3, 3) == [[0, 2, 3], [4, 5, 6], [7, 8, 1]]
    assert (block_numbers(2, 1), block_numbers(1, 2), block_numbers(1, 3)) == ([[0], [1]], [[0, 1]], [[0, 2, 1]])


def test_a_grown_weight_has_the_members_on_its_diagonal_and_rows_are_outputs() -> None:
    layer = TemplateWeight((4, 4), 2, 2)
    sets = [torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 10.0)]), torch.stack([torch.full((2, 2), 100.0), torch.zeros(2, 2)])]
    with torch.no_grad():
        for vector, values in zip(layer.coefficients, ([1, 2], [3, 7], [5, 0], [4, 9])):
            vector.copy_(torch.tensor(values))
    whole = layer(sets, None)
    assert whole[:2, :2].unique().tolist() == [21]  # W_0 of set 0
    assert whole[:2, 2:].unique().tolist() == [5]  # W_2 of set 0
    assert whole[2:, :2].unique().tolist() == [400]  # W_3 of set 1
    assert whole[2:, 2:].unique().tolist() == [300]  # W_1 of set 1
    assert torch.equal(layer(sets, 0), whole[:2, :2])
    assert torch.equal(layer(sets, 1), whole[2:, 2:])


def test_the_least_covered_direction_is_orthogonal_where_one_is() -> None:
    assert least_covered(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).tolist() == [0, 0, 1]
    assert_close(least_covered(torch.tensor([[3.0, 4.0]])), torch.tensor([0.8, -0.6]))
    # of two unit vectors 60 degrees apart, the direction between them is covered most, and the one across least
    assert_close(least_covered(torch.tensor([[1.0, 0.0], [0.5, 3**0.5 / 2]])).abs(), torch.tensor([0.5, 3**0.5 / 2]))


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0.1, 3.0))
def test_new_coefficients_are_orthogonal_as_far_as_k_allows(templates: int, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    layer = TemplateWeight((4, 4), 2, 2, templates)
    for vector in layer.coefficients:
        nn.init.normal_(vector)
    layer.grow("orthogonal", scale)
    c = [vector.detach() for vector in layer.coefficients]
    pairs = [(2, 0), (3, 1)] + ([(2, 1)] if templates > 2 else []) + ([(3, 0), (3, 2)] if templates > 3 else [])
    for a, b in pairs:
        assert abs(float(c[a] @ c[b])) < 1e-4 * scale * float(c[b].norm()) + 1e-6
    assert_close(c[2].norm(), torch.tensor(scale))


def test_the_other_ways_to_fill_coefficients() -> None:
    torch.manual_seed(0)
    layer = TemplateWeight((4, 4), 2, 2)
    drawn = [vector.detach().clone() for vector in layer.coefficients]
    layer.grow("none")
    assert all(torch.equal(a, b) for a, b in zip(layer.coefficients, drawn))
    layer.grow("orthogonal", orthogonal_mode="reference")
    assert torch.equal(layer.coefficients[2], drawn[2])
    assert_close(layer.coefficients[3].detach(), least_covered(torch.stack(drawn[:3])))
    layer.grow("copy")
    assert torch.equal(layer.coefficients[2], drawn[0])
    assert torch.equal(layer.coefficients[3], drawn[1])
    layer.grow("copy", noise=0.1)
    assert 0 < float((layer.coefficients[2].detach() - drawn[0]).abs().max()) < 1
    layer.grow("random", scale=2.0)
    assert bool((layer.coefficients[3] >= 0).all())
    assert bool((layer.coefficients[3] < 2).all())
    layer.grow("zero")
    assert torch.equal(layer.coefficients[2], torch.zeros(2))


def test_template_form_costs_no_more_than_the_layer() -> None:
    layer = TemplateWeight((8, 6, 3, 3), 2, 2)
    sets = fresh_templates(layer.template_shape, layer.counts)
    assert sum(value.numel() for value in [*sets, *layer.parameters()]) == 8 * 6 * 9 + 8  # 2 K (o/2) (i/2) k^2 + 4 K, for K = 2
    deviation = torch.stack([part.detach() for part in fresh_templates((128, 128), (2, 2))]).std()
    assert float(deviation) == pytest.approx((2 / 128) ** 0.5, rel=0.02)  # Kaiming normal for a member's 128 inputs


@pytest.mark.parametrize("name", IN_TEMPLATES)
def test_a_network_that_fits_is_converted_trained_grown_and_made_ordinary(name: str) -> None:
    wide = network(name)
    before = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    model = convert(wide, input_size=32)
    assert len(model.names) == IN_TEMPLATES[name]
    assert all(torch.equal(tensor, before[key]) for key, tensor in wide.state_dict().items())
    x = images(4, 3, 32, 32)
    optimizer = torch.optim.SGD(model.own_parameters(0), 0.01)
    nn.functional.cross_entropy(model.train()(x, member=0), torch.arange(4)).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in {*model.parameters()} - {*model.own_parameters(0)})
    stirred(model).trained.fill_(True)
    with torch.no_grad():
        for member in (0, 1):
            assert_close(materialise(model, member).eval()(x), model(x, member=member), atol=1e-5, rtol=1e-5)
        together = model(x, member=0) + model(x, member=1)
        got = copy.deepcopy(model).grow("zero")(x)
        norms_over_channels = bool(model.adaptation and "exact sum" in model.adaptation[-1])
        assert norms_over_channels == (name == "convnext")
        if not norms_over_channels:  # float32: sums over up to 576 inputs in another order
            assert_close(got, together, atol=1e-5 * max(1.0, float(together.abs().max())), rtol=1e-5)
        grow(model)
        ordinary = materialise(model)
        assert_close(ordinary(x), model(x), atol=1e-5, rtol=1e-5)
    plain = retinue.models.adapt(wide, input_size=32)
    assert type(ordinary) is type(plain)
    assert {key: tensor.shape for key, tensor in ordinary.state_dict().items()} == {k: t.shape for k, t in plain.state_dict().items()}


@pytest.mark.parametrize("name", [name for name, why in HERE.items() if why])
def test_a_network_that_does_not_fit_is_refused_by_name_within_a_second(name: str) -> None:
    wide = network(name)
    begun = time.process_time()
    with pytest.raises(ArgumentError, match=re.escape(HERE[name])):
        convert(wide, input_size=32)
    assert time.process_time() - begun < 1


def test_every_one_of_the_twelve_is_tried() -> None:
    assert {*HERE} == {*NETWORKS}
    assert {name for name, why in HERE.items() if not why} == {*IN_TEMPLATES}


@pytest.mark.parametrize("parts", [2, 3])
def test_channels_one_behind_the_other_find_their_part(parts: int) -> None:
    torch.manual_seed(0)
    model = ready(Dense(), member_frac=1 / parts, input_size=8)
    if parts == 2:
        assert model.places["module.mix"].order == [*range(6), *range(9, 15), 6, 7, 8, 15, 16, 17]
    x = images(3, 3, 8, 8)
    with torch.no_grad():
        together = model(x, member=0) + model(x, member=1)
        model.grow("zero")
        assert_close(model(x), together, atol=1e-5, rtol=1e-5)
    narrow, norm = model.members[0].module, model.full.module.norm
    assert (narrow.grouped.groups, tuple(narrow.scale.shape)) == (6 // parts, (12 // parts, 1, 1))
    if parts == 3:  # members cover the first and last third, of either map; the rest of a norm is as new
        assert norm.weight[[4, 5, 6, 7, 14, 15]].tolist() == [1] * 6
        assert norm.running_mean[[4, 14]].tolist() == [0, 0]
        assert_close(norm.running_var[[0, 12]], model.members[0].module.norm.running_var[[0, 4]])


def test_norms_are_put_together_and_the_classifiers_bias_is_the_sum() -> None:
    torch.manual_seed(0)
    model = ready(Dense(), input_size=8)
    model.grow("orthogonal")
    first, last, full = (part.module for part in (*model.members, model.full))
    assert torch.equal(full.fc.bias, first.fc.bias + last.fc.bias)
    assert torch.equal(full.mix.bias, torch.cat([first.mix.bias, last.mix.bias]))
    own, other = first.norm.running_mean, last.norm.running_mean  # 6 channels of the stem and 3 of `grow`, each
    assert torch.equal(full.norm.running_mean, torch.cat([own[:6], other[:6], own[6:], other[6:]]))


def test_shared_banks_hold_one_set_for_a_shape() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())), nn.Flatten(), nn.Linear(128, 4))
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), net)
    own, shared = convert(stem, input_size=4), convert(stem, input_size=4, share=True)
    assert (len(own.banks), len(shared.banks)) == (5, 3)
    assert parameters(own) - parameters(shared) == 2 * 2 * 2 * 4 * 4 * 9  # two layers fewer, of two sets of two templates
    x = images(2, 3, 4, 4)
    stirred(shared)
    with torch.no_grad():
        together = shared(x, member=0) + shared(x, member=1)
        assert_close(shared.grow("zero")(x), together, atol=1e-5, rtol=1e-5)


def test_layers_of_a_bank_have_as_many_templates_as_the_table_says() -> None:
    torch.manual_seed(0)
    model = ready(network("ours"), input_size=32, share=True, templates={"*": 2, "stages.*": 5, "stages.1.conv": [4, 3]})
    counts = {name: model.weights[key].counts for key, name in model.names.items()}
    assert counts == {"stem.0.conv": (2, 2), "stages.0.conv": (5, 5), "stages.1.conv": (4, 3), "head.fc": (2, 2)}
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        together = model(x, member=0) + model(x, member=1)
        assert_close(copy.deepcopy(model).grow("zero")(x), together, atol=1e-5, rtol=1e-5)
    with pytest.raises(ArgumentError, match=r'"copy" needs as many templates in both sets, and a layer has 4 and 3\. Take another'):
        model.grow("copy")
    model.grow("orthogonal")
    c = [vector.detach() for vector in model.weights["stages-1-conv"].coefficients]
    assert [len(vector) for vector in c] == [4, 3, 4, 3]
    assert abs(float(c[2] @ c[0])) < 1e-6
    assert abs(float(c[3] @ c[1])) < 1e-6


def test_the_paper_s_network_for_imagenet_is_timm_s_and_strides_in_its_3x3() -> None:
    with torch.device("meta"):
        ours: Any = retinue.create_model("resnet_v1_5")
        theirs = timm.create_model("resnet50c")
        narrow: Any = retinue.create_model("resnet_v1_5", depth=26, widen=2, num_classes=10)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    block = ours.layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
    assert [m.kernel_size for m in ours.conv1 if isinstance(m, nn.Conv2d)] == [(3, 3)] * 3
    assert (narrow.num_features, narrow.conv1[0].out_channels, len(narrow.layer3)) == (1024, 16, 2)
    with pytest.raises(ArgumentError, match=r"`depth` must be 26, 50, 101, 152 and `widen` at least 1, got 28 and 10\."):
        retinue.create_model("resnet_v1_5", depth=28, widen=10)
    small = ready(retinue.create_model("resnet_v1_5", depth=26, widen=1, num_classes=4, input_size=32))
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        together = small(x, member=0) + small(x, member=1)
        assert_close(small.grow("zero")(x), together, atol=1e-4 * float(together.abs().max()), rtol=1e-4)


def test_the_paper_s_wide_resnet() -> None:
    model = wide_resnet(num_classes=100)
    assert parameters(model) == 36_536_884 - 100 - 2 * (4 * (160 + 320 + 640))  # the original, less the bias and the second norms
    assert parameters(wide_resnet(second_norm=True, num_classes=100)) == 36_536_884 - 100
    small = ready(wide_resnet(10, 2), input_size=32)
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        together = small(x, member=0) + small(x, member=1)
        assert_close(small.grow("zero")(x), together, atol=1e-4, rtol=1e-5)
    ordinary = materialise(small)
    assert parameters(ordinary) == parameters(wide_resnet(10, 2))


def test_another_classifier_has_templates_of_its_own() -> None:
    model = convert(network("ours"), input_size=32)
    model.reset_classifier(3)
    assert (model.num_classes, model(images(2, 3, 32, 32)).shape) == (3, (2, 3))
    model.trained.fill_(True)
    assert model.eval().grow("zero")(images(2, 3, 32, 32)).shape == (2, 3)
    assert (model.num_features, model.get_classifier().in_features) == (16, 16)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model.eval()(images(2, 3, 32, 32)).shape == (2, 16)
    model.reset_classifier(5)
    assert model(images(2, 3, 32, 32)).shape == (2, 5)
    assert convert(network("ours"), input_size=32, share=True).banks.keys() >= {"head-fc"}, "a classifier shares with nobody"


@pytest.mark.parametrize("build", [lambda: network("ours"), lambda: network("resnet"), lambda: Dense()])
def test_without_a_classifier_the_wide_features_are_those_of_the_members_side_by_side(build: Callable[[], nn.Module]) -> None:
    wide: Any = retinue.models.adapt(build(), input_size=32)
    wide.reset_classifier(0)
    model = ready(wide, input_size=32)
    x = images(2, 3, 32, 32)
    assert model.num_classes == 0
    with torch.no_grad():
        both = torch.cat([model(x, member=0), model(x, member=1)], 1)
        model.grow("zero")
        assert_close(model(x), both, atol=1e-5, rtol=1e-5)
    assert materialise(model)(x).shape == both.shape


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (
            lambda: network("ours"),
            {"templates": 0},
            "convert: `templates` must be at least 1, or a pair of such for the two sets, got 0. The",
        ),
        (lambda: network("ours"), {"member_frac": 0.7}, "convert: `member_frac` must be 1/2, 1/3, 1/4, ..., got 0.7. The paper has 0.5."),
        (lambda: network("ours"), {"member_frac": 0.4}, "`member_frac` must be 1/2, 1/3, 1/4, ..., got 0.4."),
        (
            lambda: retinue.create_model("small_convnet", widths=[8, 7], num_classes=4),
            {},
            "the 7 outputs of `stages.0.conv` cannot be divided into 2 equal parts. Choose widths and groups that can, or another",
        ),
        (lambda: NoClassifier(), {"input_size": 8}, "the network has no classifier (Sequential). Build it with num_classes."),
        (lambda: network("ours"), {"templates": [2, 0]}, "`templates` must be at least 1, or a pair of such for the two sets, got [2, 0]."),
        (lambda: network("ours"), {"templates": "cifar"}, 'no table of `templates` is called "cifar"'),
        (lambda: network("ours"), {"templates": {"stem.*": 3}}, '`templates` has no line for the layer "stages.0.conv". Add one for all'),
        (lambda: network("ours"), {"templates": {"*": 2, "steam.*": 3}}, 'no layer for `templates` is called "steam.*". Did you mean stem'),
        (lambda: network("ours"), {"template_init": "stacks"}, 'no `template_init` is called "stacks". Did you mean stack?'),
        (lambda: convert(network("ours")), {}, "MixtureGrowthNet is in template form already. Train and grow it as it is, or convert the"),
        (
            lambda: retinue.create_model("cifar_resnet", depth=8, width=8, shortcut="padding"),
            {},
            "the network at 0.5 of its width does not",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.Flatten(), nn.Linear(6 * 64, 2)),
            {"input_size": 8},
            "the 3 groups of `module.0` cannot be divided",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.Flatten(), nn.Linear(8 * 64, 2)),
            {"input_size": 8},
            "`module.0` works in groups on the image, whose channels all members see. Take another stem.",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(512, 2)),
            {"input_size": 8},
            "the groups of `module.2` reach over several parts of its inputs, which are not in order.",
        ),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1)), nn.Flatten(), nn.Linear(512, 2)),
            {"input_size": 8},
            "the weight of `0` is computed from other tensors (weight norm, pruning, ...), and here templates are to compute it.",
        ),
        (
            lambda: network("ours").double(),
            {},
            "the network has parameters of torch.float64, and templates are torch.float32. Give network",
        ),
        (lambda: Joined(), {"input_size": 8}, "the wide network is not the sum of its members even without new coefficients; it seems to"),
    ],
)
def test_what_cannot_be_converted_is_refused(net: object, options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        convert(net(), **options)


class Joined(nn.Module):
    """A slope for each channel behind two maps in a row, so that neither half of the slopes is a member's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.slopes, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.PReLU(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.fc(self.slopes(torch.cat([x, self.b(x)], 1)).mean((2, 3)))


class NoClassifier(nn.Module):
    """A network with timm's protocol and more than one layer for a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        self.num_features, self.num_classes = 4, 2

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        raise TypeError

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Odd(nn.Module):
    """A layer that is called with other channels each time, or a table that belongs to no layer."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.stem, self.twice, self.fc = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        if table:
            self.table = nn.Parameter(torch.zeros(4, 8))
        self.again = not table

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.stem(x) if not self.again else self.stem(self.twice(x)))
        return self.fc(x.mean((2, 3)))


def test_layers_called_twice_and_parameters_of_no_layer_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`module\.twice` is called several times, with other channels each time\."):
        convert(Odd(table=False), input_size=8)
    with pytest.raises(ArgumentError, match=r"the parameter `module\.table` of shape \(4, 8\) belongs to no convolution"):
        convert(Odd(table=True), input_size=8)


def test_growing_and_members_are_refused_in_words(caplog: pytest.LogCaptureFixture) -> None:
    model = convert(network("ours"), input_size=32)
    x = images(2, 3, 32, 32)
    with pytest.raises(ArgumentError, match="`member` must be 0, 1 or None, got 2"):
        model(x, member=2)
    with pytest.raises(ArgumentError, match='"ortogonal"'):
        grow(model, "ortogonal")
    with pytest.raises(ArgumentError, match='"code"'):
        grow(model, orthogonal_mode="code")
    model.trained[0] = True
    grow(model)
    assert "not trained: member 1. That part of what is grown is as it was drawn." in caplog.text
    with pytest.raises(ArgumentError, match=r"has grown already\. Build it anew"):
        grow(model)
    with pytest.raises(ArgumentError, match="`member` is 0, and after growth there are no members any more"):
        model(x, member=0)
    with pytest.raises(ArgumentError, match="`model` must be a MixtureGrowthNet, got Linear"):
        grow(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="materialise: `model` must be a MixtureGrowthNet, got Linear"):
        materialise(nn.Linear(2, 2))


def test_bad_template_weights_are_refused() -> None:
    with pytest.raises(ArgumentError, match="`templates` must be at least 1, or a pair of such for the two sets, got 0"):
        TemplateWeight((4, 4), 2, 2, 0)
    with pytest.raises(ArgumentError, match=r"a weight of \(4, 4\) in 1 x 1 parts has no place for two members"):
        TemplateWeight((4, 4), 1, 1)
    with pytest.raises(ShapeError, match="5 outputs and 4 inputs cannot be divided into 2 and 2 equal parts"):
        TemplateWeight((5, 4), 2, 2)
