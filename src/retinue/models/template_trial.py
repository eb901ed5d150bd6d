"""Trials of a network that is to grow: images that pass, and members whose sum the wide network is (Pham et al. 2024, arXiv 2311.04251)."""

from typing import Any

import torch
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.factory import image_size
from retinue.models.modes import evaluating
from retinue.models.protocol import PROBE_SIDES

TOLERANCE = 1e-3  # of the sum of the members' logits, relative to their size, in float32


def trial(network: nn.Module, input_size: Any) -> tuple[int, int, int]:
    """Return channels, height and width of images that pass through a network.

    Args:
        network: on any device.
        input_size: side of the images, or height and width; None tries the usual ones.

    Raises:
        ArgumentError: if none does.
    """
    size = image_size(input_size)
    channels = int(getattr(network, "in_chans", 3))
    trouble: Exception | None = None
    for height, width in [size] if size else [(side, side) for side in PROBE_SIDES]:
        try:
            with torch.no_grad(), evaluating(network):
                network(images_for(network, (channels, height, width)))
            return channels, height, width
        except (RuntimeError, ValueError, AssertionError, ArgumentError) as error:
            trouble = trouble or error
    raise ArgumentError(f"convert: no trial image passed through the network ({trouble}). Say which it takes: `input_size`.")


def images_for(network: nn.Module, sizes: tuple[int, int, int]) -> Tensor:
    """Draw two images of given channels, height and width, on a network's device."""
    like = next(network.parameters())
    return torch.randn(2, *sizes, generator=torch.Generator().manual_seed(0), device="cpu").to(like)


@torch.no_grad()
def check_sum(network: Any, sizes: tuple[int, int, int]) -> None:
    """Make sure that members run, and that with new coefficients of 0 the wide network is their sum; norms over channels may differ.

    On the meta device, where nothing has a value, they only have to run.

    Args:
        network: a `MixtureGrowthNet`, before growth.
        sizes: channels, height and width of the images.

    Raises:
        ArgumentError: if it is not so.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    full, images = network.full, images_for(network, sizes)
    generator = torch.Generator("cpu").manual_seed(1)
    try:
        for parameter in network.members.parameters():  # apart, as after training: what is alike in all channels may be shuffled unseen
            if parameter.numel() > 1 and not parameter.is_meta:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter))
        with evaluating(network):
            wanted = network(images, member=0) + network(images, member=1)
            network.trained.fill_(True)
            got = network.grow("zero")(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ArgumentError(
            f"convert: the network at {1 / network.parts:.3g} of its width does not run ({' '.join(str(error).split())[:160]}): it "
            "counts on its widths elsewhere than in layers. Take a network that asks its layers."
        ) from error
    over = [name for name, place in network.places.items() if place.owners is not None and mixes(full.get_submodule(name), network.parts)]
    network.load_state_dict(before)
    if over:
        network.adaptation.append(f"norms over all channels, such as {over[0]}: the wide network is not the exact sum of its members")
    elif not got.is_meta and bool((got - wanted).abs().max() > TOLERANCE * wanted.abs().max().clamp(min=1)):
        raise ArgumentError(
            "convert: the wide network is not the sum of its members even without new coefficients; it seems to shuffle or compare "
            "channels. Take a network of convolutions, linear layers and norms."
        )


def mixes(module: nn.Module, parts: int) -> bool:
    """Return whether a norm takes the mean over channels of several parts."""
    return isinstance(module, nn.LayerNorm) or (isinstance(module, nn.GroupNorm) and module.num_groups % parts != 0)
