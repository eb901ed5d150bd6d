"""Every objective without labels on networks of four families; what comes out is an ordinary checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import same
from torch import nn

import retinue
from retinue.data import Data
from retinue.engine import Objective
from retinue.pretrain import MultiInstance, RotNet, ScatSimCLR, SelfCon, SimCLRv2, SimSiam, fractals

NETWORKS = {
    "small_convnet": {"widths": [8, 8, 16]},
    "timm:resnet10t": {"channels": (8, 8, 16, 16)},
    "timm:test_vit": {},
    "timm:convnext_atto": {"dims": [4, 8, 8, 8]},
}
OBJECTIVES: dict[str, Callable[[nn.Module, Data], Objective]] = {
    "rotnet": lambda model, data: RotNet(model),
    "simclr-v2": lambda model, data: SimCLRv2(model, out_dim=8),
    "scatsimclr": lambda model, data: ScatSimCLR(model, out_dim=8, hidden_dim=16),
    "imaginet": lambda model, data: SelfCon(model, data, real="0", feat_dim=8),
    "fractal-pretraining": lambda model, data: MultiInstance(),
    "pairs of fractals": lambda model, data: SimSiam(model, out_dim=8, bottleneck=4),
}


def images(objective: str) -> Data:
    if "fractal" in objective:
        mode: Any = "pairs" if "pairs" in objective else "multi"
        return fractals(5, mode=mode, train_images=20, val_images=5, test_images=0, input_size=32, n_points=300)
    return retinue.data.open("digits", input_size=32, channels=3, train_images=40, test_images=20)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_pretrains_any_network_into_an_ordinary_checkpoint(name: str, network: str, tmp_path: Path) -> None:
    data = images(name)
    classes = len(data.classes) if name == "fractal-pretraining" else 0
    torch.manual_seed(0)
    model = retinue.create_model(network, num_classes=classes, input_size=32, **NETWORKS[network])
    start = {key: value.clone() for key, value in model.state_dict().items()}
    run = retinue.fit(
        model,
        OBJECTIVES[name](model, data),
        data,
        max_steps=1,
        batch_size=4,
        lr=0.01,
        schedule="constant",
        run_dir=tmp_path,
        progress=False,
    )
    assert math.isfinite(run.metrics["loss"])
    loaded: Any = retinue.load(tmp_path)
    assert same(loaded.state_dict(), run.model.state_dict())
    assert not same(loaded.state_dict(), start), "nothing was learned"
    loaded.reset_classifier(3)
    assert loaded(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
