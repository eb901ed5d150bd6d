"""NASNet: networks stacked from two cells that a search has found (Zoph et al. 2018, arXiv 1707.07012); the search itself is another part.

`N @ P` of the paper is N normal cells in a row and P channels at the end, of which F, the filters of the first cells, is a 24th.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as nnf
from jaxtyping import Float
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import image_size, register
from retinue.models.inception_blocks import AuxiliaryHead, Units
from retinue.models.layers import conv_norm_act
from retinue.models.nasnet_cells import Cell, Genotype, Norm, ScheduledDropPath, genotype_of
from retinue.models.nasnet_weights import from_timm
from retinue.models.network import Network, frozen_statistics

Images = Float[Tensor, "batch channels height width"]
Stem = Literal["cifar", "imagenet"]

STEMS = ("cifar", "imagenet")
SMALL_SIDE = 64  # up to it the CIFAR stem is taken
STRIDED_SIDE = 48  # from it on its convolution has stride 2
LEAST_SIDE = 8
LEAST_TAP = 5  # side of the map of the auxiliary head
CFG = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.911}
CIFAR = {"input_size": (3, 32, 32), "crop_pct": 1.0}


@dataclass(frozen=True)
class AuxiliaryUnits(Units):
    """The units of the auxiliary head, which is that of Inception, with this network's batch norm.

    Args:
        eps: of batch norm.
    """

    eps: float = 1e-3

    def conv(self, in_chs: int, out_chs: int, kernel: Any, stride: int = 1, *, valid: bool = False) -> nn.Module:
        """Build a unit of exactly so many channels."""
        return conv_norm_act(in_chs, out_chs, kernel, stride, valid=valid, eps=self.eps, momentum=self.bn_momentum)


class NASNet(Network):
    """A network of cells, each of which takes the outputs of the two before it.

    In training with an auxiliary head, `forward` returns (logits, auxiliary logits), which `retinue.train.Supervised(aux_weight=0.4)` adds
    up; otherwise logits.

    Args:
        stem: the first convolution.
        stages: the cells, those of one size of map together.
        aux: the auxiliary head, on the map before the last reduction.
        drop_path: drops branches in training, or None.
        options: those of `Network`.
    """

    def __init__(
        self, stem: nn.Sequential, stages: nn.Sequential, *, aux: AuxiliaryHead | None, drop_path: ScheduledDropPath | None, **options: Any
    ) -> None:
        super().__init__(stem, stages, **options)
        self.aux, self.drop_path = aux, drop_path
        self.aux_place = len(stages) - 2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put new classifiers in place of the old ones, the auxiliary one too.

        Args:
            num_classes: their outputs; 0 leaves them out.
            global_pool: another pooling; None keeps the present one.
        """
        super().reset_classifier(num_classes, global_pool)
        if self.aux is not None:
            self.aux.reset(num_classes)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Throw away the cells behind the last tap asked for, and both heads; arguments as in `Network`."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.num_classes == 0:
            self.aux = None
        return take

    def forward_features(self, x: Images) -> Float[Tensor, "batch features mapheight mapwidth"]:
        """Compute the last map of features, after its ReLU."""
        return self._walk_cells(x, ())[0]

    def forward(self, x: Images) -> Any:
        """Compute the logits; in training with an auxiliary head, the pair of logits and auxiliary logits."""
        if self.aux is None or not self.training or not self.num_classes:
            return self.forward_head(self.forward_features(x))
        x, (tap,) = self._walk_cells(x, (f"stages.{self.aux_place}",))
        return self.forward_head(x), self.aux(tap)

    def forward_intermediates(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the maps of the pyramid, those of cells after their ReLU; arguments as in `Network`."""
        if output_fmt != "NCHW":
            raise ArgumentError(f'forward_intermediates: `output_fmt` must be "NCHW", got "{output_fmt}".')
        take, last = feature_take_indices(len(self.feature_info), indices if indices is None or isinstance(indices, int) else list(indices))
        names = [self.feature_info[i]["module"] for i in take]
        x, maps = self._walk_cells(x, names, self.feature_info[last]["module"] if stop_early else None)
        return maps if intermediates_only else (x, maps)

    def _walk_cells(self, x: Tensor, names: Sequence[str], end: str | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run stem and cells up to the place `end`, and keep the maps of the places named."""
        self.check_size(x)
        keeps = self._keep_probabilities()
        prev = self.stem(x)
        maps = [prev] if "stem.0" in names else []
        if end == "stem.0" or not len(self.stages):
            return prev, maps
        cur = nnf.relu(prev)
        number = 0
        for i, stage in enumerate(self.stages):
            for cell in stage:  # type: ignore[attr-defined]
                new = self._run_cell(cell, cur, prev, keeps[number] if keeps else None)
                if not cell.skipped:  # otherwise the next cell takes once more what this one took
                    prev = cur
                cur, number = new, number + 1
            if f"stages.{i}" in names:
                maps.append(cur)
            if end == f"stages.{i}":
                break
        return cur, maps

    def _run_cell(self, cell: nn.Module, cur: Tensor, prev: Tensor, keep: Tensor | None) -> Tensor:
        if not self.grad_checkpointing:
            return cell(cur, prev, keep)
        return checkpoint(cell, cur, prev, keep, use_reentrant=False, context_fn=partial(_first_and_second_pass, cell))

    def _keep_probabilities(self) -> list[Tensor]:
        """Return each cell's probability of keeping a branch for this batch, and count it; nothing outside training."""
        if self.drop_path is None or not self.training:
            return []
        keeps = [self.drop_path.probability(cell) for cell in range(self.drop_path.cells)]
        self.drop_path.advance()
        return keeps


@register(cfg={**CFG, "input_size": (3, 224, 224)})
def nasnet(
    genotype: str | Mapping[str, Any] | Genotype = "nasnet-a",
    N: int = 6,
    F: int | None = None,
    stem: Stem | None = None,
    stem_multiplier: int = 3,
    skip_reduction_input: bool = False,
    drop_path_keep: float | None = None,
    aux: bool = False,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    input_size: int | tuple[int, int] | None = None,
    P: int | None = None,
    drop_path_rate: float | None = None,
    drop_path_steps: int | None = None,
    avg_pool_count_pad: bool = False,
    bn_momentum: float = 0.1,
) -> NASNet:
    """Stack the cells of a genotype: N normal cells, a reduction, N normal cells, a reduction, N normal cells (figure 2).

    The filters double at each reduction. The ImageNet stem brings two reduction cells of its own, with F / 4 and F / 2 filters.

    Args:
        genotype: "nasnet-a", a `Genotype`, or its JSON.
        N: normal cells in a row.
        F: filters of the first normal cells; None is 32, or what `P` gives.
        stem: "cifar", a 3x3 convolution of stride 1, from 48 px on 2; "imagenet", one of stride 2 and two reduction cells; None takes
            "cifar" for an `input_size` of at most 64 and "imagenet" for others.
        stem_multiplier: filters of the first convolution, in units of F for the CIFAR stem and of 32 for the other.
        skip_reduction_input: the cell after a reduction takes as h_{i-1} what the reduction took, as in the large network.
        drop_path_keep: ScheduledDropPath's probability of keeping a branch of the last cell at the end of training; None is 1.
        aux: add the auxiliary classifier on the map before the last reduction; in training `forward` then returns both logits.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the pooled features dropped in training.
        input_size: side, or height and width, of the images; None is 32 for the CIFAR stem, and for the other 224, or 331 with
            `skip_reduction_input`, as in the paper's networks. The auxiliary head covers the map that they leave.
        P: channels of the last map instead of `F`: 24 F for NASNet-A.
        drop_path_rate: timm's word for 1 - `drop_path_keep`; give one of them.
        drop_path_steps: batches of the training, over which dropping grows from nothing; None drops at full rate from the beginning.
            With `accumulate`, each part of a batch counts.
        avg_pool_count_pad: average pools of stride 2 count the padding, as timm's do; only with it do timm's weights give timm's logits.
        bn_momentum: weight of the newest batch in batch norm's running statistics; official: 0.1 for CIFAR, 0.0003 for ImageNet.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    found = genotype_of(genotype)
    last_states = len(found.concat("normal"))
    filters = _filters(F, P, last_states)
    keep = _kept(drop_path_keep, drop_path_rate)
    given = image_size(input_size)
    kind = stem or ("cifar" if given is not None and min(given) <= SMALL_SIDE else "imagenet")
    _check(N, filters, kind, stem_multiplier, bn_momentum, given)
    published = 32 if kind == "cifar" else 331 if skip_reduction_input else 224
    sides = given or (published, published)
    stride = 2 if kind == "imagenet" or min(sides) >= STRIDED_SIDE else 1
    norm = Norm(1e-5 if kind == "cifar" else 1e-3, bn_momentum, avg_pool_count_pad)
    first = stem_multiplier * (filters if kind == "cifar" else 32)
    conv = conv_norm_act(in_chans, first, 3, stride, valid=kind == "imagenet", act=False, eps=norm.eps, momentum=bn_momentum)
    plan = list(_plan(N, filters, kind, skip_reduction_input))
    chain: list[tuple[int, int]] = [(first, stride)]  # channels and stride of what the cells take
    stages: list[list[Cell]] = []
    prev: tuple[int, int] | None = None
    for cell_kind, width, opens, skips in plan:
        chs, reduction = chain[-1]
        cell = Cell(found, cell_kind, chs, prev and prev[0], width, prev is not None and prev[1] < reduction, norm, skips)
        if opens:
            stages.append([])
        stages[-1].append(cell)
        prev = prev if skips else (chs, reduction)
        chain.append((cell.out_chs, reduction * cell.stride))
    ends = [sum(map(len, stages[: i + 1])) for i in range(len(stages))]
    taps = [{"num_chs": chain[end][0], "reduction": chain[end][1], "module": f"stages.{i}"} for i, end in enumerate(ends)]
    if kind == "imagenet":
        taps.insert(0, {"num_chs": first, "reduction": stride, "module": "stem.0"})
    network = NASNet(
        nn.Sequential(conv),
        nn.Sequential(*(nn.Sequential(*stage) for stage in stages)),
        aux=_auxiliary(chain[ends[-2]], sides, kind, num_classes, norm) if aux else None,
        drop_path=ScheduledDropPath(keep, len(plan), drop_path_steps) if keep != 1 else None,
        taps=taps,
        num_features=chain[-1][0],
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
        min_side=LEAST_SIDE,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # fan-out variance scaling, official code; a depthwise kernel has its own fan-out
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    network.adaptation = _adaptation(stem, kind, stride, given)
    return network


def _plan(N: int, filters: int, stem: Stem, skip: bool) -> Iterator[tuple[Literal["normal", "reduce"], int, bool, bool]]:
    """Yield each cell's kind, filters, whether it opens a stage, and whether the next cell takes its h_{i-1}."""
    if stem == "imagenet":
        yield "reduce", filters // 4, True, False
        yield "reduce", filters // 2, True, False
    for stage in range(3):
        if stage:
            yield "reduce", filters * 2**stage, True, skip
        for i in range(N):
            yield "normal", filters * 2**stage, not stage and not i and stem == "cifar", False


def _filters(F: int | None, P: int | None, states: int) -> int:
    """Return F, which may be given by the channels of the last map."""
    if F is not None and P is not None:
        raise ArgumentError(f"nasnet: `F` and `P` say the same twice, got F={F} and P={P}. Give one of them.")
    if P is None:
        return 32 if F is None else F
    if P < 1 or P % (4 * states):
        raise ArgumentError(
            f"nasnet: `P` must be divisible by {4 * states}, got {P}. It is the number of channels at the end: {states} states of 4 F."
        )
    return P // (4 * states)


def _kept(keep: float | None, rate: float | None) -> float:
    if keep is not None and rate is not None:
        raise ArgumentError(f"nasnet: `drop_path_keep` {keep} and `drop_path_rate` {rate} say the same twice. Give one of them.")
    if rate is not None and not 0 <= rate < 1:
        raise ArgumentError(f"nasnet: `drop_path_rate` must lie in [0, 1), got {rate}. It is the share dropped, 1 - drop_path_keep.")
    kept = 1 - rate if rate is not None else 1.0 if keep is None else keep
    if not 0 < kept <= 1:
        raise ArgumentError(f"nasnet: `drop_path_keep` must lie in (0, 1], got {keep}. It is the share kept; 1 drops nothing.")
    return kept


def _check(N: int, filters: int, stem: str, multiplier: int, bn_momentum: float, given: tuple[int, int] | None) -> None:
    if stem not in STEMS:
        raise unknown("nasnet", "`stem`", stem, STEMS)
    if N < 1:
        raise ArgumentError(f"nasnet: `N` must be at least 1, got {N}. It is the number of normal cells in a row; the paper has 4 to 7.")
    if multiplier < 1:
        raise ArgumentError(f"nasnet: `stem_multiplier` must be at least 1, got {multiplier}. The mobile network has 1, the others 3.")
    multiple = 4 if stem == "imagenet" else 2
    if filters < multiple or filters % multiple:
        why = "its stem cells have F / 4 and F / 2 filters, and half of them go" if stem == "imagenet" else "half of the filters go"
        raise ArgumentError(f"nasnet: `F` must be divisible by {multiple}, got {filters}: {why} to each part of a factorised reduction.")
    if not 0 < bn_momentum <= 1:
        raise ArgumentError(f"nasnet: `bn_momentum` must lie in (0, 1], got {bn_momentum}. It is the newest batch's weight, 1 - decay.")
    if given is not None and min(given) < LEAST_SIDE:
        raise ArgumentError(f"nasnet: `input_size` must be at least {LEAST_SIDE}, got {list(given)}. Enlarge the images.")


def _auxiliary(tap: tuple[int, int], sides: tuple[int, int], stem: Stem, num_classes: int, norm: Norm) -> AuxiliaryHead:
    """Build the auxiliary head for the map before the last reduction."""
    chs, reduction = tap
    if stem == "imagenet":  # the first convolution loses the border
        height, width = (-(-((side - 3) // 2 + 1) // (reduction // 2)) for side in sides)
    else:
        height, width = (-(-side // reduction) for side in sides)
    if min(height, width) < LEAST_TAP:
        raise ArgumentError(
            f"nasnet: the auxiliary head needs a map of at least {LEAST_TAP}x{LEAST_TAP}, and images of {sides[0]}x{sides[1]} px leave it "
            f"{height}x{width}. Build it with aux=False, or take larger images."
        )
    return AuxiliaryHead(chs, (height, width), num_classes, AuxiliaryUnits(bn_momentum=norm.momentum, eps=norm.eps))


def _adaptation(asked: Stem | None, stem: Stem, stride: int, given: tuple[int, int] | None) -> list[str]:
    if given is None or stem == "imagenet":
        return []
    notes = [] if asked == "cifar" else ["the ImageNet stem of a convolution and two reduction cells -> the CIFAR stem of a convolution"]
    return [*notes, *(["stem.0: stride 1 -> 2"] if stride == 2 else [])]


def _first_and_second_pass(cell: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), frozen_statistics(cell)


def _named(
    name: str, about: str, cfg: Mapping[str, Any], N: int, F: int, weights_of: str | None = None, **given: Any
) -> Callable[..., NASNet]:
    """Register a NASNet-A of the paper under its name."""
    build: Any = partial(nasnet, "nasnet-a", N, F, **given)
    build.__name__ = name
    build.__doc__ = f"Build NASNet-A {N}@{24 * F}, {about}; its further options are those of `nasnet`."
    return register(build, cfg=cfg, weights_of=weights_of, convert=from_timm if weights_of else None)


_LARGE: dict[str, Any] = {"stem_multiplier": 3, "skip_reduction_input": True, "drop_rate": 0.5}
_CIFAR: dict[str, Any] = {"stem": "cifar", "num_classes": 10}
nasnet_a_large = _named("nasnet_a_large", "for ImageNet", {**CFG, "input_size": (3, 331, 331)}, 6, 168, "nasnetalarge", **_LARGE)
nasnet_a_mobile = _named("nasnet_a_mobile", "for ImageNet", {**CFG, "input_size": (3, 224, 224)}, 4, 44, stem_multiplier=1, drop_rate=0.5)
nasnet_a_cifar = _named("nasnet_a_cifar", "for CIFAR", CIFAR, 6, 32, **_CIFAR)
nasnet_a_cifar_large = _named("nasnet_a_cifar_large", "the best of the paper on CIFAR", CIFAR, 7, 96, **_CIFAR)
nasnet_a_proxy = _named("nasnet_a_proxy", "the size in which the search trains its candidates", CIFAR, 2, 32, **_CIFAR)
nasnet_a_tiny = _named("nasnet_a_tiny", "for laptops", CIFAR, 2, 8, **_CIFAR)
