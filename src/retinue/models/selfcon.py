"""A network with a side exit, whose two embeddings of one image are compared (SelfCon, Bae et al. 2021, arXiv 2106.15499).

ImagiNet (Boychev and Cholakov 2024, arXiv 2407.20020) takes a ResNet-50 whose first strides are 1, since the traces of generators lie in
high frequencies: `no_down`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model, register
from retinue.models.modes import evaluating
from retinue.models.probe import trial_images
from retinue.models.protocol import adapt, feature_size, pool, pooled_features, taps


class SelfConHeads(nn.Module):
    """What stands on the two exits: a linear layer that brings the side exit to the features' length, and a projection on each.

    Args:
        main_dim: length of the network's features.
        side_dim: channels at the side exit.
        feat_dim: length of the embeddings.
    """

    def __init__(self, main_dim: int, side_dim: int, feat_dim: int = 128) -> None:
        super().__init__()
        if feat_dim < 1:
            raise ArgumentError(f"SelfConHeads: `feat_dim` must be at least 1, got {feat_dim}. The paper has 128.")
        self.side = nn.Linear(side_dim, main_dim)
        self.project_main, self.project_side = _projection(main_dim, feat_dim), _projection(main_dim, feat_dim)

    def forward(
        self, features: Float[Tensor, "images features"], side: Float[Tensor, "images sidefeatures"]
    ) -> Float[Tensor, "images 2 dim"]:
        """Compute the embeddings of both exits, the main one first, each of length 1."""
        both = torch.stack([self.project_main(features), self.project_side(self.side(side))], dim=1)
        return F.normalize(both.float(), dim=-1)


class SelfConEncoder(nn.Module):
    """A backbone with a side exit and the heads of both exits.

    Args:
        backbone: any image network.
        exit: the name of the module after which the side exit branches off, such as "layer2"; None: in the middle of the stages.
        feat_dim: length of the embeddings.

    Raises:
        ArgumentError: if there is no such module, or it gives no maps or tokens.

    >>> from retinue.models import tiny
    >>> out = SelfConEncoder(tiny("timm_cnn"), exit="layer2", feat_dim=32)(torch.zeros(2, 3, 32, 32))
    >>> {name: tuple(value.shape) for name, value in out.items()}
    {'main': (2, 32), 'side': (2, 32), 'features': (2, 32)}
    """

    def __init__(self, backbone: nn.Module, exit: str | None = None, feat_dim: int = 128) -> None:
        super().__init__()
        self.backbone = adapt(backbone)
        self.exit = find_exit(self.backbone, exit)
        self.heads = SelfConHeads(feature_size(self.backbone), side_channels(self.backbone, self.exit), feat_dim)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> dict[str, Tensor]:
        """Compute "main" and "side", the embeddings, and "features", what a classifier would get."""
        features, side = two_exits(self.backbone, x, self.exit)
        main, other = self.heads(features, side).unbind(1)
        return {"main": main, "side": other, "features": features}


def find_exit(backbone: nn.Module, exit: str | None = None) -> str:
    """Return the name of the module at which a side exit branches off.

    Args:
        backbone: a network with timm's protocol.
        exit: the name, which is only checked; None takes the middle one of the network's stages, which for a ResNet is "layer2".

    Raises:
        ArgumentError: if there is no such module, or the network does not say what its stages are.
    """
    names = [name for name, _ in backbone.named_modules()][1:]
    if exit is not None:
        known = exit if exit in names else f"module.{exit}"
        if known not in names:
            raise unknown("selfcon", "module for `exit`", exit, names, "All names: model.named_modules().")
        return known
    stages = [tap["module"] for tap in taps(backbone) if tap.get("module") in names]
    if not stages:
        raise ArgumentError(
            f"selfcon: {type(backbone).__name__} does not say what its stages are. Name the module after which the side exit is: "
            'exit="layer2".'
        )
    return str(stages[(len(stages) - 1) // 2])


def two_exits(
    backbone: nn.Module, images: Float[Tensor, "batch channels height width"], exit: str
) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch sidefeatures"]]:
    """Compute the features of a network, and the mean over all places of what its module `exit` gives, in one pass.

    Raises:
        ArgumentError: if the module gives no maps or tokens.
    """
    seen: list[Any] = []
    hook = backbone.get_submodule(exit).register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        features = pooled_features(backbone, images)
    finally:
        hook.remove()
    if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim not in (3, 4):
        raise ArgumentError(f'selfcon: the module "{exit}" gives no maps or tokens. Take a whole stage or block as `exit`.')
    channels = next((tap["num_chs"] for tap in taps(backbone) if tap.get("module") == exit), None)
    return features, pool(seen[0], channels, getattr(backbone, "num_prefix_tokens", 0))


def side_channels(backbone: nn.Module, exit: str, input_size: int | tuple[int, int] | None = None) -> int:
    """Count the channels at a side exit, by a trial pass.

    Args:
        backbone: the network.
        exit: the module.
        input_size: side of the images, or height and width; None finds one that passes.
    """
    with torch.no_grad(), evaluating(backbone):
        return int(two_exits(backbone, trial_images(backbone, input_size, where="selfcon", batch=1), exit)[1].shape[1])


def no_down(model: nn.Module) -> nn.Module:
    """Set the strides of a ResNet's first convolution and max-pool to 1, in place: 96 px reach the last stage at 12x12, not at 3x3.

    Every weight keeps its shape, so that published ones still load.

    Args:
        model: a network of timm's ResNet family.

    Raises:
        ArgumentError: if it has not `conv1` and `maxpool`.
    """
    network: Any = model
    stem, pooling = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    if not isinstance(stem, nn.Conv2d) or not isinstance(pooling, nn.MaxPool2d):
        raise ArgumentError(
            f"no_down: {type(model).__name__} has not a convolution `conv1` and a max-pool `maxpool` as timm's ResNets have. "
            "Other networks lower their strides by create_model(..., input_size=32)."
        )
    strides = (stem.stride, pooling.stride)
    lowered = 1
    for stride in strides:
        lowered *= stride[0] if isinstance(stride, tuple) else stride
    stem.stride, pooling.stride = (1, 1), 1
    network.feature_info = [{**tap, "reduction": max(1, tap["reduction"] // lowered)} for tap in taps(model)]
    return model


@register(cfg={"first_conv": "conv1", "classifier": "fc"})
def resnet_no_down(
    backbone: str = "timm:resnet50",
    backbone_args: Mapping[str, Any] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build a ResNet of timm's whose first strides are 1, the encoder of ImagiNet.

    Args:
        backbone: which, such as "timm:resnet18".
        backbone_args: its own options, such as {"pretrained": True}.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: there for the common signature; every size works.
    """
    return no_down(create_model(backbone, **{**(backbone_args or {}), "num_classes": num_classes, "in_chans": in_chans}))


def _projection(features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))
