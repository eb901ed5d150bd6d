"""`retinue.optimize`: the same outputs by every backend, the original untouched, and what is refused."""

import copy
import importlib
import pickle
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import images
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.errors import ArgumentError, MissingExtraError, ShapeError
from retinue.models import tiny
from retinue.models.backends import CompiledForm
from retinue.models.onednn import KEPT, FusedConv, works
from retinue.models.optimized import Optimized
from retinue.models.probe import UnequalError, check_equal, trial_images

TIMM = {  # name: its options, the side of its images
    "resnet18": ({"channels": (8, 16, 24, 32), "stem_width": 8, "layers": (1, 1, 1, 1)}, 48),
    "mobilenetv3_small_050": ({}, 32),
    "efficientnet_b0": ({}, 48),
    "tf_efficientnet_b0": ({}, 48),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 64),
    "vit_tiny_patch16_224": ({"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}, 32),
}


def stir(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics of its own, so that folding them matters."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def inception(name: str, **options: Any) -> nn.Module:
    return stir(retinue.create_model(name, num_classes=5, input_size=32, width_mult=0.1, depths=[1, 1, 1], **options))


def timm_network(name: str) -> nn.Module:
    return stir(timm.create_model(name, num_classes=7, **TIMM[name][0]))


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def assert_same(fast: nn.Module, model: nn.Module, *shapes: tuple[int, ...]) -> None:
    with torch.no_grad():
        for i, shape in enumerate(shapes):
            x = images(*shape, seed=i)
            assert_close(fast(x), model(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_tiny_backbones_keep_their_outputs_and_lose_their_norms(kind: Any) -> None:
    model = stir(tiny(kind))
    fast = retinue.optimize(model)
    assert fast.backend == "torch"
    assert count(fast, nn.BatchNorm2d) == 0
    assert_same(fast, model, (1, 3, 32, 32), (4, 3, 32, 32))
    if kind != "timm_vit":
        assert_same(fast, model, (2, 3, 40, 56))


@pytest.mark.parametrize("name", TIMM)
def test_timms_networks_keep_their_outputs(name: str) -> None:
    model, side = timm_network(name), TIMM[name][1]
    fast = retinue.optimize(model, input_size=side)
    assert count(fast, nn.modules.batchnorm._BatchNorm) == 0
    assert_same(fast, model, (1, 3, side, side), (3, 3, side, side))


@pytest.mark.parametrize(
    ("name", "merged"),
    # v4: 3 + 3 + 3 siblings of the blocks A, B and C, 2 of reduction B, 2 of the stem. v2: 3 of the first block, 3 + 2 + 2 of the
    # blocks, 3 of reduction B, 2 of the last block
    [("inception_v4", 13), ("inception_resnet_v2", 15)],
)
def test_an_inception_network_has_fewer_convolutions(name: str, merged: int) -> None:
    model = inception(name)
    fast = retinue.optimize(model)
    assert f"sibling 1x1 convolutions merged: {merged}" in fast.notes
    groups = 5 if name == "inception_v4" else 6
    assert count(fast, FusedConv) == count(model, nn.Conv2d) - merged + groups
    assert count(fast, nn.Conv2d) == count(fast, nn.BatchNorm2d) == 0
    assert_same(fast, model, (1, 3, 32, 32), (3, 3, 32, 32), (2, 3, 48, 40))


def test_a_residual_sum_is_part_of_its_convolution() -> None:
    fast = retinue.optimize(inception("inception_resnet_v2"))
    calls = [node for node in fast.form.net.graph.nodes if node.op == "call_module" and len(node.args) == 2]
    assert len(calls) == 4  # blocks A, B, C and the last one
    assert [fast.form.net.get_submodule(node.target).act for node in calls] == ["relu", "relu", "relu", None]
    assert not any(node.op == "call_function" and "add" in str(node.target) for node in fast.form.net.graph.nodes)


def test_the_original_is_not_touched() -> None:
    model = stir(tiny("timm_cnn")).train()
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    kinds = [type(module) for module in model.modules()]
    retinue.optimize(model)
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), draws)


def test_what_a_network_says_of_itself_is_kept() -> None:
    model = tiny("ours")
    model.classes, model.preprocessing = [str(i) for i in range(10)], {"mean": [0.5]}
    fast = retinue.optimize(model)
    assert (fast.num_classes, fast.in_chans, fast.classes, fast.preprocessing) == (10, 3, model.classes, {"mean": [0.5]})
    assert not hasattr(retinue.optimize(tiny("bare")), "num_classes")
    assert "backend=torch" in repr(fast)


def test_oneDNN_is_used_here_and_only_where_it_may() -> None:
    assert works()
    model = stir(tiny("timm_cnn"))
    fast, x = retinue.optimize(model), images(2, 3, 32, 32)
    convs = [module for module in fast.modules() if isinstance(module, FusedConv)]
    with torch.no_grad():
        for shape in ((2, 3, 32, 32), (3, 3, 32, 32), (1, 3, 32, 32)):
            fast(images(*shape))
        assert all(len(conv._packed) == KEPT for conv in convs)
        with torch.backends.mkldnn.flags(enabled=False):
            assert_close(fast(x), model(x), rtol=0, atol=1e-4)
        fast.load_state_dict({name: value * 0 for name, value in fast.state_dict().items()})
        assert torch.count_nonzero(fast(x)) == 0  # the layouts of the old weights are gone
        assert retinue.optimize(copy.deepcopy(model).double())(x.double()).dtype == torch.float64


def test_gradients_reach_the_images() -> None:
    model = stir(tiny("timm_cnn"))
    fast, x = retinue.optimize(model), images(2, 3, 32, 32).requires_grad_()
    ours, theirs = (torch.autograd.grad(net(x)[:, 0].sum(), x)[0] for net in (fast, model))
    assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("act", "added"),
    [(None, False), ("relu", False), ("relu6", False), ("silu", False), ("hardswish", False), (None, True), ("relu", True)],
)
def test_a_fused_convolution_equals_its_parts(act: str | None, added: bool) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1).requires_grad_(False)
    x, other = 5 * images(2, 4, 9, 7), 5 * images(2, 6, 5, 4, seed=1)
    terms: list[Any] = [other, other[:1, :, :1, :1]] if added else [None]  # oneDNN does not broadcast
    for term in terms:
        y = conv(x) if term is None else conv(x) + term
        assert_close(FusedConv(conv, act)(x, term), getattr(F, act)(y) if act else y, rtol=1e-5, atol=1e-5)


