"""`tools/layers.py`: the first layer in which two networks differ."""

import re
import sys
from typing import Any

import pytest
import torch
from support import images, tool
from torch import nn

layers: Any = tool("layers")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Identity(), nn.Flatten(), nn.Linear(8, 3))


def test_outputs_come_in_the_order_of_the_calls_and_are_copies() -> None:
    found = layers.outputs(net(), images(2, 1, 4, 4))
    assert [one.name for one in found] == ["0", "1", "2", "3", "4", "5", "(result)"]
    assert [one.kind for one in found][-2:] == ["Linear", "Sequential"]
    assert found[1].value.min() < 0, "the ReLU in place did not change what was kept"
    assert found[2].value.min() == 0


def test_equal_networks_differ_nowhere() -> None:
    pairs = layers.compare(net(), net(), images(2, 1, 4, 4))
    assert [pair.difference for pair in pairs] == [0] * 6
    assert layers.first_difference(pairs, 0.0) is None
    assert [pair.first.kind for pair in pairs] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear", "Sequential"], (
        "Identity is left out"
    )


def test_the_first_layer_that_differs_and_by_how_much() -> None:
    other = net()
    other[1].bias.data[1] += 0.5  # type: ignore[operator]
    pairs = layers.compare(net(), other, images(2, 1, 4, 4))
    place = layers.first_difference(pairs, 0.0)
    assert place == 1
    assert pairs[place].difference == pytest.approx(0.5, abs=1e-6)
    assert layers.first_difference(pairs, 0.6) is None or layers.first_difference(pairs, 0.6) > 1
    assert str(pairs[0]) == "0          0 (Conv2d) (2, 2, 2, 2)"


def test_other_shapes_missing_layers_and_nan_are_differences() -> None:
    wide = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten())
    pairs = layers.compare(nn.Sequential(nn.Conv2d(1, 2, 3)), wide, images(1, 1, 4, 4))
    assert [pair.difference for pair in pairs] == [float("inf")] * 3
    assert str(pairs[2]) == "inf        (ended)   |   (result) (Sequential) (1, 12)"
    broken = net()
    broken[0].bias.data[0] = float("nan")  # type: ignore[operator]
    assert layers.first_difference(layers.compare(net(), broken, images(1, 1, 4, 4)), 1e9) == 0
    empty = nn.Sequential(nn.Flatten())
    assert layers.compare(empty, empty, images(0, 1, 4, 4))[0].difference == 0


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["layers.py", *words, "--shape", "3", "8", "8"])
    return layers.main()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "small_convnet", "small_convnet") == 0
    assert re.fullmatch(r"equal in all \d+ layers, largest difference 0\n", capsys.readouterr().out)
    assert call(monkeypatch, "small_convnet", "resnet20") == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"first difference at layer 1 of \d+ \(largest absolute difference, layer\):", lines[0])
    assert lines[1].startswith("> inf ")
    assert len(lines) == 4
    assert call(monkeypatch, "resnet20", "cifar_resnet", "--copy", "--seed", "3") == 0
    capsys.readouterr()
    assert call(monkeypatch, "small_convnet", "small_convnett") == 2
    assert 'no network is called "small_convnett". Did you mean small_convnet' in capsys.readouterr().err
    assert call(monkeypatch, "small_convnet", "resnet20", "--copy") == 2


def test_weights_are_copied_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    built = [net(0), net(1)]
    monkeypatch.setattr(layers, "_model", lambda name, seed: built[int(name)])
    monkeypatch.setattr(sys, "argv", ["layers.py", "0", "1", "--shape", "1", "4", "4"])
    assert layers.main() == 1
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--copy"])
    assert layers.main() == 0
