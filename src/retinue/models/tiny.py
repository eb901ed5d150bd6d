"""Four tiny backbones for tests: one of ours, two of timm's, and a module that knows nothing of any protocol."""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import unknown
from retinue.models.factory import create_model

KINDS = ("ours", "timm_cnn", "timm_vit", "bare")


class Bare(nn.Module):
    """Two convolutions and a linear layer, as a user would write them.

    Args:
        in_chans: channels of the images.
        num_classes: outputs.
    """

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 16, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.classify = nn.Linear(32, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.classify(x.mean((2, 3)))


def tiny(
    kind: Literal["ours", "timm_cnn", "timm_vit", "bare"], *, num_classes: int = 10, in_chans: int = 3, input_size: int = 32
) -> nn.Module:
    """Build one of four backbones of fewer than 100,000 parameters.

    Args:
        kind: "ours", "timm_cnn" (a ResNet), "timm_vit", or "bare" (a plain `nn.Module`, not yet adapted).
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images.

    >>> sum(p.numel() for p in tiny("ours").parameters()) < 100_000
    True
    """
    common: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    if kind == "ours":
        return create_model("small_convnet", widths=[16, 16, 32, 32], **common)
    if kind == "timm_cnn":
        return create_model("timm:resnet18", layers=[1, 1, 1, 1], channels=[8, 16, 24, 32], stem_width=8, **common)
    if kind == "timm_vit":
        return create_model("timm:vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=2, **common)
    if kind == "bare":
        return Bare(in_chans, num_classes)
    raise unknown("tiny", "backbone", kind, KINDS)
