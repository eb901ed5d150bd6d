"""Laws of every family of networks: timm's protocol, checkpointing of activations, mixed precision, compilers, exporters, TorchScript."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import images, python
from torch import Tensor, nn

import retinue
from retinue.models import config
from retinue.models.fusion import fuse, scriptable

RESNET_IBN: dict[str, Any] = {"depth": 18, "depths": [1, 2, 1, 1], "widths": [8, 16, 24, 32]}
INCEPTION: dict[str, Any] = {"width_mult": 0.1, "depths": [1, 1, 1]}
IFORMER: dict[str, Any] = {"depths": [1, 2, 1, 1], "embed_dims": [12, 16, 20, 24], "num_heads": [3, 4, 5, 6], "low_heads": [1, 2, 2, 4, 5]}
# name of the test: name of the network, a small form of it, and what is dropped at random in training
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "inception_v4": ("inception_v4", INCEPTION, {}),
    "inception_resnet_v1": ("inception_resnet_v1", INCEPTION, {}),
    "inception_resnet_v2": ("inception_resnet_v2", {**INCEPTION, "aux": True}, {}),
    "inception_next": (
        "inception_next_atto",
        {"depths": [1, 1, 1], "dims": [8, 16, 24], "band_kernel_size": 5},
        {"drop_path_rate": 0.3},
    ),
    "iformer": ("iformer", IFORMER, {"drop_path_rate": 0.3}),
    "ibn_a": ("resnet_ibn", {**RESNET_IBN, "variant": "a"}, {"drop_path_rate": 0.3}),
    "ibn_b": ("resnet_ibn", {**RESNET_IBN, "variant": "b"}, {"drop_path_rate": 0.3}),
    "densenet_ibn_a": ("densenet_ibn", {"depths": [4, 2, 4, 2], "growth_rate": 8, "variant": "a"}, {"proj_drop_rate": 0.2}),
    "simplenet": ("simplenet", {"layers": "8 6 p 12 p 10"}, {"drop_rates": 0.3}),
    "resnet_rs": ("resnet_rs", {"depths": [1, 2, 1, 1], "width_mult": 0.125}, {"drop_path_rate": 0.3}),
    "nasnet": ("nasnet", {"N": 1, "F": 4, "aux": True}, {"drop_path_keep": 0.5}),
    "cifar_resnet": ("cifar_resnet", {"depth": 8, "width": 4}, {"drop_rate": 0.3}),
}
each = pytest.mark.parametrize("family", FAMILIES)
SIDE = 64


def small(family: str, dropping: bool = False, **options: Any) -> Any:
    name, shape, dropped = FAMILIES[family]
    return retinue.create_model(name, **{"input_size": SIDE, "num_classes": 5, **shape, **(dropped if dropping else {}), **options})


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the logits, and in training those of an auxiliary head."""
    out = model(x)
    return list(out) if isinstance(out, tuple) else [out]


@each
@torch.no_grad()
def test_a_pyramid_cut_off_early_holds_no_later_layer(family: str) -> None:
    pyramid: Any = small(family, features_only=True, out_indices=[0, 1]).eval()
    whole = small(family).eval()
    whole.load_state_dict(pyramid.model.state_dict(), strict=False)
    assert len(pyramid.model.stages) < len(whole.stages)
    assert not any("head.fc" in key or "aux" in key for key in pyramid.state_dict())
    assert pyramid.model.num_features == pyramid.feature_info.channels()[-1] == whole.feature_info[1]["num_chs"]
    x = images(1, 3, SIDE, SIDE)
    for ours, again in zip(pyramid(x), whole.forward_intermediates(x, indices=[0, 1], intermediates_only=True), strict=True):
        assert torch.equal(ours, again)


@each
@torch.no_grad()
def test_the_parts_of_the_protocol_agree(family: str) -> None:
    model, x = small(family).eval(), images(2, 3, SIDE, SIDE)
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.get_classifier()(pooled), model(x))
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, features)
    assert torch.equal(model.tail(maps[-1]) if family == "iformer" else maps[-1], features)
    assert retinue.models.pooled_features(model, x).shape == (2, retinue.models.feature_size(model))
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), pooled)
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert small(family, num_classes=0).eval()(x).shape == (2, model.head_hidden_size)


@each
def test_its_arguments_build_it_again(family: str) -> None:
    model = small(family, dropping=True, in_chans=1)
    model.reset_classifier(3)
    made = config(model)
    assert made is not None
    again = retinue.create_model(made["name"], **json.loads(json.dumps(made["arguments"])))
    assert str(again) == str(model)
    again.load_state_dict(model.state_dict())
    x = images(2, 1, SIDE, SIDE)
    assert torch.equal(model.eval()(x), again.eval()(x))


