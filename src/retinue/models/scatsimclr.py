"""ScatSimCLR: a fixed scattering transform, and a small trainable adapter behind it (Kinakh et al. 2021, arXiv 2108.13939).

The first layers, which need most images to be learned, are given; so it suits small sets of images. How it is pre-trained without labels
stands in `pretrain.scatsimclr`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from retinue.errors import ArgumentError, CheckpointError
from retinue.models.factory import image_size, register
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network
from retinue.models.scattering import Scattering2d, scattering_channels

Stages = tuple[tuple[int, int], ...]  # channels and number of residual blocks of each


class Adapter(NamedTuple):
    """Channels of the first convolution, and the stages behind it."""

    width: int
    stages: Stages


ADAPTERS = {  # the last stands in the official code alone
    8: Adapter(32, ((64, 4), (128, 4))),
    12: Adapter(256, ((128, 4), (64, 4), (128, 4))),
    16: Adapter(256, ((128, 6), (64, 4), (128, 6))),
    30: Adapter(256, ((128, 30),)),
    45: Adapter(256, ((128, 15), (64, 15), (128, 15))),
}
PUBLISHED_SIDE = 96  # px, of STL-10
Z_HEAD = {"l1": "0", "l2": "2"}  # the official names of the layers of `pretrain.scatsimclr.projection`


class Scatter(nn.Module):
    """The scattering transform, and batch norm of its coefficients where that is asked for.

    Args:
        scattering: the transform.
        channels: of the images.
        normalize: add the batch norm.
    """

    def __init__(self, scattering: Scattering2d, channels: int, normalize: bool) -> None:
        super().__init__()
        self.scattering = scattering
        self.norm: nn.Module = nn.BatchNorm2d(channels * scattering.channels) if normalize else nn.Identity()

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch coefficients mapheight mapwidth"]:
        """Compute the coefficients."""
        return self.norm(self.scattering(x))


class Places(nn.Module):
    """Average a map to a few places along each side, and take all numbers of all places as channels: h of the paper.

    Args:
        side: places along each side.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(side)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features 1 1"]:
        """Compute the features: the places of the first channel, then of the second, and so on."""
        return self.pool(x).flatten(1)[:, :, None, None]


@register(cfg={"input_size": (3, PUBLISHED_SIDE, PUBLISHED_SIDE), "crop_pct": 1.0, "first_conv": "stem.1.conv"})
def scatsimclr(
    blocks: int = 30,
    num_classes: int = 1000,
    in_chans: int = 3,
    *,
    input_size: int | tuple[int, int] | None = None,
    J: int = 2,
    L: int = 16,
    stem_width: int | None = None,
    stages: Sequence[Sequence[int]] | None = None,
    pool: int = 4,
    normalize_scattering: bool = False,
    drop_rate: float = 0.0,
) -> Network:
    """Build a ScatSimCLR encoder, whose features h are the last map's values at 4x4 places; images must have the size it is built for.

    Args:
        blocks: residual blocks of the adapter: 8, 12, 16 or 30 of the paper, or 45 of its code.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side, or height and width, of the images; None is 96 px, as published.
        J: scales of the scattering transform; all maps are 2^J times smaller than the images.
        L: angles of the scattering transform; 8 costs a quarter of the published 16.
        stem_width: channels of the first convolution, instead of those of `blocks`.
        stages: pairs (channels, blocks), instead of those of `blocks`; needs `stem_width`.
        pool: places along each side at which h is read off.
        normalize_scattering: batch norm of the coefficients, whose orders differ in scale by two to three powers of ten. The official
            network has it and never uses it.
        drop_rate: share of h dropped before the classifier in training.

    Raises:
        ArgumentError: if an argument cannot be.
        ShapeError: if the images are smaller than 2^J px.
    """
    adapter = _adapter(blocks, stem_width, stages)
    if not isinstance(pool, int) or isinstance(pool, bool) or pool < 1:
        raise ArgumentError(f"scatsimclr: `pool` must be a whole number of places of at least 1, got {pool!r}. The paper has 4.")
    scattering = Scattering2d(J, L, image_size(input_size) or (PUBLISHED_SIDE, PUBLISHED_SIDE))
    coefficients = in_chans * scattering_channels(J, L)
    stem = nn.Sequential(Scatter(scattering, in_chans, normalize_scattering), conv_norm_act(coefficients, adapter.width))
    channels, parts = adapter.width, []
    taps = [{"num_chs": channels, "reduction": 1 << J, "module": "stem.1"}]
    for number, (width, count) in enumerate(adapter.stages):
        stage = []
        for _ in range(count):
            shortcut = None if channels == width else downsample_conv(channels, width, kernel_size=1)
            stage.append(BasicBlock(channels, width, downsample=shortcut))
            channels = width
        parts.append(nn.Sequential(*stage))
        taps.append({"num_chs": width, "reduction": 1 << J, "module": f"stages.{number}"})
    return Network(
        stem,
        nn.Sequential(*parts),
        Places(pool),
        taps=taps,
        num_features=channels * pool**2,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=1 << J,
    )


