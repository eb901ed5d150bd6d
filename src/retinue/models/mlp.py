"""A stack of linear layers on flattened images, such as LeNet-300-100 (LeCun et al. 1998)."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import image_size, register


class MLP(nn.Module):
    """Linear layers with ReLU between them, with timm's protocol as far as it makes sense without maps.

    Args:
        shape: channels, height and width of the images.
        widths: outputs of each hidden layer.
        num_classes: outputs of the classifier.
    """

    def __init__(self, shape: tuple[int, int, int], widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.shape, self.in_chans, self.num_classes = shape, shape[0], num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.adaptation: list[str] = []
        chain = [shape[0] * shape[1] * shape[2], *widths]
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(chain)))
        self.head = nn.Linear(chain[-1], num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place of the old one; 0 leaves it out."""
        self.num_classes = num_classes
        parameter = next(self.layers.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(parameter.device, parameter.dtype)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Compute the last hidden layer."""
        if x.shape[1:] != self.shape:
            raise ShapeError(f"mlp: images must be of shape {self.shape}, got {tuple(x.shape[1:])}. Build it with this `input_size`.")
        return self.layers(x.flatten(1))

    def forward_head(self, x: Float[Tensor, "batch features"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify the last hidden layer, or return it as it is where `pre_logits`."""
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


@register(cfg={"input_size": (1, 28, 28), "crop_pct": 1.0, "mean": (0.5,), "std": (0.5,), "first_conv": None, "classifier": "head"})
def mlp(
    widths: Sequence[int] = (300, 100),
    *,
    num_classes: int = 10,
    in_chans: int = 1,
    input_size: int | tuple[int, int] | None = None,
) -> MLP:
    """Build a multi-layer perceptron; the defaults are LeNet-300-100 on 28-pixel grey images (266,610 parameters).

    Args:
        widths: outputs of each hidden layer.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 28.
    """
    if not widths or any(width < 1 for width in widths):
        raise ArgumentError(f"mlp: `widths` must be positive numbers of units, got {list(widths)}.")
    return MLP((in_chans, *(image_size(input_size) or (28, 28))), widths, num_classes)
