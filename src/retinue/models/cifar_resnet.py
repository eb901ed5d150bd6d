"""Residual networks for 32-pixel images, of depth 6n + 2 (He et al. 2015, arXiv 1512.03385, section 4.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import register
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network

Shortcut = Literal["projection", "padding"]


class PaddedShortcut(nn.Module):
    """Option A of the paper (section 3.3): takes every second pixel and adds channels of zeros; has no parameters.

    Args:
        extra: number of channels added.
        stride: step between the pixels taken.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Thin out the map and add the channels, half of them in front."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ReLU(x + F(x)) (figure 2 of the paper).

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        stride: step of the first convolution.
        shortcut: "projection" is option B (1x1 convolution and batch norm where the size changes), "padding" is option A.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv_norm_act(in_chs, out_chs, 3, stride=stride)
        self.conv2 = conv_norm_act(out_chs, out_chs, 3, act=False)
        if stride == 1 and in_chs == out_chs:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "projection":
            self.shortcut = conv_norm_act(in_chs, out_chs, 1, stride=stride, act=False)
        else:
            self.shortcut = PaddedShortcut(out_chs - in_chs, stride)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Compute the block."""
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0})
def cifar_resnet(
    depth: int = 20,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    width: int = 16,
    shortcut: Shortcut = "projection",
    uniform_gamma: bool = False,
    drop_rate: float = 0.0,
) -> Network:
    """Build a residual network for small images: maps of 32, 16 and 8 pixels at 32 px.

    Args:
        depth: number of layers with weights, 6n + 2 (20, 32, 44, 56, 110).
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: there for the common signature; every size works.
        width: channels of the first stage; the second and third have two and four times as many.
        shortcut: "projection" is option B (depth 20 has 272,474 parameters), "padding" is option A (269,722), the paper's choice for CIFAR.
        uniform_gamma: draw the scales of batch norms from [0, 1], as experiments with lottery tickets do (open_lth), not 1 each.
        drop_rate: share of the pooled features dropped in training.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ArgumentError(f"cifar_resnet: `depth` must be 6n + 2 (8, 14, 20, 26, 32, ...), got {depth}.")
    if shortcut not in ("projection", "padding"):
        raise unknown("cifar_resnet", "`shortcut`", shortcut, ("projection", "padding"))
    stages, chs = [], width
    for i in range(3):
        blocks = []
        for j in range((depth - 2) // 6):
            blocks.append(BasicBlock(chs, width * 2**i, stride=2 if i and not j else 1, shortcut=shortcut))
            chs = width * 2**i
        stages.append(nn.Sequential(*blocks))
    network = Network(
        nn.Sequential(conv_norm_act(in_chans, width, 3)),
        nn.Sequential(*stages),
        taps=[{"num_chs": width * 2**i, "reduction": 2**i, "module": f"stages.{i}"} for i in range(3)],
        num_features=width * 4,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # section 3.4 initialises as in He et al. 2015, arXiv 1502.01852
            nn.init.kaiming_normal_(module.weight)
        elif uniform_gamma and isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    return network


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0})
def resnet20(
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    width: int = 16,
    shortcut: Shortcut = "projection",
    uniform_gamma: bool = False,
    drop_rate: float = 0.0,
) -> Network:
    """Build `cifar_resnet` of depth 20, the usual baseline on CIFAR-10; its options are those of `cifar_resnet`."""
    return cifar_resnet(
        20, num_classes=num_classes, in_chans=in_chans, input_size=input_size, width=width, shortcut=shortcut,
        uniform_gamma=uniform_gamma, drop_rate=drop_rate,
    )  # fmt: skip