def test_other_activations_stay_behind_a_sum() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + self.conv(x))

    model = Sum().eval()
    assert_same(retinue.optimize(model), model, (2, 3, 8, 8))


def test_onnxruntime_takes_any_batch_and_size() -> None:
    model = stir(tiny("ours"))
    fast = retinue.optimize(model, backend="onnxruntime", threads=1)
    assert_same(fast, model, (1, 3, 32, 32), (5, 3, 32, 32), (2, 3, 48, 40))
    assert next(fast.parameters()).device.type == "cpu"


def test_openvino_takes_any_batch_and_size_and_is_copied() -> None:
    model = stir(tiny("bare"))
    fast = retinue.optimize(model, backend="openvino", threads=1)
    assert_same(fast, model, (1, 3, 32, 32), (5, 3, 32, 32), (2, 3, 48, 40))
    first, x = fast(images(1, 3, 32, 32)), images(1, 3, 32, 32, seed=1)
    kept = first.clone()
    fast(x)
    assert torch.equal(first, kept)  # its memory is not used again
    assert_close(pickle.loads(pickle.dumps(copy.deepcopy(fast)))(x), fast(x))


def test_a_size_that_does_not_run_is_said() -> None:
    def build(net: nn.Module) -> Any:
        def call(x: Tensor) -> Tensor:
            if x.shape[2] != 16 or x.min() < 0:
                raise RuntimeError("Node 17 failed")
            return net(x)

        return call

    form = CompiledForm(nn.Identity(), build, torch.Size((16, 16)))
    assert form(torch.ones(1, 3, 16, 16)).sum() == 3 * 256
    with pytest.raises(
        ShapeError, match=r"was tried with images of 16x16 px and does not run with 24x16\. Resize them, or optimize it with input_size="
    ):
        form(torch.ones(1, 3, 24, 16))
    with pytest.raises(RuntimeError, match="Node 17 failed"):  # the size is not to blame
        form(-torch.ones(1, 3, 16, 16))


def test_inductor_compiles_for_each_shape_with_constant_weights() -> None:
    from torch._dynamo.utils import counters

    model = stir(tiny("bare"))
    fast = retinue.optimize(model, backend="inductor")
    counters.clear()
    assert_same(fast, model, (1, 3, 32, 32), (3, 3, 32, 32))
    assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] == 4  # two convolutions, two shapes
    with torch.inference_mode():
        fast(images(3, 3, 32, 32))


