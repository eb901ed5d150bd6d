"""The networks that MixtureGrowth grows (Pham et al. 2024, arXiv 2311.04251, section 4).

A wide residual network (Zagoruyko and Komodakis 2016) on CIFAR, and a ResNet on ImageNet.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.factory import create_model, register
from retinue.models.network import Network

DEPTHS = {26: [2, 2, 2, 2], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}  # bottlenecks of each group
# K of each layer of `resnet_v1_5` at depth 50 in the released code's banks; a pair where the sets differ
IMAGENET_TEMPLATES: dict[str, int | list[int]] = {
    "conv1.0": 1, "conv1.3": 5, "conv1.6": 4, "layer1.*": 5, "layer1.2.conv2": 4, "layer2.*": 4, "layer2.0.downsample.*": [4, 3],
    "layer2.0.conv1": [4, 3], "layer2.3.conv1": 3, "layer3.*": 4, "layer3.0.downsample.*": 3, "layer3.0.conv1": 3, "layer3.5.conv1": 3,
    "layer4.*": 3, "layer4.0.conv3": [4, 3], "layer4.1.conv3": [4, 3], "layer4.2.conv2": 2, "layer4.2.conv3": 2, "fc": 1,
}  # fmt: skip


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, ReLU, 3x3 convolution, and a shortcut (1x1 on the activated input where widths differ).

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        stride: of the first convolution.
        second_norm: put a batch norm before the second ReLU, as in the original network; the released code leaves it out.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, second_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chs) if second_norm else nn.Identity()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False) if stride > 1 or in_chs != out_chs else None

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Compute the block."""
        active = torch.relu(self.norm1(x))
        y = self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": "stem.0"})
def wide_resnet(
    depth: int = 28,
    widen: int = 10,
    second_norm: bool = False,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> Network:
    """Build a wide residual network for small images: three groups of (depth - 4) / 6 blocks, of 16, 32 and 64 channels times `widen`.

    Args:
        depth: 6n + 4.
        widen: factor of all widths but the stem's 16.
        second_norm: a second batch norm in each block, as in the original network; the released code of MixtureGrowth has none by default.
        num_classes: outputs of the classifier, which has no bias.
        in_chans: channels of the images.
        input_size: there for the common signature; every size works.

    Raises:
        ArgumentError: if there is no network of this depth or width.
    """
    if depth < 10 or (depth - 4) % 6 or widen < 1:
        raise ArgumentError(f"wide_resnet: `depth` must be 6n + 4 (10, 16, 22, 28, ...) and `widen` at least 1, got {depth} and {widen}.")
    groups, chs = [], 16
    for i in range(3):
        blocks = []
        for j in range((depth - 4) // 6):
            blocks.append(PreActivationBlock(chs, 16 * widen * 2**i, 2 if i and not j else 1, second_norm))
            chs = 16 * widen * 2**i
        groups.append(nn.Sequential(*blocks))
    network = Network(
        nn.Sequential(nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)),
        nn.Sequential(*groups),
        nn.Sequential(nn.BatchNorm2d(chs), nn.ReLU()),
        taps=[{"num_chs": 16 * widen * 2**i, "reduction": 2**i, "module": f"stages.{i}"} for i in range(3)],
        num_features=chs,
        num_classes=num_classes,
        in_chans=in_chans,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    if num_classes:
        network.head.fc = nn.Linear(chs, num_classes, bias=False)
    return network


@register(cfg={"first_conv": "conv1.0", "classifier": "fc"})
def resnet_v1_5(
    depth: int = 50,
    widen: int = 4,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> nn.Module:
    """Build the ImageNet network of the paper: a ResNet of bottlenecks that stride in their 3x3 convolution, with three 3x3 in its stem.

    It is timm's ResNet ("timm:resnet50c" at depth 50 and widen 4), whose tensors keep their names.

    Args:
        depth: 26, 50, 101 or 152.
        widen: quarters of the usual width: the four groups have 16, 32, 64 and 128 times as many channels in the middle of a bottleneck.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if there is no network of this depth or width.
    """
    if depth not in DEPTHS or widen < 1:
        raise ArgumentError(
            f"resnet_v1_5: `depth` must be {', '.join(map(str, DEPTHS))} and `widen` at least 1, got {depth} and {widen}. The paper has 50 "
            "and 4."
        )
    channels = [16 * widen * 2**i for i in range(4)]
    shape = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    return create_model("timm:resnet50c", layers=DEPTHS[depth], channels=channels, stem_width=8 * widen, **shape)  # type: ignore[arg-type]
