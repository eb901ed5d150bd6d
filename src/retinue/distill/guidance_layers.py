"""Which layers of two networks guidance compares, and how it looks at them while a network runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from retinue.errors import ArgumentError, ShapeError, unknown

KINDS = (
    nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d, nn.LSTM, nn.RNN, nn.TransformerDecoderLayer, nn.TransformerEncoderLayer, nn.LayerNorm,
    nn.MultiheadAttention,
)  # fmt: skip
Keep = Callable[[Tensor], Tensor]


def map_layers(n_guide: int, n_target: int) -> list[int]:
    """Pair each of the guide's layers with one of the target's, evenly spaced: the first with the first, the last with the last.

    Guide layer i (from 0) gets target layer min(round(i * step), n_target - 1) with step = (n_target - 1) / (n_guide - 1), 1 for a single
    guide layer; halves are rounded to the even number.

    Args:
        n_guide: layers of the guide.
        n_target: layers of the target.

    Raises:
        ArgumentError: if one of them has no layer.

    >>> map_layers(5, 50), map_layers(4, 2)
    ([0, 12, 24, 37, 49], [0, 0, 1, 1])
    """
    if n_guide < 1 or n_target < 1:
        raise ArgumentError(f"map_layers: guide and target need one layer each at least, got {n_guide} and {n_target}.")
    step = (n_target - 1) / (n_guide - 1) if n_guide > 1 else 1.0
    return [min(round(i * step), n_target - 1) for i in range(n_guide)]


class Seen(dict[str, Any]):
    """What was kept of each layer, by name, in the order in which the layers ran."""


@contextmanager
def watching(model: nn.Module, layers: Sequence[str] | None, keep: Keep, batch: int) -> Iterator[Seen]:
    """Keep something of layers' outputs while a network runs inside the `with`; nothing is left in the network afterwards.

    What is kept is computed at once, since an activation that works in place would overwrite the output. Of a layer that runs several
    times, the last time counts.

    Args:
        model: the network.
        layers: names of the layers; None takes the rule of the paper, all modules with weights to be guided (`KINDS`) but the last one
            that ran, the logits. (For torchvision's vision transformers: each attention and each MLP, and the pooled token.)
        keep: makes of an output, one row an image, what is kept.
        batch: number of images.

    Yields:
        What was kept; complete on leaving.

    Raises:
        ArgumentError: if a name does not exist (near misses are named) or its layer did not run, or no layer is left.
        ShapeError: if a layer's output cannot be cut into one row an image.
    """
    seen = Seen()
    modules = dict(model.named_modules())
    chosen = dict.fromkeys(layers) if layers is not None else _by_rule(modules)
    for name in chosen:
        if name not in modules or not name:
            raise unknown("Guidance", f"layer of {type(model).__name__}", name, [one for one in modules if one])

    def hook(name: str) -> Any:
        def look(layer: nn.Module, args: Any, output: Any) -> None:
            seen[name] = keep(_rows(layer, output, batch, name))

        return look

    hooks = [modules[name].register_forward_hook(hook(name)) for name in chosen]
    pooled = _pooled_token(modules) if layers is None else None
    if pooled is not None:
        hooks.append(pooled.register_forward_pre_hook(lambda _, args: seen.update({"pooled": keep(args[0])})))
    try:
        yield seen
    finally:
        for handle in hooks:
            handle.remove()
    if layers is None:
        if pooled is None and seen:
            seen.popitem()
        if not seen:
            raise ArgumentError(
                f"Guidance: {type(model).__name__} has no layer to compare beside its last one. Name the layers by hand: "
                "guide_layers=[...], target_layers=[...]."
            )
        return
    idle = [name for name in chosen if name not in seen]
    if idle:
        raise ArgumentError(f"Guidance: the layer {idle[0]} of {type(model).__name__} did not run. Name a layer that its forward calls.")
    for name in chosen:  # the order in which they were named is the order in which they are paired
        seen[name] = seen.pop(name)


def _by_rule(modules: dict[str, nn.Module]) -> Iterable[str]:
    if _pooled_token(modules) is not None:
        return {name: None for name in modules if name.rpartition(".")[2] in ("self_attention", "mlp")}
    return {name: None for name, module in modules.items() if isinstance(module, KINDS) and name}


def _pooled_token(modules: dict[str, nn.Module]) -> nn.Module | None:
    """The classifier of a vision transformer of torchvision, wrapped or not: what enters it is the pooled token."""
    found = next((module for module in modules.values() if isinstance(module, VisionTransformer)), None)
    return None if found is None else found.heads


def _rows(layer: nn.Module, output: Any, batch: int, name: str) -> Float[Tensor, "batch ..."]:
    """Bring an output to one row an image: the first of several outputs, batch first, windows of one image together."""
    while isinstance(output, tuple | list):
        output = output[0]
    attention = getattr(layer, "self_attn", layer)
    if getattr(attention, "batch_first", True) is False and output.ndim == 3:
        output = output.transpose(0, 1)
    if len(output) == batch:
        return output
    if len(output) % batch == 0:
        return output.unflatten(0, (batch, -1))
    raise ShapeError(
        f"Guidance: the layer {name} gives {len(output)} rows for {batch} images, so none belongs to one image. Name other layers."
    )
