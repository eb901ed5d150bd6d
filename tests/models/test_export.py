"""`export`: every file computes what the network computes, says how to feed it, and does not appear otherwise."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support import images
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import onnx_form, tiny
from retinue.models.export import export, read_facts
from retinue.models.probe import UnequalError

SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
CLASSES = ["ant", "bee", "fly"]


@dataclass(frozen=True)
class Preprocessing:
    """The fields that matter here, of `retinue.data.Preprocessing`."""

    input_size: tuple[int, int] = (32, 32)
    channels: int = 3
    mean: tuple[float, ...] = (0.25,)
    std: tuple[float, ...] = (0.5,)
    resize: str = "pad"
    interpolation: str = "bilinear"
    read_size: tuple[int, int] | None = None


def network(kind: Any = "bare") -> Any:
    """Build a tiny network with classes, preprocessing, and norms that matter."""
    model: Any = tiny(kind, num_classes=3)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    model.classes, model.preprocessing = CLASSES, Preprocessing()
    return model.eval()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": np.asarray(x)})[0])


@pytest.mark.parametrize("kind", ["bare", "timm_vit"])
def test_onnx_computes_the_same_for_any_batch(kind: str, tmp_path: Path) -> None:
    model = network(kind)
    path = export(model, tmp_path / "model.onnx")
    for shape in ((1, 3, 32, 32), (4, 3, 32, 32), (2, 3, 40, 48))[: 3 if kind == "bare" else 2]:
        assert_close(run_onnx(path, images(*shape)), logits(model, images(*shape)), rtol=0, atol=1e-4)
    file = onnx.load(path)
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in file.graph.node}
    assert [d.dim_param or d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim][:2] == ["batch", 3]
    assert {entry.key: json.loads(entry.value) for entry in file.metadata_props}["classes"] == CLASSES


def test_torchscript_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    model = network("timm_cnn")
    script = torch.jit.load(export(model, tmp_path / "model.pt", format="torchscript"))
    for shape in ((1, 3, 32, 32), (4, 3, 32, 32), (2, 3, 40, 48)):
        assert_close(logits(script, images(*shape)), logits(model, images(*shape)), rtol=0, atol=1e-4)
    assert not any("BatchNorm" in module.original_name for module in script.modules())
    plain = torch.jit.load(export(model, tmp_path / "plain.pt", format="torchscript", fold=False))
    assert any("BatchNorm" in module.original_name for module in plain.modules())


def test_safetensors_holds_the_networks_own_weights(tmp_path: Path) -> None:
    model = network("ours").train()
    path = export(model, tmp_path / "model.safetensors", format="safetensors")
    stored = load_file(path)
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in stored.items())
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["retinue"])["model"] == model.retinue_config
    assert model.training


@pytest.mark.parametrize("format", SUFFIX)
def test_every_format_says_how_to_feed_the_network(format: Any, tmp_path: Path) -> None:
    assert read_facts(export(network(), tmp_path / f"model{SUFFIX[format]}", format=format)) == {
        "retinue": retinue.__version__,
        "network": "Bare",
        "input_size": [32, 32],
        "channels": 3,
        "mean": [0.25, 0.25, 0.25],
        "std": [0.5, 0.5, 0.5],
        "resize": "pad",
        "interpolation": "bilinear",
        "classes": CLASSES,
    }


def test_without_preprocessing_the_settings_of_the_network_count(tmp_path: Path) -> None:
    cfg = tiny("timm_cnn").pretrained_cfg
    known = read_facts(export(tiny("timm_cnn"), tmp_path / "a.safetensors", "safetensors", input_size=(40, 48)))
    assert (known["mean"], known["std"], known["input_size"]) == (list(cfg["mean"]), list(cfg["std"]), [40, 48])
    grey = read_facts(export(tiny("timm_cnn", in_chans=1), tmp_path / "b.safetensors", "safetensors"))
    assert grey["channels"] == 1
    assert "mean" not in grey  # the settings are for three channels


class Counter(nn.Module):
    """Computes something else at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 2, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x).mean((2, 3)) + self.calls


def test_a_file_that_differs_does_not_appear(tmp_path: Path) -> None:
    old = tmp_path / "model.pt"
    old.write_bytes(b"the last good one")
    with pytest.raises(UnequalError, match=r"the torchscript file differs from the network by .* No file was written\."):
        export(Counter(), old, format="torchscript")
    with pytest.raises(UnequalError, match=r"the ONNX file differs from the network by .* No file was written\."):
        export(Counter(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert old.read_bytes() == b"the last good one"


def test_a_weight_that_comes_back_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules["retinue.models.export"]
    monkeypatch.setattr(module, "load_file", lambda path: {**load_file(path), "classify.bias": torch.full((3,), 7.0)})
    with pytest.raises(
        CheckpointError, match=r"export: classify\.bias was read back otherwise than written\. No file was written\. Check the disk"
    ):
        export(network(), tmp_path / "model.safetensors", format="safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"export: .*nowhere/model\.safetensors could not be written: No such file or directory\. Choose"
    ):
        export(network(), tmp_path / "nowhere" / "model.safetensors", format="safetensors")
    os.mkdir(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"could not be written: Is a directory\. Choose another place"):
        export(network(), tmp_path / "model.safetensors", format="safetensors")


def test_wrong_arguments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match=r'export: no format is called "onxx"\. Did you mean onnx\?'):
        export(network(), tmp_path / "a", format="onxx")  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentError, match=r'export: this network is optimized for "torch" already\. Export the network that it comes from'
    ):
        export(retinue.optimize(network()), tmp_path / "a")
    monkeypatch.setattr(onnx_form, "LARGEST", 10**4)
    with pytest.raises(ArgumentError, match=r'export: one ONNX file holds at most .* GiB, the weights take .*\. Use format="safetensors"'):
        export(network(), tmp_path / "a")


def test_networks_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, x

    with pytest.raises(
        ArgumentError, match=r"export: the network must return one tensor, this one returns 2\. Wrap it in a module that picks"
    ):
        export(Pair(), tmp_path / "a", format="torchscript")

    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_compiling() or torch.jit.is_tracing():
                raise RuntimeError("not in a graph")
            return x.sum((2, 3))

    with pytest.raises(ArgumentError, match=r'torch cannot turn Numpy into ONNX \(.*not in a graph.*\)\. Use format="torchscript"'):
        export(Numpy(), tmp_path / "a", fold=False)
    with pytest.raises(ArgumentError, match=r"torch\.jit cannot trace the network \(.*not in a graph.*\)\. Use another format"):
        export(Numpy(), tmp_path / "a", format="torchscript", fold=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.onnx", "a.pt", "a.safetensors"])
def test_a_file_that_is_none_of_ours_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as a file of `export` \(.*\)\. Export the network again"):
        read_facts(tmp_path / name)
