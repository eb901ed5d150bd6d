"""IBN-Net: ResNets and DenseNets whose shallow layers mix instance norm with batch norm (Pan et al. 2018, arXiv 1807.09441).

The layer and its places stand in `ibn_net_layers`, how to measure what it is good for in `ibn_net_shifts`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from timm.layers import SqueezeExcite
from timm.models import adapt_input_conv
from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, Bottleneck, make_blocks
from torch import Tensor, nn

from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.models.factory import image_size, register
from retinue.models.ibn_net_layers import IBN, NO_DENSE_B, VARIANTS, Variant, parts, place
from retinue.models.network import Network

Family = Literal["resnet", "resnext", "se_resnet"]

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
DENSE_DEPTHS = {121: (6, 12, 24, 16), 161: (6, 12, 36, 24), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
FAMILIES: dict[str, dict[str, Any]] = {  # what the residual blocks are built with
    "resnet": {},
    "resnext": {"cardinality": 32, "base_width": 4},
    "se_resnet": {"attn_layer": partial(SqueezeExcite, rd_ratio=1 / 16, rd_divisor=1, bias=False)},
}
CONFIGS: dict[Any, tuple[Variant | None, ...]] = {"a": ("a", "a", "a", None), "b": ("b", "b", None, None), None: (None,) * 4}
SMALL_SIDE = 64  # up to it the stem is a 3x3 convolution without pool; below it, it has no stride either
SAME = "Build the network of the same family, depth and variant."
CFG = {"first_conv": "stem.0", "interpolation": "bilinear"}  # official script: the centre of 224 px of 256
RELEASES = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
RELEASED = {  # name -> file of published weights; read it with torch.hub.load_state_dict_from_url and `from_published`
    name: f"{RELEASES}{name}-{digest}.pth"
    for name, digest in {
        "resnet18_ibn_a": "2f571257", "resnet34_ibn_a": "94bc1577", "resnet50_ibn_a": "d9d0bb7b", "resnet101_ibn_a": "59ea0ac6",
        "resnet18_ibn_b": "bc2f3c11", "resnet34_ibn_b": "04134c37", "resnet50_ibn_b": "9ca61e85", "resnet101_ibn_b": "c55f6dba",
        "resnext101_ibn_a": "6ace051d", "se_resnet101_ibn_a": "fabed4e2", "densenet121_ibn_a": "e4af5cc1", "densenet169_ibn_a": "9f32c161",
    }.items()
}  # fmt: skip


@register(cfg=CFG)
def resnet_ibn(
    depth: int = 50,
    variant: Variant | None = "a",
    num_classes: int = 1000,
    in_chans: int = 3,
    small_input: bool = False,
    *,
    input_size: int | tuple[int, int] | None = None,
    family: Family = "resnet",
    depths: Sequence[int] | None = None,
    widths: Sequence[int] = (64, 128, 256, 512),
    ibn_cfg: Sequence[Variant | None] | None = None,
    ratio: float = 0.5,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    output_stride: int = 32,
) -> Network:
    """Build a ResNet, ResNeXt or SE-ResNet with instance norm in its shallow stages.

    Args:
        depth: layers with weights: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        variant: "a" puts IBN layers into the residual branches of stages 1 to 3; "b" instance norm into the stem and behind stages 1 and 2;
            None is the plain network.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        small_input: build for small images: a 3x3 convolution without pool as the stem. Implied by an `input_size` of at most 64.
        input_size: side, or height and width, of the images; None is the published network, or 32 with `small_input`.
        family: "resnet", "resnext" (32 groups of 4 channels; bottlenecks only) or "se_resnet" (squeeze-excite of 1/16 in every block).
        depths: numbers of blocks of the four stages, instead of those of `depth`.
        widths: channels inside the blocks of each stage; the stem has as many as the first.
        ibn_cfg: the variant of each stage, instead of `variant`.
        ratio: share of instance norm in the IBN layers.
        drop_rate: share of the pooled features dropped in training.
        drop_path_rate: probability with which the last branch is left out in training, growing block by block from 0.
        output_stride: pixels of a large image for each pixel of the last map: 32, or 16 or 8 with dilated convolutions, for segmentation.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    config = _check(depth, variant, family, depths, widths, ibn_cfg, ratio, drop_path_rate, output_stride)
    block: Any = BasicBlock if depth < 50 else Bottleneck
    stem, strides, adaptation = _stem(in_chans, widths[0], _small_side(input_size, small_input))
    layers = DEPTHS[depth] if depths is None else tuple(depths)
    options = {"act_layer": nn.ReLU, "norm_layer": nn.BatchNorm2d, **FAMILIES[family]}
    options |= {"drop_path_rate": drop_path_rate, "output_stride": output_stride}
    stages, levels = make_blocks((block,) * 4, tuple(widths), layers, widths[0], **options)
    taps = [{"num_chs": widths[0], "reduction": strides[0], "module": "stem.2"}]
    taps += [
        {**level, "reduction": level["reduction"] * strides[0] * strides[1] // 4, "module": f"stages.{i}"} for i, level in enumerate(levels)
    ]
    network = Network(
        stem,
        nn.Sequential(*(stage for _, stage in stages)),
        taps=taps,
        num_features=taps[-1]["num_chs"],  # type: ignore[arg-type]
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
    )
    place(network, config, ratio=ratio)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and ".se." not in name:  # normal of variance 2 / (k k out), as in the official code
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    network.adaptation = adaptation
    return network


@register(cfg=CFG)
def densenet_ibn(
    depth: int = 121,
    variant: Variant | None = "a",
    num_classes: int = 1000,
    in_chans: int = 3,
    small_input: bool = False,
    *,
    input_size: int | tuple[int, int] | None = None,
    depths: Sequence[int] | None = None,
    growth_rate: int | None = None,
    ratio: float = 0.4,
    drop_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
) -> Network:
    """Build a DenseNet whose first norm in every third layer of blocks 1 to 3 is an IBN layer.

    Args:
        depth: layers with weights: 121, 161, 169 or 201.
        variant: "a", or None for the plain network; there is no other for a DenseNet.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        small_input: as in `resnet_ibn`.
        input_size: as in `resnet_ibn`.
        depths: numbers of layers of the four blocks, instead of those of `depth`.
        growth_rate: channels that each layer adds, and half of the stem's; None is 32, or 48 at depth 161.
        ratio: share of instance norm in the IBN layers.
        drop_rate: share of the pooled features dropped in training.
        proj_drop_rate: share of each layer's new channels dropped in training.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    if depth not in DENSE_DEPTHS:
        raise ArgumentError(f"densenet_ibn: `depth` must be one of {', '.join(map(str, DENSE_DEPTHS))}, got {depth}.")
    if variant == "b":
        raise ArgumentError(NO_DENSE_B)
    _check_variant("densenet_ibn", variant)
    IBN(1, ratio)  # refuses a ratio that cannot be
    growth = growth_rate or (48 if depth == 161 else 32)
    stem, strides, adaptation = _stem(in_chans, 2 * growth, _small_side(input_size, small_input))
    layers = DENSE_DEPTHS[depth] if depths is None else tuple(depths)
    whole = DenseNet(growth, layers, num_classes=0, in_chans=in_chans, proj_drop_rate=proj_drop_rate)
    built = dict(whole.features.named_children())
    stem[1], stem[2] = built["norm0"], nn.Identity()  # timm's norm ends with ReLU
    if not adaptation:
        stem[0] = built["conv0"]
    total = strides[0] * strides[1]
    taps = [{"num_chs": 2 * growth, "reduction": strides[0], "module": "stem.2"}]
    taps += [{**whole.feature_info[i + 1], "reduction": total * 2**i, "module": f"stages.{2 * i}"} for i in range(len(layers) - 1)]
    taps.append({"num_chs": whole.num_features, "reduction": total * 2 ** (len(layers) - 1), "module": "tail"})
    network = Network(
        stem,
        nn.Sequential(*(part for name, part in built.items() if name.startswith(("denseblock", "transition")))),
        built["norm5"],
        taps=taps,
        num_features=whole.num_features,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=total * 2 ** (len(layers) - 1),
    )
    place(network, CONFIGS[variant], ratio=ratio)
    if num_classes:
        nn.init.zeros_(network.head.fc.bias)  # as in timm's and torchvision's DenseNet
    network.adaptation = adaptation
    return network


def official_name(name: str, dense: bool = False) -> str:
    """Return the name that a tensor of ours has in the official files, which is torchvision's plus `IN` and `BN`.

    Args:
        name: ours.
        dense: of a DenseNet.

    >>> official_name("stages.0.2.bn1.IN.weight"), official_name("stages.1.3.act3.IN.bias"), official_name("stem.1.weight")
    ('layer1.2.bn1.IN.weight', 'layer2.3.IN.bias', 'bn1.weight')
    >>> official_name("stages.2.denselayer1.norm1.BN.bias", dense=True)
    'features.denseblock2.denselayer1.norm1.BN.bias'
    """
    if dense:
        name = re.sub(r"^stem\.(0|1)\.", lambda found: f"features.{('conv0', 'norm0')[int(found[1])]}.", name)
        name = re.sub(
            r"^stages\.(\d+)\.", lambda found: f"features.{('denseblock', 'transition')[int(found[1]) % 2]}{int(found[1]) // 2 + 1}.", name
        )
        return re.sub(r"^tail\.", "features.norm5.", name).replace("head.fc.", "classifier.")
    name = re.sub(r"^stem\.(0|1)\.", lambda found: f"{('conv1', 'bn1')[int(found[1])]}.", name)
    name = re.sub(r"^stages\.(\d+)\.", lambda found: f"layer{int(found[1]) + 1}.", name)
    name = re.sub(r"\.se\.fc(\d)\.", lambda found: f".se.fc.{2 * int(found[1]) - 2}.", name)
    return re.sub(r"\.act\d\.IN\.", ".IN.", name).replace("head.fc.", "fc.")


def from_published(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of an official IBN-Net to ours, or take those of a plain ResNet, ResNeXt or DenseNet as a start.

    Of a plain network, both halves of an IBN layer take the channels of the batch norm that they replace, the stem of IBN-b takes its
    factors and shifts, and instance norms behind sums keep their own.

    Args:
        tensors: the `state_dict` of an official file, or of the plain network of torchvision or timm.
        model: the network that is to take them; a classifier of another number of classes keeps what it has, a first convolution of other
            channels is fitted to them as timm does.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are not the weights of such a network.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    dense = any(name.startswith("features.") for name in given)
    own = model.state_dict()
    if not any(".IN." in name for name in given):
        given = _split(given, model, dense)
    named = {}
    for name, tensor in own.items():
        official = official_name(name, dense)
        theirs = given.pop(official, None)
        if theirs is None or (name.startswith("head.fc.") and theirs.shape != tensor.shape):
            if not name.startswith("head.fc.") and not name.endswith("num_batches_tracked"):
                raise CheckpointError(f'the checkpoint lacks the tensor "{official}". {SAME}')
            theirs = tensor
        if ".se.fc" in name and theirs.ndim == 2:  # linear layers there, 1x1 convolutions here
            theirs = theirs[:, :, None, None]
        if name == "stem.0.weight" and theirs.shape[1] != tensor.shape[1]:
            theirs = adapt_input_conv(tensor.shape[1], theirs)
        if theirs.shape != tensor.shape:
            raise CheckpointError(
                f'the tensor "{official}" has shape {tuple(theirs.shape)} in the checkpoint and {tuple(tensor.shape)} in the network. '
                "Published weights need the published widths, and the stem of large images: no `input_size` up to 64."
            )
        named[name] = theirs
    left = [name for name in given if not name.startswith(("fc.", "classifier."))]
    if left:
        raise CheckpointError(f'the network lacks the tensor "{left[0]}". {SAME}')
    return named


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of our IBN-Net to those of the official files."""
    own = model.state_dict()
    dense = any("denselayer" in name for name in own)
    return {official_name(name, dense): tensor[:, :, 0, 0] if ".se.fc" in name else tensor for name, tensor in own.items()}


def _split(given: dict[str, Tensor], model: nn.Module, dense: bool) -> dict[str, Tensor]:
    """Give the tensors of a plain network the names and parts that they have in an IBN-Net."""
    result = dict(given)
    for name, layer in model.named_modules():
        prefix = official_name(f"{name}.", dense)
        if isinstance(layer, IBN):
            old = {entry: result.pop(prefix + entry) for entry in _NORM if prefix + entry in result}
            for half, values in zip(("IN", "BN") if layer.in_first else ("BN", "IN"), parts(old, layer.sizes)):
                kept = layer.state_dict()
                result |= {f"{prefix}{half}.{entry}": value for entry, value in values.items() if f"{half}.{entry}" in kept}
        elif isinstance(layer, nn.InstanceNorm2d) and prefix == "bn1.":
            for entry in _NORM[2:]:
                result.pop(prefix + entry, None)
        elif isinstance(layer, nn.InstanceNorm2d) and prefix.endswith(".IN.") and "act" in name:
            result |= {prefix + entry: value for entry, value in layer.state_dict().items()}
    return result


_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _small_side(input_size: int | tuple[int, int] | None, small_input: bool) -> int | None:
    """Return the shorter side of small images, or None for large ones."""
    sides = image_size(input_size) or ((32, 32) if small_input else (224, 224))
    return min(sides) if small_input or min(sides) <= SMALL_SIDE else None


def _stem(in_chans: int, width: int, side: int | None) -> tuple[nn.Sequential, tuple[int, int], list[str]]:
    """Build the stem; return it with the strides of its convolution and pool, and what was changed for small images."""
    kernel, stride = (7, 2) if side is None else (3, 2 if side >= SMALL_SIDE else 1)
    conv = nn.Conv2d(in_chans, width, kernel, stride, kernel // 2, bias=False)
    pool = nn.MaxPool2d(3, 2, 1) if side is None else nn.Identity()
    changed = [] if side is None else [f"stem.0: 7x7 convolution of stride 2 -> 3x3 of stride {stride}", "stem.3: max pool removed"]
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), pool), (stride, 2 if side is None else 1), changed


