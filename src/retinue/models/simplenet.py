"""SimpleNet: one plain stack of convolutions, without branches or shortcuts (Hasanpour et al. 2016, arXiv 1608.06037).

The paper's rules of design, and what tries each of them against its contrary:

- gradual expansion: few layers first, and wider ones only as maps shrink; homogeneous groups of equal layers (`layers`, `scale`);
- locality: 3x3 kernels, no 1x1 kernel or stride early (`layers`, `stride_mode`), 1x1 kernels near the end only;
- delayed pooling, by 2x2 maxima, and a global maximum at the end (`layers`, `global_pool`);
- batch norm and a little dropout in nearly every layer (`drop_rates`, `drop`).
"""

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from timm.layers import ConvNormAct
from torch import nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import image_size, register
from retinue.models.network import Network

PRESETS = {  # widths of the convolutions; k: a 1x1 kernel, otherwise 3x3; p: a 2x2 max pool
    "cifar_310k": "64 32 32 32 p 32 32 64 p 64 64 p 128 256k 64k p 64",
    "cifar_460k": "32 32 32 64 p 64 64 64 p 64 64 p 96 96k 96k p 100",  # the paper's name; the official list has 385,790 parameters
    "cifar_5m": "64 128 128 128 p 128 128 256 p 256 256 p 512 2048k 256k p 256",
    "cifar_5m_extra_pool": "64 128 128 128 p 128 128 256 p 256 256 p 512 p 2048k 256k p 256",  # of the early PyTorch weights
    "imagenet_5m": "64 128 128 128 128 128 p 256 256 256 512 p 2048k 256k 256",
    "imagenet_9m": "128 192 192 192 192 192 p 320 320 320 640 p 2560k 320k 320",
}
STRIDED = ((), (0, 1, 2), (0, 1, 3), (0, 1, 4), (0, 2, 4))  # for each `stride_mode`: the convolutions of stride 2
LARGE_MODE = 2  # of the imagenet nets
LARGE_SIDE = 64  # from it on CIFAR nets begin with stride 2, and imagenet nets have their strides
CIFAR_RATE = 0.2
POOLS = ("max", "avg", "avgmax", "catavgmax")


class Layer(NamedTuple):
    """One item of the list: a convolution, or a pool, whose width is 0; and the share that is dropped behind it."""

    width: int
    kernel: int
    stride: int
    rate: float = 0.0

    def side(self, side: int, pad_1x1: int) -> int:
        """Return the side of the map that the layer makes of one of this side; 0 or less where it cannot."""
        if not self.width:
            return side // 2
        return (side - (1 if self.kernel == 3 else 1 - 2 * pad_1x1)) // self.stride + 1


