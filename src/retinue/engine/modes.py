"""Training and evaluation modes which leave frozen parts alone."""

from torch import nn

from retinue.models.modes import evaluating

__all__ = ["evaluating", "train_mode"]


def train_mode(module: nn.Module) -> None:
    """Put a module in training mode, except what is frozen.

    A part that has parameters of which none requires a gradient stays in evaluation mode: its batch-norm statistics do not move and
    its dropout is off. Freezing a backbone is therefore `backbone.requires_grad_(False)` and nothing else.
    """
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()