def _check_variant(where: str, variant: Any) -> None:
    if variant is not None and variant not in VARIANTS:
        raise unknown(where, "`variant`", variant, VARIANTS)


def _check(
    depth: int,
    variant: Any,
    family: str,
    depths: Any,
    widths: Any,
    ibn_cfg: Any,
    ratio: float,
    drop_path_rate: float,
    output_stride: int,
) -> tuple[Variant | None, ...]:
    """Refuse what cannot be built, and return the variant of each stage."""
    if depth not in DEPTHS:
        raise ArgumentError(f"resnet_ibn: `depth` must be one of {', '.join(map(str, DEPTHS))}, got {depth}.")
    if family not in FAMILIES:
        raise unknown("resnet_ibn", "`family`", family, FAMILIES)
    if family == "resnext" and depth < 50:
        raise ArgumentError(f"resnet_ibn: a ResNeXt has bottlenecks, so `depth` must be 50, 101 or 152, got {depth}.")
    for name, values in (("depths", depths), ("widths", widths)):
        if values is not None and (len(values) != 4 or any(value < 1 for value in values)):
            raise ArgumentError(f"resnet_ibn: `{name}` must be four positive numbers, one a stage, got {list(values)}.")
    config = CONFIGS.get(variant, ()) if ibn_cfg is None else tuple(ibn_cfg)
    for one in (variant, *config):
        _check_variant("resnet_ibn", one)
    if len(config) != 4:
        raise ArgumentError(f"resnet_ibn: `ibn_cfg` must name a variant or None for each of four stages, got {list(config)}.")
    if output_stride not in (8, 16, 32):
        raise ArgumentError(f"resnet_ibn: `output_stride` must be 8, 16 or 32, got {output_stride}.")
    IBN(1, ratio)  # refuses a ratio that cannot be
    if not 0 <= drop_path_rate < 1:
        raise ArgumentError(
            f"resnet_ibn: `drop_path_rate` must lie in [0, 1), got {drop_path_rate}. It is the share dropped, not the share kept."
        )
    return config