class SimpleNet(Network):
    """A stack of convolutions with its list, which published weights are checked against.

    Args:
        layers: the published list, without what small images change.
        parts: `stem` and `stages`.
        options: those of `Network`.
    """

    def __init__(self, layers: Sequence[Layer], *parts: nn.Sequential, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.layers = list(layers)


@register
def simplenet(
    preset: str = "cifar_5m",
    num_classes: int = 10,
    in_chans: int = 3,
    scale: float = 1.0,
    stride_mode: int | None = None,
    drop_rates: float | Mapping[Any, float] | None = None,
    drop: Literal["element", "channel"] = "element",
    pad_1x1: Literal[0, 1] = 0,
    global_pool: str = "max",
    layers: str | None = None,
    *,
    input_size: int | tuple[int, int] | None = None,
    drop_rate: float | None = None,
) -> SimpleNet:
    """Build a SimpleNet: units of convolution, batch norm, ReLU and dropout, 2x2 max pools between them, a global maximum, a linear layer.

    The CIFAR nets halve an image four times; from 64 px on their first convolution has stride 2, and below 16 px the last pools are left
    out. The imagenet nets halve it five times, and below 64 px twice (`stride_mode` 0).

    Args:
        preset: "cifar_310k", "cifar_460k", "cifar_5m", "imagenet_5m", "imagenet_9m", or "cifar_5m_extra_pool", which early published
            weights of "cifar_5m" belong to.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        scale: factor on all widths, which are rounded; the releases have 0.5 and 0.75 of "imagenet_5m".
        stride_mode: which three of the first five convolutions have stride 2: 1 is the first three and fastest, 2, 3 and 4 are later; 0 is
            none. None chooses by `input_size`; without it 2 for the imagenet nets, as their most accurate releases have it, and 0 else.
        drop_rates: share dropped in training, behind every pool, every convolution without a pool behind it, and the global pool; or a
            share for each of some positions in the list, pools counted, where the number of items stands for the global pool. None is 0.2
            for the CIFAR nets, and 0 otherwise.
        drop: what is dropped: each "element", or whole maps ("channel", as in the PyTorch releases).
        pad_1x1: padding of the 1x1 kernels; 1 belongs to the imagenet weights released before April 2023 only.
        global_pool: timm's name of the last pooling; the paper's is "max".
        layers: a list of one's own in place of the preset's, such as "64 64 p 128 256k p 64": widths, k for a 1x1 kernel, p for a pool.
        input_size: side, or height and width, of the images; None is the published network.
        drop_rate: share of the globally pooled features dropped, in place of that of `drop_rates`.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> model = simplenet("cifar_310k", input_size=8)
    >>> model.adaptation, [tap["reduction"] for tap in model.feature_info]
    (['layers.15: pool left out'], [1, 2, 4, 8])
    """
    if preset not in PRESETS:
        raise unknown("simplenet", "preset", preset, PRESETS)
    if drop not in ("element", "channel"):
        raise unknown("simplenet", "`drop`", drop, ("element", "channel"))
    if global_pool not in POOLS:
        raise unknown("simplenet", "`global_pool`", global_pool, POOLS)
    if pad_1x1 not in (0, 1):
        raise ArgumentError(f"simplenet: `pad_1x1` must be 0 or 1, got {pad_1x1!r}. Present releases have 0.")
    sides = image_size(input_size)
    small = sides is not None and min(sides) < LARGE_SIDE
    cifar, own = layers is None and preset.startswith("cifar"), layers is not None
    mode, notes = stride_mode, []
    if mode is None:
        mode = 0 if cifar or own or small else LARGE_MODE
        notes = [f"stride_mode {LARGE_MODE} -> 0"] if small and not cifar and not own else []
    elif mode not in range(len(STRIDED)) or (mode and cifar):
        among = f'0 for "{preset}"' if cifar else "0, 1, 2, 3 or 4"
        raise ArgumentError(f"simplenet: `stride_mode` must be {among}, got {stride_mode!r}. The modes are for large images.")
    plan = _parse(PRESETS[preset] if layers is None else layers, scale, STRIDED[mode])
    plan, last_rate = _with_rates(plan, CIFAR_RATE * cifar if drop_rates is None else drop_rates)
    published = plan
    if sides and not small and cifar and stride_mode is None:
        plan = [plan[0]._replace(stride=2), *plan[1:]]
        notes.append("stem: stride 1 -> 2")
    if sides:
        plan, left_out = _fitted(plan, min(sides), pad_1x1, own)
        notes += left_out
    network = SimpleNet(
        published,
        *_build(plan, in_chans, nn.Dropout if drop == "element" else nn.Dropout2d, pad_1x1),
        taps=_taps(plan),
        num_features=[layer.width for layer in plan if layer.width][-1],
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=last_rate if drop_rate is None else drop_rate,
        global_pool=global_pool,
        min_side=next(side for side in range(1, 2 ** len(plan) + 1) if _fits(plan, side, pad_1x1)),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # the official PyTorch code
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))
    network.adaptation = notes
    return network


def _parse(layers: str, scale: float, strided: Sequence[int]) -> list[Layer]:
    if not scale > 0:
        raise ArgumentError(f"simplenet: `scale` must be positive, got {scale}. It is a factor on all widths.")
    plan: list[Layer] = []
    for token in layers.split():
        found = re.fullmatch(r"(\d+)(k?)|p", token)
        if found is None:
            raise ArgumentError(
                f'simplenet: `layers` has the item "{token}", which is none. Write widths such as 64, 64k for a 1x1 kernel, p for a pool.'
            )
        width = round(int(found[1]) * scale) if found[1] else 0
        if found[1] and width < 1:
            raise ArgumentError(f'simplenet: the width "{token}" times `scale` {scale} is rounded to {width}. Every layer needs a channel.')
        number = sum(layer.width > 0 for layer in plan)
        plan.append(Layer(width, 1 if found[2] else 3, 2 if number in strided else 1) if width else Layer(0, 2, 2))
    if not plan or not plan[0].width:
        raise ArgumentError(f'simplenet: `layers` must begin with a convolution, got "{layers}". Put the pools behind it.')
    return plan


def _with_rates(plan: list[Layer], rates: float | Mapping[Any, float]) -> tuple[list[Layer], float]:
    """Write the shares dropped into the layers, and return that behind the global pool as well."""
    last = len(plan)
    if isinstance(rates, Mapping):
        unfit = [key for key in rates if not str(key).isdecimal() or int(key) > last]
        if unfit:
            raise ArgumentError(
                f"simplenet: `drop_rates` has the key {unfit[0]!r}. Keys count the layers, pools too, from 0 to {last - 1}; {last} is the "
                "global pool."
            )
        each = {int(key): rate for key, rate in rates.items()}
    else:
        before_pool = [not after.width for after in plan[1:]] + [False]
        each = {i: rates for i in range(last + 1) if i == last or not plan[i].width or not before_pool[i]}
    for rate in each.values():
        if not 0 <= rate < 1:
            raise ArgumentError(f"simplenet: `drop_rates` must lie in [0, 1), got {rate}. It is the share dropped, not the share kept.")
    return [layer._replace(rate=each.get(i, 0.0)) for i, layer in enumerate(plan)], each.get(last, 0.0)


