"""ResNet-RS behind timm's protocol, under compilers and exporters."""

from typing import Any

import timm
import torch
from support import images, reductions

import retinue

TINY: dict[str, Any] = {"num_classes": 5, "depths": [1, 2, 1, 1], "width_mult": 0.125}


def small(**options: Any) -> Any:
    return retinue.create_model("resnet_rs", **{"input_size": 32, **TINY, **options})


def test_timm_builds_it_by_name() -> None:
    shape: Any = {"depths": (1, 1, 1, 1), "width_mult": 0.125}
    model: Any = timm.create_model("retinue_resnet_rs", in_chans=1, num_classes=7, drop_rate=0.4, drop_path_rate=0.2, **shape)
    assert model.head.drop.p == 0.4
    assert model.stages[3][0].drop_path.drop_prob == 0.2
    assert model(images(2, 1, 33, 47)).shape == (2, 7)
    assert model.default_cfg["first_conv"] == "stem.0.conv"


def test_its_pyramid_is_that_of_timms_network() -> None:
    ours: Any = retinue.create_model("resnet_rs_50", features_only=True)
    with torch.device("meta"):
        theirs: Any = timm.create_model("resnetrs50", features_only=True)
    assert reductions(ours) == theirs.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert [(m.shape[1], m.shape[2]) for m in ours(images(1, 3, 64, 64))] == [(64, 32), (256, 16), (512, 8), (1024, 4), (2048, 2)]
