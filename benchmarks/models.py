"""Images per second through the six families: inference and training steps beside timm's network, then every network beside itself.

Where timm has the network: both eager, both by each backend of `retinue.optimize`, both by `torch.compile`, and training steps (forward,
cross-entropy, backward, SGD) eager and compiled, at sides that two cores can train. Compilers take minutes for the largest networks, so
they are asked for two; Inception-v4 and Inception-ResNet-v2 have their backends in the benchmark `inference`. Then every registered
network, at its own side and one image at a time: parameters, multiply-adds, and images per second in its inference form ("ours") beside
itself in eager mode ("peer"). The figures are taken in turn, round by round; a ratio is the median of the rounds' ratios.
"""

import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retinue
from benchmarks.inference import measure
from retinue.models import count_macs
from retinue.models.backends import BACKENDS

FAMILIES = ("inception_next_*", "iformer_*", "*_ibn_*", "simplenet_*", "resnet_rs_*", "nasnet_a_*", "inception_v4", "inception_resnet_v2")
ROUNDS, TABLE_ROUNDS = 7, 3
TARGET = 1.0


class Case(NamedTuple):
    """A network of ours, timm's name of it, what is compared, and on which images."""

    name: str
    peer: str
    side: int
    batch: int
    backends: tuple[str, ...] = ("torch", "onnxruntime", "openvino")
    compiled: bool = False


CASES = (
    Case("inception_next_atto", "inception_next_atto", 128, 8, tuple(BACKENDS), compiled=True),
    Case("inception_next_tiny", "inception_next_tiny", 128, 4),
    Case("resnet_rs_50", "resnetrs50", 128, 8, tuple(BACKENDS), compiled=True),
    Case("resnet_rs_101", "resnetrs101", 128, 4),
    Case("nasnet_a_large", "nasnetalarge", 96, 2, ("torch",)),  # an export takes minutes
    Case("inception_v4", "inception_v4", 128, 4, ()),
    Case("inception_resnet_v2", "inception_resnet_v2", 128, 4, ()),
)
QUICK = Case("inception_next_atto", "inception_next_atto", 64, 2, ("torch", "openvino"))


def training_step(model: nn.Module, network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a training step: forward, cross-entropy, backward, SGD.

    Args:
        model: whose parameters move.
        network: the model, or its compiled form.
        images: the batch.
        labels: its classes.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def inference_call(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """Return a call of the network in evaluation."""
    network.eval()

    def call() -> None:
        with torch.inference_mode():
            network(images)

    return call


def row(title: str, ours: str, peer: str, times: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """Turn the seconds of a pair into a row."""
    speed, other = (batch / statistics.median(times[key]) for key in (ours, peer))
    ratio = statistics.median(b / a for a, b in zip(times[ours], times[peer]))
    return {"name": title, "ours": speed, "peer": other, "unit": "images/s", "ratio": ratio}


def compare(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Measure a network of ours beside timm's, without dropout in either."""
    torch._dynamo.reset()  # else the code that networks share would reach the limit of its compiled forms
    nets: dict[str, nn.Module] = {
        "ours": retinue.create_model(case.name, drop_rate=0.0),
        "timm": timm.create_model(case.peer, drop_rate=0.0),
    }
    images, labels = torch.randn(case.batch, 3, case.side, case.side), torch.arange(case.batch)
    rows: list[dict[str, Any]] = []

    def add(kind: str, calls: dict[str, Callable[[], None]]) -> None:
        times = measure(calls, rounds)
        for title in dict.fromkeys(key.split(": ")[1] for key in calls):
            full = f"{case.name}, {kind}, {title}, vs timm's (batch {case.batch}, {case.side} px)"
            rows.append({**row(full, f"ours: {title}", f"timm: {title}", times, case.batch), "target": TARGET})

    calls: dict[str, Callable[[], None]] = {f"{who}: eager": inference_call(net.eval(), images) for who, net in nets.items()}
    for backend in case.backends:
        for who, net in nets.items():
            form = retinue.optimize(net, backend=backend, input_size=case.side)  # type: ignore[arg-type]
            calls[f"{who}: optimized by {backend}"] = inference_call(form, images)
    if case.compiled:
        calls |= {f"{who}: compiled": inference_call(torch.compile(net), images) for who, net in nets.items()}  # type: ignore[arg-type]
    add("inference", calls)
    calls = {f"{who}: eager": training_step(net, net, images, labels) for who, net in nets.items()}
    if case.compiled:
        calls |= {f"{who}: compiled": training_step(net, torch.compile(net), images, labels) for who, net in nets.items()}
    add("training", calls)
    return rows


def of_itself(name: str, rounds: int) -> dict[str, Any]:
    """Count a network's parameters and multiply-adds, and measure its inference form beside itself, one image at a time."""
    model: Any = retinue.create_model(name).eval()
    side = model.default_cfg["input_size"][-1]
    millions, giga = sum(p.numel() for p in model.parameters()) / 1e6, count_macs(model, side) / 1e9
    images = torch.randn(1, 3, side, side)
    forms = {"eager": model, "torch": retinue.optimize(model, input_size=side)}
    times = measure({key: inference_call(form, images) for key, form in forms.items()}, rounds)
    title = f"{name}: {millions:.2f} M parameters, {giga:.3f} G multiply-adds at {side} px; inference form vs itself eager"
    return row(title, "torch", "eager", times, 1)


def run(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Measure all cases, then all networks, and yield each row as it comes; `quick` one small case and two networks."""
    cases, rounds, table_rounds = ((QUICK,), 2, 1) if quick else (CASES, ROUNDS, TABLE_ROUNDS)
    names = list(dict.fromkeys(name for family in FAMILIES for name in retinue.list_models(family)))
    if quick:
        names = ["inception_next_atto", "nasnet_a_tiny"]
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    try:
        for case in cases:
            yield from compare(case, rounds)
        for name in names:
            yield of_itself(name, table_rounds)
    finally:
        torch.set_num_threads(before)
