"""ResNet-RS behind timm's protocol, under compilers and exporters."""

from pathlib import Path
from typing import Any

import timm
import torch
from support import images, reductions
from torch import Tensor, nn

import retinue
from retinue.models import config
from retinue.models.network import frozen_statistics

TINY: dict[str, Any] = {"num_classes": 5, "depths": [1, 2, 1, 1], "width_mult": 0.125}


def small(**options: Any) -> Any:
    return retinue.create_model("resnet_rs", **{"input_size": 32, **TINY, **options})


def test_timm_builds_it_by_name() -> None:
    shape: Any = {"depths": (1, 1, 1, 1), "width_mult": 0.125}
    model: Any = timm.create_model("retinue_resnet_rs", in_chans=1, num_classes=7, drop_rate=0.4, drop_path_rate=0.2, **shape)
    assert model.head.drop.p == 0.4
    assert model.stages[3][0].drop_path.drop_prob == 0.2
    assert model(images(2, 1, 33, 47)).shape == (2, 7)
    assert model.default_cfg["first_conv"] == "stem.0.conv"


def test_its_pyramid_is_that_of_timms_network() -> None:
    ours: Any = retinue.create_model("resnet_rs_50", features_only=True)
    with torch.device("meta"):
        theirs: Any = timm.create_model("resnetrs50", features_only=True)
    assert reductions(ours) == theirs.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert [(m.shape[1], m.shape[2]) for m in ours(images(1, 3, 64, 64))] == [(64, 32), (256, 16), (512, 8), (1024, 4), (2048, 2)]


def test_a_pyramid_cut_off_early_holds_no_later_layer() -> None:
    pyramid: Any = small(features_only=True, out_indices=[1, 2]).eval()
    whole = small().eval()
    whole.load_state_dict(pyramid.model.state_dict(), strict=False)
    assert len(pyramid.model.stages) == 2
    x = images(1, 3, 32, 32)
    for ours, again in zip(pyramid(x), whole.forward_intermediates(x, indices=[1, 2], intermediates_only=True), strict=True):
        assert torch.equal(ours, again)


def test_the_parts_of_the_protocol_agree() -> None:
    model = small().eval()
    x = images(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 4, 4)
    assert torch.equal(model.forward_head(features), model(x))
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, features)
    assert torch.equal(maps[-1], features)
    assert model.get_classifier() is model.head.fc
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert small(num_classes=0)(x).shape == (2, model.num_features)


def test_its_arguments_build_it_again() -> None:
    model = small(in_chans=1, drop_rate=0.1, drop_path_rate=0.1, kind="basic")
    model.reset_classifier(3)
    made = config(model)
    assert made is not None
    again = retinue.create_model(made["name"], **made["arguments"])
    again.load_state_dict(model.state_dict())
    x = images(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), again.eval()(x))


def test_checkpointing_of_activations_changes_nothing_but_memory() -> None:
    model = small(drop_rate=0.0, drop_path_rate=0.3)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    results = []
    for enable in (False, True):
        model.load_state_dict(start)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(2)  # of stochastic depth, which the second pass must draw alike
        model(images(4, 3, 32, 32)).square().sum().backward()
        results.append(([p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]))
    for plain, recomputed in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        assert torch.equal(plain, recomputed)


def test_mixed_precision_and_channels_last_change_little() -> None:
    model = small(drop_rate=0.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)  # the last of each block starts at zero and would hide it
    x = images(4, 3, 32, 32)
    with frozen_statistics(model):
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        model.to(memory_format=torch.channels_last)
        last = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)  # sums in another order
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05)  # 8 bits of mantissa through some 20 layers


def test_it_exports_with_any_batch(unchecked: None) -> None:
    model = small().eval()
    program = torch.export.export(
        model, (images(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False
    )
    x = images(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


def test_it_compiles_without_a_break_in_training_and_evaluation(unchecked: None) -> None:
    model = small(drop_rate=0.0, bn_momentum=1.0)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    x = images(4, 3, 32, 32)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)


def test_it_can_be_traced(unchecked: None) -> None:
    model = small().eval()
    traced = torch.jit.trace(model, images(2, 3, 32, 32))
    x = images(3, 3, 32, 32, seed=1)
    assert torch.equal(traced(x), model(x))


def test_onnxruntime_computes_the_same(tmp_path: Path, unchecked: None) -> None:
    import onnxruntime

    model: nn.Module = small().eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images(2, 3, 32, 32),), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    session = onnxruntime.InferenceSession(path)
    x: Tensor = images(3, 3, 32, 32, seed=1)
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=0, atol=1e-5)  # sums in another order
