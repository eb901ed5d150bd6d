"""N2N's edits of a network alone: its layers described, removed and shrunk, for any feed-forward convolutional network."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.edited_network import Edited, edit, follow


def layer_descriptions(
    model: nn.Module, example_input: Float[Tensor, "batch channels height width"] | None = None, skips: bool = False
) -> Float[Tensor, "layers numbers"]:
    """Describe each layer of a network, in the order of the calls, by type, kernel, stride, outputs and padding (section 3.1).

    Args:
        model: any feed-forward convolutional network.
        example_input: images that it takes; None tries the usual sizes.
        skips: add two numbers: how many layers of its residual block stand before and behind it.

    Raises:
        ArgumentError: by name, if the network cannot be edited.

    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    >>> layer_descriptions(net)[:2]
    tensor([[ 1.,  3.,  1., 16.,  1.],
            [ 3.,  0.,  0.,  0.,  0.]])
    """
    return follow(model, example_input).descriptions(skips)


def apply_removal(
    model: nn.Module,
    keep: Bool[Tensor, " layers"] | Sequence[bool],
    example_input: Float[Tensor, "batch channels height width"] | None = None,
) -> Edited:
    """Leave layers out of a network; the rest is fitted to the channels that arrive, and has new weights.

    Args:
        model: any feed-forward convolutional network; it is not changed.
        keep: one action for each row of `layer_descriptions`. The first layer, the last, linear layers, average pools and strided
            convolutions stay whatever it says.
        example_input: images that it takes; None tries the usual sizes.

    Returns:
        The network, or why there is none; a network that is not smaller is no candidate, either.

    Raises:
        ArgumentError: by name, if the network cannot be edited, or the actions are not one for each layer.
    """
    layers = follow(model, example_input)
    return smaller(edit(layers, [bool(one) for one in keep]), count_parameters(model))


def apply_shrinkage(
    model: nn.Module,
    factors: Float[Tensor, "layers 5"] | Sequence[Sequence[float]],
    example_input: Float[Tensor, "batch channels height width"] | None = None,
) -> Edited:
    """Multiply kernels, strides, outputs and paddings of a network's convolutions by factors; it has new weights.

    Args:
        model: any feed-forward convolutional network; it is not changed.
        factors: five for each row of `layer_descriptions`, in (0, 1]; see `models.edited_network.edit` for what they change.
        example_input: images that it takes; None tries the usual sizes.

    Returns:
        As `apply_removal`.

    Raises:
        ArgumentError: by name, if the network cannot be edited, or the factors cannot be.
    """
    return smaller(edit(follow(model, example_input), None, factors), count_parameters(model))


def uniform_width(model: nn.Module, max_params: int, example_input: Float[Tensor, "batch channels height width"] | None = None) -> Edited:
    """Shrink all widths of a network by one factor: the widest such network with at most so many parameters, the baseline of N2N.

    Args:
        model: any feed-forward convolutional network; it is not changed.
        max_params: how many it may have.
        example_input: images that it takes; None tries the usual sizes.

    Raises:
        ArgumentError: if even one channel everywhere is more.
    """
    layers, narrow, wide = follow(model, example_input), 0.0, 1.0
    best = edit(layers, width=1e-6)
    if best.model is None or best.parameters > max_params:
        raise ArgumentError(f"uniform_width: `max_params` must be at least {best.parameters}, one channel everywhere, got {max_params}.")
    for _ in range(12):
        middle = (narrow + wide) / 2
        found = edit(layers, width=middle)
        if found.model is not None and found.parameters <= max_params:
            best, narrow = found, middle
        else:
            wide = middle
    return best


def smaller(made: Edited, parameters: int) -> Edited:
    """Mark a student as no candidate where it has no fewer parameters than the teacher."""
    if made.model is not None and made.parameters >= parameters:
        made.invalid = f"no fewer parameters ({made.parameters}) than the teacher ({parameters})"
    return made


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(p.numel() for p in model.parameters())
