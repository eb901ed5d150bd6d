"""The finite twin: its size, its scaling, its tangent kernel, and its life in the engine."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e
from support import parameters
from torch.testing import assert_close

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import adapt, pooled_features
from retinue.models.wide_deep_network import NAMES, HermiteActivation, WideDeepNetwork, activation_module, empirical_kernel
from retinue.theory.dual_activation import DualActivation


def test_hermite_polynomials_are_those_of_probability() -> None:
    coef, u = [0.3, -0.2, 0.5, 0.1, 0.4], np.linspace(-3, 3, 13)
    scaled = [a / math.sqrt(math.factorial(k)) for k, a in enumerate(coef)]
    ours = HermiteActivation(coef)(torch.from_numpy(u))
    assert_close(ours, torch.from_numpy(hermite_e.hermeval(u, scaled)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_keeps_the_second_moment(name: str) -> None:
    u = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert activation_module(name, 2)(u).square().mean().item() == pytest.approx(1, abs=0.05)


def test_the_number_of_weights_and_the_scales() -> None:
    network = WideDeepNetwork(12, 5, width=300, depth=3, activation="relu")
    assert parameters(network) == 12 * 300 + 2 * 300**2 + 300 * 5
    x = torch.rand(4, 3, 2, 2)
    first, second, third = (layer.weight for layer in network.layers)
    h = x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True)
    h = math.sqrt(2) * (h @ first.T).relu()
    for weight in (second, third):
        h = math.sqrt(2) * (h @ weight.T / math.sqrt(300)).relu()
    assert_close(network(x), h @ network.head.weight.T / math.sqrt(300), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr, operator]
    assert_close(network(7 * x), network(x))
    assert abs(network.layers[1].weight.std().item() - 1) < 0.02


def test_the_tangent_kernel_is_that_of_the_gradients() -> None:
    torch.manual_seed(0)
    network = WideDeepNetwork(6, 3, width=20, depth=3, activation="optimal", dim=3).double()
    x = torch.rand(4, 6, dtype=torch.float64)
    rows = []
    for one in x:
        network.zero_grad()
        network(one[None])[0, 2].backward()
        rows.append(torch.cat([p.grad.flatten() for p in network.parameters()]))  # type: ignore[union-attr]
    J = torch.stack(rows)
    assert_close(empirical_kernel(network, x, output=2), J @ J.T, rtol=1e-10, atol=1e-10)


def test_the_tangent_kernel_of_wide_networks_is_the_closed_form() -> None:
    x = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    xi = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    for depth in (1, 3):
        kernels = []
        for seed in range(10):
            torch.manual_seed(seed)
            kernels.append(empirical_kernel(WideDeepNetwork(8, 1, 2048, depth, "relu"), x))
        limit = torch.from_numpy(DualActivation.relu().ntk(xi.double().numpy().clip(0, 1), depth)).float()
        assert_close(torch.stack(kernels).mean(0), limit, rtol=0.05, atol=0)  # 10 draws of 2,048 units: about 2 %


def test_the_engine_trains_it_with_any_objective(tmp_path: Path) -> None:
    data = retinue.data.open("digits", mean=(0.0,), std=(1.0,), train_images=500)
    model: Any = retinue.create_model("wide_deep", width=128, activation="relu", num_classes=10, in_chans=1, input_size=8)
    settings: dict[str, Any] = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "schedule": "constant", "progress": False}
    run = retinue.fit(model, retinue.train.Supervised(), data, epochs=10, run_dir=tmp_path, **settings)
    assert retinue.evaluate(run.model, data.test)["top1"] > 0.85
    images = torch.rand(2, 1, 8, 8)
    again: Any = retinue.load(tmp_path)
    assert_close(again(images), run.model(images), rtol=0, atol=1e-6)
    assert adapt(again) is again
    assert pooled_features(again, images).shape == (2, 128)
    again.reset_classifier(3)
    assert again(images).shape == (2, 3)
    again.reset_classifier(0)
    assert again(images).shape == (2, 128)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 0}, r"wide_deep: `width` must be at least 1, got 0\. Infinite ones are for WideDeepClassifier"),
        ({"depth": 0}, r"`depth` must be at least 1, got 0"),
        ({"activation": "gelo"}, r'no activation is called "gelo"\. Did you mean gelu'),
        ({"activation": [0.5, 0.5]}, r"`activation` needs squares that sum to 1, got 0\.5"),
        ({"dim": -1.0}, r"`alpha` must be above 0 and finite, got -1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        WideDeepNetwork(4, 2, **options)


def test_other_refusals() -> None:
    with pytest.raises(
        ShapeError, match=r"inputs must have 4 values, got 9 in shape \(1, 3, 3\)\. Build the network with this `input_size`"
    ):
        WideDeepNetwork(4, 2, width=8)(torch.rand(2, 1, 3, 3))
    with pytest.raises(ArgumentError, match=r"`coef` is empty"):
        HermiteActivation([])
