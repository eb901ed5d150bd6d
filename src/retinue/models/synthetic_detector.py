"""A frozen backbone and a head that says whether an image is synthetic, or which family of generators has made it (ImagiNet's stage 2).

Boychev and Cholakov 2024, arXiv 2407.20020. While the head is fitted, the backbone's batch norms follow the images that they see, on
purpose and only then: running statistics move over to the calibration images; in evaluation they stand.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from retinue.errors import ArgumentError
from retinue.models.factory import create_model, register
from retinue.models.protocol import adapt, config, feature_size, pool, taps

HIDDEN, DROPOUT = 1024, 0.2


class SyntheticDetector(nn.Module):
    """Batch norm, linear, ReLU, dropout and linear on the features of a frozen backbone; it has timm's protocol.

    With two classes the head gives one number l, and the logits are (0, l): their cross-entropy is the binary cross-entropy of l, and
    softmax's second share is P(synthetic). `slope` and `intercept` then move l to where 0.5 is the threshold (`audit.calibrate`).

    Args:
        backbone: any image network; its classifier is taken off, and nothing of it learns.
        num_classes: 2, or the number of families.
        adapt_norms: let the backbone's batch norms follow the images in training.

    Raises:
        ArgumentError: if there are fewer than two classes.

    >>> from retinue.models import tiny
    >>> SyntheticDetector(tiny("timm_cnn"))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 2])
    """

    slope: Tensor
    intercept: Tensor

    def __init__(self, backbone: nn.Module, num_classes: int = 2, adapt_norms: bool = True) -> None:
        super().__init__()
        made = config(backbone)
        adapted: Any = adapt(backbone)
        adapted.reset_classifier(0)
        self.backbone = adapted.requires_grad_(False)
        self.num_features = self.head_hidden_size = feature_size(self.backbone)
        self.in_chans = getattr(self.backbone, "in_chans", 3)
        self.feature_info = taps(self.backbone, "backbone.")
        self.num_prefix_tokens = getattr(self.backbone, "num_prefix_tokens", 0)
        self.default_cfg = dict(getattr(self.backbone, "default_cfg", None) or {})
        self.adapt_norms = adapt_norms
        like = next(self.backbone.parameters())
        self.register_buffer("slope", torch.ones((), dtype=like.dtype, device=like.device))
        self.register_buffer("intercept", torch.zeros((), dtype=like.dtype, device=like.device))
        self.head = nn.Sequential(nn.BatchNorm1d(self.num_features), nn.Linear(self.num_features, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT))
        self.head.to(like.device)
        self.reset_classifier(num_classes)
        if made is not None:  # so that a checkpoint can build it anew
            own = {name: value for name, value in made["arguments"].items() if name not in ("num_classes", "in_chans", "input_size")}
            arguments = {"backbone": made["name"], "backbone_args": own, "adapt_norms": adapt_norms, "num_classes": num_classes}
            arguments |= {"in_chans": self.in_chans, "input_size": made["arguments"].get("input_size")}
            self.retinue_config = {"name": "synthetic_detector", "arguments": arguments}

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new last layer in place of the old one: one number for two classes; 0 leaves it out."""
        if num_classes == 1 or num_classes < 0:
            raise ArgumentError(f"SyntheticDetector: `num_classes` must be 2 (real, synthetic) or more, got {num_classes}.")
        outputs = 1 if num_classes == 2 else num_classes
        self.fc = nn.Linear(HIDDEN, outputs).to(self.slope.device) if num_classes else nn.Identity()
        self.num_classes = num_classes

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute the backbone's last map or tokens."""
        with _following(self.backbone, self.training and self.adapt_norms):
            return self.backbone.forward_features(x)

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Pool the backbone's features and classify them, or stop before the last layer where `pre_logits`."""
        with _following(self.backbone, self.training and self.adapt_norms):
            x = pool(self.backbone.forward_head(x, pre_logits=True), self.backbone.num_features, self.num_prefix_tokens)
        hidden = self.head(x)
        if pre_logits or self.num_classes != 2:
            return hidden if pre_logits else self.fc(hidden)
        number = self.fc(hidden) * self.slope + self.intercept
        return torch.cat([torch.zeros_like(number), number], dim=1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


@register(cfg={"first_conv": None, "classifier": "fc"})
def synthetic_detector(
    backbone: str = "resnet_no_down",
    backbone_args: Mapping[str, Any] | None = None,
    adapt_norms: bool = True,
    *,
    num_classes: int = 2,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> SyntheticDetector:
    """Build a detector on a backbone by its name.

    Args:
        backbone: a name that `create_model` knows.
        backbone_args: the backbone's own options.
        adapt_norms: let the backbone's batch norms follow the images in training.
        num_classes: 2 for real and synthetic, or the number of families.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.
    """
    common = {"num_classes": 0, "in_chans": in_chans, "input_size": input_size}
    return SyntheticDetector(create_model(backbone, **{**(backbone_args or {}), **common}), num_classes, adapt_norms)


@contextmanager
def _following(backbone: nn.Module, on: bool) -> Iterator[None]:
    """Put the batch norms of a backbone in training mode, where they follow the images; on leaving, each has the mode that it had."""
    norms = [part for part in backbone.modules() if isinstance(part, _BatchNorm)] if on else []
    modes = [part.training for part in norms]
    for part in norms:
        part.training = True
    try:
        yield
    finally:
        for part, mode in zip(norms, modes):
            part.training = mode
