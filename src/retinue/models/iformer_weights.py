"""Published weights of iFormer: the official names and ours, by rename only; positions are interpolated for other sizes of images."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from retinue.models.iformer_blocks import resized
from retinue.models.inception_next_weights import fit_tensors

_STEM = {
    "patch_embed.proj1": "stem.0", "patch_embed.norm1": "stem.1", "patch_embed.proj2": "stem.3", "patch_embed.norm2": "stem.4",
    "norm": "tail", "head": "head.fc",
}  # fmt: skip


def from_official(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the published weights (iformer_small.pth and its like) to ours; tables of positions are interpolated to the network's size.

    Args:
        tensors: the official `state_dict`.
        model: the network that is to take them. A classifier of another number of classes keeps what it has, and so do norm and
            classifier where the last stage was left out.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are the weights of another network.
    """
    return fit_tensors(
        {_ours(name): tensor for name, tensor in tensors.items()}, model, classifier="head.", end=("head.", "tail."), cut=_cut
    )


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of our iFormer to those of the official code."""
    names = {ours: theirs for theirs, ours in _STEM.items()}

    def theirs(name: str) -> str:
        layer, _, last = name.rpartition(".")
        if layer in names:
            return f"{names[layer]}.{last}"
        _, stage, rest = name.split(".", 2)
        k = int(stage) + 1
        if rest.startswith("downsample."):
            return f"patch_embed{k}.{'norm' if rest[11] == '1' else 'proj'}.{last}"
        return f"pos_embed{k}" if rest == "pos_embed" else f"blocks{k}.{rest.removeprefix('blocks.')}"

    return {theirs(name): tensor for name, tensor in model.state_dict().items()}


def _ours(name: str) -> str:
    """Return our name of an official tensor; one that is not official stays as it is, and is refused later.

    >>> _ours("blocks3.7.attn.low_mixer.qkv.weight"), _ours("patch_embed2.norm.bias"), _ours("pos_embed4")
    ('stages.2.blocks.7.attn.low_mixer.qkv.weight', 'stages.1.downsample.1.bias', 'stages.3.pos_embed')
    """
    layer, _, last = name.rpartition(".")
    if layer in _STEM:
        return f"{_STEM[layer]}.{last}"
    found = re.match(r"(blocks|patch_embed|pos_embed)(\d)", name)
    if not found:
        return name
    stage, rest = f"stages.{int(found[2]) - 1}", name[found.end() :]
    if found[1] == "patch_embed":
        return f"{stage}.downsample.{int('.norm.' in rest)}.{last}"
    return f"{stage}.{found[1]}{rest}"


def _cut(name: str, given: Tensor, shape: Sequence[int]) -> Tensor:
    return resized(given, shape[1], shape[2]) if name.endswith("pos_embed") and given.ndim == len(shape) == 4 else given
