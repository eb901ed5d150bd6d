"""Training and evaluation modes which leave frozen parts alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules in evaluation mode; on leaving, every part has the mode that it had before."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode
