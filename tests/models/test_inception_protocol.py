"""Inception-v4 and Inception-ResNet behind timm's protocol, under compilers and exporters."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import images, reductions
from torch import Tensor, nn

import retinue
from retinue.models import config

NAMES = ("inception_v4", "inception_resnet_v1", "inception_resnet_v2")
TINY: dict[str, Any] = {"num_classes": 5, "width_mult": 0.1, "depths": [1, 1, 1]}


def small(name: str, **options: Any) -> Any:
    return retinue.create_model(name, **{"input_size": 32, **TINY, **options})


@pytest.mark.parametrize("name", NAMES)
def test_timm_builds_it_by_name(name: str) -> None:
    model = timm.create_model(f"retinue_{name}", in_chans=1, num_classes=7, drop_rate=0.4, width_mult=0.1, depths=(1, 1, 1))
    assert model.head.drop.p == 0.4
    assert model(images(2, 1, 75, 75)).shape == (2, 7)
    assert model.default_cfg["mean"] == (0.5, 0.5, 0.5)
    assert model.default_cfg["crop_pct"] == {"inception_resnet_v2": 0.8975}.get(name, 0.875)
    assert model.default_cfg["input_size"] == (3, 299, 299)


@pytest.mark.parametrize("name", NAMES)
def test_timm_takes_its_pyramid(name: str) -> None:
    pyramid = timm.create_model(f"retinue_{name}", features_only=True, in_chans=1, aux=True, **TINY)
    assert reductions(pyramid) == [2, 4, 8, 16, 32]
    maps = pyramid(images(1, 1, 107, 107))
    assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()
    assert [m.shape[2] for m in maps] == {"inception_v4": [51, 25, 11, 5, 2]}.get(name, [51, 23, 11, 5, 2])
    assert not any(key.startswith("model.aux") for key in pyramid.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_pyramid_cut_off_early_holds_no_later_layer(name: str) -> None:
    pyramid: Any = small(name, features_only=True, out_indices=[1, 2]).eval()
    whole: Any = small(name).eval()
    whole.load_state_dict(pyramid.model.state_dict(), strict=False)
    assert len(pyramid.model.stages) == 1
    x = images(1, 3, 32, 32)
    for ours, again in zip(pyramid(x), whole.forward_intermediates(x, indices=[1, 2], intermediates_only=True), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_the_protocol_agree(name: str) -> None:
    model = small(name).eval()
    x = images(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 4, 4)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert torch.equal(model.forward_head(features), model(x))
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, features)
    assert torch.equal(maps[-1], features)
    assert model.get_classifier() is model.head.fc
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert small(name, num_classes=0)(x).shape == (2, model.num_features)


@pytest.mark.parametrize("name", NAMES)
def test_its_arguments_build_it_again(name: str) -> None:
    model = small(name, in_chans=1, aux=True, drop_rate=0.1)
    model.reset_classifier(3)
    made = config(model)
    assert made is not None
    again = retinue.create_model(made["name"], **made["arguments"])
    again.load_state_dict(model.state_dict())
    x = images(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_of_activations_changes_nothing_but_memory(name: str) -> None:
    model = small(name, drop_rate=0.0, aux=True)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    results = []
    for enable in (False, True):
        model.load_state_dict(start)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        logits, aux_logits = model(images(4, 3, 32, 32))
        (logits.square().sum() + aux_logits.square().sum()).backward()
        results.append(([p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]))
    for plain, recomputed in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", NAMES)
def test_it_exports_with_any_batch(name: str, unchecked: None) -> None:
    model = small(name).eval()
    program = torch.export.export(
        model, (images(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False
    )
    x = images(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


def test_it_compiles_without_a_break_in_training_and_evaluation(unchecked: None) -> None:
    model = small("inception_resnet_v2", drop_rate=0.0, aux=True)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    x = images(4, 3, 32, 32)
    for result, expected in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)


def test_it_can_be_traced(unchecked: None) -> None:
    model = small("inception_resnet_v2").eval()
    traced = torch.jit.trace(model, images(2, 3, 32, 32))
    x = images(3, 3, 32, 32, seed=1)
    assert torch.equal(traced(x), model(x))


def test_onnxruntime_computes_the_same(tmp_path: Path, unchecked: None) -> None:
    import onnxruntime

    model: nn.Module = small("inception_resnet_v2").eval()  # has every kind of layer that the others have
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images(2, 3, 32, 32),), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    session = onnxruntime.InferenceSession(path)
    x: Tensor = images(3, 3, 32, 32, seed=1)
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=0, atol=1e-5)  # sums in another order
