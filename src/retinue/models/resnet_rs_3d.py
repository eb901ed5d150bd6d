"""3D-ResNet-RS: the form of ResNet-RS for short videos (Bello et al. 2021, arXiv 2103.07579, section 7; the official code's layers)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.layers import DropPath
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.factory import image_size, register
from retinue.models.network import Network
from retinue.models.resnet_rs import BLOCKS, SMALL_SIDE, TINY_SIDE, check_batch, check_depth, check_share, check_width

Clips = Float[Tensor, "batch channels frames height width"]
Triple = tuple[int, int, int]  # of time, height and width

TEMPORAL = (1, 1, 3, 3)  # frames that the first convolution of a block sees, stage by stage
LEAST_FRAMES = 2


def _unit(in_chs: int, out_chs: int, kernel: Triple, stride: Triple = (1, 1, 1), *, act: bool = True, momentum: float) -> nn.Sequential:
    """Build a convolution without bias, batch norm and (where `act`) ReLU."""
    time, height, width = ((side - 1) // 2 for side in kernel)
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv3d(in_chs, out_chs, kernel, stride, (time, height, width), bias=False),
        "bn": nn.BatchNorm3d(out_chs, momentum=momentum),
        **({"act": nn.ReLU(inplace=True)} if act else {}),
    }
    return nn.Sequential(OrderedDict(layers))


class SelfGate(nn.Module):
    """Multiplies each channel with a factor computed from the means of all: sigmoid(W mean(x) + b).

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Clips) -> Clips:
        """Compute the gated map."""
        return x * self.fc(x.mean((2, 3, 4), keepdim=True)).sigmoid_()


class Gate3d(nn.Module):
    """Squeeze-and-excitation of ratio 1/4 without its last step, as `resnet_rs.Gate` is for images.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.fc1, self.fc2 = nn.Conv3d(channels, inner, 1), nn.Conv3d(inner, channels, 1)

    def forward(self, x: Clips) -> Float[Tensor, "batch channels 1 1 1"]:
        """Compute the factors."""
        return self.fc2(self.fc1(x.mean((2, 3, 4), keepdim=True)).relu_()).sigmoid_()


class Block3d(nn.Module):
    """A bottleneck of a convolution over time, one over the image and one over the channels.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output; inside, a quarter.
        frames: that the first convolution sees, 1 or 3.
        stride: of the second, over the image.
        gating: a self-gate behind the convolutions.
        drop_path: probability with which the branch of a clip is left out in training.
        momentum: weight of the newest batch in batch norm's running statistics.
    """

    def __init__(self, in_chs: int, out_chs: int, frames: int, stride: int, *, gating: bool, drop_path: float, momentum: float) -> None:
        super().__init__()
        mid = out_chs // 4
        self.convs = nn.Sequential(
            _unit(in_chs, mid, (frames, 1, 1), momentum=momentum),
            _unit(mid, mid, (1, 3, 3), (1, stride, stride), momentum=momentum),
            _unit(mid, out_chs, (1, 1, 1), act=False, momentum=momentum),
        )
        last: Any = self.convs[2]
        nn.init.zeros_(last.bn.weight)
        self.self_gate: nn.Module = SelfGate(out_chs) if gating else nn.Identity()
        self.gate = Gate3d(out_chs)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chs != out_chs:  # the official code does not average here
            self.shortcut = _unit(in_chs, out_chs, (1, 1, 1), (1, stride, stride), act=False, momentum=momentum)

    def forward(self, x: Clips) -> Float[Tensor, "batch wider frames newheight newwidth"]:
        """Compute the block."""
        branch = self.self_gate(self.convs(x))
        return (branch * self.drop_path(self.gate(branch))).add_(self.shortcut(x)).relu_()


class ResNet3dRS(Network):
    """A network as `Network` is one, for clips instead of images: its maps have a time too, over which the head pools as well.

    Args:
        stem: the layers before the stages.
        stages: the stages.
        bn_momentum: of its batch norms.
        options: those of `Network`.
    """

    def __init__(self, stem: nn.Sequential, stages: nn.Sequential, *, bn_momentum: float, **options: Any) -> None:
        super().__init__(stem, stages, **options)
        self.bn_momentum = bn_momentum

    def check_size(self, images: Float[Tensor, "batch ..."]) -> None:
        """Refuse what is no clip, and clips that the layers cannot take.

        Raises:
            ShapeError: if there is no time, fewer than two frames, or the channels are not `in_chans`; and for a batch of one clip in
                training with `bn_momentum` 1.
        """
        if images.ndim != 5:
            raise ShapeError(
                f"this network takes clips of batch, channels, frames, height and width, got {images.ndim} dimensions. "
                "For single images build resnet_rs."
            )
        channels, frames, height, width = images.shape[1:]
        if frames < LEAST_FRAMES:
            raise ShapeError(f"this network needs at least {LEAST_FRAMES} frames, got {frames}. For single images build resnet_rs.")
        if channels != self.in_chans:
            raise ShapeError(f"this network takes {self.in_chans} channels, got {channels}. Build it with in_chans={channels}.")
        if min(height, width) < self.min_side:
            raise ShapeError(
                f"this network needs frames of at least {self.min_side}x{self.min_side} px, got {height}x{width}. "
                f"Build it for small ones: create_model(..., input_size={min(height, width)})."
            )
        check_batch(self, images)

    def forward_features(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Compute the last map of features, of batch, features, time, height and width."""
        self.check_size(x)
        x = self.stem(x)
        for stage in self.stages:
            x = self._run(stage, x)
        return x

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch ..."]:
        """Pool a map over time and places and classify it.

        Args:
            x: the last map.
            pre_logits: stop before the classifier.
        """
        return super().forward_head(x.flatten(2, 3), pre_logits)  # all places count alike, of whichever frame

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch ..."],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the maps of the pyramid, each with a time; arguments as in `Network`."""
        if output_fmt != "NCHW":
            raise ArgumentError(f'forward_intermediates: `output_fmt` must be "NCHW", got "{output_fmt}".')
        self.check_size(x)
        take, last = feature_take_indices(len(self.feature_info), indices if indices is None or isinstance(indices, int) else list(indices))
        wanted = {self.feature_info[i]["module"] for i in take}
        maps = []
        for name, module in self._walk():
            x = self._run(module, x)
            if name in wanted:
                maps.append(x)
            if stop_early and name == self.feature_info[last]["module"]:
                break
        return maps if intermediates_only else (x, maps)