def from_official(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename the weights of the official code (github.com/vkinakh/scatsimclr) to ours; no tensor is changed.

    The filters of the scattering transform among them are left out, as they follow from its arguments; so is the batch norm behind it,
    which the official network never uses, unless this one was built with `normalize_scattering`.

    Args:
        tensors: the official `state_dict`; a prefix "module." is taken off.
        model: the network that is to take them; its classifier, which the official network has not, stays as it is.

    Returns:
        What `model.load_state_dict` takes; and the tensors of the projection head, for `pretrain.scatsimclr.projection`.

    Raises:
        CheckpointError: if they are the weights of another network.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    named, taken = {}, set()
    for name, own in model.state_dict().items():
        official = official_name(name)
        if official is None:
            named[name] = own
            continue
        if official not in theirs:
            raise CheckpointError(f'the checkpoint lacks the tensor "{official}". Build the network with the same number of `blocks`.')
        named[name] = theirs[official]
        taken.add(official)
        if named[name].shape != own.shape:
            raise CheckpointError(
                f'the tensor "{official}" has shape {tuple(named[name].shape)} in the checkpoint and {tuple(own.shape)} in the network. '
                "Build it with the same `blocks`, `J`, `L` and `in_chans`."
            )
    head = {f"{Z_HEAD[name[:2]]}{name[2:]}": tensor for name, tensor in theirs.items() if name[:2] in Z_HEAD and name[2] == "."}
    for name in theirs.keys() - taken:
        if not re.match(r"_scatnet(_bn)?\.|l[12]\.", name):
            raise CheckpointError(f'the network has no place for the tensor "{name}". Build it with the same number of `blocks`.')
    return named, head


def official_name(name: str) -> str | None:
    """Return the official name of a tensor of ours; None for the classifier.

    >>> official_name("stem.1.conv.weight"), official_name("stages.1.0.bn2.bias")
    ('_adapter_network.0.weight', '_adapter_network.4.0.bn2.bias')
    """
    if name.startswith("head."):
        return None
    name = name.replace("stem.0.norm.", "_scatnet_bn.").replace("stem.1.conv.", "_adapter_network.0.")
    name = name.replace("stem.1.bn.", "_adapter_network.1.")
    return re.sub(r"^stages\.(\d+)", lambda found: f"_adapter_network.{int(found[1]) + 3}", name)


def _named(blocks: int) -> Callable[..., Network]:
    """Register the network of one number of blocks."""
    build: Any = partial(scatsimclr, blocks)
    build.__name__ = f"scatsimclr{blocks}"
    build.__doc__ = f"Build ScatSimCLR{blocks}, whose adapter has {blocks} residual blocks; its further options are those of `scatsimclr`."
    return register(build, cfg={"input_size": (3, PUBLISHED_SIDE, PUBLISHED_SIDE), "crop_pct": 1.0, "first_conv": "stem.1.conv"})


scatsimclr8 = _named(8)
scatsimclr12 = _named(12)
scatsimclr16 = _named(16)
scatsimclr30 = _named(30)
scatsimclr45 = _named(45)


def _adapter(blocks: int, stem_width: int | None, stages: Any) -> Adapter:
    if blocks not in ADAPTERS:
        known = ", ".join(map(str, ADAPTERS))
        raise ArgumentError(
            f"scatsimclr: `blocks` must be one of {known}, got {blocks!r}. Or: stem_width=32, stages=[[32, 2], [64, 2]] (channels, blocks)."
        )
    if stages is not None:
        pairs = [tuple(pair) for pair in stages] if isinstance(stages, list | tuple) else []
        whole = all(len(pair) == 2 and all(isinstance(number, int) and number > 0 for number in pair) for pair in pairs)
        if not pairs or not whole or stem_width is None:
            raise ArgumentError(
                f"scatsimclr: `stages` must be pairs (channels, blocks) beside a `stem_width`, got {stages!r} and {stem_width!r}. "
                "Such as stem_width=32, stages=[[32, 2], [64, 2]]."
            )
        return Adapter(stem_width, tuple((width, count) for width, count in pairs))
    return ADAPTERS[blocks] if stem_width is None else Adapter(stem_width, ADAPTERS[blocks].stages)
