"""Residual networks for small images: the paper's counts, its shortcuts, its initialisation, and torchvision's block."""

import math
from itertools import pairwise

import pytest
import torch
from support import images, parameters
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from retinue.errors import ArgumentError
from retinue.models import cifar_resnet, count_macs, resnet20
from retinue.models.cifar_resnet import BasicBlock, PaddedShortcut


@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)],  # table 6 of the paper
)
def test_parameters_are_those_of_the_paper(depth: int, millions: float) -> None:
    net = cifar_resnet(depth, shortcut="padding")
    assert round(parameters(net) / 1e6, 2 if millions < 1 else 1) == millions
    assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in net.modules()) == depth


def test_depth_20_by_hand() -> None:
    def count(width: int, projections: bool) -> int:
        stages = [width, 2 * width, 4 * width]
        convs = 3 * width * 9 + sum((6 * out - (out - before)) * out * 9 for before, out in zip([width, *stages], stages, strict=False))
        norms = 2 * (width + sum(6 * out for out in stages))
        extra = sum(before * out + 2 * out for before, out in pairwise(stages)) if projections else 0
        return convs + norms + extra + (4 * width + 1) * 10

    assert parameters(resnet20()) == count(16, True) == 272_474
    assert parameters(resnet20(shortcut="padding")) == count(16, False) == 269_722
    assert parameters(cifar_resnet(20, width=5)) == count(5, True)


def test_maps_of_32_16_and_8_pixels() -> None:
    net = resnet20(num_classes=10).eval()
    maps = net.forward_intermediates(images(1, 3, 32, 32), intermediates_only=True)
    assert [tuple(one.shape[1:]) for one in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert [(tap["reduction"], tap["num_chs"]) for tap in net.feature_info] == [(1, 16), (2, 32), (4, 64)]
    assert net(images(2, 3, 29, 31)).shape == (2, 10)
    assert cifar_resnet(8, in_chans=1, num_classes=3)(images(1, 1, 8, 8)).shape == (1, 3)
    # section 4.2: 3x3 convolutions of 16, 32 and 64 channels on 32, 16 and 8 pixels cost the same
    per_layer = 32 * 32 * 16 * 16 * 9
    halves = per_layer // 2 * 2  # the first layer of the second and third stage has half the input channels
    assert count_macs(resnet20(shortcut="padding"), 32) == 32 * 32 * 16 * 3 * 9 + 16 * per_layer + halves + 640


def test_the_padded_shortcut_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    y = PaddedShortcut(2, 2)(x)
    assert y.shape == (1, 3, 2, 2)
    assert y[0, 1].tolist() == [[0, 2], [8, 10]]
    assert y[0, [0, 2]].count_nonzero() == 0
    assert PaddedShortcut(3, 1)(x)[0, 1].equal(x[0, 0]), "of an odd number of channels one more comes behind"
    assert parameters(PaddedShortcut(2, 2)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_torchvisions(stride: int) -> None:
    ours = BasicBlock(4, 4 * stride, stride, "projection")
    down = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8)) if stride == 2 else None
    theirs = TorchvisionBlock(4, 4 * stride, stride, down)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = images(3, 4, 9, 9)
    assert torch.equal(ours(x), theirs(x))


def test_a_block_whose_convolutions_give_nothing_is_the_relu_of_its_shortcut() -> None:
    block = BasicBlock(2, 4, 2, "padding")
    nn.init.zeros_(block.conv2.bn.weight)
    x = images(1, 2, 4, 4)
    assert torch.equal(block(x)[:, 1:3], x[:, :, ::2, ::2].relu())


def test_weights_begin_as_he_et_al_draw_them() -> None:
    net = cifar_resnet(20, width=64)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            expected = math.sqrt(2 / module.weight[0].numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)


def test_wrong_depths_and_shortcuts_are_refused() -> None:
    for depth in (21, 2, 6, 0, -4):
        with pytest.raises(ArgumentError, match=rf"^cifar_resnet: `depth` must be 6n \+ 2 \(8, 14, 20, 26, 32, \.\.\.\), got {depth}\.$"):
            cifar_resnet(depth)
    with pytest.raises(ArgumentError, match=r'^cifar_resnet: no `shortcut` is called "project"\. Did you mean projection\?$'):
        resnet20(shortcut="project")  # type: ignore[arg-type]


def test_scales_of_norms_are_one_or_uniform() -> None:
    def scales(uniform: bool) -> torch.Tensor:
        return torch.cat([m.weight for m in cifar_resnet(20, uniform_gamma=uniform).modules() if isinstance(m, nn.BatchNorm2d)])

    assert bool((scales(False) == 1).all())
    drawn = scales(True)
    assert 0 <= drawn.min() < 0.1 < 0.9 < drawn.max() <= 1
    assert abs(float(drawn.mean()) - 0.5) < 0.05
