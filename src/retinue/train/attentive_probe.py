"""A classifier on the frozen tokens of a network: linear, or with one learned query that looks at all (CAE, arXiv 2202.03026).

Where a network's objective gives its class token nothing to do, as in masked image modelling, a linear probe of it says little. The
attentive probe asks all tokens instead.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Data
from retinue.engine import Supervised, evaluate, fit
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.models import adapt, pooled_features
from retinue.models.cae_attention import CrossAttention
from retinue.models.small_images import is_channels_last

Kind = Literal["attentive", "linear"]
KINDS = ("attentive", "linear")
EPS = 1e-6  # of the layer norms, and of the linear probe's batch norm
STD = 0.02  # of the initial query and weights


class AttentiveProbe(nn.Module):
    """One learned query attends to all tokens; then a batch norm without parameters, and a linear layer.

    There is no shortcut and no MLP: CrossAttn(LN(query), LN(tokens), LN(tokens)), with a layer norm for each.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_classes: outputs.
        num_heads: heads.

    >>> AttentiveProbe(8, 10, 2)(torch.randn(4, 5, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(self, dim: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attn = CrossAttention(dim, num_heads)
        self.bn = nn.BatchNorm1d(dim, affine=False)
        self.fc = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.query, std=STD)
        for layer in (self.attn.q, self.attn.k, self.attn.v, self.attn.proj, self.fc):
            nn.init.trunc_normal_(layer.weight, std=STD)
        nn.init.zeros_(self.attn.proj.bias)
        nn.init.zeros_(self.fc.bias)

    def pool(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """Compute what the query finds in the tokens of each image."""
        query = self.norm_q(self.query.expand(len(tokens), -1, -1))
        return self.attn(query, self.norm_k(tokens), self.norm_v(tokens))[:, 0]

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.fc(self.bn(self.pool(tokens)))


class LinearProbe(nn.Module):
    """Batch norm without parameters, and a linear layer, on one vector an image.

    Args:
        dim: length of the vector.
        num_classes: outputs.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=EPS)
        self.fc = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=STD)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.fc(self.bn(x))


class FrozenClassifier(nn.Module):
    """A frozen network and a probe of its last tokens, with timm's protocol; only the probe learns.

    Args:
        backbone: any network. A convolutional one gives the places of its last map as tokens.
        kind: "attentive" looks at all tokens, "linear" at the class token (at the pooled features, where there is none).
        num_classes: outputs.
        num_heads: of the attentive probe; None takes the network's own, or 64 channels to each head.
        input_size: side of the images, or height and width, for a network that lacks timm's protocol.

    Raises:
        ArgumentError: if there is no such kind, or the width is no multiple of the heads.

    >>> from retinue.models import tiny
    >>> FrozenClassifier(tiny("timm_cnn"), num_classes=3)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: nn.Module,
        kind: Kind = "attentive",
        num_classes: int = 10,
        num_heads: int | None = None,
        input_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown("attentive_probe", "kind", kind, KINDS)
        network: Any = adapt(backbone, input_size=input_size).requires_grad_(False)
        self.backbone, dim = network, int(network.num_features)
        self.kind, self.num_classes, self.in_chans = kind, num_classes, getattr(self.backbone, "in_chans", 3)
        self.num_features = self.head_hidden_size = dim
        where = next(self.backbone.parameters()).device
        if kind == "attentive":
            self.head: Any = AttentiveProbe(dim, num_classes, num_heads or _heads(self.backbone, dim)).to(where)
        else:
            self.head = LinearProbe(dim, num_classes).to(where)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FrozenClassifier":
        """Switch between training and evaluation; the backbone stays in evaluation."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute what the probe sees: tokens, or one vector an image."""
        if self.kind == "linear" and not getattr(self.backbone, "has_class_token", False):
            return pooled_features(self.backbone, x)
        found = self.backbone.forward_features(x)
        if found.ndim == 4:
            found = found.flatten(1, 2) if is_channels_last(found, self.num_features) else found.flatten(2).transpose(1, 2)
        if self.kind == "linear":
            return found[:, 0]
        return found if found.ndim == 3 else found[:, None]

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify what `forward_features` gives."""
        if not pre_logits:
            return self.head(x)
        return self.head.bn(self.head.pool(x) if self.kind == "attentive" else x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new last linear layer in place of the old one; 0 leaves it out."""
        fresh = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.fc = fresh.to(next(self.backbone.parameters()).device)
        self.num_classes = num_classes


def attentive_probe(
    model: nn.Module,
    data: Data,
    *,
    kind: Kind = "attentive",
    epochs: float = 90,
    batch_size: int = 256,
    optimizer: str = "sgd",
    lr: float = 0.05,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> dict[str, float]:
    """Train a probe on the frozen tokens of a network, and measure it on the test images.

    The paper trains "attentive" by "sgd" at lr 0.4 for batches of 8192 (90 epochs, 10 of warm-up), and "linear" by "lars" at 6.4 for
    batches of 16,384, both without weight decay.

    Args:
        model: the network; it is not changed, and its gradients are switched off meanwhile.
        data: labelled images.
        kind: "attentive" or "linear".
        epochs: passes over the training images.
        batch_size: images of an update.
        optimizer: see `retinue.fit`.
        lr: peak learning rate.
        seed: of the probe's weights and of the order.
        progress: show a live bar.
        settings: further arguments of `retinue.fit`, such as views="random_resized_crop(32), flip".

    Returns:
        "top1", "top5", "ece" and "loss" on the test images.

    Raises:
        ArgumentError: if there is no such kind, there are no test images, or `fit` refuses an argument.
    """
    if not len(data.test):
        raise ArgumentError(f"attentive_probe: {data.name} has no test images. Open the data with a larger test_fraction.")
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(part, part.training) for part in model.modules()]
    try:
        with own_randomness():
            seed_all(seed)
            probed = FrozenClassifier(model, kind, len(data.classes), input_size=data.preprocessing.input_size)
        told = {"weight_decay": 0.0, **settings}
        run = fit(
            probed,
            Supervised(),
            data,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            progress=progress,
            **told,
        )
        return evaluate(run.model, data.test)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for part, mode in modes:
            part.training = mode


def _heads(backbone: Any, dim: int) -> int:
    """Return the heads of a transformer's last block, or one for every 64 channels where these divide the width."""
    blocks = getattr(backbone, "blocks", None)
    own = getattr(getattr(blocks[-1], "attn", None), "num_heads", None) if isinstance(blocks, nn.Sequential) and len(blocks) else None
    return own or next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)
