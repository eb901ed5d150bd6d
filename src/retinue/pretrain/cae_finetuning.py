"""Fine-tuning with a learning rate that falls from the last layer to the first (BEiT, arXiv 2106.08254, and CAE).

The engine's optimisers take one learning rate; here each parameter carries its own factor, and the optimiser "layeradamw" obeys it.
"""

from collections.abc import Callable
from typing import Any

import timm.optim._optim_factory as factory
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from retinue.data import Data
from retinue.engine import Supervised
from retinue.errors import ArgumentError

NAME = "layeradamw"  # as fit(optimizer=...) knows it; without an underscore, at which timm would cut it
FACTOR = "learning_rate_factor"  # an attribute of a parameter


class AdamWByLayer(torch.optim.AdamW):
    """AdamW in which a parameter's learning rate, and with it its weight decay, is multiplied by the parameter's own factor.

    Args:
        params: parameters, or groups of them; a group is cut into one for each factor.
        options: those of AdamW.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        cut = []
        for group in groups:
            parted: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                parted.setdefault(getattr(parameter, FACTOR, 1.0), []).append(parameter)
            # the largest first: the engine writes the first group's learning rate to its log
            cut += [{**group, "params": parted[factor], "factor": factor} for factor in sorted(parted, reverse=True)]
        super().__init__(cut, **options)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what `closure` does."""
        before = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["factor"]
        try:
            return super().step(closure)
        finally:
            for group, lr in zip(self.param_groups, before):
                group["lr"] = lr


class FineTune(Supervised):
    """Cross-entropy, for fit(optimizer="layeradamw"): layer l of L has the learning rate times layer_decay^(L - l), the head all of it.

    Args:
        layer_decay: in (0, 1]; 0.65 for the base network. 1 is plain fine-tuning.
        label_smoothing: as in `retinue.train.Supervised`.
        class_weights: as there.

    Raises:
        ArgumentError: if `layer_decay` lies outside its range.
    """

    def __init__(self, layer_decay: float = 0.65, label_smoothing: float = 0.0, class_weights: list[float] | None = None) -> None:
        super().__init__(label_smoothing, class_weights=class_weights)
        if not 0 < layer_decay <= 1:
            raise ArgumentError(f"FineTune: `layer_decay` must lie in (0, 1], got {layer_decay}. The paper has 0.65 for the base network.")
        self.layer_decay = layer_decay

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network, each of whose parameters has been told its factor."""
        model = super().prepare(model, data)
        mark_layers(model, self.layer_decay)
        return model


def mark_layers(model: nn.Module, layer_decay: float) -> None:
    """Tell each parameter of a network the factor of its learning rate; layers are those of the network's `group_matcher`.

    Args:
        model: a network of timm's or ours that has a `group_matcher`.
        layer_decay: the factor between one layer and the one before.

    Raises:
        ArgumentError: if the network does not say which layers it has.
    """
    if not hasattr(model, "group_matcher"):
        raise ArgumentError(
            f"FineTune: {type(model).__name__} does not say which layers it has (it lacks timm's `group_matcher`). Use "
            "retinue.train.Supervised, with one learning rate."
        )
    for group in param_groups_layer_decay(model, layer_decay=layer_decay):
        for parameter in group["params"]:
            setattr(parameter, FACTOR, group["lr_scale"])


factory.default_registry.register(
    factory.OptimInfo(
        name=NAME, opt_class=AdamWByLayer, description="AdamW with a learning rate for each layer", has_betas=True, has_eps=True
    )
)
