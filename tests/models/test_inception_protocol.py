"""Inception-v4 and Inception-ResNet behind timm's protocol, under compilers and exporters."""

from typing import Any

import pytest
import timm
from support import images, reductions

import retinue

NAMES = ("inception_v4", "inception_resnet_v1", "inception_resnet_v2")
TINY: dict[str, Any] = {"num_classes": 5, "width_mult": 0.1, "depths": [1, 1, 1]}


def small(name: str, **options: Any) -> Any:
    return retinue.create_model(name, **{"input_size": 32, **TINY, **options})


@pytest.mark.parametrize("name", NAMES)
def test_timm_builds_it_by_name(name: str) -> None:
    model = timm.create_model(f"retinue_{name}", in_chans=1, num_classes=7, drop_rate=0.4, width_mult=0.1, depths=(1, 1, 1))
    assert model.head.drop.p == 0.4
    assert model(images(2, 1, 75, 75)).shape == (2, 7)
    assert model.default_cfg["mean"] == (0.5, 0.5, 0.5)
    assert model.default_cfg["crop_pct"] == {"inception_resnet_v2": 0.8975}.get(name, 0.875)
    assert model.default_cfg["input_size"] == (3, 299, 299)


@pytest.mark.parametrize("name", NAMES)
def test_timm_takes_its_pyramid(name: str) -> None:
    pyramid = timm.create_model(f"retinue_{name}", features_only=True, in_chans=1, aux=True, **TINY)
    assert reductions(pyramid) == [2, 4, 8, 16, 32]
    maps = pyramid(images(1, 1, 107, 107))
    assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()
    assert [m.shape[2] for m in maps] == {"inception_v4": [51, 25, 11, 5, 2]}.get(name, [51, 23, 11, 5, 2])
    assert not any(key.startswith("model.aux") for key in pyramid.state_dict())
