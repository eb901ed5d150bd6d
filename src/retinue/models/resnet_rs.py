"""ResNet-RS: ResNets with a deep stem, average-pool shortcuts and squeeze-excite (Bello et al. 2021, arXiv 2103.07579, section 4.1).

How to train and how to scale them stands in `resnet_rs_training`, the form for videos in `resnet_rs_3d`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn

from retinue.errors import ArgumentError, CheckpointError, ShapeError, unknown
from retinue.models.factory import image_size, register
from retinue.models.layers import conv_norm_act
from retinue.models.network import Network
from retinue.models.resnet_rs_training import POINTS, scale

Kind = Literal["bottleneck", "basic"]
Rule = Literal["stage", "block"]

BLOCKS: dict[str, dict[int, tuple[int, ...]]] = {  # kind -> depth -> numbers of blocks (official configurations; below 50 there is none)
    "bottleneck": {
        26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 270: (4, 29, 53, 4),
        350: (4, 36, 72, 4), 420: (4, 44, 87, 4),
    },
    "basic": {18: (2, 2, 2, 2), 26: (3, 3, 3, 3), 34: (3, 4, 6, 3)},
}  # fmt: skip
LEAST_SIDE = 32  # of an image, which the strides bring to 1x1
SMALL_SIDE = 64  # up to it the first stride is given up, ...
TINY_SIDE = 48  # ... and below it the second one too


class Gate(SqueezeExcite):
    """Squeeze-and-excitation of ratio 1/4 without its last step: what each channel is to be multiplied with.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, rd_channels=max(1, channels // 4))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels 1 1"]:
        """Compute the factors."""
        return self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """A residual block: convolutions, squeeze-excite, stochastic depth, then the sum with the shortcut and ReLU.

    Batch norm ends the convolutions with a factor of zero, so that a block without a projection begins as the identity.

    Args:
        in_chs: channels of the input.
        out_chs: channels of the output.
        stride: of the 3x3 convolution, the first of two.
        kind: "bottleneck" (1x1, 3x3, 1x1; inside, a quarter of the channels) or "basic" (3x3, 3x3).
        se: squeeze-excite.
        resnet_d: the shortcut averages 2x2 pixels; without, it takes every second one.
        drop_path: probability with which the branch of an image is left out in training.
        bn_momentum: weight of the newest batch in the running statistics.
    """

    def __init__(
        self, in_chs: int, out_chs: int, stride: int, *, kind: Kind, se: bool, resnet_d: bool, drop_path: float, bn_momentum: float
    ) -> None:
        super().__init__()
        mid = out_chs // 4 if kind == "bottleneck" else out_chs
        shapes = [(in_chs, mid, 1, 1), (mid, mid, 3, stride), (mid, out_chs, 1, 1)]  # channels in and out, kernel, stride
        if kind == "basic":
            shapes = [(in_chs, mid, 3, stride), (mid, out_chs, 3, 1)]
        units = [conv_norm_act(*shape, act=i < len(shapes) - 1, momentum=bn_momentum) for i, shape in enumerate(shapes)]
        nn.init.zeros_(units[-1].bn.weight)
        self.convs = nn.Sequential(*units)
        self.gate = Gate(out_chs) if se else None
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chs != out_chs:
            averages = resnet_d and stride > 1
            pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if averages else nn.Identity()
            project = conv_norm_act(in_chs, out_chs, 1, 1 if averages else stride, act=False, momentum=bn_momentum)
            self.shortcut = nn.Sequential(pool, project)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Compute the block."""
        branch = self.convs(x)
        if self.gate is None:
            return (self.drop_path(branch) + self.shortcut(x)).relu_()
        # factors that are zero leave a branch out as well as a mask on the map would, and cost next to nothing
        factors = self.drop_path(self.gate(branch))
        if self.training:  # the gradient of addcmul takes one pass over the map more
            return (branch * factors).add_(self.shortcut(x)).relu_()
        return torch.addcmul(self.shortcut(x), branch, factors).relu_()


class ResNetRS(Network):
    """A ResNet-RS of stem, four stages and head.

    Args:
        stem: the layers before the stages.
        stages: the stages.
        bn_momentum: of its batch norms.
        options: those of `Network`.
    """

    def __init__(self, stem: nn.Sequential, stages: nn.Sequential, *, bn_momentum: float, **options: Any) -> None:
        super().__init__(stem, stages, **options)
        self.bn_momentum = bn_momentum

    def check_size(self, images: Float[Tensor, "batch channels height width"]) -> None:
        """Refuse images that the layers cannot take, and a single image as the whole statistics of batch norm.

        Raises:
            ShapeError: as in `Network`; and for a batch of one image in training with `bn_momentum` 1.
        """
        super().check_size(images)
        check_batch(self, images)


@register(cfg={"input_size": (3, 160, 160), "crop_pct": 0.91})
def resnet_rs(
    depth: int = 50,
    num_classes: int = 1000,
    in_chans: int = 3,
    small_input: bool = False,
    drop_rate: float = 0.25,
    drop_path_rate: float = 0.0,
    width_mult: float = 1.0,
    *,
    input_size: int | tuple[int, int] | None = None,
    kind: Kind = "bottleneck",
    depths: Sequence[int] | None = None,
    se: bool = True,
    resnet_d: bool = True,
    drop_path_rule: Rule = "stage",
    bn_momentum: float = 0.1,
) -> ResNetRS:
    """Build a ResNet-RS; without `se` and `resnet_d` it is the ResNet that the paper starts from.

    Args:
        depth: layers with weights: 50, 101, 152, 200, 270, 350, 420 of the paper, and 26; 18, 26 and 34 for basic blocks.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        small_input: build for small images: the stem gives up its first stride, below 48 px both. Implied by an `input_size` of at most
            64.
        drop_rate: share of the pooled features dropped in training.
        drop_path_rate: r0 of stochastic depth: the branches of stage i = 2, 3, 4, 5 are left out with probability r0 i / 5.
        width_mult: factor on all numbers of filters, which are rounded to multiples of 8.
        input_size: side, or height and width, of the images; None is the published network, or 32 with `small_input`.
        kind: "bottleneck", or "basic" for small networks.
        depths: numbers of blocks of the four stages, instead of `depth`.
        se: squeeze-excite in every block.
        resnet_d: the stem of four 3x3 convolutions and average-pool shortcuts; without, 7x7 convolution, max pool and strided shortcuts.
        drop_path_rule: "stage" is the official code's; "block" grows block by block from 0 to r0, as in timm.
        bn_momentum: weight of the newest batch in batch norm's running statistics. The official training has 1 and leaves the averaging
            to the moving average of the weights, which holds the statistics too.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    _check(kind, depth, depths, drop_path_rate, drop_path_rule, width_mult, bn_momentum)
    sides = image_size(input_size) or ((32, 32) if small_input else (224, 224))
    small = small_input or min(sides) <= SMALL_SIDE
    first, second = 1 if small else 2, 1 if small and min(sides) < TINY_SIDE else 2
    layers = BLOCKS[kind][depth] if depths is None else tuple(depths)

    def width(filters: int) -> int:
        return max(8, int(filters * width_mult / 8 + 0.5) * 8)

    if resnet_d:
        chain = [in_chans, width(32), width(32), width(64), width(64)]
        strides = (first, 1, 1, second)
        stem: list[nn.Module] = [conv_norm_act(*pair, 3, stride, momentum=bn_momentum) for pair, stride in zip(pairwise(chain), strides)]
    else:
        pool = nn.MaxPool2d(3, 2, 1) if second == 2 else nn.Identity()
        stem = [conv_norm_act(in_chans, width(64), 7, first, momentum=bn_momentum), pool]
    end = len(stem) - 1
    chs, reduction = width(64), first * second
    taps = [{"num_chs": chs, "reduction": first, "module": f"stem.{end - 1}"}]
    rates = _rates(drop_path_rate, drop_path_rule, layers)
    stages = []
    for i, count in enumerate(layers):
        out = width(64 * 2**i) * (4 if kind == "bottleneck" else 1)
        blocks = []
        for j in range(count):
            stride = 2 if i and not j else 1
            blocks.append(Block(chs, out, stride, kind=kind, se=se, resnet_d=resnet_d, drop_path=rates[i][j], bn_momentum=bn_momentum))
            chs = out
        stages.append(nn.Sequential(*blocks))
        taps.append({"num_chs": out, "reduction": reduction * 2**i, "module": f"stages.{i}"})
    network = ResNetRS(
        nn.Sequential(*stem),
        nn.Sequential(*stages),
        bn_momentum=bn_momentum,
        taps=taps,
        num_features=chs,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=1 if small else LEAST_SIDE,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # not in the paper; as in He et al. 2015, arXiv 1502.01852
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if num_classes:
        nn.init.normal_(network.head.fc.weight, std=0.01)  # official code
        nn.init.zeros_(network.head.fc.bias)
    network.adaptation = [f"stem.{i}: stride 2 -> 1" for i, stride in ((0, first), (end, second)) if stride == 1]
    return network


resnet_rs.scale = scale  # retinue.models.resnet_rs.scale(budget), where a user looks for it


def from_timm(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of one of timm's `resnetrs*` to ours; no tensor is changed.

    Args:
        tensors: timm's `state_dict`.
        model: the network that is to take them; a classifier of another number of classes keeps what it has.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are not the weights of a ResNet-RS of this depth and width.
    """
    own = model.state_dict()
    names = {name: timm_name(name) for name in own}
    named = {}
    for name, tensor in own.items():
        theirs = tensors.get(names[name])
        keep = name.startswith("head.fc.") and (theirs is None or theirs.shape != tensor.shape)
        if theirs is None and not keep:
            raise CheckpointError(f'the checkpoint lacks the tensor "{names[name]}". Build the resnet_rs of the same depth.')
        named[name] = tensor if keep or theirs is None else theirs
        if named[name].shape != tensor.shape and name != "stem.0.conv.weight":  # timm fits the first layer to the channels
            raise CheckpointError(
                f'the tensor "{names[name]}" has shape {tuple(named[name].shape)} in the checkpoint and {tuple(tensor.shape)} in the '
                "network. Published weights need bottlenecks and width_mult=1."
            )
    for left in tensors.keys() - set(names.values()):
        if not left.startswith("fc."):
            raise CheckpointError(f'the network lacks the tensor "{left}". Build the resnet_rs of the same depth.')
    return named


def to_timm(model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of our ResNet-RS to those of timm's `resnetrs*`."""
    return {timm_name(name): tensor for name, tensor in model.state_dict().items()}


_STEM = {
    "stem.0.conv": "conv1.0", "stem.0.bn": "conv1.1", "stem.1.conv": "conv1.3", "stem.1.bn": "conv1.4", "stem.2.conv": "conv1.6",
    "stem.2.bn": "bn1", "stem.3.conv": "maxpool.0", "stem.3.bn": "maxpool.1", "head.fc": "fc",
}  # fmt: skip
_SHORTCUT = {"conv": "downsample.1", "bn": "downsample.2"}


def timm_name(name: str) -> str:
    """Return timm's name of a tensor of ours.

    >>> timm_name("stages.0.2.convs.1.bn.weight"), timm_name("stages.3.0.shortcut.1.conv.weight")
    ('layer1.2.bn2.weight', 'layer4.0.downsample.1.weight')
    """
    prefix, _, last = name.rpartition(".")
    if prefix in _STEM:
        return f"{_STEM[prefix]}.{last}"
    name = re.sub(r"^stages\.(\d+)", lambda found: f"layer{int(found[1]) + 1}", name)
    name = re.sub(r"\.convs\.(\d)\.(conv|bn)", lambda found: f".{found[2]}{int(found[1]) + 1}", name)
    name = re.sub(r"\.shortcut\.1\.(conv|bn)", lambda found: f".{_SHORTCUT[found[1]]}", name)
    return name.replace(".gate.", ".se.")


def _named(depth: int) -> Callable[..., ResNetRS]:
    """Register the network of one depth, with the regularisation of its largest operating point."""
    point = [point for point in POINTS if point.depth == depth][-1]
    build: Any = partial(resnet_rs, depth, drop_rate=point.drop_rate, drop_path_rate=point.drop_path_rate)
    build.__name__ = f"resnet_rs_{depth}"
    build.__doc__ = (
        f"Build ResNet-RS-{depth}, of {sum(BLOCKS['bottleneck'][depth])} bottlenecks; its further options are those of `resnet_rs`."
    )
    size = (3, point.input_size, point.input_size)
    return register(build, cfg={"input_size": size, "crop_pct": 0.91}, weights_of=f"resnetrs{depth}", convert=from_timm)


resnet_rs_50 = _named(50)
resnet_rs_101 = _named(101)
resnet_rs_152 = _named(152)
resnet_rs_200 = _named(200)
resnet_rs_270 = _named(270)
resnet_rs_350 = _named(350)
resnet_rs_420 = _named(420)


def _rates(rate: float, rule: Rule, layers: Sequence[int]) -> list[list[float]]:
    """Return the probability with which each block of each stage is left out.

    >>> _rates(0.1, "stage", (1, 2, 1, 1))
    [[0.04], [0.06, 0.06], [0.08], [0.1]]
    """
    if rule == "stage":
        return [[round(rate * i / 5, 12)] * count for i, count in enumerate(layers, start=2)]
    total = max(1, sum(layers) - 1)
    return [[rate * (sum(layers[:i]) + j) / total for j in range(count)] for i, count in enumerate(layers)]


def check_depth(name: str, kind: str, depth: int, depths: Any) -> None:
    """Refuse a kind of block, a depth or numbers of blocks that cannot be.

    Raises:
        ArgumentError: which one, and what there is.
    """
    if kind not in BLOCKS:
        raise unknown(name, "`kind` of block", kind, BLOCKS)
    if depths is None and depth not in BLOCKS[kind]:
        known = ", ".join(map(str, BLOCKS[kind]))
        raise ArgumentError(f"{name}: `depth` must be one of {known} with {kind} blocks, got {depth}. Or: depths=[3, 4, 6, 3].")
    whole = isinstance(depths, list | tuple) and len(depths) == 4 and all(isinstance(d, int) and d > 0 for d in depths)
    if depths is not None and not whole:
        told = list(depths) if isinstance(depths, list | tuple) else depths
        raise ArgumentError(f"{name}: `depths` must be four positive numbers of blocks, one for each stage, got {told}.")


def check_share(name: str, argument: str, value: float) -> None:
    """Refuse a probability of dropping outside [0, 1).

    Raises:
        ArgumentError: if it is.
    """
    if not 0 <= value < 1:
        raise ArgumentError(f"{name}: `{argument}` must lie in [0, 1), got {value}. It is the share dropped, not the share kept.")


def check_width(name: str, width_mult: float, bn_momentum: float) -> None:
    """Refuse a width or a momentum that cannot be.

    Raises:
        ArgumentError: if one is.
    """
    if not 0 < width_mult < float("inf"):
        raise ArgumentError(f"{name}: `width_mult` must be positive, got {width_mult}. It is a factor on the numbers of filters.")
    if not 0 < bn_momentum <= 1:
        raise ArgumentError(f"{name}: `bn_momentum` must lie in (0, 1], got {bn_momentum}. It is the weight of the newest batch.")


def check_batch(model: Any, batch: Float[Tensor, "batch ..."]) -> None:
    """Refuse a single image or clip as the whole statistics of batch norm.

    Raises:
        ShapeError: in training with `bn_momentum` 1.
    """
    if model.training and model.bn_momentum == 1 and len(batch) == 1:
        raise ShapeError(
            "this network was built with bn_momentum=1, so the running statistics would be those of a batch of one. "
            "Train on batches of at least 2, or build it with bn_momentum=0.1."
        )


def _check(kind: str, depth: int, depths: Any, rate: float, rule: str, width_mult: float, bn_momentum: float) -> None:
    check_depth("resnet_rs", kind, depth, depths)
    check_share("resnet_rs", "drop_path_rate", rate)
    check_width("resnet_rs", width_mult, bn_momentum)
    if rule not in ("stage", "block"):
        raise unknown("resnet_rs", "`drop_path_rule`", rule, ("stage", "block"))
