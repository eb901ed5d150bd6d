"""IBN-Net behind timm's protocol, under compilers and exporters, and the recipes."""

from typing import Any

import pytest
import timm
import torch
from support import images, reductions
from torch import nn

import retinue
import retinue.models.ibn_net
from retinue.cli import recipes
from retinue.engine.optim import Schedule, make_optimizer

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
