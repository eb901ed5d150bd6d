"""The IBN layer, and where IBN-Net puts it: into networks that are being built and into those that exist (arXiv 1807.09441, section 3).

Appearance (contrast, cast, style) is told apart by the statistics of shallow maps: there, instance norm removes it from a part of the
channels (IBN-a) or after the sum of a few blocks (IBN-b); batch norm keeps the content beside it. The last stage has no instance norm.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import timm.models.resnet as timm_resnet
import torch
import torchvision.models.resnet as torchvision_resnet
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown

Variant = Literal["a", "b"]
VARIANTS = ("a", "b")
DENSE_RATIO = 0.4  # share of instance norm in DenseNet-IBN-a, where batch norm has the first channels (official code)
EVERY_THIRD = 3  # layer of a dense block has one
STAGES = {"a": (1, 2, 3), "b": (1, 2)}
NO_DENSE_B = 'IBN-Net: variant "b" stands after the sum of a residual block, and a DenseNet has no sums. Take variant "a".'
CONTAINERS = ("layer{}", "stages.{}", "blocks.{}", "s{}", "trunk_output.block{}")  # how networks name their stages


def check_positions(x: Tensor, name: str) -> None:
    """Refuse maps of one position, whose deviation is zero: instance norm would answer with its bias, whatever the image.

    Args:
        x: the input of an instance norm.
        name: the layer's name in its network.

    Raises:
        ShapeError: if it is.
    """
    if x.shape[2] == 1 and x.shape[3] == 1:
        raise ShapeError(
            f"{name}: instance norm needs more than one position, got a map of 1x1. Give larger images, or build the network for "
            "small ones with `input_size`."
        )


torch.fx.wrap("check_positions")  # it looks at a shape: one call to torch.fx, and so written for TorchScript too


class InstanceNorm(nn.InstanceNorm2d):
    """Subtracts each image's own mean in each channel and divides by its deviation; the same in training and evaluation.

    It has a factor and a shift for each channel and no running statistics.

    Args:
        num_channels: of the map.
        eps: added to the variance.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_channels, eps=eps, affine=True)
        self.name = "InstanceNorm"

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Normalise, as group norm with one channel a group: the same numbers in half of the time."""
        check_positions(x, self.name)
        return torch.group_norm(x, self.num_features, self.weight, self.bias, self.eps)


class IBN(nn.Module):
    """Instance norm of some channels beside batch norm of the others (figure 3): y = [IN(x[:, :h]); BN(x[:, h:])].

    Args:
        num_channels: of the map.
        ratio: share of the channels with instance norm, from 0 (batch norm alone) to 1 (instance norm alone).
        in_first: instance norm has the first channels, as in the ResNets; otherwise the last, as in the DenseNets.
        eps: added to the variances.
        momentum: weight of the newest batch in the running statistics of batch norm.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> layer = IBN(64)
    >>> sum(parameter.numel() for parameter in layer.parameters()), len(layer.state_dict())
    (128, 7)
    """

    IN: Any  # None where it has no channels
    BN: Any

    def __init__(self, num_channels: int, ratio: float = 0.5, in_first: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if num_channels < 1:
            raise ArgumentError(f"IBN: `num_channels` must be at least 1, got {num_channels}. It is the number of channels of the map.")
        if not 0 <= ratio <= 1:
            raise ArgumentError(f"IBN: `ratio` must lie in [0, 1], got {ratio}. It is the share of channels with instance norm.")
        first = int(num_channels * (ratio if in_first else 1 - ratio))
        self.sizes = [first, num_channels - first]
        self.in_first = in_first
        of_instance, of_batch = self.sizes if in_first else self.sizes[::-1]
        norms: dict[str, nn.Module | None] = {
            "IN": InstanceNorm(of_instance, eps) if of_instance else None,
            "BN": nn.BatchNorm2d(of_batch, eps, momentum) if of_batch else None,
        }
        for name in ("IN", "BN") if in_first else ("BN", "IN"):
            self.register_module(name, norms[name])
        self.act: nn.Module = nn.Identity()  # that of a norm with an activation that it replaces

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Normalise each part of the channels in its own way."""
        if self.BN is None:
            return self.act(self.IN(x))
        if self.IN is None:
            return self.act(self.BN(x))
        first, second = x.split(self.sizes, dim=1)
        if self.in_first:
            return self.act(torch.cat([self.IN(first), self.BN(second)], dim=1))
        return self.act(torch.cat([self.BN(first), self.IN(second)], dim=1))

    def extra_repr(self) -> str:
        """Tell how the channels are shared."""
        return f"sizes={self.sizes}, in_first={self.in_first}"


