"""SelfCon: pre-train any backbone by comparing an image at two exits of one network (Bae et al. 2021, arXiv 2106.15499).

An image is seen once, without a second view. Told which class is real, the objective is ImagiNet's (Boychev and Cholakov 2024, arXiv
2407.20020): a term by origin, real or synthetic, and one by family of generators.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from retinue.data import Batch, Data, views
from retinue.engine import Objective
from retinue.errors import ArgumentError, unknown
from retinue.losses.self_contrastive import TEMPERATURE, ImagiNetLoss, SelfConLoss
from retinue.models import adapt, feature_size
from retinue.models.gradient_cache import in_chunks
from retinue.models.selfcon import SelfConHeads, find_exit, side_channels, two_exits


class SelfCon(Objective):
    """The self-contrastive loss over the main and the side exit of a network, by the classes of the data.

    Views should crop, not resize: resizing destroys the traces that generators leave. Where all embeddings are the same, the term of n
    images by class is log(2 n - 1) and hardly moves; trained from scratch, networks are led there by their first large gradients unless
    these are clipped: retinue.fit(clip_grad=1.0).

    Args:
        model: the backbone to pre-train.
        data: its images; needed where `real` is named.
        real: the name of the class of real images, all other classes being families of generators: the two terms of ImagiNet. None: one
            term, by class.
        exit: the name of the module after which the side exit branches off, such as "layer2"; None: in the middle of the stages.
        feat_dim: length of the embeddings that are compared.
        temperature: tau, above 0.
        weights: of the terms by origin and by family.
        chunk: images that are embedded at a time, for batches that would not fit the memory; batch norm then sees chunks.

    Raises:
        ArgumentError: if the data has no class `real`, or the network no module `exit`.

    >>> from retinue.models import tiny
    >>> SelfCon(tiny("timm_cnn")).exit
    'layer2'
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | None = None,
        *,
        real: str | None = None,
        exit: str | None = None,
        feat_dim: int = 128,
        temperature: float = TEMPERATURE,
        weights: Sequence[float] = (1.0, 1.0),
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        size = None if data is None else data.preprocessing.input_size
        network = adapt(model, input_size=size)
        self.exit = find_exit(network, exit)
        self.heads = SelfConHeads(feature_size(network), side_channels(network, self.exit, size), feat_dim)
        self.real, self.chunk = real, chunk
        self.by_class = SelfConLoss(temperature)
        self.by_origin_and_family = ImagiNetLoss(weights, temperature)
        self.real_class = -1
        if real is not None:
            if data is None:
                raise ArgumentError("selfcon: `real` names a class, so the data is needed too. Give it: SelfCon(model, data, real=...).")
            if real not in data.classes:
                raise unknown("selfcon", "class of the data (`real`)", real, data.classes)
            self.real_class = data.classes.index(real)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse data of which the named class is not the one that was found."""
        if self.real is not None and data.classes[self.real_class : self.real_class + 1] != [self.real]:
            raise ArgumentError(
                f'selfcon: class {self.real_class} of {data.name} is not "{self.real}". Build the objective with the data that is trained '
                "on: SelfCon(model, data, real=...)."
            )

    def check_views(self, shown: Any) -> None:
        """Refuse views that mix images, whose labels would be of none."""
        for view in views.flat(shown):
            if getattr(view, "mixes", False):
                raise ArgumentError(f"selfcon: the view {view!r} mixes images, and a mixed one is of no class. Leave it out.")

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and with `real` its two terms."""

        def embed(images: Tensor) -> Tensor:
            return self.heads(*two_exits(model, images, self.exit))

        z = in_chunks(embed, batch.images, self.chunk, model, self.heads)
        if self.real is None:
            return {"loss": self.by_class(z, batch.labels)}
        origin = (batch.labels != self.real_class).long()
        by_origin, by_family = self.by_origin_and_family.terms(z, origin, batch.labels)
        first, second = self.by_origin_and_family.weights
        return {"loss": first * by_origin + second * by_family, "by_origin": by_origin, "by_family": by_family}
