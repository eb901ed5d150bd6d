"""SimSiam on pairs of pictures of one fractal: the self-supervised mode of Anderson & Farrell 2022 (arXiv 2110.03091).

The loss is that of Chen and He 2020 (arXiv 2011.10566): each view's prediction comes near the other view's embedding, which is a constant.
"""

from jaxtyping import Float, Int
from torch import Tensor, cat, nn

from retinue.data import Batch, Data, views
from retinue.engine import Objective
from retinue.errors import ArgumentError, ShapeError
from retinue.losses.contrastive import unit
from retinue.models import feature_size, pooled_features
from retinue.models.projection import ProjectionHead
from retinue.pretrain.fractal_data import FractalStore
from retinue.pretrain.simclr_v2 import contrastive_views


class OneOfPair:
    """The view that takes one picture of two, which come as the first and the second half of the channels."""

    def __init__(self, which: int) -> None:
        self.which = which

    def __repr__(self) -> str:
        return f"one_of_pair({self.which})"

    def __call__(self, images: Tensor, keys: Int[Tensor, " batch"] | None = None) -> Tensor:
        """Return half of the channels."""
        return images.chunk(2, dim=1)[self.which]


def simsiam_loss(
    p1: Float[Tensor, "batch dim"], p2: Float[Tensor, "batch dim"], z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Compute -(cos(p1, z2) + cos(p2, z1)) / 2, where z1 and z2 are constants; from -1 (the views agree) to 1.

    Args:
        p1: predictions from the first view.
        p2: and from the second.
        z1: embeddings of the first view.
        z2: and of the second.

    >>> import torch
    >>> simsiam_loss(*torch.eye(2).repeat(4, 1, 1))
    tensor(-1.)
    """
    return -((unit(p1) * unit(z2.detach())).sum(1) + (unit(p2) * unit(z1.detach())).sum(1)).mean() / 2


class SimSiam(Objective):
    """Predict, from one view of an image, the embedding of the other; no negatives, and no second network.

    On `fractals(mode="pairs")` the views are two pictures of one fractal: other colours, sizes, places and backgrounds. On other data
    they are those of SimCLRv2. Watch "spread", the standard deviation of the embeddings times the root of their length: 1 where they
    fill the sphere, 0 where everything has collapsed to one point.

    Args:
        model: the backbone to pre-train.
        hidden_dim: width of the projection head's three layers but the last; None is that of the features.
        out_dim: length of the embedding.
        bottleneck: width of the predictor's middle.
        shown_as: other views, as text, for data that are no pairs.

    Raises:
        ArgumentError: if a number is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden_dim: int | None = None,
        out_dim: int = 2048,
        bottleneck: int = 512,
        shown_as: str | None = None,
    ) -> None:
        super().__init__()
        if bottleneck < 1:
            raise ArgumentError(
                f"SimSiam: `bottleneck` must be at least 1, got {bottleneck}. The paper has 512, a quarter of the embedding."
            )
        self.shown_as = shown_as
        self.head = ProjectionHead(feature_size(model), hidden_dim, out_dim)
        self.predictor = nn.Sequential(
            nn.Linear(out_dim, bottleneck, bias=False), nn.BatchNorm1d(bottleneck), nn.ReLU(inplace=True), nn.Linear(bottleneck, out_dim)
        )

    def check(self, model: nn.Module, data: Data) -> None:
        """Choose the views: the two pictures of each pair, or SimCLRv2's twice."""
        if isinstance(data.train.store, FractalStore) and data.train.store.dataset.mode == "pairs":
            self.views = (OneOfPair(0), OneOfPair(1))
            return
        view = views.parse(self.shown_as or contrastive_views(data.preprocessing.input_size))
        self.views = (view, view)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss and the spread of the embeddings."""
        if len(batch.views) != 2:
            raise ShapeError(
                f"SimSiam: a batch needs two views of each image, got {len(batch.views)}. Give the objective's own to the loader: "
                "split.loader(batch_size, views=objective.views)."
            )
        z = self.head(pooled_features(model, cat(batch.views)))
        p = self.predictor(z)
        loss = simsiam_loss(*p.chunk(2), *z.chunk(2))
        spread = unit(z.detach()).std(0, unbiased=False).mean() * z.shape[1] ** 0.5
        return {"loss": loss, "spread": spread}
