"""A pre-trained backbone under a small new head, of which the backbone thaws part by part (Bahrami & Albadvi 2023, arXiv 2302.14354)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model, register
from retinue.models.protocol import Adapted, adapt, feature_size, pool, taps


class TransferClassifier(nn.Module):
    """Backbone, global average, dropout, a hidden linear layer with ELU, and the classifier; it has timm's protocol itself.

    Args:
        backbone: any network; its own classifier is taken off.
        num_classes: outputs; 1 is one logit for two classes, positive for class 1.
        hidden: units of the hidden layer.
        dropout: share of the pooled features dropped in training, in [0, 1).

    Raises:
        ArgumentError: if `hidden` or `dropout` cannot be.

    >>> from retinue.models import tiny
    >>> model = TransferClassifier(tiny("timm_vit"), hidden=8)
    >>> model.freeze_backbone()
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # 32 * 8 + 8, and 8 + 1
    273
    """

    def __init__(self, backbone: nn.Module, num_classes: int = 1, hidden: int = 100, dropout: float = 0.5) -> None:
        super().__init__()
        if hidden < 1:
            raise ArgumentError(f"TransferClassifier: `hidden` must be at least 1, got {hidden}. The paper has 100.")
        if not 0 <= dropout < 1:
            raise ArgumentError(f"TransferClassifier: `dropout` must lie in [0, 1), got {dropout}. It is the share of features dropped.")
        adapted: Any = adapt(backbone)
        adapted.reset_classifier(0)
        self.backbone = adapted
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(feature_size(adapted), hidden),
            nn.ELU(),
            nn.Linear(hidden, num_classes) if num_classes else nn.Identity(),
        )
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, adapted.num_features, hidden
        self.in_chans = getattr(adapted, "in_chans", 3)
        self.adaptation = list(getattr(adapted, "adaptation", []))
        self.feature_info = taps(adapted, "backbone.")
        self.backbone_at_rest = False  # once it was frozen, it runs as in evaluation: batch norms keep their statistics

    def freeze_backbone(self) -> None:
        """Let nothing of the backbone learn, batch-norm statistics included (phase 1)."""
        self.backbone.requires_grad_(False)
        self.backbone_at_rest = True
        self.train(self.training)

    def unfreeze_from(self, where: str | float) -> int:
        """Let the top of the backbone learn, and nothing below it; batch norms keep their statistics there too (phase 2).

        Args:
            where: the name of the first layer that learns, with all that the backbone defines after it; or the share of the layers with
                parameters, counted from the top, in (0, 1].

        Returns:
            The number of the backbone's parameters that learn now.

        Raises:
            ArgumentError: if there is no such layer (near misses are named), or the share lies outside (0, 1].
        """
        network = self.backbone.module if isinstance(self.backbone, Adapted) else self.backbone
        names = [name for name, _ in network.named_modules()]
        parts = [part for _, part in network.named_modules()]
        if isinstance(where, str):
            if where not in names[1:]:
                raise unknown("unfreeze_from", "layer of the backbone", where, names[1:], "All names: model.backbone.named_modules().")
            first = names.index(where)
        else:
            if not 0 < where <= 1:
                raise ArgumentError(f"unfreeze_from: a share of layers must lie in (0, 1], got {where}. For the top third write 0.33.")
            owners = [i for i, part in enumerate(parts) if list(part.parameters(recurse=False))]
            first = owners[len(owners) - max(1, round(where * len(owners)))]
        self.freeze_backbone()
        for part in parts[first:]:
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(True)
        return sum(parameter.numel() for parameter in self.backbone.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> "TransferClassifier":
        """Switch between training and evaluation; a backbone that was frozen stays in evaluation, also where a part of it learns."""
        super().train(mode)
        if self.backbone_at_rest:
            self.backbone.eval()
        return self

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head[-1]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place of the old one; 0 leaves it out."""
        like = next(self.head.parameters())
        fresh = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.head[-1] = fresh.to(like.device, like.dtype)
        self.num_classes = num_classes

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute the backbone's last map or tokens."""
        return self.backbone.forward_features(x)

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Pool the backbone's features and classify them, or compute the hidden layer alone where `pre_logits`."""
        backbone = self.backbone
        x = pool(backbone.forward_head(x, pre_logits=True), self.num_features, getattr(backbone, "num_prefix_tokens", 0))
        return self.head[:-1](x) if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


@register(cfg={"first_conv": None, "classifier": "head.3"})
def transfer_classifier(
    backbone: str = "timm:mobilenetv2_100",
    hidden: int = 100,
    dropout: float = 0.5,
    backbone_args: Mapping[str, Any] | None = None,
    *,
    num_classes: int = 1,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> TransferClassifier:
    """Build a backbone by name under a hidden layer and a classifier, for transfer in two phases.

    Args:
        backbone: a name that `create_model` knows.
        hidden: units of the hidden layer.
        dropout: share of the pooled features dropped in training.
        backbone_args: the backbone's own options.
        num_classes: outputs; 1 is one logit for two classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.
    """
    common = {"num_classes": 0, "in_chans": in_chans, "input_size": input_size}
    return TransferClassifier(create_model(backbone, **{**(backbone_args or {}), **common}), num_classes, hidden, dropout)