@register(cfg={"first_conv": "stem.0.conv"})
def resnet3d_rs(
    depth: int = 50,
    num_classes: int = 400,
    gating: bool = True,
    in_chans: int = 3,
    drop_rate: float = 0.5,
    drop_path_rate: float = 0.1,
    width_mult: float = 1.0,
    *,
    input_size: int | tuple[int, int] | None = None,
    depths: Sequence[int] | None = None,
    bn_momentum: float = 0.1,
) -> ResNet3dRS:
    """Build a 3D-ResNet-RS for clips of shape batch, channels, frames, height, width; the stem halves the frames, nothing else does.

    Args:
        depth: layers with weights, as of `resnet_rs` with bottlenecks.
        num_classes: outputs of the classifier; 0 leaves it out. Kinetics-400 has 400.
        gating: a self-gate in the last block of each stage.
        in_chans: channels of the frames.
        drop_rate: share of the pooled features dropped in training.
        drop_path_rate: r0 of stochastic depth: the branches of stage i = 2, 3, 4, 5 are left out with probability r0 i / 5.
        width_mult: factor on all numbers of filters, which are rounded to multiples of 8.
        input_size: side, or height and width, of the frames; None is 224. Up to 64 px the stem keeps its first stride over the image from
            them, below 48 px its pool too.
        depths: numbers of blocks of the four stages, instead of `depth`.
        bn_momentum: weight of the newest batch in batch norm's running statistics.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    check_depth("resnet3d_rs", "bottleneck", depth, depths)
    check_share("resnet3d_rs", "drop_path_rate", drop_path_rate)
    check_width("resnet3d_rs", width_mult, bn_momentum)
    side = min(image_size(input_size) or (224, 224))
    first, second = 1 if side <= SMALL_SIDE else 2, 1 if side < TINY_SIDE else 2

    def width(filters: int) -> int:
        return max(8, int(filters * width_mult / 8 + 0.5) * 8)

    chs = width(64)
    stem = nn.Sequential(
        _unit(in_chans, width(32), (5, 3, 3), (2, first, first), momentum=bn_momentum),
        _unit(width(32), width(32), (1, 3, 3), momentum=bn_momentum),
        _unit(width(32), chs, (1, 3, 3), momentum=bn_momentum),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if second == 2 else nn.Identity(),
    )
    taps = [{"num_chs": chs, "reduction": first, "module": "stem.2"}]
    stages = []
    for i, count in enumerate(BLOCKS["bottleneck"][depth] if depths is None else depths):
        out, blocks = width(64 * 2**i) * 4, []
        for j in range(count):
            blocks.append(
                Block3d(
                    chs,
                    out,
                    TEMPORAL[i],
                    2 if i and not j else 1,
                    gating=gating and j == count - 1,
                    drop_path=round(drop_path_rate * (i + 2) / 5, 12),
                    momentum=bn_momentum,
                )
            )
            chs = out
        stages.append(nn.Sequential(*blocks))
        taps.append({"num_chs": out, "reduction": first * second * 2**i, "module": f"stages.{i}"})
    network = ResNet3dRS(
        stem,
        nn.Sequential(*stages),
        bn_momentum=bn_momentum,
        taps=taps,
        num_features=chs,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=32 if first == 2 else 1,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if num_classes:
        nn.init.normal_(network.head.fc.weight, std=0.01)
        nn.init.zeros_(network.head.fc.bias)
    lowered = ((first, "stem.0: stride over the image 2 -> 1"), (second, "stem.3: stride 2 -> 1 (removed)"))
    network.adaptation = [note for stride, note in lowered if stride == 1]
    return network