class NormedSum(nn.Module):
    """A residual block of torchvision with an instance norm between the sum and the last ReLU (IBN-b).

    Args:
        block: the block, whose layers it takes over under their names.
    """

    def __init__(self, block: torchvision_resnet.BasicBlock | torchvision_resnet.Bottleneck) -> None:
        super().__init__()
        self.conv1: nn.Module = block.conv1
        self.bn1: nn.Module = block.bn1
        self.conv2: nn.Module = block.conv2
        self.bn2: nn.Module = block.bn2
        self.conv3: nn.Module | None = getattr(block, "conv3", None)
        self.bn3: nn.Module | None = getattr(block, "bn3", None)
        self.IN = InstanceNorm(_channels(self.bn3 or self.bn2))
        self.relu = block.relu
        self.downsample: nn.Module | None = block.downsample

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Compute the block."""
        branch: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            branch = self.bn3(self.conv3(self.relu(branch)))
        return self.relu(self.IN(branch + (x if self.downsample is None else self.downsample(x))))


def convert_to_ibn(model: nn.Module, variant: Variant = "a", stages: Sequence[int] | None = None, copy_stats: bool = True) -> nn.Module:
    """Make an IBN-Net of an existing network with batch norm.

    IBN-a: the norm after the first convolution of every residual branch becomes an IBN layer; in a DenseNet, the first norm of every third
    layer, with instance norm in the last 40 % of its channels. IBN-b: an instance norm after the sum of the stage's last block, before its
    ReLU, and in place of the network's first norm. Shortcuts keep batch norm.

    Args:
        model: the network, which is not changed. Its stages are found by the names that timm, torchvision and we give them.
        variant: "a" needs residual blocks or dense layers with batch norm; "b" the ResNets of timm or torchvision, or our `resnet_ibn`.
        stages: which stages, counted from 1; None is 1, 2 and 3 for "a" and 1 and 2 for "b".
        copy_stats: each half takes factors, shifts and running statistics of the channels that it replaces; otherwise it starts afresh.

    Returns:
        A converted copy. `create_model` cannot rebuild it by name: `retinue_config` is None.

    Raises:
        ArgumentError: if the variant or a stage does not exist, or the network has no place for it.

    >>> from timm import create_model
    >>> net = convert_to_ibn(create_model("resnet18"))
    >>> type(net.layer3[1].bn1).__name__, type(net.layer4[1].bn1).__name__
    ('IBN', 'BatchNorm2d')
    """
    if variant not in VARIANTS:
        raise unknown("convert_to_ibn", "`variant`", variant, VARIANTS)
    if any(isinstance(module, InstanceNorm) for module in model.modules()):
        raise ArgumentError("convert_to_ibn: this network is an IBN-Net already. Convert the plain network that it was made of.")
    found = _stages(model)
    chosen = STAGES[variant] if stages is None else tuple(stages)
    for stage in chosen:
        if not 1 <= stage <= len(found):
            raise ArgumentError(f"convert_to_ibn: `stages` count from 1 to {len(found)} in this network, got {stage}.")
    copied: Any = copy.deepcopy(model)
    place(copied, [variant if i + 1 in chosen else None for i in range(len(found))], copy_stats=copy_stats)
    copied.retinue_config = None
    return copied


def place(model: nn.Module, config: Sequence[Variant | None], *, ratio: float | None = None, copy_stats: bool = True) -> None:
    """Put IBN layers or instance norms into a network, in place.

    Args:
        model: the network.
        config: the variant of each stage; None leaves a stage as it is.
        ratio: share of instance norm; None is the paper's.
        copy_stats: as in `convert_to_ibn`.

    Raises:
        ArgumentError: if the network has no place for it.
    """
    for blocks, variant in zip(_stages(model), config):
        if not blocks or variant is None:
            continue
        if blocks[0].rpartition(".")[2].startswith("denselayer"):
            if variant == "b":
                raise ArgumentError(NO_DENSE_B)
            for block in blocks[::EVERY_THIRD]:
                _replace_norm(model, f"{block}.norm1", DENSE_RATIO if ratio is None else ratio, in_first=False, copy_stats=copy_stats)
        elif variant == "a":
            for block in blocks:
                _replace_norm(model, _branch_norm(model, block), 0.5 if ratio is None else ratio, in_first=True, copy_stats=copy_stats)
        else:
            _norm_the_sum(model, blocks[-1])
    if "b" in config:
        name, first = next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d))
        alone = InstanceNorm(first.num_features, first.eps)
        _put(model, name, alone, {"": first.state_dict()} if copy_stats else {})
    for name, module in model.named_modules():
        if isinstance(module, InstanceNorm):
            module.name = name


def _stages(model: nn.Module) -> list[list[str]]:
    """List the names of the blocks of each stage.

    Raises:
        ArgumentError: if there are none.
    """
    dense: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        parent, _, last = name.rpartition(".")
        if last.startswith("denselayer"):
            dense.setdefault(parent, []).append(name)
    if dense:
        return list(dense.values())
    names = dict(model.named_modules())
    for pattern in CONTAINERS:
        start = 0 if pattern.format(0) in names else 1
        stages: list[str] = []
        while pattern.format(start + len(stages)) in names:
            stages.append(pattern.format(start + len(stages)))
        if len(stages) > 1:
            return [list(_blocks(names[stage], stage)) for stage in stages]
    raise ArgumentError(
        f"convert_to_ibn: {type(model).__name__} has no stages of residual blocks or dense layers that we know. "
        "Give a network that names them as timm's or torchvision's ResNet or DenseNet does."
    )


def _blocks(stage: nn.Module, name: str) -> Iterator[str]:
    """Yield the names of a stage's blocks; a stage may keep them one level deeper."""
    inner = f"{name}.blocks" if isinstance(getattr(stage, "blocks", None), nn.Module) else name
    owner = stage.blocks if inner != name else stage
    for child, module in owner.named_children():  # type: ignore[union-attr]
        if any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
            yield f"{inner}.{child}"


