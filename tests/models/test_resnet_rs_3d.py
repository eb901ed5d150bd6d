"""3D-ResNet-RS: sizes, maps and protocol of the network for videos, and what it refuses."""

from typing import Any

import pytest
import torch
from support import images, parameters

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import resnet3d_rs


@pytest.mark.parametrize(("gating", "count"), [(True, 48_129_840), (False, 42_555_440)])
def test_the_video_network_has_the_parameters_of_the_page(gating: bool, count: int) -> None:
    with torch.device("meta"):
        model: Any = retinue.create_model("resnet3d_rs", num_classes=400, gating=gating)
    assert parameters(model) == count
    gates = [[hasattr(block.self_gate, "fc") for block in stage] for stage in model.stages]
    assert gates == [[gating and j == count - 1 for j in range(count)] for count in (3, 4, 6, 3)]
    assert [stage[0].convs[0].conv.kernel_size[0] for stage in model.stages] == [1, 1, 3, 3]
    assert [{block.drop_path.drop_prob for block in stage} for stage in model.stages] == [{0.04}, {0.06}, {0.08}, {0.1}]
    assert model.drop_rate == 0.5
    stem = [(unit.conv.kernel_size, unit.conv.stride, unit.conv.out_channels) for unit in model.stem[:3]]
    assert stem == [((5, 3, 3), (2, 2, 2), 32), ((1, 3, 3), (1, 1, 1), 32), ((1, 3, 3), (1, 1, 1), 64)]
    assert (model.stem[3].kernel_size, model.stem[3].stride) == ((1, 3, 3), (1, 2, 2))


def test_the_video_network_halves_time_once_and_images_five_times() -> None:
    model = resnet3d_rs(depths=[1, 1, 1, 1], width_mult=0.125, num_classes=5).eval()
    clips = images(2, 3, 6, 64, 96)
    last, maps = model.forward_intermediates(clips)
    assert [tuple(m.shape[2:]) for m in maps] == [(3, 32, 48), (3, 16, 24), (3, 8, 12), (3, 4, 6), (3, 2, 3)]
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info] == [8, 32, 64, 128, 256]
    assert torch.equal(last, model.forward_features(clips))
    torch.testing.assert_close(model.forward_head(last, pre_logits=True), last.mean((2, 3, 4)), rtol=0, atol=1e-6)
    assert torch.equal(model.forward_head(last), model(clips))


def test_the_video_network_on_small_frames_learns() -> None:
    model: Any = retinue.create_model("resnet3d_rs", depths=[1, 1, 1, 2], width_mult=0.125, num_classes=5, input_size=32, in_chans=1)
    assert model.adaptation == ["stem.0: stride over the image 2 -> 1", "stem.3: stride 2 -> 1 (removed)"]
    clips = images(3, 1, 4, 32, 32)
    assert model.forward_features(clips).shape[2:] == (2, 4, 4)
    block = model.stages[3][1].train()  # zero-gamma: the identity
    x = torch.rand(2, block.convs[0].conv.in_channels, 2, 3, 3)
    assert torch.equal(block(x), x)
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        model(clips).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    pyramid: Any = retinue.create_model("resnet3d_rs", features_only=True, out_indices=[1, 2], depths=[1, 1, 1, 1], width_mult=0.125)
    assert [m.shape[1] for m in pyramid(images(1, 3, 4, 64, 64))] == pyramid.feature_info.channels() == [32, 64]


def test_what_is_no_clip_is_refused() -> None:
    model = resnet3d_rs(depths=[1, 1, 1, 1], width_mult=0.125).eval()
    with pytest.raises(ShapeError, match=r"takes clips of batch, channels, frames, height and width, got 4 dimensions\. For single images"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ShapeError, match=r"needs at least 2 frames, got 1\."):
        model(torch.zeros(1, 3, 1, 64, 64))
    with pytest.raises(ShapeError, match=r"frames of at least 32x32 px, got 16x64\. Build it for small ones: .*input_size=16"):
        model(torch.zeros(1, 3, 4, 16, 64))
    with pytest.raises(ShapeError, match=r"takes 3 channels, got 1"):
        model(torch.zeros(1, 1, 4, 64, 64))
    with pytest.raises(ArgumentError, match=r'`output_fmt` must be "NCHW", got "NHWC"'):
        model.forward_intermediates(torch.zeros(1, 3, 4, 64, 64), output_fmt="NHWC")
    with pytest.raises(ShapeError, match=r"bn_momentum=1, so the running statistics would be those of a batch of one"):
        resnet3d_rs(depths=[1, 1, 1, 1], width_mult=0.125, bn_momentum=1.0)(torch.zeros(1, 3, 4, 64, 64))
    with pytest.raises(ArgumentError, match=r"resnet3d_rs: `depth` must be one of"):
        resnet3d_rs(depth=18)
    with pytest.raises(ArgumentError, match=r"resnet3d_rs: `drop_path_rate` must lie in"):
        resnet3d_rs(drop_path_rate=1.0)
