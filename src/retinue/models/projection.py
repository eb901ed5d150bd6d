"""The projection head of SimCLRv2, and the classifier fine-tuned from a layer in its middle (Chen et al. 2020, arXiv 2006.10029)."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, overload

from jaxtyping import Float
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.factory import create_model, register
from retinue.models.protocol import adapt, feature_size, pool, taps

ALL, ENCODER = -1, 4  # of `freeze`: nothing is frozen; the whole encoder is


class ProjectionHead(nn.Module):
    """Layers between the features and the space in which they are compared (section 2).

    Each layer is linear without bias, batch norm, and ReLU, as wide as the features; the last has no ReLU, and its norm no shift.

    Args:
        in_dim: length of the features.
        hidden_dim: width of all layers but the last; None is `in_dim`.
        out_dim: length of the embedding.
        num_layers: 3 in SimCLRv2, 2 in SimCLR.

    Raises:
        ArgumentError: if a number is not positive.

    >>> sum(parameter.numel() for parameter in ProjectionHead(2048).parameters())
    8659072
    """

    def __init__(self, in_dim: int, hidden_dim: int | None = None, out_dim: int = 128, num_layers: int = 3) -> None:
        super().__init__()
        hidden_dim = in_dim if hidden_dim is None else hidden_dim
        for name, value in (("in_dim", in_dim), ("hidden_dim", hidden_dim), ("out_dim", out_dim), ("num_layers", num_layers)):
            if value < 1:
                raise ArgumentError(f"ProjectionHead: `{name}` must be at least 1, got {value}. The paper has 3 layers, the last of 128.")
        chain = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.widths = chain
        self.layers = nn.Sequential(*(_layer(a, b, last=i == num_layers - 1) for i, (a, b) in enumerate(pairwise(chain))))

    @overload
    def forward(self, h: Float[Tensor, "images features"], return_layers: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, h: Float[Tensor, "images features"], return_layers: Literal[True]) -> list[Tensor]: ...
    def forward(self, h: Float[Tensor, "images features"], return_layers: bool = False) -> Tensor | list[Tensor]:
        """Compute the embedding, before it is brought to length 1; or all of H_0 = h, H_1, ..., H_n, of which it is the last."""
        found = [h]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found if return_layers else found[-1]

    def truncate(self, k: int) -> nn.Sequential:
        """Return the first `k` layers, which compute H_k; they are the head's own, not copies.

        Raises:
            ArgumentError: if there are not so many.
        """
        if not 0 <= k <= len(self.layers):
            raise ArgumentError(f"ProjectionHead: there are layers 0 (the features) to {len(self.layers)}, got {k}. The paper takes 1.")
        return self.layers[:k]


def _layer(a: int, b: int, last: bool) -> nn.Sequential:
    linear, norm = nn.Linear(a, b, bias=False), nn.BatchNorm1d(b)
    nn.init.normal_(linear.weight, std=0.01)
    if last:
        norm.bias = None  # type: ignore[assignment]
        return nn.Sequential(linear, norm)
    return nn.Sequential(linear, norm, nn.ReLU(inplace=True))


class ProjectedClassifier(nn.Module):
    """A backbone, the first layers of its projection head, and a linear classifier of zeros: W H_s(x) + b (section 2, fine-tuning).

    It has timm's protocol itself.

    Args:
        backbone: a pre-trained network; its own classifier is taken off.
        head: the projection head that was trained with it.
        from_layer: s: 0 leaves the head out, as in SimCLR; 1 keeps its first layer, the paper's choice for few labels.
        num_classes: outputs.

    Raises:
        ArgumentError: if the head has not so many layers.

    >>> import torch
    >>> from retinue.models import tiny
    >>> model = ProjectedClassifier(tiny("timm_vit"), ProjectionHead(32), num_classes=5)
    >>> model(torch.zeros(2, 3, 32, 32)).abs().sum().item()
    0.0
    """

    def __init__(self, backbone: nn.Module, head: ProjectionHead, from_layer: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        adapted: Any = adapt(backbone)
        adapted.reset_classifier(0)
        self.backbone = adapted
        self.projection = head.truncate(from_layer)
        self.num_features, self.head_hidden_size = adapted.num_features, head.widths[from_layer]
        self.in_chans = getattr(adapted, "in_chans", 3)
        self.adaptation = list(getattr(adapted, "adaptation", []))
        self.feature_info = taps(adapted, "backbone.")
        self.reset_classifier(num_classes)

    def freeze(self, after_block: int = ALL) -> None:
        """Choose what learns (the official code's `fine_tune_after_block`); what is frozen runs as in evaluation, batch norms included.

        Args:
            after_block: -1: everything learns; 0: all but the stem; 1 to 3: all but the stem and so many stages; 4: the layers of the head
                alone, which for `from_layer` 0 is linear evaluation.

        Raises:
            ArgumentError: if it is none of these, or the backbone does not say what its stages are.
        """
        if after_block not in range(ALL, ENCODER + 1):
            raise ArgumentError(f"freeze: `after_block` must lie between -1 (all learns) and 4 (the encoder is frozen), got {after_block}.")
        self.backbone.requires_grad_(after_block != ENCODER)
        if after_block in range(ENCODER):
            if not hasattr(self.backbone, "group_matcher"):
                raise ArgumentError(
                    f"freeze: {type(self.backbone).__name__} does not say what its stages are (group_matcher), got `after_block` "
                    f"{after_block}. Take -1 (all learns) or 4 (the encoder is frozen)."
                )
            names = dict(self.backbone.named_parameters())
            for group, members in group_parameters(self.backbone, self.backbone.group_matcher(coarse=True)).items():
                if group <= after_block:
                    for name in members:
                        names[name].requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ProjectedClassifier":
        """Switch between training and evaluation; frozen parts of the backbone stay in evaluation."""
        super().train(mode)
        for part in self.backbone.modules():
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()
        return self

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier, of zeros, in place of the old one; 0 leaves it out."""
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            like = next(self.parameters())
            linear = nn.Linear(self.head_hidden_size, num_classes).to(like.device, like.dtype)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.fc = linear
        self.num_classes = num_classes

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute the backbone's last map or tokens."""
        return self.backbone.forward_features(x)

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Pool the backbone's features, project and classify them, or stop at H_s where `pre_logits`."""
        backbone = self.backbone
        x = pool(backbone.forward_head(x, pre_logits=True), self.num_features, getattr(backbone, "num_prefix_tokens", 0))
        x = self.projection(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


@register(cfg={"first_conv": None, "classifier": "fc"})
def projected_classifier(
    backbone: str = "simclr_resnet",
    backbone_args: Mapping[str, Any] | None = None,
    from_layer: int = 1,
    hidden_dim: int | None = None,
    out_dim: int = 128,
    num_layers: int = 3,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> ProjectedClassifier:
    """Build a backbone by name, the first layers of a projection head, and a classifier of zeros.

    Args:
        backbone: a name that `create_model` knows.
        backbone_args: the backbone's own options.
        from_layer: how many layers of the head are kept.
        hidden_dim: width of the head's layers; None is that of the features.
        out_dim: length of the head's embedding.
        num_layers: of the head.
        num_classes: outputs.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.
    """
    common = {"num_classes": 0, "in_chans": in_chans, "input_size": input_size}
    network = create_model(backbone, **{**(backbone_args or {}), **common})
    return ProjectedClassifier(network, ProjectionHead(feature_size(network), hidden_dim, out_dim, num_layers), from_layer, num_classes)
