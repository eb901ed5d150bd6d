"""MixtureGrowth's network: two narrow members and the wide network that is mixed of their templates (Pham et al. 2024, arXiv 2311.04251).

It is built around any network of convolutions, linear layers and norms: that network is the wide one, and the members are copies of it at a
fraction of its width. Weights of convolutions and linear layers are mixed of templates; norms, biases and scales each network has itself.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model
from retinue.models.mixture_growth_layers import MemberLayer, check_member, flag, parts_of, side_by_side
from retinue.models.mixture_growth_networks import IMAGENET_TEMPLATES, resnet_v1_5, wide_resnet
from retinue.models.protocol import adapt, config
from retinue.models.template_members import narrowed
from retinue.models.template_probe import LAYERS, NORMS, Place, grid, probe
from retinue.models.template_trial import check_sum, trial
from retinue.models.template_weights import (
    SETS,
    Init,
    OrthogonalMode,
    TemplateInit,
    TemplateWeight,
    check_table,
    fresh_templates,
    template_counts,
)

log = logging.getLogger(__name__)
ARCHS = {"wrn": wide_resnet.__name__, "resnet": resnet_v1_5.__name__}
TABLES = {"imagenet": IMAGENET_TEMPLATES}
STAND_IN = 2  # outputs of the classifier that a network without one has while its places are sought

Templates = int | Sequence[int] | Mapping[str, Any] | str


class MixtureGrowthNet(nn.Module):
    """Two members and the wide network around whose architecture they are built; with timm's protocol.

    Before `grow` it computes what the member `active` does, and afterwards what the wide network does.

    Args:
        arch: "wrn", the paper's wide residual network for small images; "resnet", its ResNet v1.5 for ImageNet (depth=50, widen=4); or any
            network of convolutions, linear layers and norms, whose weights are not used and which stays as it is.
        depth: of a network by name.
        widen: factor of the widths of a network by name.
        templates: K of both sets of each layer; a pair, for each set; a table of those by names of layers, with wildcards, later lines
            overruling earlier ones; or "imagenet", the released code's table for "resnet" at depth 50, with `share`.
        member_frac: width of a member, 1/2, 1/3, ... of the network's.
        share: let layers whose templates have the same shape share them (the paper's banks, on ImageNet); coefficients stay their own,
            and a layer of fewer templates than another takes the first.
        template_init: how templates are drawn, "member" or "stack"; see `fresh_templates`.
        num_classes: outputs of the classifier of a network by name; 0 leaves it out.
        in_chans: channels of the images, of a network by name.
        input_size: side of the images, or height and width; None asks the network, or tries the usual ones.

    Raises:
        ArgumentError: if an option cannot be; naming the layer, if a width cannot be divided or the parts get mixed (by attention, say).

    >>> model = MixtureGrowthNet("wrn", depth=10, widen=1)
    >>> model(torch.zeros(1, 3, 32, 32), member=1).shape, model.num_features
    (torch.Size([1, 10]), 32)
    """

    grown: Tensor
    trained: Tensor
    active: Tensor

    def __init__(
        self,
        arch: str | nn.Module = "wrn",
        depth: int = 28,
        widen: int = 10,
        templates: Templates = 2,
        *,
        member_frac: float = 0.5,
        share: bool = False,
        template_init: TemplateInit = "member",
        num_classes: int = 10,
        in_chans: int = 3,
        input_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        try:
            self.parts = parts_of(member_frac)
        except ArgumentError as error:
            raise ArgumentError(f"convert: {error}") from None
        if isinstance(templates, str) and templates not in TABLES:
            raise unknown("convert", "table of `templates`", templates, TABLES)
        self.table: Any = TABLES[templates] if isinstance(templates, str) else templates
        self.share, self.template_init = share, template_init
        full, made = self._wide(arch, {"depth": depth, "widen": widen}, num_classes, in_chans, input_size)
        classes = full.num_classes
        if not classes:  # what would enter a classifier has to be found too
            full.reset_classifier(STAND_IN)
        sizes = trial(full, input_size or (made or {"arguments": {}})["arguments"].get("input_size"))
        self.places: dict[str, Place] = probe(full, self.parts, sizes)
        for name in self.places:
            layer: Any = full.get_submodule(name)
            if isinstance(layer, NORMS):
                layer.reset_parameters()
            elif layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.in_chans = int(getattr(full, "in_chans", 3))
        self.adaptation = list(getattr(full, "adaptation", []))
        self.feature_info: list[dict[str, Any]] = []  # taps of a network whose width changes would mislead
        self.full = full
        self.members = nn.ModuleList(narrowed(full, self.places, self.parts) for _ in range(SETS))
        self.names = {name.replace(".", "-"): name for name in self.places if isinstance(full.get_submodule(name), LAYERS)}
        if isinstance(self.table, Mapping):
            check_table(self.table, list(self.names.values()))
        self.classifier = next(key for key, name in self.names.items() if full.get_submodule(name) is full.get_classifier())
        self.weights, self.banks = nn.ModuleDict(), nn.ModuleDict()
        self.bank_of: dict[str, str] = {}
        self._add_weights(list(self.names))
        self.register_buffer("grown", torch.zeros((), dtype=torch.bool))
        self.register_buffer("trained", torch.zeros(SETS, dtype=torch.bool))
        self.register_buffer("active", torch.zeros((), dtype=torch.long))
        self.to(next(full.parameters()).device)
        check_sum(self, sizes)
        if not classes:
            self.reset_classifier(0)
        self._name(made, {"templates": templates, "member_frac": member_frac, "share": share, "template_init": template_init})

    def _wide(
        self, arch: str | nn.Module, options: dict[str, Any], num_classes: int, in_chans: int, input_size: Any
    ) -> tuple[Any, dict[str, Any] | None]:
        """Build or copy the wide network, and say what rebuilds it."""
        if isinstance(arch, str):
            if arch not in ARCHS:
                raise unknown("MixtureGrowthNet", "`arch`", arch, ARCHS, "For any other network: retinue.grow.convert(network).")
            full: Any = create_model(ARCHS[arch], num_classes=num_classes, in_chans=in_chans, input_size=input_size, **options)
            return full, config(full)
        if any(isinstance(layer, MemberLayer | MixtureGrowthNet) for layer in arch.modules()):
            raise ArgumentError(
                f"convert: {type(arch).__name__} is in template form already. Train and grow it as it is, or convert the ordinary network: "
                "retinue.grow.materialise(model)."
            )
        for name, layer in arch.named_modules():
            if isinstance(layer, LAYERS) and "weight" not in layer._parameters:
                raise ArgumentError(
                    f"convert: the weight of `{name}` is computed from other tensors (weight norm, pruning, ...), and here templates are "
                    "to compute it. Remove that first, such as by torch.nn.utils.parametrize.remove_parametrizations."
                )
        other = next((str(p.dtype) for p in arch.parameters() if p.dtype != torch.float32), None)
        if other is not None:
            raise ArgumentError(f"convert: the network has parameters of {other}, and templates are torch.float32. Give network.float().")
        return adapt(copy.deepcopy(arch), input_size=input_size), config(arch)

    def _name(self, made: dict[str, Any] | None, own: dict[str, Any]) -> None:
        """Note what rebuilds the network and its members, where `create_model` made what they are built around."""
        full: Any = self.full
        full.retinue_config = made
        if made is None:
            return
        common = ("num_classes", "in_chans", "input_size")
        arguments = copy.deepcopy(made["arguments"])
        options = {key: value for key, value in arguments.items() if key not in common}
        around = {"backbone": made["name"], "backbone_args": options, **{key: arguments[key] for key in common}}
        plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in own.items()}
        self.retinue_config = {"name": "mixture_growth", "arguments": {**around, **plain}}
        for member in self.members:
            member.retinue_config = {"name": "mixture_growth_member", "arguments": {**around, "member_frac": own["member_frac"]}}  # type: ignore[assignment]

    def _add_weights(self, keys: list[str]) -> None:
        """Make templates and coefficients of layers, in place of their weights."""
        most: dict[str, tuple[int, int]] = {}
        for key in keys:
            name = self.names[key]
            layer: Any = self.full.get_submodule(name)
            place = self.places[name]
            rows, columns = grid(layer, place, self.parts)
            try:
                counts = template_counts(self.table, name)
            except ArgumentError as error:
                raise ArgumentError(f"convert: {error}") from None
            weight = TemplateWeight(tuple(layer.weight.shape), rows, columns, counts, place.order if columns > 1 else None)
            shared = self.share and not place.fixed_out
            bank = "x".join(map(str, weight.template_shape)) if shared else key
            self.weights[key], self.bank_of[key] = weight, bank
            before = most.get(bank, counts)
            most[bank] = (max(before[0], counts[0]), max(before[1], counts[1]))
            for network in self.networks:
                del network.get_submodule(name)._parameters["weight"]
        shapes = {self.bank_of[key]: self.weights[key].template_shape for key in keys}
        for bank, counts in most.items():
            self.banks[bank] = nn.ParameterList(fresh_templates(shapes[bank], counts, self.template_init))  # type: ignore[arg-type]

    @property
    def networks(self) -> list[nn.Module]:
        """The wide network and both members."""
        return [self.full, *self.members]

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return self.full.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the last map of the network that runs."""
        return self._network(None).num_features  # type: ignore[return-value]

    @property
    def head_hidden_size(self) -> int:
        """What enters the classifier of the network that runs."""
        network: Any = self._network(None)
        return getattr(network, "head_hidden_size", None) or network.num_features

    def running_member(self, member: int | None) -> int | None:
        """Return which member runs, or None for the wide network.

        Args:
            member: as in `forward`.

        Raises:
            ArgumentError: if there is no such member, or no member any more.
        """
        try:
            return check_member(member, bool(flag(self.grown)), flag(self.active))
        except ArgumentError as error:
            raise ArgumentError(f"MixtureGrowthNet: {error}") from None

    def _network(self, member: int | None) -> nn.Module:
        member = self.running_member(member)
        return self.full if member is None else self.members[member]

    def mixed(self, member: int | None) -> dict[str, Tensor]:
        """Mix the weights of a member, or of the wide network where `member` is None, by the names of their layers."""
        banks: Any = self.banks
        return {name: self.weights[key](list(banks[self.bank_of[key]]), member) for key, name in self.names.items()}

    @torch.no_grad()
    def plain(self, member: int | None) -> nn.Module:
        """Build the ordinary network of a member, or the wide one (before growth with norms of its own and coefficients as drawn)."""
        network = copy.deepcopy(self.full if member is None else self.members[member])
        for name, weight in self.mixed(member).items():
            network.get_submodule(name).weight = nn.Parameter(weight.clone())
        for name in ("classes", "preprocessing"):  # of the data on which it was trained
            if hasattr(self, name):
                setattr(network, name, copy.deepcopy(getattr(self, name)))
        return network

    @contextmanager
    def running(self, member: int | None = None) -> Iterator[Any]:
        """Give the network that runs, with its weights in place; they are taken off on leaving."""
        member = self.running_member(member)
        network: Any = self.full if member is None else self.members[member]
        layers = [(network.get_submodule(name), weight) for name, weight in self.mixed(member).items()]
        for layer, weight in layers:
            layer.weight = weight
        try:
            yield network
        finally:
            for layer, _ in layers:
                del layer.weight

    def own_parameters(self, member: int | None) -> list[nn.Parameter]:
        """Return what learns with a member: its set of templates, its coefficients, its norms; of None what the wide network has."""
        side = self.running_member(member)
        if side is None:
            return [*self.banks.parameters(), *self.weights.parameters(), *self.full.parameters()]
        banks, weights = list[Any](self.banks.values()), list[Any](self.weights.values())
        return [*(bank[side] for bank in banks), *(weight.coefficients[side] for weight in weights), *self.members[side].parameters()]

    def norm_parameters(self, member: int | None) -> list[nn.Parameter]:
        """Return weights and biases of the norms of a member, or of the wide network where `member` is None and it has grown."""
        network = self._network(member)
        norms = [network.get_submodule(name) for name in self.places]
        return [parameter for norm in norms if isinstance(norm, NORMS) for parameter in norm.parameters()]

    def get_classifier(self) -> nn.Module:
        """Return the classifier of the network that runs; its weight is there only while it runs."""
        return self._network(None).get_classifier()  # type: ignore[operator]

    def reset_classifier(self, num_classes: int) -> None:
        """Make a new classifier with templates of its own in all three networks; 0 leaves it out, so that features come out.

        Args:
            num_classes: its outputs.
        """
        device = next(iter(self.banks.values()))[0].device  # type: ignore[index]
        key, name = self.classifier, next(name for name, place in self.places.items() if place.fixed_out)
        if key in self.names:
            del self.names[key], self.weights[key], self.banks[self.bank_of.pop(key)]
        for network in self.networks:
            network.reset_classifier(num_classes)  # type: ignore[operator]
        if num_classes:
            for network in self.networks:
                if network.get_submodule(name).bias is not None:
                    nn.init.zeros_(network.get_submodule(name).bias)  # type: ignore[arg-type]
            self.names[key] = name
            self._add_weights([key])
        self.to(device)

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute the last features of the network that runs."""
        with self.running() as network:
            return network.forward_features(x)

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify features of the network that runs, or only pool them where `pre_logits`."""
        with self.running() as network:
            return network.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Float[Tensor, "batch channels height width"], member: int | None = None) -> Float[Tensor, "batch ..."]:
        """Compute the logits.

        Args:
            x: normalised images.
            member: 0 or 1, before growth; None is the network that runs: the wide one after growth, the member `active` before.

        Raises:
            ArgumentError: if `member` is another, or given after growth.
        """
        with self.running(member) as network:
            return network(x)

    @torch.no_grad()
    def grow(
        self, init: Init = "orthogonal", scale: float = 1.0, noise: float = 0.0, orthogonal_mode: OrthogonalMode = "exact"
    ) -> "MixtureGrowthNet":
        """Become the wide network: new coefficients for what no member has, norms one behind the other (sections 3.2 and 3.3).

        The classifier's bias is the sum of the members', so that with "zero" the logits are the sum of theirs. A parameter of one number
        that both have is their mean.

        Args:
            init: "orthogonal", "copy", "zero", "random" or "none"; see `TemplateWeight.grow`.
            scale: of the new coefficients.
            noise: of "copy".
            orthogonal_mode: "exact" or "reference".

        Raises:
            ArgumentError: if it has grown already, or there is no such `init`.
        """
        if flag(self.grown):
            raise ArgumentError("grow: this network has grown already. Build it anew to grow it in another way.")
        untrained = [str(member) for member in range(SETS) if not flag(self.trained[member])]
        if untrained and not self.grown.is_meta:
            log.warning("grow: not trained: member %s. That part of what is grown is as it was drawn.", " and ".join(untrained))
        for weight in self.weights.values():
            weight.grow(init, scale, noise, orthogonal_mode)  # type: ignore[operator]
        first, last = (member.state_dict() for member in self.members)
        for name, tensor in self.full.state_dict().items():
            tensor.copy_(self._together(name, tensor, first[name], last[name]))
        self.grown.fill_(True)
        return self

    def _together(self, name: str, wide: Tensor, first: Tensor, last: Tensor) -> Tensor:
        layer, _, key = name.rpartition(".")
        place = self.places.get(layer)
        if wide.shape == first.shape:
            if place is not None and place.fixed_out and key == "bias":
                return first + last
            return (first + last) / 2 if wide.is_floating_point() else first
        dim = next(d for d, (a, b) in enumerate(zip(wide.shape, first.shape)) if a != b)
        ordered = place is not None and isinstance(self.full.get_submodule(layer), NORMS)
        return side_by_side(wide, first, last, dim, place.order if ordered and place is not None else None)
