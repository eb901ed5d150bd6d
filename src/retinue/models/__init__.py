"""Networks: our own, any of timm's and anyone's `nn.Module`, behind timm's protocol."""

import importlib
from typing import TYPE_CHECKING, Any

from retinue.models.cifar_resnet import cifar_resnet, resnet20
from retinue.models.crops import ensemble_predict, multi_crop
from retinue.models.factory import create_model, list_models, register
from retinue.models.inception_resnet import inception_resnet_v1, inception_resnet_v2
from retinue.models.inception_v4 import inception_v4
from retinue.models.macs import count_macs
from retinue.models.mlp import mlp
from retinue.models.protocol import adapt, config, feature_size, pooled_features
from retinue.models.small_convnet import small_convnet
from retinue.models.tiny import tiny

if TYPE_CHECKING:
    from retinue.models.optimized import optimize as optimize

__all__ = [
    "adapt",
    "cifar_resnet",
    "config",
    "count_macs",
    "create_model",
    "ensemble_predict",
    "feature_size",
    "inception_resnet_v1",
    "inception_resnet_v2",
    "inception_v4",
    "list_models",
    "mlp",
    "multi_crop",
    "pooled_features",
    "register",
    "resnet20",
    "small_convnet",
    "tiny",
]


def __getattr__(name: str) -> Any:
    if name == "optimize":
        return importlib.import_module("retinue.models.optimized").optimize
    raise AttributeError(f"module 'retinue.models' has no attribute {name!r}")
