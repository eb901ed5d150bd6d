"""N2N's edits on networks of all kinds: what is followed, what is the same when nothing is changed, and what is refused by name."""

import copy
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from twelve import FITS, NETWORKS, network

import retinue
from retinue.compress.n2n_policies import TABLE
from retinue.errors import ArgumentError
from retinue.models.edited_network import edit, follow
from retinue.models.export import export
from retinue.models.layer_graph import LayerGraph

HERE = FITS["n2n"]
FOLLOWED = [name for name, refusal in HERE.items() if not refusal]
PEERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35),
    "torchvision shufflenet_v2": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),  # halves that are torn and shuffled
    "timm convnext with gates over the map": lambda: retinue.create_model("timm:test_convnext3", num_classes=10, input_size=32),
    "timm nfnet, standardised weights": lambda: retinue.create_model("timm:test_nfnet", num_classes=10, input_size=32),
    "ours, padded shortcuts": lambda: retinue.create_model("cifar_resnet", depth=8, width=16, shortcut="padding", input_size=32),
    "ours, nasnet": lambda: retinue.create_model("nasnet_a_tiny", num_classes=10, input_size=32),
}


def drawn(layers: LayerGraph, seed: int) -> tuple[list[bool], list[list[float]]]:
    """Random actions of both kinds."""
    draw = random.Random(seed)
    return [draw.random() < 0.6 for _ in layers.leaves], [[draw.choice(TABLE) for _ in range(5)] for _ in layers.leaves]


def unchanged(model: nn.Module) -> None:
    """With nothing removed or shrunk, the network with the teacher's weights is the teacher, bit for bit."""
    layers = follow(model, input_size=(32, 32))
    made = edit(layers)
    assert made.model is not None
    assert made.invalid == ""
    assert made.parameters == sum(p.numel() for p in model.parameters())
    inside = made.model.get_submodule("module")
    if type(model).__name__ == "Adapted" and "module" in dict(inside.named_children()):
        assert set(inside.state_dict()) == set(model.state_dict())
    inside.load_state_dict(model.state_dict())
    images = torch.randn(3, *layers.images.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(made.model.eval()(images), model.eval()(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_edited_and_trained_or_refused(name: str) -> None:
    model = network(name)
    if HERE[name]:
        started = time.monotonic()
        with pytest.raises(ArgumentError) as caught:
            follow(model, torch.zeros(1, 3, 32, 32))
        assert HERE[name] in str(caught.value)
        assert str(caught.value).startswith("n2n: ")
        assert time.monotonic() - started < 1
        return
    layers = follow(model, torch.zeros(1, 3, 32, 32))
    valid = 0
    for seed in range(3):
        keep, factors = drawn(layers, seed)
        for made in (edit(layers, keep), edit(layers, None, factors)):
            assert (made.model is None) == bool(made.invalid)
            if made.model is None:
                continue
            valid += 1
            logits = made.model(torch.randn(2, 3, 32, 32))
            assert logits.shape == (2, 10)
            logits.square().sum().backward()
            assert all(p.grad is not None for p in made.model.parameters())
    assert valid >= 3


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_not_changed_is_the_teacher(name: str) -> None:
    unchanged(network(name))


@pytest.mark.parametrize("name", PEERS)
def test_other_libraries_networks(name: str) -> None:
    torch.manual_seed(0)
    model = PEERS[name]()
    unchanged(model)
    layers = follow(model, input_size=(32, 32))
    half = edit(layers, width=0.5)
    assert half.model is not None
    assert half.parameters < sum(p.numel() for p in model.parameters())
    made = [edit(layers, None, drawn(layers, seed)[1]) for seed in range(3)]
    assert any(one.model is not None for one in made)


def test_two_hundred_random_actions_work_or_are_reported() -> None:
    layers = follow(network("ours"), torch.zeros(1, 3, 32, 32))
    runs = 0
    for seed in range(100):
        keep, factors = drawn(layers, seed)
        for made in (edit(layers, keep), edit(layers, None, factors)):
            if made.model is None:
                assert made.invalid
                continue
            runs += 1
            with torch.no_grad():
                assert made.model.eval()(layers.images).shape == (2, 10)
    assert runs > 100


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, (17, 23))])
def test_every_size_and_number_of_channels(channels: int, side: Any) -> None:
    size = (side, side) if isinstance(side, int) else side
    model = retinue.create_model("small_convnet", widths=[12, 24, 24], num_classes=4, in_chans=channels, input_size=size)
    made = edit(follow(model), [True] * 6 + [False] * 3 + [True])
    assert made.model is not None
    assert made.model(torch.randn(3, channels, *size)).shape == (3, 4)