@each
def test_checkpointing_of_activations_changes_nothing_but_memory(family: str) -> None:
    model = small(family, dropping=True).train()
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    runs: list[int] = []
    for part in model.stages.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda *_: runs.append(1))
    results, ran = [], []
    for enable in (False, True):
        model.load_state_dict(start)
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        runs.clear()
        torch.manual_seed(2)  # of what is dropped, which the second pass must draw alike
        sum(out.square().sum() for out in outputs(model, images(4, 3, SIDE, SIDE))).backward()
        results.append(([p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()]))
        ran.append(len(runs))
    for plain, recomputed in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        assert torch.equal(plain, recomputed)
    assert ran[1] > 1.5 * ran[0]  # the blocks ran once more


@each
def test_it_runs_in_mixed_precision_and_with_channels_last(family: str) -> None:
    model, x = small(family, dropping=True), images(4, 3, SIDE, SIDE)
    with torch.autocast("cpu", torch.bfloat16):
        sum(out.float().square().sum() for out in outputs(model, x)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1)  # one that starts at zero would hide its block
    model.eval()
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x).float()
    last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)  # sums in another order
    assert (half - expected).abs().max() < 0.05 * expected.abs().max()  # 8 bits of mantissa


@each
def test_it_exports_with_any_batch(family: str, unchecked: None) -> None:
    model = small(family).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},), strict=False)
    x = images(5, 3, SIDE, SIDE)
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


@each
def test_it_compiles_without_a_break_in_training_and_evaluation(family: str, unchecked: None) -> None:
    torch._dynamo.reset()  # which gives up on a function that it has compiled for eight networks
    model = small(family, dropping=family != "nasnet")  # whose dropped paths follow a counter
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    x = images(4, 3, SIDE, SIDE)
    for mode in (True, False):
        model.train(mode)
        torch.manual_seed(1)
        expected = outputs(model, x)
        torch.manual_seed(1)
        for ours, plain in zip(outputs(compiled, x), expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


@each
def test_it_can_be_traced(family: str, unchecked: None) -> None:
    model = small(family).eval()
    traced = torch.jit.trace(model, images(2, 3, SIDE, SIDE))
    x = images(3, 3, SIDE, SIDE, seed=1)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=1e-6)


@each
@torch.no_grad()
def test_its_inference_form_is_traced_whole_and_computes_the_same(family: str) -> None:
    model = small(family, dropping=True)
    model(images(4, 3, SIDE, SIDE) + 1)  # statistics that are not those of a fresh norm
    form, notes = fuse(model.eval())
    assert not any("cannot trace" in note for note in notes)
    assert any("batch norms folded" in note for note in notes) or family == "iformer"  # which has layer norms
    x = images(3, 3, SIDE, SIDE, seed=1)
    torch.testing.assert_close(form(x), model(x), rtol=1e-4, atol=1e-5)


@each
def test_onnxruntime_computes_the_same(family: str, tmp_path: Path, unchecked: None) -> None:
    import onnxruntime

    side = 57 if family == "nasnet" else SIDE  # odd and even maps: 57, 29, 15
    model = small(family, input_size=side).eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images(2, 3, side, side),), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    session = onnxruntime.InferenceSession(path)
    x = images(3, 3, side, side, seed=1)
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), model(x).detach(), rtol=1e-5, atol=1e-5)  # sums in another order


# in a process of its own, whose functions are as they are written: TorchScript cannot read the ones whose shapes are checked while they run
SCRIPT = """
import io, json, sys, warnings, torch, retinue
warnings.simplefilter("ignore")
torch.set_num_threads(1)
for family, (name, shape, dropped) in json.loads(sys.argv[1]).items():
    model = retinue.create_model(name, num_classes=5, input_size=64, **shape, **dropped).eval()
    names, kept = list(model.state_dict()), io.BytesIO()
    torch.jit.save(torch.jit.script(model), kept)
    kept.seek(0)
    again = torch.jit.load(kept)
    assert sorted(again.state_dict()) == sorted(key for key in names if "aux" not in key and "drop_path" not in key), family
    assert list(model.state_dict()) == names, f"{family} itself was changed"
    with torch.no_grad():
        for batch, side in ((2, 64), (3, 75)):
            x = torch.randn(batch, 3, side, side)
            assert torch.equal(again(x), model(x)), (family, side)
    print(family, "ok")
"""


def test_each_is_scripted() -> None:
    done = python(SCRIPT, json.dumps(FAMILIES), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ok\n") == len(FAMILIES)


def test_one_in_training_is_not_scripted() -> None:
    with pytest.raises(
        retinue.errors.ArgumentError, match=r"torch\.jit\.script: a network of ours is scripted for evaluation\. Call \.eval"
    ):
        torch.jit.script(small("cifar_resnet").train())


def test_anyones_network_becomes_scriptable() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))

        def forward(self, x: "torch.Tensor | None") -> object:  # a signature that TorchScript does not know
            return self.steps(x).relu()

    model = Own().eval()
    with pytest.raises(RuntimeError):
        torch.jit.script(model)
    assert torch.equal(torch.jit.script(scriptable(model))(images(2, 1, 8, 8)), model(images(2, 1, 8, 8)))
