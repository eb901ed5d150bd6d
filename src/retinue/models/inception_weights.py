"""Published weights of Inception-v4 and Inception-ResNet-v2 under our names: timm's by a table of prefixes, TF-slim's by their order."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from retinue.errors import CheckpointError

V4 = {  # timm's prefix -> ours; what follows the prefix is the same, and no tensor is changed
    **{f"features.{i}": f"stem.{i}" for i in (0, 1, 2, 4)},
    "features.3.conv": "stem.3.branch1",
    "features.5.conv": "stem.5.branch0",
    **{f"features.{6 + i}": f"stages.0.{i}" for i in range(4)},
    **{f"features.{10 + i}": f"stages.1.{i}" for i in range(8)},
    **{f"features.{18 + i}": f"stages.2.{i}" for i in range(4)},
    **{f"features.{18 + i}.branch{j}_{k}": f"stages.2.{i}.branch{j}.{k}" for i in (1, 2, 3) for j, k in ((1, 0), (2, 0), (2, 1), (2, 2))},
    **{
        f"features.{18 + i}.branch{j}_{k}{side}": f"stages.2.{i}.branch{j}.{k}.branch{half}"
        for i in (1, 2, 3)
        for j, k in ((1, 1), (2, 3))
        for half, side in enumerate("ab")
    },
    "last_linear": "head.fc",
}


def _residual(timm_block: str, ours: str) -> dict[str, str]:
    return {timm_block: f"{ours}.branches", f"{timm_block}.conv2d": f"{ours}.up"}


RESNET_V2 = {
    **{f"conv2d_{name}": f"stem.{i}" for i, name in ((0, "1a"), (1, "2a"), (2, "2b"), (4, "3b"), (5, "4a"))},
    **{"mixed_5b": "stages.0.0", "mixed_6a": "stages.1.0", "mixed_7a": "stages.2.0"},
    **{prefix: name for i in range(10) for prefix, name in _residual(f"repeat.{i}", f"stages.0.{i + 1}").items()},
    **{prefix: name for i in range(20) for prefix, name in _residual(f"repeat_1.{i}", f"stages.1.{i + 1}").items()},
    **{prefix: name for i in range(9) for prefix, name in _residual(f"repeat_2.{i}", f"stages.2.{i + 1}").items()},
    **_residual("block8", "stages.2.10"),
    "conv2d_7b": "tail",
    "classif": "head.fc",
}


def from_timm(tensors: Mapping[str, Tensor], model: nn.Module, drop_background: bool = False) -> dict[str, Tensor]:
    """Rename the weights of timm's `inception_v4` or `inception_resnet_v2` to ours.

    Args:
        tensors: timm's `state_dict`.
        model: the network that is to take them; a classifier of another number of classes keeps what it has, and so does its auxiliary
            head, of which timm has none.
        drop_background: leave out the first of 1001 classes.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are not the weights of such a network, or `drop_background` does not agree with them.
    """
    table = V4 if any(name.startswith("features.") for name in tensors) else RESNET_V2
    named = {_renamed(name, table): tensor for name, tensor in tensors.items()}
    named.update({name: tensor for name, tensor in model.state_dict().items() if name.startswith("aux.")})
    return _fitted(named, model, drop_background)


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of our `inception_v4`, or of the released `inception_resnet_v2`, to timm's; the auxiliary head is left out.

    Args:
        model: the network.

    Raises:
        CheckpointError: if timm has no network of that shape.
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("aux.")}
    table = RESNET_V2 if any(name.startswith("tail.") for name in tensors) else V4
    return {_renamed(name, {ours: timms for timms, ours in table.items()}): tensor for name, tensor in tensors.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    parts = name.split(".")
    for i in range(len(parts), 0, -1):  # the longest prefix counts
        prefix = ".".join(parts[:i])
        if prefix in table:
            return ".".join([table[prefix], *parts[i:]])
    raise CheckpointError(
        f'"{name}" is no tensor of inception_v4 or of the released inception_resnet_v2. '
        "Only these two have published weights, and only with their own `depths`."
    )


# TF-slim: the scopes of both networks in the order of computation; inside a scope, names sort in the order of our branches and units
_SCOPES = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_3a", "Mixed_4a", "Mixed_5a", "Mixed_5b"),
    *("Repeat", "Mixed_5c", "Mixed_5d", "Mixed_5e", "Mixed_6a", "Repeat_1", *(f"Mixed_6{letter}" for letter in "bcdefgh")),
    *("Mixed_7a", "Repeat_2", "Mixed_7b", "Mixed_7c", "Mixed_7d", "Block8", "Conv2d_7b_1x1", "Logits", "AuxLogits"),
)
_NAMES = {
    "weights": "weight",
    "biases": "bias",
    "BatchNorm/beta": "bias",
    "BatchNorm/gamma": "weight",
    "BatchNorm/moving_mean": "running_mean",
    "BatchNorm/moving_variance": "running_var",
}


def from_slim(variables: Mapping[str, ArrayLike], model: nn.Module, drop_background: bool = False) -> dict[str, Tensor]:
    """Convert the variables of a TF-slim checkpoint: kernels from HWIO to OIHW, the linear layer transposed, gamma = 1 where there is none.

    Args:
        variables: name -> array, with or without the network's scope in front ("InceptionV4/Mixed_3a/..."); read them with
            `tf.train.load_checkpoint`. Those of an optimiser are left alone.
        model: our `inception_v4`, or the released `inception_resnet_v2`; a classifier of another number of classes keeps what it has.
        drop_background: leave out class 0, which stands for "background" in the published ones of 1001 classes.

    Returns:
        What `model.load_state_dict` takes; an auxiliary head that the checkpoint lacks keeps what it has.

    Raises:
        CheckpointError: if a layer is missing or has another shape, or `drop_background` does not agree with the classes.
    """
    layers: dict[str, dict[str, ArrayLike]] = {}
    for name, value in variables.items():
        found = re.fullmatch(rf"(?:[^/]+/)?((?:{'|'.join(_SCOPES)})(?:/.+)?)/({'|'.join(_NAMES)})", name)
        if found:
            layers.setdefault(found[1], {})[found[2]] = value
    linear = {layer: "aux.fc" if layer.startswith("Aux") else "head.fc" for layer in layers if layer.lower().endswith("logits")}
    theirs = sorted(layers.keys() - linear.keys(), key=_place)
    ours = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    own = model.state_dict()
    kept = [name for name in own if name.endswith("num_batches_tracked")]
    if not any(layer.startswith("Aux") for layer in theirs):
        kept += [name for name in own if name.startswith("aux.")]
        ours = [name for name in ours if not name.startswith("aux.")]
    elif not any(name.startswith("aux.") for name in ours):
        theirs = [layer for layer in theirs if not layer.startswith("Aux")]
        linear = {layer: name for layer, name in linear.items() if name == "head.fc"}
    if len(theirs) != len(ours):
        raise CheckpointError(
            f"the checkpoint has {len(theirs)} convolutions, the network has {len(ours)}. "
            "Build inception_v4 or the released inception_resnet_v2 with their own `depths`, whichever the checkpoint is of."
        )
    named = {name: own[name] for name in kept}
    for layer, name in [*zip(theirs, ours), *linear.items()]:
        norm = name.removesuffix("conv") + "bn"
        if f"{norm}.weight" in own:
            named[f"{norm}.weight"] = torch.ones_like(own[f"{norm}.weight"])
        for key, value in layers[layer].items():
            owner = norm if key.startswith("BatchNorm") else name
            named[f"{owner}.{_NAMES[key]}"] = _to_torch(value)
    return _fitted(named, model, drop_background)


def _place(layer: str) -> tuple[Any, ...]:
    """Sort a layer by its scope, then by name with the numbers of repeated blocks read as numbers."""
    scope, _, rest = layer.partition("/")
    return _SCOPES.index(scope), [int(part) if part.isdigit() else part for part in re.split(r"(?<=_)(\d+)(?=/|$)", rest)]


def _to_torch(value: ArrayLike) -> Tensor:
    tensor = torch.from_numpy(np.array(value))
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor.t().contiguous() if tensor.ndim == 2 else tensor


def _fitted(tensors: dict[str, Tensor], model: nn.Module, drop_background: bool) -> dict[str, Tensor]:
    """Drop the background class, keep the network's own classifiers where the classes differ, and check everything else."""
    own = model.state_dict()
    rows = len(tensors.get("head.fc.bias", ()))
    classes = int(model.num_classes)  # type: ignore[arg-type]
    if drop_background and (rows != 1001 or classes == 1001):
        raise CheckpointError(
            f"`drop_background` leaves out the first of 1001 classes; the checkpoint has {rows} and the network {classes}. Leave it out."
        )
    if rows == 1001 and classes not in (0, 1001) and not drop_background:
        raise CheckpointError(
            f'the checkpoint has 1001 classes, of which the first is "background", and the network has {classes}. '
            "Load it with drop_background=True, or build the network with num_classes=1001."
        )
    for name in ("head.fc.weight", "head.fc.bias", "aux.fc.weight", "aux.fc.bias"):
        tensor = tensors.pop(name, None)
        if tensor is not None and drop_background and len(tensor) == rows:
            tensor = tensor[1:]
        if name in own:
            tensors[name] = own[name] if tensor is None or len(tensor) != classes else tensor
    for name in own.keys() ^ tensors.keys():
        where = "the checkpoint lacks" if name in own else "the network lacks"
        raise CheckpointError(f'{where} the tensor "{name}". The network must have the published variant and `depths`.')
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape and name != "stem.0.conv.weight":  # timm fits the first layer to the channels
            raise CheckpointError(
                f'the tensor "{name}" has shape {tuple(tensors[name].shape)} in the checkpoint and {tuple(tensor.shape)} in the network. '
                "Published weights need the published variant and width_mult=1; with aux=True also input_size=299."
            )
    return tensors
