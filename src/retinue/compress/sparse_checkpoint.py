"""Networks with many zeros on disk: only the weights that a mask keeps are stored, and where they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retinue.compress.masks import Mask, check_mask
from retinue.data import Preprocessing
from retinue.engine import checkpoint
from retinue.errors import CheckpointError
from retinue.models import adapt, config, create_model

VALUES, BITS, PLACES = "values/", "bits/", "places/"  # what begins the name of a stored tensor that is a part of another


def save_sparse(folder: str | Path, model: nn.Module, mask: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> int:
    """Write a masked network; what the mask removes is zero when it is read again.

    The places are stored as one bit a weight, or as numbers of 4 bytes where that is shorter (below one weight in 32).

    Args:
        folder: where it shall stand.
        model: the network.
        mask: which weights are kept.
        facts: of an ordinary checkpoint, such as "classes", "preprocessing" and "metrics"; None: only how the network is built.

    Returns:
        Size on disk in bytes.

    Raises:
        ArgumentError: if the mask is of another network.
        CheckpointError: if it cannot be written.
    """
    check_mask(model, mask)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if name not in mask:
            stored[name] = tensor
            continue
        kept = mask[name].cpu().bool().flatten()
        shapes[name] = list(tensor.shape)
        stored[VALUES + name] = tensor.flatten()[kept]
        if 32 * int(kept.sum()) < kept.numel() < 1 << 31:
            stored[PLACES + name] = kept.nonzero()[:, 0].int()
        else:
            stored[BITS + name] = torch.from_numpy(np.packbits(kept.numpy()))
    made = config(model) or {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    checkpoint.save(Path(folder), stored, {"model": made, **(facts or {}), "sparse": shapes})
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def read_sparse(folder: str | Path) -> tuple[dict[str, Tensor], Mask, dict[str, Any]]:
    """Read all tensors of a network, as of `state_dict`, its mask, and the facts that were stored with it.

    Raises:
        CheckpointError: if a byte was altered, or the folder holds another kind of checkpoint.
    """
    found = checkpoint.read(Path(folder), training=False)
    if "sparse" not in found.facts:
        raise CheckpointError(f"{folder} is no sparse checkpoint. Open it with retinue.load.")
    tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith((VALUES, BITS, PLACES))}
    mask: Mask = {}
    for name, shape in found.facts["sparse"].items():
        values, count = found.tensors[VALUES + name], int(np.prod(shape))
        if PLACES + name in found.tensors:
            kept = torch.zeros(count, dtype=torch.bool).index_fill(0, found.tensors[PLACES + name].long(), True)
        else:
            kept = torch.from_numpy(np.unpackbits(found.tensors[BITS + name].numpy(), count=count)).bool()
        whole = torch.zeros(count, dtype=values.dtype)
        whole[kept] = values
        tensors[name], mask[name] = whole.view(shape), kept.view(shape)
    return tensors, mask, found.facts


def load_sparse(folder: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, Mask]:
    """Load a network that `save_sparse` wrote.

    Args:
        folder: the checkpoint.
        model: your own network to take the weights, where `create_model` cannot build it.

    Returns:
        The ordinary network in evaluation mode, with zeros in its weights, and its mask.

    Raises:
        CheckpointError: if it is damaged, the network is your own and `model` is missing, or the weights do not fit.
    """
    tensors, mask, facts = read_sparse(folder)
    network: Any = model
    if network is None:
        made = facts["model"]
        if "arguments" not in made:
            raise CheckpointError(
                f"{folder} holds the weights of your own {made['class']}. Build it and give it: load_sparse(folder, model=...)."
            )
        network = create_model(made["name"], **made["arguments"])
    elif any(name.startswith("module.") for name in tensors) and "preprocessing" in facts and not hasattr(network, "forward_features"):
        network = adapt(network, input_size=tuple(facts["preprocessing"]["input_size"]))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit this network: {' '.join(str(error).split())[:300]}") from error
    if "classes" in facts:
        network.classes, network.preprocessing = facts["classes"], Preprocessing.from_dict(facts["preprocessing"])
    return network.eval(), mask
