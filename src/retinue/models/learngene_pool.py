"""Networks stitched of the blocks of several: the pool of learngenes, and one network out of it (Shi et al. 2024, arXiv 2312.05743).

An instance is any network whose blocks all see the same tokens: timm's vision transformers and DeiT, our CAE's encoder, MLP-Mixers.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model, register
from retinue.models.macs import count_macs
from retinue.models.protocol import config as rebuilt
from retinue.models.protocol import taps
from retinue.models.stitches import (
    Configuration,
    Inverse,
    StitchedNetwork,
    Tokens,
    block_outputs,
    least_squares,
    map_weight,
    new_stitch,
    stitch_pairs,
    tokens_of,
)

How = Literal["distilled", "pseudo_inverse", "least_squares", "random"]
Pairs = Literal["ends", "all"] | Sequence[Sequence[int]]
CFG = {"first_conv": None, "classifier": None, "crop_pct": 0.9}
SIZES: tuple[dict[str, Any], ...] = tuple({"name": f"timm:deit_{size}_patch16_224", "depth": 6} for size in ("tiny", "small", "base"))


class LearngenePool(nn.Module):
    """Several trained networks of different widths and as many blocks, and the stitches between them: one network for each configuration.

    Args:
        instances: from narrow to wide.
        pairs: which are stitched: "ends" (the first into the last, as the official code samples), "all" (each into each wider one), or a
            list of (front, back). Every instance of a pair is a configuration alone too.
        window: blocks among which a stitch is shared; see `stitch_pairs`.
        stride: blocks by which the window moves on.
        narrowing: allow pairs from a wide to a narrow instance.

    Raises:
        ArgumentError: if an instance does not fit, naming it; if instances differ in blocks, tokens, class token, images or classes; or if
            the pairs cannot be.

    >>> nets = [create_model("timm:vit_tiny_patch16_224", embed_dim=width, depth=3, num_heads=2, input_size=16) for width in (16, 32)]
    >>> pool = LearngenePool(nets)
    >>> len(pool.configs), str(pool.configs[2]), len(pool.stitches["0-1"])
    (9, '0.0-1.0', 2)
    """

    def __init__(
        self, instances: Sequence[nn.Module], pairs: Pairs = "ends", window: int = 2, stride: int = 1, *, narrowing: bool = False
    ) -> None:
        super().__init__()
        self.tokens = _agreeing(instances)
        self.instances = nn.ModuleList(instances)
        self.window, self.stride, self.narrowing = window, stride, narrowing
        self.depth = self.tokens[0].depth
        widths = [tokens.width for tokens in self.tokens]
        self.pairs = _pairs(pairs, widths, narrowing)
        plan = stitch_pairs(self.depth, window, stride)
        self.layer = {(a, b): layer for a, b, layer in plan}
        count = 1 + max(self.layer.values())
        self.stitches = nn.ModuleDict(
            {f"{f}-{e}": nn.ModuleList(new_stitch(widths[f], widths[e]) for _ in range(count)) for f, e in self.pairs}
        )
        used = sorted({i for pair in self.pairs for i in pair})
        self.configs = [Configuration(i, i, self.depth - 1, self.depth) for i in used]
        self.default = self.configs[-1]  # what runs where nobody says what: the last instance alone
        self.configs += [Configuration(f, e, a, b) for f, e in self.pairs for a, b, _ in plan]
        first: Any = instances[0]
        self.num_classes, self.in_chans = first.num_classes, self.tokens[0].shape[0]
        self.num_features = widths[self.default.back]
        self.head_hidden_size = getattr(instances[self.default.back], "head_hidden_size", self.num_features)
        self.num_prefix_tokens = self.tokens[0].prefix
        self.adaptation: list[str] = list(getattr(first, "adaptation", []))
        self.table: dict[str, dict[str, float]] = {}  # numbers of each configuration by name, where they were measured
        self.feature_info = taps(instances[self.default.back], f"instances.{self.default.back}.")
        made = _common([rebuilt(network) for network in instances])
        if made is not None:  # so that a checkpoint can rebuild it
            plan_of = {"pairs": [list(pair) for pair in self.pairs], "window": window, "stride": stride, "narrowing": narrowing}
            self.retinue_config: Any = {"name": "learngene_pool", "arguments": {"instances": made[0], **plan_of, **made[1]}}

    def find(self, config: Configuration | Sequence[int] | str) -> Configuration:
        """Return one of `configs`, given as such, as its four numbers, or by name.

        Raises:
            ArgumentError: if the pool has no such one.
        """
        name = config if isinstance(config, str) else str(Configuration(*config)) if len(config) == 4 else str(tuple(config))
        for known in self.configs:
            if str(known) == name:
                return known
        raise unknown("LearngenePool", "configuration", name, map(str, self.configs), "All of them: pool.configs.")

    def network(self, config: Configuration | Sequence[int] | str) -> nn.Module:
        """Return the network of a configuration, which shares its parameters with the pool.

        Raises:
            ArgumentError: if the pool has no such one.
        """
        chosen = self.find(config)
        front, back = self.instances[chosen.front], self.instances[chosen.back]
        if chosen.alone:
            return front
        layers: Any = self.stitches[f"{chosen.front}-{chosen.back}"]
        return StitchedNetwork(front, back, chosen.last, chosen.first, layers[self.layer[chosen.last, chosen.first]])

    def draw(self) -> Configuration:
        """Draw a configuration uniformly from torch's random numbers."""
        return self.configs[int(torch.randint(len(self.configs), ()))]

    def forward(
        self, x: Float[Tensor, "batch channels height width"], config: Configuration | Sequence[int] | str | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Compute the logits of one configuration for the whole batch.

        Args:
            x: normalised images.
            config: one of `configs`; None draws one in training, and is the last instance alone in evaluation.

        Raises:
            ArgumentError: if the pool has no such one.
        """
        if config is None:
            config = self.draw() if self.training else self.default
        return self.network(config)(x)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Compute the last tokens of the last instance alone."""
        return self.network(self.default).forward_features(x)  # type: ignore[operator]

    def forward_head(self, x: Float[Tensor, "batch tokens dim"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify tokens of the last instance alone, or only pool them where `pre_logits`."""
        return self.network(self.default).forward_head(x, pre_logits=pre_logits)  # type: ignore[operator]

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer of the last instance."""
        return self.network(self.default).get_classifier()  # type: ignore[operator]

    def reset_classifier(self, num_classes: int) -> None:
        """Put new classifiers in place of those of all instances; 0 leaves them out."""
        for network in self.instances:
            network.reset_classifier(num_classes)  # type: ignore[operator]
        self.num_classes = num_classes

    def num_params(self, config: Configuration | Sequence[int] | str) -> int:
        """Count the parameters of the network of a configuration."""
        return sum(parameter.numel() for parameter in self.network(config).parameters())

    def num_macs(self, config: Configuration | Sequence[int] | str) -> int:
        """Count the multiply-adds of one image in the network of a configuration."""
        channels, *size = self.tokens[0].shape
        return count_macs(self.network(config), (size[0], size[1]), in_chans=channels)

    def build(self, config: Configuration | Sequence[int] | str) -> nn.Module:
        """Copy the network of a configuration out of the pool: an ordinary network, which `create_model` can rebuild.

        Args:
            config: one of `configs`.

        Raises:
            ArgumentError: if the pool has no such one.
        """
        chosen = self.find(config)
        network: Any = copy.deepcopy(self.network(chosen))
        made = _common([rebuilt(self.instances[i]) for i in (chosen.front, chosen.back)])
        if made is not None and not chosen.alone:
            (front, back), shape = made
            place = {"front": front, "back": back, "last": chosen.last, "first": chosen.first}
            network.retinue_config = {"name": "learngene_stitched", "arguments": {**place, **shape}}
        for name in ("classes", "preprocessing"):  # what `fit` and `load` have told the pool of its images
            if hasattr(self, name):
                setattr(network, name, getattr(self, name))
        return network

    @torch.no_grad()
    def init_stitches(
        self,
        how: How = "distilled",
        maps: Mapping[int, Sequence[Float[Tensor, "narrow teacher"]]] | None = None,
        batch: Float[Tensor, "batch channels height width"] | None = None,
    ) -> "LearngenePool":
        """Begin all stitches anew; those between equal widths are the identity and stay it.

        Args:
            how: "distilled" turns the learned maps round by transposition, and leaves the bias; "pseudo_inverse" does so exactly;
                "least_squares" fits each to a batch (SN-Net), averaged over the positions that share it; "random" as a new linear layer.
            maps: for the first two, of each instance, by its number, the maps from the teacher's width that were learned.
            batch: for "least_squares", normalised images.

        Raises:
            ArgumentError: if there is no such way, or what it needs is missing.
        """
        ways = ("distilled", "pseudo_inverse", "least_squares", "random")
        if how not in ways:
            raise unknown("init_stitches", "`how`", how, ways)
        if how == "least_squares" and batch is None:
            raise ArgumentError("init_stitches: least squares needs `batch`, normalised images. The paper of SN-Net takes 100.")
        seen = {} if batch is None else {i: block_outputs(self.instances[i], batch) for i in {i for pair in self.pairs for i in pair}}
        for f, e in self.pairs:
            layers: Any = self.stitches[f"{f}-{e}"]
            if isinstance(layers[0], nn.Identity):
                continue
            for number, layer in enumerate(layers):
                if how == "random":
                    layer.reset_parameters()
                elif how == "least_squares":
                    places = [(a, b) for (a, b), own in self.layer.items() if own == number]
                    fits = [least_squares(seen[f][a + 1].flatten(0, -2), seen[e][b].flatten(0, -2)) for a, b in places]
                    layer.weight.copy_(torch.stack([weight for weight, _ in fits]).mean(0))
                    layer.bias.copy_(torch.stack([bias for _, bias in fits]).mean(0))
                else:
                    layer.weight.copy_(self._from_maps(f, e, maps or {}, "transposed" if how == "distilled" else how))
        return self

    def _from_maps(self, f: int, e: int, maps: Mapping[int, Sequence[Tensor]], inverse: Inverse) -> Tensor:
        front, wide = maps.get(f), self.tokens[e].width
        if not front:
            raise ArgumentError(
                f"init_stitches: `maps` has none of instance {f}, which is stitched into {e}. Distil it, or use another `how`."
            )
        for i in (f, e):
            for found in maps.get(i, ()):
                if found.shape != (self.tokens[i].width, front[0].shape[1]):
                    raise ArgumentError(
                        f"init_stitches: a map of instance {i} must lead from the teacher's width to its own, of shape "
                        f"({self.tokens[i].width}, teacher's width), got {tuple(found.shape)}. Take those of distil_instance."
                    )
        teacher = front[0].shape[1]
        back = None if teacher == wide else maps.get(e)
        if teacher != wide and not back:
            raise ArgumentError(
                f"init_stitches: instance {e} has width {wide} and the teacher {teacher}, so `maps` must have those of instance {e} too."
            )
        return map_weight(front, back, inverse)


def _agreeing(instances: Sequence[nn.Module]) -> list[Tokens]:
    """Look at all instances, and refuse those that differ in what a stitch cannot change."""
    if len(instances) < 2 or len({id(network) for network in instances}) < len(instances):
        raise ArgumentError(
            f"LearngenePool: `instances` must be two different networks or more, got {len(instances)}"
            f"{'' if len(instances) < 2 else ', one of them twice'}. To stitch a network with itself give a copy: copy.deepcopy(network)."
        )
    tokens = [tokens_of(network, f"instance {i}") for i, network in enumerate(instances)]
    classes: list[Any] = [getattr(network, "num_classes", None) for network in instances]
    for name, values, advice in (
        ("number of blocks", [one.depth for one in tokens], "Build all with the same `depth`."),
        ("images (channels, height, width)", [one.shape for one in tokens], "Build all for the same images."),
        ("number of tokens before the patches", [one.prefix for one in tokens], "Build all with a class token, or all without."),
        ("number of tokens", [one.number for one in tokens], "Build all with the same `patch_size`."),
        ("number of classes", classes, "Build all with the same `num_classes`."),
    ):
        if len(set(values)) > 1:
            raise ArgumentError(f"LearngenePool: instances must have the same {name}, got {', '.join(map(str, values))}. {advice}")
    return tokens


def _pairs(pairs: Pairs, widths: list[int], narrowing: bool) -> list[tuple[int, int]]:
    count = len(widths)
    if isinstance(pairs, str):
        if pairs not in ("ends", "all"):
            raise unknown("LearngenePool", "`pairs`", pairs, ("ends", "all"))
        found = [(0, count - 1)] if pairs == "ends" else [(f, e) for f in range(count) for e in range(f + 1, count)]
    else:
        found = list(dict.fromkeys((int(f), int(e)) for f, e in pairs))
    for f, e in found:
        if not (0 <= f < count and 0 <= e < count) or f == e:
            raise ArgumentError(f"LearngenePool: `pairs` must be of two different instances from 0 to {count - 1}, got ({f}, {e}).")
        if widths[f] > widths[e] and not narrowing:
            raise ArgumentError(
                f"LearngenePool: the pair ({f}, {e}) goes from width {widths[f]} to the narrower {widths[e]}. Order the instances from "
                "narrow to wide, or allow it: narrowing=True."
            )
    if not found:
        raise ArgumentError("LearngenePool: `pairs` is empty, so nothing would be stitched. Name one at least, such as (0, 1).")
    return found


def _common(made: Sequence[dict[str, Any] | None]) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Part what rebuilds several networks into each one's name and options, and the shape that all share; None where that cannot be."""
    own, shapes = [], []
    for one in made:
        if one is None:
            return None
        arguments = dict(one["arguments"])
        shapes.append({name: arguments.pop(name) for name in ("num_classes", "in_chans", "input_size")})
        own.append({"name": one["name"], **arguments})
    return (own, shapes[0]) if all(shape == shapes[0] for shape in shapes) else None


def named_network(options: Mapping[str, Any], shape: Mapping[str, Any]) -> nn.Module:
    """Build an instance from its name and options, and the shape that all share.

    Raises:
        ArgumentError: if there is no name, or `create_model` refuses the options.
    """
    if "name" not in options:
        raise ArgumentError(f'learngene_pool: a network must be {{"name": NAME, its options}}, got {dict(options)}.')
    return create_model(**{**options, **shape})


@register(cfg=CFG)
def learngene_pool(
    instances: Sequence[Mapping[str, Any]] = SIZES,
    pairs: Pairs = "ends",
    window: int = 2,
    stride: int = 1,
    narrowing: bool = False,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> LearngenePool:
    """Build a `LearngenePool` of networks by name.

    Args:
        instances: of each, its name for `create_model` and its options, from narrow to wide.
        pairs: as in `LearngenePool`.
        window: as there.
        stride: as there.
        narrowing: as there.
        num_classes: outputs of the classifiers; 0 leaves them out.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if a network cannot be built, or the pool not be made of them.
    """
    shape = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    return LearngenePool([named_network(options, shape) for options in instances], pairs, window, stride, narrowing=narrowing)


@register(cfg=CFG)
def learngene_stitched(
    front: Mapping[str, Any] = SIZES[0],
    back: Mapping[str, Any] = SIZES[-1],
    last: int = 2,
    first: int = 3,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> StitchedNetwork:
    """Build a `StitchedNetwork` of two networks by name, as `LearngenePool.build` copies it out of a pool.

    Args:
        front: name for `create_model` and options of the network that gives embedding and first blocks.
        back: the same of the one that gives last blocks, norm and head.
        last: number of the front's last block.
        first: number of the back's first block.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if a network cannot be built or cut so.
    """
    shape = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    networks = [named_network(front, shape), named_network(back, shape)]
    _agreeing(networks)
    return StitchedNetwork(networks[0], networks[1], last, first)