def test_an_optimized_network_cannot_be_trained() -> None:
    fast = retinue.optimize(tiny("bare"))
    assert not any(module.training for module in fast.eval().modules())
    with pytest.raises(
        ArgumentError, match=r"an optimized network cannot be trained: its weights are folded\. Train the network it comes from"
    ):
        fast.train()


def test_wrong_images_are_refused() -> None:
    fast = retinue.optimize(tiny("ours"))
    for shape in ((3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(
            ShapeError, match=r"takes images of shape \(batch, 3, height, width\) .* got \(.*\)\. Add the batch with images\[None\]"
        ):
            fast(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"with sides of at least 75 px, got \(1, 3, 60, 80\)"):
        Optimized(nn.Identity(), "torch", [], retinue.create_model("inception_v4", width_mult=0.05, num_classes=2))(
            torch.zeros(1, 3, 60, 80)
        )


def test_wrong_arguments_are_refused() -> None:
    model = tiny("bare")
    with pytest.raises(ArgumentError, match=r'optimize: no backend is called "onxruntime"\. Did you mean onnxruntime'):
        retinue.optimize(model, backend="onxruntime")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'`threads` is for onnxruntime and openvino, got 2 for "torch"\. Use torch\.set_num_threads'):
        retinue.optimize(model, threads=2)
    with pytest.raises(ArgumentError, match=r"`threads` must be a whole number of at least 1, got 0\. None takes as many as torch uses"):
        retinue.optimize(model, backend="openvino", threads=0)
    with pytest.raises(ArgumentError, match=r'this network is optimized already \(backend "torch"\)\. Give the network that it comes from'):
        retinue.optimize(retinue.optimize(model))
    with pytest.raises(
        ArgumentError,
        match=r"no trial image passed through Conv2d \(tried 3x2x2; the first said: .*\)\. Say which images it takes: optimize\(",
    ):
        retinue.optimize(nn.Conv2d(3, 4, 5), input_size=2)


class Pair(nn.Module):
    """Returns two tensors, one of them in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x), {"mean": x.mean((1, 2, 3))}


def test_a_network_may_return_several_tensors_in_torch_only() -> None:
    fast, x = retinue.optimize(Pair()), images(2, 3, 8, 8)
    assert_close(fast(x)[1]["mean"], x.mean((1, 2, 3)))
    with pytest.raises(ArgumentError, match=r'"openvino" runs networks that return one tensor, this one returns 2\. Use backend="torch"'):
        retinue.optimize(Pair(), backend="openvino")


@pytest.mark.parametrize(("backend", "module", "extra"), [("onnxruntime", "onnxruntime", "export"), ("openvino", "openvino", "openvino")])
def test_a_missing_backend_is_said(backend: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=rf'{module} is not installed\. Run: pip install "retinue\[{extra}\]"'):
        retinue.optimize(tiny("bare"), backend=backend)


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ArgumentError, match=r'"inductor" needs a C\+\+ compiler, and none was found\. Install g\+\+, or use backend="torch"'
    ):
        retinue.optimize(tiny("bare"), backend="inductor")


def test_the_comparison_is_1e_4_of_the_largest_output() -> None:
    one = torch.tensor([1.0, 50.0])
    check_equal([one], [one + 4.9e-3], "it", "")
    with pytest.raises(UnequalError, match=r"it differs from the network by 0\.0051 where outputs reach 50\. Try another\."):
        check_equal([one], [one + torch.tensor([0.0, 5.1e-3])], "it", "Try another.")
    with pytest.raises(UnequalError, match=r"it differs from the network by nan"):
        check_equal([one], [one * torch.nan], "it", "")
    with pytest.raises(UnequalError, match=r"it returns shapes \[\(1,\)\] where the network returns \[\(2,\)\]"):
        check_equal([one], [one[:1]], "it", "")
    with pytest.raises(UnequalError, match=r"differs from the network by 0\.00011 where outputs reach 1\."):
        check_equal([torch.zeros(1)], [torch.full((1,), 1.1e-4)], "it", "")


def test_a_trial_uses_the_size_that_the_network_states() -> None:
    assert trial_images(retinue.create_model("timm:vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2), where="here").shape == (
        3,
        3,
        224,
        224,
    )
    assert trial_images(tiny("ours", in_chans=1, input_size=20), where="here").shape == (3, 1, 20, 20)
    assert trial_images(tiny("bare"), 24, where="here").shape == (3, 3, 24, 24)
