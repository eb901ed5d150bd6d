"""A small classifier on the frozen features of one layer of a network (the probes of Gidaris et al. 2018, section 3.1 and 3.2).

- "linear": max-pooled to about 9,000 numbers, batch norm without parameters, a linear layer;
- "mlp": two hidden layers of min(20 classes, 2048) units, each with batch norm and ReLU, then a linear layer;
- "conv": a block of Network in Network with 192 channels, global average, a linear layer.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model, image_size, register
from retinue.models.layers import conv_norm_act
from retinue.models.network_in_network import init_fan_out
from retinue.models.protocol import Adapted, adapt, config, pooled_features

Kind = Literal["linear", "mlp", "conv"]
KINDS = ("linear", "mlp", "conv")
LINEAR_FEATURES = 9000  # about which a map is pooled for the linear probe
CONV_CHANNELS = 192


class LayerProbe(nn.Module):
    """A frozen network up to one layer, and a classifier on top that learns.

    The network runs as in evaluation and without gradient; nothing of it changes, batch-norm statistics included. What lies behind the
    layer is not computed.

    Args:
        backbone: any image network.
        layer: the name of one of its modules; None: the vector that enters its classifier.
        kind: "linear", "mlp" or "conv".
        num_classes: outputs.
        input_size: side of the images, or height and width; None is the network's own, or 32 where it names none.

    Raises:
        ArgumentError: if there is no such layer or kind, or the layer gives no maps, tokens or vectors.

    >>> from retinue.models import tiny
    >>> probe = LayerProbe(tiny("timm_vit"), kind="mlp", num_classes=10, input_size=32)
    >>> probe(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: nn.Module,
        layer: str | None = None,
        kind: Kind = "linear",
        num_classes: int = 10,
        input_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("LayerProbe", "kind", kind, KINDS)
        self.backbone: Any = adapt(backbone, input_size=input_size)
        network = self.backbone.module if isinstance(self.backbone, Adapted) else self.backbone
        names = [name for name, _ in network.named_modules()][1:]
        if layer is not None and layer not in names:
            raise unknown("LayerProbe", "layer", layer, names, "All names: model.named_modules().")
        self.layer, self.kind = layer, kind
        self.num_classes, self.in_chans = num_classes, getattr(self.backbone, "in_chans", 3)
        self.backbone.requires_grad_(False)
        cfg = getattr(self.backbone, "default_cfg", None) or {}
        sides = image_size(input_size) or tuple(cfg.get("input_size", (3, 32, 32))[-2:])
        where = next(self.backbone.parameters()).device
        self.train()
        features = self.features(torch.zeros(1, self.in_chans, *sides, device=where))
        layers = _head(kind, features.shape[1:], num_classes)
        init_fan_out(layers)
        self.head = layers.to(where)
        made = config(backbone)
        if made is not None:  # so that a checkpoint can build it anew
            own = {name: value for name, value in made["arguments"].items() if name not in ("num_classes", "in_chans", "input_size")}
            arguments = {"backbone": made["name"], "backbone_args": own, "layer": layer, "kind": kind, "num_classes": num_classes}
            arguments |= {"in_chans": self.in_chans, "input_size": list(sides), "backbone_classes": made["arguments"]["num_classes"]}
            self.retinue_config = {"name": "layer_probe", "arguments": arguments}

    def train(self, mode: bool = True) -> "LayerProbe":
        """Switch between training and evaluation; the backbone stays in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute what the layer gives: maps with the channels first, or vectors."""
        if self.layer is None:
            return pooled_features(self.backbone, images)
        network = self.backbone.module if isinstance(self.backbone, Adapted) else self.backbone
        seen: list[Tensor] = []

        def look(module: nn.Module, args: Any, out: Any) -> None:
            seen.append(out)
            raise _SeenError

        hook = network.get_submodule(self.layer).register_forward_hook(look)
        try:
            with contextlib.suppress(_SeenError):
                self.backbone(images)
        finally:
            hook.remove()
        if not seen or not isinstance(seen[0], Tensor) or seen[0].ndim not in (2, 3, 4):
            raise ArgumentError(f'LayerProbe: the layer "{self.layer}" gives no maps, tokens or vectors. Take a whole stage or block.')
        return _maps(seen[0], self.backbone)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.head(self.features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head[-1]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place of the old one; 0 leaves it out."""
        fresh = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head[-1] = fresh.to(next(self.backbone.parameters()).device)
        self.num_classes = num_classes

    @property
    def num_features(self) -> int:
        """Length of what enters the last linear layer."""
        last: Any = self.head[-1]
        return int(last.in_features)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute what the layer gives."""
        return self.features(x)

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify what the layer gives."""
        return self.head[:-1](x) if pre_logits else self.head(x)


@register(cfg={"first_conv": None, "classifier": "head"})
def layer_probe(
    backbone: str = "timm:resnet18",
    layer: str | None = None,
    kind: Kind = "linear",
    backbone_args: Mapping[str, Any] | None = None,
    backbone_classes: int = 0,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> LayerProbe:
    """Build a probe on a network by its name.

    Args:
        backbone: a name that `create_model` knows.
        layer: the name of one of its modules; None: the vector that enters its classifier.
        kind: "linear", "mlp" or "conv".
        backbone_args: the network's own options.
        backbone_classes: outputs of the network's own classifier.
        num_classes: outputs of the probe.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.
    """
    common = {"num_classes": backbone_classes, "in_chans": in_chans, "input_size": input_size}
    return LayerProbe(create_model(backbone, **{**(backbone_args or {}), **common}), layer, kind, num_classes, input_size)


class _SeenError(Exception):
    """Ends a forward pass whose rest is not needed."""


def _maps(x: Tensor, backbone: Any) -> Tensor:
    """Bring tokens, and maps whose channels are last, into maps whose channels are first; vectors stay."""
    if x.ndim == 3:
        tokens = x[:, getattr(backbone, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        x = tokens.transpose(1, 2)
        return x.unflatten(2, (side, side)) if side * side == tokens.shape[1] else x[..., None]
    if x.ndim == 4 and x.shape[1] == x.shape[2] != x.shape[3]:
        return x.permute(0, 3, 1, 2)
    return x


class _PoolTo(nn.Module):
    """Adaptive max pooling to a side at which a map has about `LINEAR_FEATURES` numbers; smaller maps stay."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels newheight newwidth"]:
        side = max(1, round(math.sqrt(LINEAR_FEATURES / x.shape[1])))
        return F.adaptive_max_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))


def _head(kind: Kind, shape: torch.Size, num_classes: int) -> nn.Sequential:
    channels = shape[0]
    if len(shape) == 1 and kind == "conv":
        raise ArgumentError('LayerProbe: kind="conv" needs a layer that gives maps, and this one gives vectors. Name an earlier layer.')
    if kind == "conv":
        widths = (CONV_CHANNELS,) * 3
        convs = [conv_norm_act(a, b, side) for a, b, side in zip((channels, *widths), widths, (3, 1, 1))]
        return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CONV_CHANNELS, num_classes))
    if kind == "mlp":
        hidden, inputs = min(20 * num_classes, 2048), shape.numel()
        layers: list[nn.Module] = [nn.Flatten()]
        for wide in (inputs, hidden):
            layers += [nn.Linear(wide, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Linear(hidden, num_classes))
    if len(shape) == 1:
        return nn.Sequential(nn.BatchNorm1d(channels, affine=False), nn.Linear(channels, num_classes))
    inputs = _PoolTo()(torch.zeros(1, *shape)).numel()
    return nn.Sequential(_PoolTo(), nn.BatchNorm2d(channels, affine=False), nn.Flatten(), nn.Linear(inputs, num_classes))