def _fits(plan: Sequence[Layer], side: int, pad_1x1: int) -> bool:
    for layer in plan:
        side = layer.side(side, pad_1x1)
        if side < 1:
            return False
    return True


def _fitted(plan: list[Layer], side: int, pad_1x1: int, own: bool) -> tuple[list[Layer], list[str]]:
    """Leave out the last pools until images of this side fit; their dropout stays behind the layer before them."""
    notes = []
    while not _fits(plan, side, pad_1x1):
        if own:
            raise ArgumentError(
                f"simplenet: images of {side} px are too small for `layers`, whose pools and strides halve the map "
                f"{sum(layer.stride == 2 for layer in plan)} times. Leave pools out."
            )
        at = max(i for i, layer in enumerate(plan) if not layer.width)
        notes.append(f"layers.{at}: pool left out")
        plan = [*plan[: at - 1], plan[at - 1]._replace(rate=max(plan[at - 1].rate, plan[at].rate)), *plan[at + 1 :]]
    return plan, notes


def _build(plan: Sequence[Layer], in_chans: int, dropout: Callable[..., nn.Module], pad_1x1: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Build stem (the first layer) and stages; a stage begins with each layer that halves the map."""
    stages: list[list[nn.Module]] = [[]]
    for i, layer in enumerate(plan):
        if layer.width:
            module: nn.Module = ConvNormAct(
                in_chans,
                layer.width,
                layer.kernel,
                stride=layer.stride,
                padding=1 if layer.kernel == 3 else pad_1x1,
                bias=True,
                drop_layer=partial(dropout, layer.rate) if layer.rate else None,  # type: ignore[arg-type]  # dropout, then ReLU: the same
                norm_kwargs={"momentum": 0.05},
                act_kwargs={"inplace": True},
            )
            in_chans = layer.width
        else:
            module = nn.Sequential(OrderedDict(pool=nn.MaxPool2d(2), drop=dropout(layer.rate)))
        if i == 1 or (i and layer.stride == 2):
            stages.append([])
        stages[-1].append(module)
    stem, *others = (nn.Sequential(*modules) for modules in stages)
    return stem, nn.Sequential(*others)


def _taps(plan: Sequence[Layer]) -> list[dict[str, Any]]:
    """List the maps before each layer that halves them, and the last one."""
    taps: list[dict[str, Any]] = []
    width = reduction = stage = 0
    for i, layer in enumerate(plan):
        if i and layer.stride == 2:
            taps.append({"num_chs": width, "reduction": reduction, "module": f"stages.{stage - 1}" if stage else "stem.0"})
        stage += i == 1 or (i > 0 and layer.stride == 2)
        width, reduction = layer.width or width, max(reduction, 1) * layer.stride
    return [*taps, {"num_chs": width, "reduction": reduction, "module": f"stages.{stage - 1}" if stage else "stem.0"}]


def _named(name: str, preset: str, scale: float = 1.0) -> Callable[..., SimpleNet]:
    """Register the network of one preset, or of one of its released widths."""

    def build(num_classes: int = 1000, in_chans: int = 3, *, input_size: int | tuple[int, int] | None = None, **options: Any) -> SimpleNet:
        return simplenet(preset, num_classes, in_chans, input_size=input_size, **{"scale": scale, **options})

    build.__name__ = build.__qualname__ = f"simplenet_{name}"
    build.__doc__ = f'Build SimpleNet "{preset}" at {scale:g} times its widths; its options are those of `simplenet`.'
    options = [option for key, option in inspect.signature(simplenet).parameters.items() if key not in ("preset", "layers")]
    build.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # so that a misspelt option is noticed by name
    return register(build, cfg={"input_size": (3, 32, 32), "crop_pct": 1.0} if preset.startswith("cifar") else {})


simplenet_cifar_310k = _named("cifar_310k", "cifar_310k")
simplenet_cifar_460k = _named("cifar_460k", "cifar_460k")
simplenet_cifar_5m = _named("cifar_5m", "cifar_5m")
simplenet_cifar_5m_extra_pool = _named("cifar_5m_extra_pool", "cifar_5m_extra_pool")
simplenet_imagenet_small_05 = _named("imagenet_small_05", "imagenet_5m", 0.5)
simplenet_imagenet_small_075 = _named("imagenet_small_075", "imagenet_5m", 0.75)
simplenet_imagenet_5m = _named("imagenet_5m", "imagenet_5m")
simplenet_imagenet_9m = _named("imagenet_9m", "imagenet_9m")
