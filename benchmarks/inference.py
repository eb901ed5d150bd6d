"""Images per second through a network: `retinue.optimize` with each backend, beside timm's network in eager mode and by the same backend.

Inception-v4 and Inception-ResNet-v2 at 299 px, in batches of 1 and of 8, on all cores; ours and timm's have the same layers. The figures
are taken in turn, round by round; a ratio is the median of the rounds' ratios, so that what else the machine does falls on both sides.
`share_of_matmul_rate` is the share of the rate at which matrices are multiplied in the same rounds, by the fastest of torch, NumPy and
oneDNN's 1x1 convolution: about 1 is all that the cores can do, and no backend can be faster.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import retinue
from retinue.models import count_macs
from retinue.models.backends import BACKENDS

NETWORKS = ("inception_v4", "inception_resnet_v2")
TARGETS = {"torch": 1.2, "inductor": 1.4, "onnxruntime": 1.0, "openvino": 1.0}  # against timm's eager mode
BEST = 1.6  # the best backend against timm's eager mode
SIDE, BATCHES, ROUNDS = 299, (1, 8), 7
MATRIX = 2048  # rows of the matrices whose product gives the rate
PRODUCTS = ("torch product", "numpy product", "oneDNN product")
REST = 0.05  # seconds between two figures, in which the threads of the last one stop waiting for work


def of_timm(model: nn.Module, backend: str, side: int) -> nn.Module:
    """timm's own network by a backend, as it is."""
    return BACKENDS[backend](copy.deepcopy(model), torch.randn(2, 3, side, side), torch.get_num_threads())


def seconds(call: Callable[[], Any]) -> float:
    """Time one call."""
    time.sleep(REST)
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time all calls in turn, as often as `rounds` says, after one round for warming up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call)
            if number:
                times[name].append(took)
    return times


def products() -> dict[str, Callable[[], Any]]:
    """Multiply the same two matrices in three libraries."""
    a, b = torch.randn(2, MATRIX, MATRIX)
    conv = nn.Conv2d(MATRIX, MATRIX, 1, bias=False).to(memory_format=torch.channels_last).requires_grad_(False)
    pixels = torch.randn(1, MATRIX, MATRIX // 32, 32).contiguous(memory_format=torch.channels_last)
    return dict(zip(PRODUCTS, (partial(torch.mm, a, b), partial(np.matmul, a.numpy(), b.numpy()), partial(conv, pixels))))


def rows_of(name: str, batch: int, times: dict[str, list[float]], flops: float, backends: list[str]) -> list[dict[str, Any]]:
    """Turn seconds into rows."""
    rate = 2 * MATRIX**3 / min(statistics.median(times[product]) for product in PRODUCTS)
    rows: list[dict[str, Any]] = []

    def row(title: str, ours: str, peer: str, target: float) -> None:
        speed, other = (batch / statistics.median(times[key]) for key in (ours, peer))
        ratio = statistics.median(b / a for a, b in zip(times[ours], times[peer]))
        rows.append(
            {
                "name": f"{name}, batch {batch}: {title}",
                "ours": speed,
                "peer": other,
                "unit": "images/s",
                "ratio": ratio,
                "share_of_matmul_rate": speed * flops / rate,
                "target": target,
            }
        )

    for backend in backends:
        row(f"{backend} vs timm eager", backend, "eager", TARGETS[backend])
        if backend != "torch":
            row(f"{backend} vs {backend} of timm's", backend, f"timm {backend}", 1.0)
    best = min(backends, key=lambda backend: statistics.median(times[backend]))
    row(f"the best ({best}) vs timm eager", best, "eager", BEST)
    return rows


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure all networks, batches and backends; `quick` one small case, in which nothing is compiled."""
    names, batches, side, rounds = (NETWORKS[:1], BATCHES[:1], 96, 2) if quick else (NETWORKS, BATCHES, SIDE, ROUNDS)
    backends = [backend for backend in BACKENDS if not quick or backend in ("torch", "openvino")]
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    rows = []
    try:
        for name in names:
            peer, model = timm.create_model(name).eval(), retinue.create_model(name).eval()
            nets: dict[str, nn.Module] = {"eager": peer}
            for backend in backends:
                nets[backend] = retinue.optimize(model, backend=backend, input_size=side)  # type: ignore[arg-type]
                if backend != "torch":
                    nets[f"timm {backend}"] = of_timm(peer, backend, side)
            flops = 2.0 * count_macs(model, side)
            for batch in batches:
                images = torch.randn(batch, 3, side, side)
                calls: dict[str, Callable[[], Any]] = {key: partial(net, images) for key, net in nets.items()}
                with torch.inference_mode():
                    rows += rows_of(name, batch, measure(calls | products(), rounds), flops, backends)
    finally:
        torch.set_num_threads(before)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case, in seconds")
    print(f"{'measured':70} {'ours':>8} {'peer':>8} {'ratio':>6} {'target':>6} {'share':>6}")
    for row in run(parser.parse_args().quick):
        figures = f"{row['ours']:8.2f} {row['peer']:8.2f} {row['ratio']:6.2f} {row['target']:6.2f} {row['share_of_matmul_rate']:6.2f}"
        print(f"{row['name']:70} {figures}")


if __name__ == "__main__":
    main()
