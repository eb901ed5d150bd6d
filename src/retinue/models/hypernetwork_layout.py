"""Which tensors of a network a hypernetwork generates: their names, shapes, and how large they should be at the start."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown

Init = Literal["hyperfan_in", "hyperfan_out", "match"]
INITS: tuple[Init, ...] = ("hyperfan_in", "hyperfan_out", "match")
MIXING = (nn.Linear, nn.modules.conv._ConvNd)  # layers whose weights have a fan
LEAST_SPREAD, SHARE_OF_MEAN = 0.01, 0.1  # of tensors that start constant: how far outputs of the hypernetwork around 1 move them


@dataclass(frozen=True)
class Slot:
    """A generated tensor.

    Attributes:
        name: of the parameter in the target.
        aliases: all names under which the target holds it, the first being `name`.
        shape: of the tensor.
        role: "weight" of a linear or convolutional layer, its "bias", or "other".
        fans: numbers of inputs and outputs of a unit, for weights.
        with_bias: the bias of the same layer is generated too (for biases: its weight is).
    """

    name: str
    aliases: tuple[str, ...]
    shape: torch.Size
    role: Literal["weight", "bias", "other"]
    fans: tuple[int, int]
    with_bias: bool

    @property
    def numel(self) -> int:
        """Numbers in the tensor."""
        return self.shape.numel()


def find_slots(target: nn.Module, generate: str | Sequence[str]) -> list[Slot]:
    """List the tensors that are to be generated, in the target's order.

    Args:
        target: the network; a parameter that does not require a gradient stays as it is unless it is named.
        generate: "all", or names of parameters; the wildcards `*` and `?` are allowed.

    Raises:
        ArgumentError: if a name is no parameter, one tensor is named twice, or nothing remains to be generated.
    """
    names: dict[Tensor, list[str]] = {}
    for name, parameter in target.named_parameters(remove_duplicate=False):
        if isinstance(parameter, nn.UninitializedParameter):
            raise ArgumentError(f"HyperNetwork: `{name}` of the target has no shape yet. Run the target once on an image first.")
        names.setdefault(parameter, []).append(name)
    every = {name: parameter for parameter, own in names.items() for name in own}
    if generate == "all":
        chosen = [parameter for parameter in names if parameter.requires_grad and parameter.is_floating_point()]
    else:
        chosen = _named([generate] if isinstance(generate, str) else list(generate), names, every)
    if not chosen:
        raise ArgumentError(
            f"HyperNetwork: there is nothing to generate in {type(target).__name__}: no parameter that learns. Unfreeze it, or name some."
        )
    known = {every[name]: name for name in every}
    own = {parameter: names[parameter][0] for parameter in chosen}
    generated = set(own.values())
    return [_slot(target, own[parameter], tuple(names[parameter]), parameter, generated) for parameter in known if parameter in own]


def strip(target: nn.Module, slots: Sequence[Slot]) -> None:
    """Take the generated parameters out of a network: placeholders of the same shape, which hold no memory, stand in their place."""
    for slot in slots:
        like = target.get_parameter(slot.name)
        placeholder = torch.zeros((), dtype=like.dtype, device=like.device).expand(slot.shape)
        for alias in slot.aliases:
            path, _, last = alias.rpartition(".")
            layer = target.get_submodule(path)
            if layer._parameters.pop(last, None) is not None:  # a layer that stands at two places is met twice
                layer.register_buffer(last, placeholder, persistent=False)


def fill(target: nn.Module, slots: Sequence[Slot], tensors: dict[str, Tensor]) -> None:
    """Put parameters in place of the placeholders."""
    for slot in slots:
        parameter = nn.Parameter(tensors[slot.name].detach().clone().contiguous())
        for alias in slot.aliases:
            path, _, last = alias.rpartition(".")
            layer = target.get_submodule(path)
            layer._buffers.pop(last, None)
            layer._non_persistent_buffers_set.discard(last)
            layer.register_parameter(last, parameter)


def moments(target: nn.Module, slots: Sequence[Slot]) -> Float[Tensor, "2 slots"]:
    """Return mean and standard deviation of each tensor as the target has them."""
    with torch.no_grad():
        tensors = [target.get_parameter(slot.name).float() for slot in slots]
        return torch.stack([torch.stack([x.mean() for x in tensors]), torch.stack([x.std(correction=0) for x in tensors])])


def starting_moments(slots: Sequence[Slot], own: Float[Tensor, "2 slots"], init: Init, gain: float) -> Float[Tensor, "2 slots"]:
    """Return mean and standard deviation that each generated tensor should have at the start.

    "hyperfan_in" gives weights of linear and convolutional layers the variance gain / fan_in, and half of it where the layer's bias is
    generated too, whose variance is then gain / 2 (Chang, Flokas and Lipson 2020); "hyperfan_out" has fan_out in its place. All other
    tensors (norms' scales, position embeddings), and all of them with "match", have the moments that the target has.

    Args:
        slots: the tensors.
        own: the target's moments.
        init: one of the three.
        gain: 2 for networks of ReLU, 1 for linear ones.

    Raises:
        ArgumentError: if there is no such start.
    """
    if init not in INITS:
        raise unknown("HyperNetwork", "`init`", init, INITS)
    mean, std = own.clone()
    for i, slot in enumerate(slots if init != "match" else ()):
        if slot.role == "weight":
            fan = slot.fans[0] if init == "hyperfan_in" else slot.fans[1]
            mean[i], std[i] = 0.0, (gain / (2 if slot.with_bias else 1) / fan) ** 0.5
        elif slot.role == "bias" and slot.with_bias:
            mean[i], std[i] = 0.0, (gain / 2) ** 0.5
    return torch.stack([mean, std])


def movable(moments: Float[Tensor, "2 slots"]) -> Float[Tensor, "2 slots"]:
    """Give constant tensors some spread, so that outputs that all tensors share can move them."""
    mean, std = moments
    return torch.stack([mean, torch.where(std > 0, std, (SHARE_OF_MEAN * mean.abs()).clamp_min(LEAST_SPREAD))])


def _named(given: list[str], names: dict[Tensor, list[str]], every: dict[str, Tensor]) -> list[Tensor]:
    chosen: dict[Tensor, str] = {}
    for name in given:
        first = {own[0]: parameter for parameter, own in names.items()}
        found = {name: every[name]} if name in every else {one: first[one] for one in fnmatch.filter(first, name)}
        if not found:
            raise unknown("HyperNetwork", "parameter of the target", name, every, "`generate` takes names of parameters, such as fc.*")
        for one, parameter in found.items():
            if chosen.setdefault(parameter, one) != one:
                raise ArgumentError(
                    f"HyperNetwork: `{chosen[parameter]}` and `{one}` are one tied tensor, generated twice. Name one of them."
                )
    return list(chosen)


def _slot(target: nn.Module, name: str, aliases: tuple[str, ...], parameter: Tensor, generated: set[str]) -> Slot:
    path, _, last = name.rpartition(".")
    layer, prefix = target.get_submodule(path), f"{path}." if path else ""
    if isinstance(layer, MIXING) and last in ("weight", "bias"):
        other = "bias" if last == "weight" else "weight"
        together = prefix + other in generated
        if last == "bias":
            return Slot(name, aliases, parameter.shape, "bias", (1, 1), together)
        inputs, outputs = nn.init._calculate_fan_in_and_fan_out(parameter)
        fans = (outputs, inputs) if getattr(layer, "transposed", False) else (inputs, outputs)
        return Slot(name, aliases, parameter.shape, "weight", fans, together)
    return Slot(name, aliases, parameter.shape, "other", (1, 1), False)
