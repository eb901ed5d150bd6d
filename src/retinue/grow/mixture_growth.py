"""MixtureGrowth: two trained narrow networks become one wide network by new mixtures of what they learned (Pham et al. 2024).

`convert` builds the template form of any network of convolutions, linear layers and norms; `MixtureGrowth` trains a member, or what has
grown; `grow` makes the wide network; `materialise` gives an ordinary one (arXiv 2311.04251).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Supervised, evaluating, judge
from retinue.errors import ArgumentError
from retinue.models.mixture_growth import MixtureGrowthNet
from retinue.models.mixture_growth_by_name import convert, grow, materialise
from retinue.models.mixture_growth_layers import MemberBatchNorm2d, TemplateConv2d, TemplateLinear, run_member
from retinue.models.mixture_growth_networks import resnet_v1_5, wide_resnet
from retinue.models.template_weights import TemplateWeight, block_numbers, fresh_templates, least_covered

__all__ = [
    "MemberBatchNorm2d",
    "MixtureGrowth",
    "MixtureGrowthNet",
    "TemplateConv2d",
    "TemplateLinear",
    "TemplateWeight",
    "block_numbers",
    "convert",
    "fresh_templates",
    "grow",
    "least_covered",
    "materialise",
    "resnet_v1_5",
    "run_member",
    "wide_resnet",
]


class MixtureGrowth(Supervised):
    """Train one member of a `MixtureGrowthNet`, or the wide network after growth, with labels.

    Any other network is converted first. What the other member is made of does not move, its running statistics included. Coefficients have
    no weight decay in `fit`, nor have norms and biases; `norm_decay` decays norms as the released code does. Where both members are
    trained, member 0 is a player of its own, "other": `fit(players={"other": {"weight_decay": 0.0}})` decays the trained member alone.

    Args:
        member: 0 or 1 before growth, None after it.
        other_weight: of member 0's loss while member 1 is trained ("train both"; the released code has 0.1); 0 leaves member 0 as it is.
        norm_decay: weight decay of norms: half of it times the sum of their squares is part of the loss, which is what SGD's decay does.
        label_smoothing: as in `Supervised`.
        options: of `convert`, where the model is not converted yet, such as {"templates": 2, "member_frac": 0.5}.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> objective = MixtureGrowth(member=1)
    """

    def __init__(
        self,
        member: int | None = 0,
        other_weight: float = 0.0,
        norm_decay: float = 0.0,
        label_smoothing: float = 0.0,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(label_smoothing=label_smoothing)
        if member not in (0, 1, None):
            raise ArgumentError(f"MixtureGrowth: `member` must be 0, 1, or None for the network that has grown, got {member!r}.")
        if not other_weight >= 0 or (other_weight and member != 1):
            raise ArgumentError(
                f"MixtureGrowth: `other_weight` must be 0 or more, and above 0 only with member=1, got {other_weight} with member={member}."
                " It is the weight of member 0's loss while member 1 is trained."
            )
        if not norm_decay >= 0:
            raise ArgumentError(f"MixtureGrowth: `norm_decay` must be 0 or more, got {norm_decay}. The released code has its weight decay.")
        self.member, self.other_weight, self.norm_decay, self.options = member, other_weight, norm_decay, dict(options or {})

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network in template form, whose running part is the member that is trained."""
        if not isinstance(model, MixtureGrowthNet):
            model = convert(model, **{"input_size": data.preprocessing.input_size, **self.options})
        if self.member is None and not bool(model.grown):
            raise ArgumentError("MixtureGrowth: member=None trains what has grown, and this network has not. Call grow(model) first.")
        if self.member is not None and bool(model.grown):
            raise ArgumentError(
                f"MixtureGrowth: this network has grown, so there is no member {self.member} any more. Use member=None to train it."
            )
        if self.member is not None:
            model.active.fill_(self.member)
        return model

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name what learns: all that the member is made of, or all of the wide network; and member 0 beside member 1, as "other"."""
        network: Any = model
        members = {"model": self.member, **({"other": 0} if self.other_weight else {})}
        return {
            player: [parameter for parameter in dict.fromkeys(network.own_parameters(member)) if parameter.requires_grad]
            for player, member in members.items()
        }

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the trained member's numbers, and then the weighted loss of member 0 where both learn."""
        yield "model", self(model, batch)
        if self.other_weight:
            yield "other", {"loss": self.other_weight * self._loss(model(batch.images, member=0), batch)}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and how many images of the batch are right."""
        network: Any = model
        logits = network(batch.images, member=self.member)
        loss = self._loss(logits, batch)
        if self.norm_decay:
            loss = loss + self.norm_decay / 2 * sum(parameter.square().sum() for parameter in network.norm_parameters(self.member))
        return {"loss": loss, "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    def after_step(self, model: nn.Module, step: int) -> None:
        """Remember that the member was trained."""
        if self.member is not None:
            model.trained[self.member] = True  # type: ignore[operator]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the plain cross-entropy of what is trained over a held-out split."""
        with evaluating(model):
            pairs = [(model(batch.images, member=self.member).float(), batch.labels) for batch in loader.batches()]
        return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
