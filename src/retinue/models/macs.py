"""How many multiply-adds a network costs."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from retinue.models.modes import evaluating


def count_macs(model: nn.Module, size: int | tuple[int, int], *, in_chans: int | None = None) -> int:
    """Count the multiply-adds of convolutions, linear layers and attention for one image, without computing anything.

    Norms, activations and pooling are left out, as in the tables of the papers.

    Args:
        model: any network; it may lie on the meta device.
        size: side of the image, or its height and width.
        in_chans: channels of the image; None takes the network's `in_chans`, or 3.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), 32)  # 32 * 32 * 8 * 3 * 9
    221184
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels = in_chans or int(getattr(model, "in_chans", 3))
    with evaluating(model), FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with sdpa_kernel(SDPBackend.MATH):  # as products of matrices: the counter does not know every fused form
            model(torch.empty(1, channels, height, width, device=device))
    return counter.get_total_flops() // 2  # a multiply-add is two operations
