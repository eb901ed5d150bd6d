"""Network in Network, whose convolutions are followed by 1x1 ones (Lin et al. 2013, arXiv 1312.4400), as RotNet pre-trains it.

Without dropout and with batch norm after every convolution (Gidaris et al. 2018, arXiv 1803.07728, section 3.1 and the official code).
"""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import register
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network


class NetworkInNetwork(Network):
    """Blocks of three convolutions, global average, linear classifier; the first block is the stem."""

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"], block: str | None = None
    ) -> Float[Tensor, "batch features mapheight mapwidth"]:
        """Compute the map behind a block, after its pooling.

        Args:
            x: images.
            block: "conv1", "conv2", ...; None is the last.

        Raises:
            ArgumentError: if there is no such block.
        """
        if block is None:
            return super().forward_features(x)
        blocks = [f"conv{i + 1}" for i in range(len(self.feature_info))]
        if block not in blocks:
            raise unknown("network_in_network", "block", block, blocks)
        return self.forward_intermediates(x, [blocks.index(block)], stop_early=True, intermediates_only=True)[0]


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": "stem.0.0.conv"})
def network_in_network(
    num_classes: int = 10,
    num_stages: int = 4,
    pool_block3: bool = False,
    in_chans: int = 3,
    *,
    input_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
) -> NetworkInNetwork:
    """Build a Network in Network for small images, of 3 to 5 blocks or more.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        num_stages: number of blocks; those from the third on are alike.
        pool_block3: halve the map behind the third block too, where a fourth follows.
        in_chans: channels of the images.
        input_size: there for the common signature; every size from 4 px on works.
        drop_rate: share of the pooled features dropped in training.

    Raises:
        ArgumentError: if there are fewer than 3 blocks.

    >>> sum(p.numel() for p in network_in_network(num_classes=4).parameters())
    1411140
    """
    if num_stages < 3:
        raise ArgumentError(f"network_in_network: `num_stages` must be at least 3, got {num_stages}. The paper has 3, 4 and 5.")
    halve: dict[int, Any] = {
        0: nn.MaxPool2d(3, 2, 1),
        1: nn.AvgPool2d(3, 2, 1),
        2: nn.AvgPool2d(3, 2, 1) if pool_block3 and num_stages > 3 else None,
    }
    plans = [(5, (192, 160, 96)), (5, (192, 192, 192)), *[(3, (192, 192, 192))] * (num_stages - 2)]
    blocks, taps, channels, reduction = [], [], in_chans, 1
    for i, (kernel, widths) in enumerate(plans):
        layers: list[nn.Module] = []
        for side, width in zip((kernel, 1, 1), widths):
            layers.append(conv_norm_act(channels, width, side))
            channels = width
        if halve.get(i) is not None:
            layers.append(halve[i])
            reduction *= 2
        blocks.append(nn.Sequential(*layers))
        taps.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{i - 1}" if i else "stem.0"})
    network = NetworkInNetwork(
        nn.Sequential(blocks[0]),
        nn.Sequential(*blocks[1:]),
        taps=taps,
        num_features=channels,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=4,
    )
    init_fan_out(network.stem)
    init_fan_out(network.stages)
    if num_classes:
        nn.init.zeros_(network.get_classifier().bias)  # type: ignore[arg-type]
    return network


def init_fan_out(network: nn.Module) -> None:
    """Draw kernels from N(0, 2 / (k k out)) and weights of linear layers from N(0, 2 / out); biases are 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            places = math.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1
            nn.init.normal_(module.weight, std=math.sqrt(2 / (places * module.weight.shape[0])))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
