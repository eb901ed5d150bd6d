"""Published weights of SimpleNet: the PyTorch releases count every layer in one row, ours stand in stages."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from timm.layers import ConvNormAct
from torch import Tensor

from retinue.errors import CheckpointError
from retinue.models.simplenet import SimpleNet

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def from_official(tensors: Mapping[str, Any], model: SimpleNet) -> dict[str, Tensor]:
    """Rename the weights of the PyTorch releases (`simplenetv1_*.pth` and the CIFAR files) to ours.

    They are `features.N.*` and `classifier.*`, where N counts convolution, batch norm, ReLU and, where there is one, dropout of each
    layer, and pool and dropout of each pool. So the numbers tell where the pools are, which is compared with the network's list.

    Args:
        tensors: the published `state_dict`, or the checkpoint of training that holds it as "state_dict"; a prefix "module." is taken off.
        model: the network that is to take them; a classifier of another number of classes keeps what it has. It may be adapted to small
            images.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are the weights of another network.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.get("state_dict", tensors).items()}
    ours = [name for name, module in model.named_modules() if isinstance(module, ConvNormAct)]
    numbers = sorted(
        int(found[1]) for name, tensor in tensors.items() if (found := re.fullmatch(r"features\.(\d+)\.weight", name)) and tensor.ndim == 4
    )
    if len(numbers) != len(ours):
        raise CheckpointError(
            f"the checkpoint has {len(numbers)} convolutions, the network has {len(ours)}. Build the preset whose release it is."
        )
    _check_pools(numbers, model)
    names: dict[str, str] = {}
    for number, name in zip(numbers, ours, strict=True):
        names |= {f"features.{number}.{part}": f"{name}.conv.{part}" for part in ("weight", "bias")}
        names |= {f"features.{number + 1}.{part}": f"{name}.bn.{part}" for part in BN}
    names |= {f"classifier.{part}": f"head.fc.{part}" for part in ("weight", "bias")}
    own, taken = model.state_dict(), dict[str, Tensor]()
    for theirs, name in names.items():
        tensor = tensors.get(theirs)
        counter, classifier = theirs.endswith("num_batches_tracked"), theirs.startswith("classifier.")
        if tensor is None and not counter and (name in own or not classifier):  # files of old versions of torch have no counters
            raise CheckpointError(f'the checkpoint lacks the tensor "{theirs}". It must be a PyTorch release of SimpleNet.')
        if name not in own:  # there is no classifier
            continue
        taken[name] = own[name] if tensor is None or (classifier and len(tensor) != model.num_classes) else tensor
        if taken[name].shape != own[name].shape:
            shapes = [tuple(each[name].shape) for each in (taken, own)]
            raise CheckpointError(
                f'the tensor "{theirs}" has shape {shapes[0]} in the checkpoint and {shapes[1]} in the network. '
                "Build it with the release's preset, `scale` and `in_chans`."
            )
    for theirs in tensors.keys() - names.keys():
        raise CheckpointError(f'the network has no place for the tensor "{theirs}". It must be a PyTorch release of SimpleNet.')
    return taken


def _check_pools(numbers: list[int], model: SimpleNet) -> None:
    """Compare the pools behind each convolution: a layer takes 3 numbers, or 4 with dropout, and a pool takes 2."""
    theirs = [(after - before - 3) // 2 for before, after in itertools.pairwise(numbers)]
    own: list[int] = []
    for layer in model.layers:
        if layer.width:
            own.append(0)
        else:
            own[-1] += 1
    if theirs != own[:-1]:
        where = [[i for i, count in enumerate(counts) for _ in range(count)] for counts in (theirs, own[:-1])]
        raise CheckpointError(
            f"the checkpoint has pools behind the convolutions {where[0]}, the network behind {where[1]} (counted from 0). The tensors "
            "would fit and compute something else. Early weights of cifar_5m belong to simplenet_cifar_5m_extra_pool."
        )
