"""Several processes: Fabric starts them, and each update averages their gradients.

Gradients are averaged once an update, after the backward pass, not by a wrapper around the model: so an objective may call any method of
any module any number of times, and several players may take turns.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from retinue.errors import ArgumentError

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def launch(accelerator: str, devices: int, precision: str) -> "Fabric":
    """Start the processes of a training.

    Raises:
        ArgumentError: if the machine has no such accelerator, not so many devices, or cannot compute in that precision.
    """
    from lightning.fabric import Fabric  # a slow import, only for those who train

    if precision == "16-mixed" and not torch.cuda.is_available():
        raise ArgumentError('fit: `precision` "16-mixed" needs a GPU, and there is none. Use "bf16-mixed" or "32-true".')
    strategy = "ddp" if devices > 1 else "auto"
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"fit: accelerator={accelerator!r}, devices={devices} cannot be had here: {' '.join(str(error).split())}"
        ) from error
    return fabric


def broadcast(fabric: "Fabric", *modules: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if fabric.world_size > 1:
        for module in modules:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)


def average_gradients(fabric: "Fabric", parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if fabric.world_size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for dtype in {gradient.dtype for gradient in gradients}:
        same = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in same])
        torch.distributed.all_reduce(flat)
        flat /= fabric.world_size
        for gradient, part in zip(same, flat.split([gradient.numel() for gradient in same])):
            gradient.copy_(part.view_as(gradient))


def everywhere(fabric: "Fabric", flag: Tensor) -> Tensor:
    """Tell whether a flag holds in every process."""
    if fabric.world_size == 1:
        return flag
    counted = flag.to(torch.int32)
    torch.distributed.all_reduce(counted, op=torch.distributed.ReduceOp.MIN)
    return counted.bool()


def mean_over_processes(fabric: "Fabric", values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average scalars over the processes."""
    if fabric.world_size == 1 or not values:
        return values
    stacked = torch.stack(list(values.values()))
    torch.distributed.all_reduce(stacked)
    return dict(zip(values, stacked / fabric.world_size))


def agree(fabric: "Fabric", numbers: dict[str, Any]) -> dict[str, Any]:
    """Give every process the numbers of the first, so that all decide alike."""
    return numbers if fabric.world_size == 1 else fabric.broadcast(numbers)


def is_first() -> bool:
    """Tell whether this process is the first of its training, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
