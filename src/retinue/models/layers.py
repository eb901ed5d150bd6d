"""Layers that several networks share.

What timm has is timm's: squeeze-excite is `timm.layers.SqueezeExcite`, stochastic depth `timm.layers.DropPath`, the head
`timm.layers.ClassifierHead`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from timm.layers import ConvNormAct
from torch import Tensor, nn

Kernel = int | tuple[int, int]  # a side, or (height, width)


def same_padding(kernel: Kernel) -> tuple[int, int]:
    """Return the padding that keeps a map's size under an odd kernel at stride 1.

    >>> same_padding((1, 7))
    (0, 3)
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return (height - 1) // 2, (width - 1) // 2


def conv_norm_act(
    in_chs: int,
    out_chs: int,
    kernel: Kernel = 3,
    stride: int = 1,
    *,
    valid: bool = False,
    groups: int = 1,
    act: bool = True,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> ConvNormAct:
    """Build a convolution without bias, batch norm and (where `act`) ReLU; its tensors are named `conv.*` and `bn.*`, as in timm.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        kernel: side of the kernel, or its height and width.
        stride: step of the convolution.
        valid: no padding at all; otherwise (kernel - 1) / 2 on each side.
        groups: groups of channels that do not see each other.
        act: end with ReLU.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics (1 - decay).
    """
    return ConvNormAct(
        in_chs,
        out_chs,
        kernel,  # type: ignore[arg-type]  # timm takes pairs; its annotation does not say so
        stride=stride,
        padding=(0, 0) if valid else same_padding(kernel),
        groups=groups,
        apply_act=act,
        norm_kwargs={"eps": eps, "momentum": momentum},
        act_kwargs={"inplace": True},
    )


class Concat(nn.Module):
    """Applies every branch to the same map and joins the results along the channels, in the order given.

    Args:
        branches: modules that leave maps of equal height and width; they are named `branch0`, `branch1`, ...
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch joined newheight newwidth"]:
        """Run the branches and join their maps."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)
