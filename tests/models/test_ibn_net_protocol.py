"""IBN-Net behind timm's protocol, under compilers and exporters, and the recipes."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import images, reductions
from torch import Tensor, nn

import retinue
import retinue.models.ibn_net
from retinue.cli import recipes
from retinue.engine.optim import Schedule, make_optimizer
from retinue.models import config
from retinue.models.ibn_net_layers import InstanceNorm
from retinue.models.network import frozen_statistics

TINY: dict[str, dict[str, Any]] = {
    "resnet_ibn": {"depth": 18, "depths": [1, 2, 1, 1], "widths": [8, 16, 24, 32]},
    "densenet_ibn": {"depths": [4, 2, 4, 2], "growth_rate": 8},
}
KINDS = [("resnet_ibn", "a"), ("resnet_ibn", "b"), ("densenet_ibn", "a")]
each = pytest.mark.parametrize(("name", "variant"), KINDS)


def small(name: str = "resnet_ibn", variant: str = "a", **options: Any) -> Any:
    return retinue.create_model(name, **{"input_size": 32, "num_classes": 5, "variant": variant, **TINY[name], **options})


def test_timm_builds_them_by_name() -> None:
    model = timm.create_model("retinue_resnet18_ibn_b", in_chans=1, num_classes=7, drop_rate=0.4, drop_path_rate=0.7, widths=(8, 8, 8, 8))
    assert model.head.drop.p == 0.4
    assert model.stages[3][1].drop_path.drop_prob == pytest.approx(0.7)
    assert model.default_cfg["first_conv"] == "stem.0"
    assert model.default_cfg["crop_pct"] == 0.875
    assert model(images(2, 1, 33, 47)).shape == (2, 7)


@pytest.mark.parametrize(("ours", "theirs"), [("resnet50_ibn_a", "resnet50"), ("densenet121_ibn_a", "densenet121")])
def test_their_pyramid_is_that_of_timms_network(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        mine: Any = retinue.create_model(ours, features_only=True)
        peer = timm.create_model(theirs, features_only=True)
        x = torch.empty(1, 3, 64, 64)
    assert reductions(mine) == peer.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert mine.feature_info.channels() == peer.feature_info.channels()
    assert [m.shape for m in mine(x)] == [m.shape for m in peer(x)]


@each
def test_a_pyramid_cut_off_early_holds_no_later_layer(name: str, variant: str) -> None:
    pyramid: Any = small(name, variant, features_only=True, out_indices=[1, 2]).eval()
    whole = small(name, variant).eval()
    whole.load_state_dict(pyramid.model.state_dict(), strict=False)
    assert len(pyramid.model.stages) == (3 if name == "densenet_ibn" else 2)
    x = images(1, 3, 32, 32)
    for mine, again in zip(pyramid(x), whole.forward_intermediates(x, indices=[1, 2], intermediates_only=True), strict=True):
        assert torch.equal(mine, again)


@each
def test_the_parts_of_the_protocol_agree(name: str, variant: str) -> None:
    model = small(name, variant).eval()
    x = images(2, 3, 32, 32)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 4, 4)
    assert torch.equal(model.forward_head(features), model(x))
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, features)
    assert torch.equal(maps[-1], features)
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(features, pre_logits=True))
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert small(name, variant, num_classes=0)(x).shape == (2, model.num_features)


@each
def test_their_arguments_build_them_again(name: str, variant: str) -> None:
    model = small(name, variant, in_chans=1, drop_rate=0.1)
    model.reset_classifier(3)
    made = config(model)
    assert made is not None
    again = retinue.create_model(made["name"], **made["arguments"])
    again.load_state_dict(model.state_dict())
    x = images(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), again.eval()(x))


@each
def test_checkpointing_of_activations_changes_nothing_but_memory(name: str, variant: str) -> None:
    model = small(name, variant, **({"proj_drop_rate": 0.2} if name == "densenet_ibn" else {"drop_path_rate": 0.3}))
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    results = []
    for enable in (False, True):
        model.load_state_dict(start)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(2)  # of what is dropped, which the second pass must draw alike
        model(images(4, 3, 32, 32)).square().sum().backward()
        results.append(([p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]))
    for plain, recomputed in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        assert torch.equal(plain, recomputed)


def test_mixed_precision_and_channels_last_change_little() -> None:
    model = small()
    x = images(4, 3, 32, 32)
    with frozen_statistics(model):
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        model.to(memory_format=torch.channels_last)
        last = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)  # sums in another order
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1)  # 8 bits of mantissa through 10 layers


@each
def test_they_export_with_any_batch(name: str, variant: str, unchecked: None) -> None:
    model = small(name, variant).eval()
    program = torch.export.export(
        model, (images(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False
    )
    x = images(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_they_compile_without_a_break_in_training_and_evaluation(variant: str, unchecked: None) -> None:
    model = small(variant=variant)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    x = images(4, 3, 32, 32)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)


@each
def test_they_can_be_traced(name: str, variant: str, unchecked: None) -> None:
    model = small(name, variant).eval()
    traced = torch.jit.trace(model, images(2, 3, 32, 32))
    x = images(3, 3, 32, 32, seed=1)
    assert torch.equal(traced(x), model(x))


@each
def test_their_inference_form_computes_the_same_and_is_traced_whole(name: str, variant: str) -> None:
    from retinue.models.fusion import fuse

    model = small(name, variant)
    with torch.no_grad():
        model(images(4, 3, 32, 32) + 1)  # statistics that are not those of a fresh norm
        form, notes = fuse(model)
        assert not any("cannot trace" in note for note in notes)
        assert any("batch norms folded" in note for note in notes)
        x = images(3, 3, 32, 32, seed=1)
        torch.testing.assert_close(form(x), model.eval()(x), rtol=0, atol=1e-5)


def test_onnxruntime_computes_the_same(tmp_path: Path, unchecked: None) -> None:
    import onnxruntime

    model: nn.Module = small(ibn_cfg=["b", "a", None, None]).eval()
    assert sum(isinstance(module, InstanceNorm) for module in model.modules()) == 4
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images(2, 3, 32, 32),), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    session = onnxruntime.InferenceSession(path)
    x: Tensor = images(3, 3, 32, 32, seed=1)
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=0, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_setting_of_the_recipes_fits_what_it_names(scale: str) -> None:
    recipe = recipes.load("ibn-net", scale)
    assert recipes.bind(recipe).target.__name__ == "Supervised"
    with torch.device("meta"):
        assert retinue.create_model(**{"num_classes": 10, "in_chans": 3, **recipe.model}).num_features in (32, 2048)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (29, 0.1), (30, 0.01), (60, 1e-3), (90, 1e-4), (99, 1e-4)])
def test_the_papers_learning_rate_falls_at_epochs_30_60_and_90(epoch: int, rate: float) -> None:
    fit = recipes.load("ibn-net", "paper").fit
    assert (fit["epochs"], fit["batch_size"], fit["momentum"], fit["weight_decay"]) == (100, 256, 0.9, 1e-4)
    optimizer = make_optimizer(
        fit["optimizer"], [nn.Parameter(torch.zeros(1))], lr=fit["lr"], weight_decay=fit["weight_decay"], momentum=fit["momentum"]
    )
    schedule = Schedule(optimizer, fit["schedule"], steps=fit["epochs"] * 5, steps_per_epoch=5, **fit["schedule_args"])
    rates = []
    for step in (epoch * 5, epoch * 5 + 3):  # of five in an epoch; timm's schedule falls one update early
        schedule.set(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([rate, rate], rel=1e-9)