def _branch_norm(model: nn.Module, block: str) -> str:
    """Name the norm after the first convolution of a residual branch.

    Raises:
        ArgumentError: if it is no batch norm.
    """
    channels = 0
    for name, layer in model.get_submodule(block).named_modules():
        if any(part in name for part in ("downsample", "shortcut", "proj")):
            continue
        if isinstance(layer, nn.Conv2d) and not channels:
            channels = layer.out_channels
        elif isinstance(layer, nn.BatchNorm2d) and layer.num_features == channels:
            return f"{block}.{name}"
    raise ArgumentError(
        f"convert_to_ibn: the residual branch of {block} has no batch norm after its first convolution. "
        "IBN-Net takes the place of batch norm; give a network that has it (before `convert_sync_batchnorm`)."
    )


def _channels(norm: nn.Module) -> int:
    return int(norm.num_features)  # type: ignore[arg-type]


def _norm_the_sum(model: nn.Module, block: str) -> None:
    """Put an instance norm between the sum of a block and its last ReLU."""
    old = model.get_submodule(block)
    new: nn.Module
    if isinstance(old, (torchvision_resnet.BasicBlock, torchvision_resnet.Bottleneck)):
        new = NormedSum(old)
    elif isinstance(old, (timm_resnet.BasicBlock, timm_resnet.Bottleneck)):
        last = "act3" if hasattr(old, "act3") else "act2"
        new = nn.Sequential()
        new.add_module("IN", InstanceNorm(_channels(getattr(old, "bn3", old.bn2))))
        new.add_module("act", getattr(old, last))
        block = f"{block}.{last}"
    else:
        raise ArgumentError(
            f"convert_to_ibn: variant \"b\" needs the residual blocks of timm's or torchvision's ResNet, and {block} is a "
            f'{type(old).__name__}. Take variant "a".'
        )
    model.set_submodule(block, new.to(next(old.parameters())).train(old.training))


def _replace_norm(model: nn.Module, name: str, ratio: float, *, in_first: bool, copy_stats: bool) -> None:
    """Put an IBN layer in the place of a batch norm."""
    old = model.get_submodule(name)
    if not isinstance(old, nn.BatchNorm2d):
        raise ArgumentError(f"convert_to_ibn: only batch norm can be replaced, and {name} is a {type(old).__name__}.")
    layer = IBN(old.num_features, ratio, in_first, old.eps, 0.1 if old.momentum is None else old.momentum)
    if isinstance(old, BatchNormAct2d):
        layer.act = nn.Sequential(old.drop, old.act)
    halves = dict(zip(("IN", "BN") if in_first else ("BN", "IN"), parts(old.state_dict(), layer.sizes), strict=True))
    _put(model, name, layer, halves if copy_stats else {})


def _put(model: nn.Module, name: str, layer: nn.Module, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Put a layer in the place of another, on its device and in its mode, with the tensors of its children that it can take."""
    old = model.get_submodule(name)
    for child, values in tensors.items():
        part = layer.get_submodule(child) if getattr(layer, child, None) is not None or not child else None
        if part is not None:
            part.load_state_dict({entry: values[entry] for entry in part.state_dict() if entry in values}, strict=False)
    like = next(iter(old.state_dict().values()))
    model.set_submodule(name, layer.to(like.device, like.dtype).train(old.training))


def parts(tensors: dict[str, Tensor], sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Split the tensors of a batch norm by channels; its number of batches goes to every part.

    >>> [part["weight"].tolist() for part in parts({"weight": torch.tensor([1.0, 2.0, 3.0])}, [1, 2])]
    [[1.0], [2.0, 3.0]]
    """
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        {name: tensor[start : start + size] if tensor.ndim else tensor for name, tensor in tensors.items()}
        for start, size in zip(starts, sizes)
    ]