def test_a_name_rebuilds_what_was_edited_twice(tmp_path: Path) -> None:
    teacher = retinue.create_model("timm:resnet10t", channels=(16, 16, 24, 24), num_classes=5, input_size=32)
    layers = follow(teacher)
    first = edit(layers, drawn(layers, 1)[0]).model
    assert first is not None
    again = follow(first)
    student: Any = edit(again, None, drawn(again, 1)[1]).model
    made = student.retinue_config
    assert made["name"] == made["arguments"]["teacher"] == "edited_network"
    rebuilt = retinue.create_model(made["name"], **made["arguments"])
    rebuilt.load_state_dict(student.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(rebuilt.eval()(images), student.eval()(images))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in retinue.create_model(made["name"], **made["arguments"]).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in student.state_dict().items()}
    features = retinue.create_model(made["name"], **{**made["arguments"], "num_classes": 0})
    assert features(images).shape == (2, student.num_features)
    student.reset_classifier(7)
    assert retinue.models.config(student)["arguments"]["num_classes"] == 7  # type: ignore[index]


def test_students_are_exported() -> None:
    layers = follow(network("efficientnet"), torch.zeros(1, 3, 32, 32))
    student = edit(layers, None, drawn(layers, 0)[1]).model
    assert student is not None
    images = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(student.eval(), (images,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(images), student(images), atol=1e-5)  # float32, another order of sums
        assert torch.equal(copy.deepcopy(student)(images), student(images))


def test_students_are_written_as_onnx(tmp_path: Path) -> None:
    layers = follow(network("ours"), torch.zeros(1, 3, 32, 32))
    student = edit(layers, width=0.5).model
    assert student is not None
    assert export(student.eval(), tmp_path / "student.onnx", input_size=32).stat().st_size > 1000  # export compares it with the network


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        return self.fc((x @ x.transpose(1, 2)).mean(1))


class Odd(nn.Module):
    """Asks for what is refused."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        if what == "volume":
            self.extra: nn.Module = nn.ConvTranspose2d(8, 8, 1)
        elif what == "places":
            self.extra = nn.LayerNorm([8, 16, 16])
        elif what == "parametrized":
            self.extra = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        else:
            self.extra = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        x = self.extra(self.again(self.conv(x)))
        if self.what == "twice":
            x = self.again(x)
        if self.what == "values" and x.sum() > 0:
            x = -x
        if self.what == "numbers":
            x = x * float(x.mean())
        x = self.fc(x.mean((2, 3)))
        return (x, x) if self.what == "two" else x


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("volume", r"extra \(ConvTranspose2d\) has weights whose size cannot be changed\. Build the network of Conv2d, Linear and norms\."),
        ("places", r"extra \(LayerNorm\) has weights for each place of the map\. Use one for each channel\."),
        (
            "parametrized",
            r"weight of extra \(ParametrizedConv2d\) is computed of others \(pruning, weight norm\)\. Make that permanent first\.",
        ),
        ("twice", r"again \(Conv2d\) is called twice with the same weights\. Only feed-forward networks can be edited\."),
        ("values", r"the code of the network \(Odd\) cannot be followed by torch\.fx: it decides by the values of an image\."),
        (
            "numbers",
            r"the code of the network \(Odd\) cannot be followed by torch\.fx: .* Write it without conversions of tensors to numbers\.",
        ),
        ("two", r"Odd must return logits, one row an image, as one tensor\."),
    ],
)
def test_what_cannot_be_edited_is_refused_by_name(what: str, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        follow(Odd(what), torch.zeros(1, 3, 16, 16))
    follow(Odd(""), torch.zeros(1, 3, 16, 16))


def test_other_refusals() -> None:
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ArgumentError, match=r"the network multiplies two maps as attention does"):
        follow(Attentive(), images)
    with pytest.raises(ArgumentError, match=r"MLP has no convolution to remove or shrink\. Use retinue\.compress\.lottery_ticket\."):
        follow(retinue.create_model("mlp", widths=[8], num_classes=2, in_chans=1, input_size=8))
    with pytest.raises(ArgumentError, match=r"Sequential ends in 0 \(Conv2d\), and its classifier must be a linear layer\. Give it one"):
        follow(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)
    rows = [[1, 1, 1, 1, 0.5]] + [[1.0] * 5] * 7  # the first convolution without its padding on 2x2 pixels
    with pytest.raises(ArgumentError, match=r"edited_network: these actions leave no network: stem\.0\.conv cannot take what arrives"):
        retinue.create_model("edited_network", teacher_args={"widths": [12, 12]}, input_size=2, factors=rows)