def _named(build: Callable[..., Network], depth: int, variant: Variant, family: str = "") -> Any:
    """Register the network of one family, depth and variant under the official name."""
    options: dict[str, Any] = {"family": family} if family else {}
    named: Any = partial(build, depth, variant, **options)
    kind = family or "densenet"
    title = {"resnet": "ResNet", "resnext": "ResNeXt", "se_resnet": "SE-ResNet", "densenet": "DenseNet"}[kind]
    named.__name__ = f"{kind}{depth}_ibn_{variant}"
    named.__doc__ = f"Build {title}-{depth} with IBN-{variant}; its further options are those of `{build.__name__}`."
    return register(named, cfg=CFG)


resnet18_ibn_a = _named(resnet_ibn, 18, "a", "resnet")
resnet34_ibn_a = _named(resnet_ibn, 34, "a", "resnet")
resnet50_ibn_a = _named(resnet_ibn, 50, "a", "resnet")
resnet101_ibn_a = _named(resnet_ibn, 101, "a", "resnet")
resnet152_ibn_a = _named(resnet_ibn, 152, "a", "resnet")
resnet18_ibn_b = _named(resnet_ibn, 18, "b", "resnet")
resnet34_ibn_b = _named(resnet_ibn, 34, "b", "resnet")
resnet50_ibn_b = _named(resnet_ibn, 50, "b", "resnet")
resnet101_ibn_b = _named(resnet_ibn, 101, "b", "resnet")
resnet152_ibn_b = _named(resnet_ibn, 152, "b", "resnet")
resnext50_ibn_a = _named(resnet_ibn, 50, "a", "resnext")
resnext101_ibn_a = _named(resnet_ibn, 101, "a", "resnext")
resnext152_ibn_a = _named(resnet_ibn, 152, "a", "resnext")
se_resnet50_ibn_a = _named(resnet_ibn, 50, "a", "se_resnet")
se_resnet101_ibn_a = _named(resnet_ibn, 101, "a", "se_resnet")
se_resnet152_ibn_a = _named(resnet_ibn, 152, "a", "se_resnet")
densenet121_ibn_a = _named(densenet_ibn, 121, "a")
densenet161_ibn_a = _named(densenet_ibn, 161, "a")
densenet169_ibn_a = _named(densenet_ibn, 169, "a")
densenet201_ibn_a = _named(densenet_ibn, 201, "a")
