"""Published weights of NASNet-A large under our names, and back."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from retinue.errors import CheckpointError

_OP = {
    "dw1": "separable_1.depthwise_conv2d", "pw1": "separable_1.pointwise_conv2d", "bn1": "bn_sep_1",
    "dw2": "separable_2.depthwise_conv2d", "pw2": "separable_2.pointwise_conv2d", "bn2": "bn_sep_2",
}  # fmt: skip
_INPUT = {"prev.conv1": "path_1.conv", "prev.conv2": "path_2.conv", "prev.norm": "final_path_bn"}


def from_timm(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of timm's `nasnetalarge` to ours; no tensor is changed.

    Built with `avg_pool_count_pad=True`, the network then gives timm's logits.

    Args:
        tensors: timm's `state_dict`.
        model: the network that is to take them; a classifier of another number of classes keeps what it has, and so do the auxiliary head
            and the count of batches, of which timm has none.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are not the weights of a NASNet-A with ImageNet stem, or of another size.
    """
    own = model.state_dict()
    taken, named = set(), {}
    normals = _normals(model)
    for name, tensor in own.items():
        theirs = timm_name(name, normals)
        source = None if theirs is None else tensors.get(theirs)
        keep = theirs is None or (name.startswith("head.fc.") and (source is None or source.shape != tensor.shape))
        if source is None and not keep:
            raise CheckpointError(f'the checkpoint lacks the tensor "{theirs}". Build nasnet_a_large for images above 64 px.')
        named[name] = tensor if keep or source is None else source
        if named[name].shape != tensor.shape and name != "stem.0.conv.weight":  # timm fits the first layer to the channels
            raise CheckpointError(
                f'the tensor "{theirs}" has shape {tuple(named[name].shape)} in the checkpoint and {tuple(tensor.shape)} in the network. '
                "Published weights need N=6 and P=4032."
            )
        taken.add(theirs)
    for left in tensors.keys() - taken:
        if not left.startswith("last_linear."):
            raise CheckpointError(f'the network lacks the tensor "{left}". Build nasnet_a_large for images above 64 px.')
    return named


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of a NASNet-A with ImageNet stem to timm's; auxiliary head and count of batches are left out."""
    tensors, normals = model.state_dict(), _normals(model)
    return {theirs: tensor for name, tensor in tensors.items() if (theirs := timm_name(name, normals)) is not None}


def timm_name(name: str, normals: int = 6) -> str | None:
    """Return timm's name of a tensor of ours; None for those that timm lacks.

    Args:
        name: of our tensor, in a network with ImageNet stem.
        normals: N, how many normal cells stand in a row.

    >>> timm_name("stages.2.1.ops.3.pw1.weight")
    'cell_6.comb_iter_1_right.separable_1.pointwise_conv2d.weight'
    """
    if name.startswith(("aux.", "drop_path.")):
        return None
    name = re.sub(r"^head\.fc\.", "last_linear.", re.sub(r"^stem\.0\.", "conv0.", name))
    found = re.match(r"stages\.(\d+)\.(\d+)\.(.*)", name)
    if not found:
        return name
    stage, place, layer = int(found[1]), int(found[2]), found[3]
    if stage < 2 and not place:
        cell = f"cell_stem_{stage}"
    elif not place:
        cell = f"reduction_cell_{stage - 2}"
    else:
        cell = f"cell_{(stage - 1) * normals + place - 1}"
    for ours, theirs in _INPUT.items():
        if layer.startswith(ours + "."):
            return f"{cell}.{theirs}{layer.removeprefix(ours)}"
    layer = re.sub(r"^cur\.", "conv_1x1.", re.sub(r"^prev\.", "conv_prev_1x1.", layer))
    layer = re.sub(
        r"^ops\.(\d+)\.(\w+)", lambda op: f"comb_iter_{int(op[1]) // 2}_{('left', 'right')[int(op[1]) % 2]}.{_OP.get(op[2], op[2])}", layer
    )
    return f"{cell}.{layer}"


def _normals(model: nn.Module) -> int:
    """Count the normal cells in a row, by the last stage."""
    return len(model.stages[-1]) - 1  # type: ignore[index]
