"""What a hypernetwork needs to know of its target: how it is called, its running statistics, its shapes."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Caller(nn.Module):
    """Lets `functional_call` reach every method of a network, not `forward` alone."""

    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.target = target

    def forward(self, method: str, x: Tensor, **options: Any) -> Any:
        """Call a method of the target, or "pre_logits": all up to its classifier.

        Raises:
            ArgumentError: if the target does not have it.
        """
        target: Any = self.target
        if method == "forward":
            return target(x)
        if not hasattr(target, "forward_features"):
            raise ArgumentError(
                f"HyperNetwork: {type(target).__name__} lacks timm's protocol. Wrap it first: HyperNetwork(retinue.models.adapt(target))."
            )
        if method == "pre_logits":
            return target.forward_head(target.forward_features(x), pre_logits=True)
        run: Callable[..., Any] = getattr(target, method)
        return run(x, **options)


def running_statistics(target: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the running statistics of a network's norms."""
    for path, layer in target.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            for name, buffer in layer.named_buffers(path, recurse=False):
                if name.rpartition(".")[2] in STATISTICS:
                    yield name, buffer


def check_rows(target: nn.Module) -> None:
    """Refuse weights of their own for each row where layers keep running statistics."""
    for name, layer in target.named_modules():
        if isinstance(layer, BATCH_NORMS):
            raise ArgumentError(
                f"HyperNetwork: weights of their own for each image have no running statistics, and `{name}` is a {type(layer).__name__}. "
                'Take a target with group or layer norms, or condition="task".'
            )


def channels_of(target: nn.Module) -> int:
    """Return the channels of the images that a network takes."""
    first = next((layer for layer in target.modules() if isinstance(layer, nn.Conv2d)), None)
    said: Any = getattr(target, "in_chans", None)
    return int(said) if said else 3 if first is None else first.in_channels


def cut(name: str, tensor: Tensor, like: nn.Module) -> Tensor:
    """Take the leading part of a tensor, of the shape that another network has under the same name."""
    wanted = dict(like.named_parameters()).get(name)
    if wanted is None or wanted.ndim != tensor.ndim or any(a > b for a, b in zip(wanted.shape, tensor.shape)):
        got = "missing" if wanted is None else f"of shape {tuple(wanted.shape)}"
        raise ShapeError(
            f"HyperNetwork: `{name}` is {got} in the narrower network, and {tuple(tensor.shape)} is what is generated. Build one of the "
            "same layers, none wider."
        )
    return tensor[tuple(slice(side) for side in wanted.shape)]
