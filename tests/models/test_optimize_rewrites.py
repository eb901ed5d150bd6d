"""The inference form: each rewrite worked by hand, then as a law, then what must stay as it is."""

import copy
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close

from retinue.models.fusion import fuse, fuse_checked

FOLDED = "batch norms folded into the layers before them: {}"
MERGED = "sibling 1x1 convolutions merged: {}"
POOLED = "average pools put behind their 1x1 convolution: {}"
SCALED = "constant scales folded: {}"


class Call(nn.Module):
    """Layers, and a function that uses them."""

    def __init__(self, call: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def stir(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights of its own."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.normal_(norm.bias)
    return model.eval()


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def same(model: nn.Module, x: Tensor) -> tuple[nn.Module, list[str]]:
    """Fuse, compare, and hand on."""
    model = stir(model)
    net, notes = fuse(model)
    with torch.no_grad():
        assert_close(net(x.clone()), model(x.clone()), rtol=1e-5, atol=1e-5)
    return net, notes


def test_a_batch_norm_is_folded_as_by_hand() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    for parameter, value in (
        (conv.weight, 2),
        (conv.bias, 1),
        (norm.weight, 3),
        (norm.bias, 5),
        (norm.running_mean, 1),
        (norm.running_var, 4),
    ):
        nn.init.constant_(parameter, value)
    net, notes = fuse(nn.Sequential(conv, norm))
    assert notes == [FOLDED.format(1)]
    assert [(name, value.item()) for name, value in net.state_dict().items()] == [
        ("0.weight", 3.0),
        ("0.bias", 5.0),
    ]  # (2x + 1 - 1) / 2 * 3 + 5


@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), st.sampled_from([1, 2, 4]), st.booleans(), st.booleans(), st.integers(0, 9))
@settings(max_examples=15)
def test_any_convolution_takes_over_its_norm(kernel: int, stride: int, groups: int, bias: bool, affine: bool, seed: int) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 8, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
    net, notes = same(nn.Sequential(conv, nn.BatchNorm2d(8, affine=affine), nn.ReLU()), images(2, 4, 7, 7, seed=seed))
    assert notes == [FOLDED.format(1)]
    assert count(net, nn.BatchNorm2d) == 0


def test_timms_norm_leaves_its_activation_behind() -> None:
    net, _ = same(nn.Sequential(Conv2dSame(3, 4, 3, stride=2), BatchNormAct2d(4, act_layer=nn.SiLU)), images(2, 3, 8, 8))
    assert [type(module) for module in net.children()] == [Conv2dSame, nn.SiLU]


def test_a_linear_layer_takes_over_its_norm() -> None:
    assert same(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), images(3, 4))[1] == [FOLDED.format(1)]


def test_one_convolution_under_two_norms_becomes_two() -> None:
    model = Call(lambda m, x: m.a(m.conv(x)) + m.b(m.conv(2 * x)), conv=nn.Conv2d(3, 4, 1), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4))
    net, notes = same(model, images(2, 3, 5, 5))
    assert notes == [FOLDED.format(2)]
    assert count(net, nn.Conv2d) == 2


@pytest.mark.parametrize(
    "scaled", [lambda m, x: x + m.up(x) * 0.25, lambda m, x: torch.add(x, m.up(x), alpha=0.25), lambda m, x: 0.25 * m.up(x)]
)
def test_a_scale_enters_the_weight(scaled: Callable[..., Tensor]) -> None:
    model = Call(scaled, up=nn.Conv2d(3, 3, 1))
    net, notes = same(model, images(2, 3, 4, 4))
    assert notes == [SCALED.format(1)]
    assert torch.equal(net.get_parameter("up.weight"), model.get_parameter("up.weight") * 0.25)
    assert torch.equal(net.get_parameter("up.bias"), model.get_parameter("up.bias") * 0.25)


def test_a_narrow_convolution_goes_before_its_pool() -> None:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    net, notes = same(nn.Sequential(pool, nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), images(2, 8, 6, 6))
    assert notes == [FOLDED.format(1), POOLED.format(1)]
    assert [type(net.get_submodule(node.target)) for node in net.graph.nodes if node.op == "call_module"] == [
        nn.Conv2d,
        nn.AvgPool2d,
        nn.ReLU,
    ]


@pytest.mark.parametrize(
    "pair",
    [
        (nn.AvgPool2d(3, 1, 1), nn.Conv2d(8, 3, 1)),  # the border counts as zeros, so the mean of a constant is not constant
        (nn.AvgPool2d(2, 2), nn.Conv2d(8, 3, 1)),  # the convolution would have more places to compute
        (nn.AvgPool2d(3, 1), nn.Conv2d(8, 9, 1)),  # the pool would have more channels
        (nn.AvgPool2d(3, 1, divisor_override=4), nn.Conv2d(8, 3, 1)),
        (nn.MaxPool2d(3, 1), nn.Conv2d(8, 3, 1)),
    ],
)
def test_other_pools_stay_in_front(pair: tuple[nn.Module, nn.Module]) -> None:
    assert same(nn.Sequential(*pair), images(2, 8, 6, 6))[1] == []


def siblings(*layers: nn.Module, reads: Callable[[Tensor], Tensor] = lambda x: x) -> nn.Module:
    return Call(
        lambda m, x: torch.cat([layer(reads(x)) for layer in m.children()], 1), **{f"b{i}": layer for i, layer in enumerate(layers)}
    )


def test_siblings_become_one_convolution() -> None:
    unit = [nn.Sequential(nn.Conv2d(6, n, 1, bias=n == 2), nn.BatchNorm2d(n), nn.ReLU()) for n in (2, 3, 4)]
    net, notes = same(siblings(*unit), images(2, 6, 5, 5))
    assert notes == [FOLDED.format(3), MERGED.format(3)]
    assert [tuple(value.shape) for value in net.parameters()] == [(9, 6, 1, 1), (9,)]
    assert count(net, nn.ReLU) == 1
    assert count(fuse(siblings(*unit), merge=False)[0], nn.Conv2d) == 3


@pytest.mark.parametrize(
    "others",
    [
        nn.Conv2d(6, 2, 3, padding=1),
        nn.Conv2d(6, 2, 1, groups=2),
        nn.Conv2d(6, 2, 1, padding=1),
        nn.Conv2d(6, 2, 1, stride=2),
        nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU()),
    ],
)
def test_unlike_siblings_stay_apart(others: nn.Module) -> None:
    crop = nn.AdaptiveAvgPool2d(5)  # brings all to one size
    assert same(siblings(nn.Sequential(nn.Conv2d(6, 2, 1), crop), nn.Sequential(others, crop)), images(2, 6, 5, 5))[1] == []


def test_siblings_with_a_writer_between_them_stay_apart() -> None:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        x = x + 0
        first = m.a(x)
        m.act(x)  # writes into x
        return first + m.b(x)

    assert same(Call(call, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), act=nn.ReLU(inplace=True)), images(2, 3, 5, 5))[1] == []


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "model",
    [
        Call(lambda m, x: m.norm(y := m.conv(x)) + y, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)),  # the map itself is read too
        nn.Sequential(pruned(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),  # its weight is made at each call
        nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)),  # and so is this one's
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),  # a norm of each batch
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)),
    ],
)
def test_what_cannot_be_folded_stays(model: nn.Module) -> None:
    net, notes = same(model, images(2, 3, 5, 5))
    assert notes == []
    assert count(net, nn.BatchNorm2d) == 1


def test_dropout_is_gone_and_the_original_is_not_touched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Identity(), nn.ReLU()).train()
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    net, _ = fuse(model)
    assert [type(module) for module in net.children()] == [nn.Conv2d, nn.ReLU]
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)


class Branching(nn.Module):
    """Looks at its values, which no tracer can follow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) if x.sum() > 0 else -self.unit(x)


def test_what_cannot_be_traced_is_folded_child_by_child() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ModuleDict({"a": Branching(4)})["a"], nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    )
    net, notes = same(model, images(2, 3, 5, 5))
    assert notes == [FOLDED.format(3), "torch.fx cannot trace 2 (Branching): folded child by child"]
    assert count(net, nn.BatchNorm2d) == 0
    with torch.no_grad():
        assert_close(net(x := -images(2, 3, 5, 5)), model(x), rtol=1e-5, atol=1e-5)  # the other branch
    assert fuse(Branching(3))[1] == [FOLDED.format(1), "torch.fx cannot trace the network (Branching): folded child by child"]


def test_arguments_besides_the_images_keep_their_defaults() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x if mask is None else x * mask

    x = images(1, 3, 4, 4)
    assert torch.equal(fuse(Masked())[0](x), x)


def test_a_network_that_looks_into_its_layers_is_copied_as_it_is() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.unit(x) * self.unit[1].running_var.sum() if x.sum() < 1e9 else x

    model, x = stir(Curious()), images(3, 3, 4, 4)
    with torch.no_grad():
        expected = model(x)
        net, notes = fuse_checked(model, x, [expected], merge=True)
        assert torch.equal(net(x), expected)
    assert len(notes) == 1
    assert notes[0].startswith("nothing is folded: the folded network does not run as the network does (")
    assert net is not model


def test_modules_named_like_functions_are_not_taken_for_them() -> None:
    model = Call(lambda m, x: m.relu(m.mul(x)), mul=nn.Conv2d(3, 3, 1), relu=nn.Sigmoid())
    net, notes = same(model, images(1, 3, 4, 4))
    assert notes == []
    assert operator.mul not in [node.target for node in net.graph.nodes]
    assert F.relu(torch.zeros(1)) == 0
