"""MixtureGrowth's layers, for networks built by hand: a convolution, a linear layer and a batch norm of two members (arXiv 2311.04251).

Before growth a layer works at the width of the member that `run_member` chose, and afterwards at full width; so it stands in a network
like any other layer. `convert` does the same for whole networks, with the same `TemplateWeight`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.template_weights import (
    SETS,
    Init,
    OrthogonalMode,
    TemplateWeight,
    fresh_templates,
)


def parts_of(member_frac: float) -> int:
    """Return into how many parts widths are divided.

    Args:
        member_frac: width of a member, 1/2, 1/3, ... of the network's.

    Raises:
        ArgumentError: if it is no such fraction.

    >>> parts_of(0.5), parts_of(1 / 3)
    (2, 3)
    """
    parts = round(1 / member_frac) if 0 < member_frac <= 0.5 else 0
    if not parts or abs(parts * member_frac - 1) > 0.02:
        raise ArgumentError(f"`member_frac` must be 1/2, 1/3, 1/4, ..., got {member_frac}. The paper has 0.5.")
    return parts


def check_member(member: int | None, grown: bool, active: int) -> int | None:
    """Return which member runs, or None for the wide network.

    Args:
        member: 0 or 1 before growth; None: what runs by itself.
        grown: whether there is nothing but the wide network any more.
        active: the member that runs by itself before growth.

    Raises:
        ArgumentError: if there is no such member, or no member any more.
    """
    if member is None:
        return None if grown else active
    if grown:
        raise ArgumentError(f"`member` is {member}, and after growth there are no members any more. Leave it out.")
    if member not in range(SETS):
        raise ArgumentError(f"`member` must be 0, 1 or None, got {member!r}.")
    return member


def flag(tensor: Tensor) -> int:
    """Read a buffer of one number; on the meta device, where none has a value, as 0."""
    return 0 if tensor.is_meta else int(tensor)


def side_by_side(wide: Tensor, first: Tensor, last: Tensor, dim: int = 0, order: Sequence[int] | None = None) -> Tensor:
    """Put what members have of each channel one behind the other; what neither has stays as it is in the middle.

    Args:
        wide: such as a new norm's: weight 1, bias 0, mean 0, variance 1.
        first: of member 0.
        last: of member 1.
        dim: of the channels.
        order: where each channel lies among those of the parts; None: in this order.
    """
    each = first.shape[dim]
    joined = torch.cat([first, wide.narrow(dim, each, wide.shape[dim] - 2 * each), last], dim)
    return joined if order is None else joined.index_select(dim, torch.tensor(list(order), device=joined.device))


class MemberLayer(nn.Module):
    """What the three layers share: whether they have grown, and which member runs before that."""

    grown: Tensor
    active: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grown", torch.zeros((), dtype=torch.bool))
        self.register_buffer("active", torch.zeros((), dtype=torch.long))

    def running(self, member: int | None) -> int | None:
        """Return which member runs, or None for the wide layer."""
        try:
            return check_member(member, bool(flag(self.grown)), flag(self.active))
        except ArgumentError as error:
            raise ArgumentError(f"{type(self).__name__}: {error}") from None

    def grow(self, init: Init, scale: float, noise: float, orthogonal_mode: OrthogonalMode) -> None:
        """Become the wide layer."""
        raise TypeError(f"{type(self).__name__} does not say how it grows.")

    def plain(self, member: int | None) -> nn.Module:
        """Build the ordinary layer of a member, or the wide one."""
        raise TypeError(f"{type(self).__name__} does not say what it computes.")


class _TemplateLayer(MemberLayer):
    """A layer whose weight is mixed of templates of its own."""

    def __init__(self, shape: Sequence[int], rows: int, columns: int, templates: int | Sequence[int], bias: bool) -> None:
        super().__init__()
        self.mixture = TemplateWeight(shape, rows, columns, templates)
        self.templates = nn.ParameterList(fresh_templates(self.mixture.template_shape, self.mixture.counts))
        narrow = self.mixture.template_shape[0]
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(narrow)) for _ in range(SETS if bias else 0))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None

    def weight(self, member: int | None) -> Tensor:
        """Mix the weight of a member, or the wide one."""
        return self.mixture(list(self.templates), member)

    def own_bias(self, member: int | None) -> Tensor | None:
        """Return the bias of a member, or the wide one."""
        return self.bias if self.bias is None or member is None else self.biases[member]

    @torch.no_grad()
    def grow(self, init: Init, scale: float, noise: float, orthogonal_mode: OrthogonalMode) -> None:
        """Set new coefficients, and put the biases together: of a layer whose outputs are shared it is their sum."""
        self.mixture.grow(init, scale, noise, orthogonal_mode)
        if self.bias is not None:
            first, last = self.biases
            self.bias.copy_(first + last if first.shape == self.bias.shape else side_by_side(self.bias, first, last))
        self.grown.fill_(True)


class TemplateConv2d(_TemplateLayer):
    """A convolution without bias whose weights are mixed of templates, first of a member's and then of the wide width (section 3.1).

    Args:
        in_channels: of the wide layer.
        out_channels: of the wide layer.
        kernel_size: side of the kernel.
        stride: of the convolution.
        padding: on each side.
        templates: K of both sets, or of each.
        member_frac: width of a member, 1/2, 1/3, ... of the layer's.
        fixed_in: members see all inputs, as a stem does.

    Raises:
        ArgumentError: if `templates` is below 1 or `member_frac` is no such fraction.
        ShapeError: if a width cannot be divided.

    >>> layer = TemplateConv2d(8, 16, 3, padding=1)
    >>> layer(torch.zeros(1, 4, 5, 5), member=1).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        templates: int | Sequence[int] = 2,
        member_frac: float = 0.5,
        fixed_in: bool = False,
    ) -> None:
        parts = parts_of(member_frac)
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, parts, 1 if fixed_in else parts, templates, bias=False)
        self.stride, self.padding = stride, padding

    def forward(self, x: Float[Tensor, "batch channels height width"], member: int | None = None) -> Float[Tensor, "batch out h w"]:
        """Compute the convolution.

        Args:
            x: the map.
            member: 0 or 1, before growth; None is what runs.
        """
        return F.conv2d(x, self.weight(self.running(member)), None, self.stride, self.padding)

    def plain(self, member: int | None) -> nn.Module:
        """Build the ordinary convolution of a member, or the wide one."""
        own = {"kernel_size": self.mixture.template_shape[2], "stride": self.stride, "padding": self.padding}
        return _with(self.weight(member), None, nn.Conv2d, **own)


class TemplateLinear(_TemplateLayer):
    """A linear layer whose weights are mixed of templates.

    Args:
        in_features: of the wide layer.
        out_features: of the wide layer.
        templates: K of both sets, or of each.
        member_frac: width of a member, 1/2, 1/3, ... of the layer's.
        fixed_in: members see all inputs.
        fixed_out: members have all outputs, as a classifier does; the wide layer then gives the sum of theirs.
        bias: add a bias, which is no mixture.

    Raises:
        ArgumentError: if `templates` is below 1, `member_frac` is no such fraction, or neither side can grow.
        ShapeError: if a width cannot be divided.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        templates: int | Sequence[int] = 2,
        member_frac: float = 0.5,
        fixed_in: bool = False,
        fixed_out: bool = False,
        bias: bool = False,
    ) -> None:
        parts = parts_of(member_frac)
        super().__init__((out_features, in_features), 1 if fixed_out else parts, 1 if fixed_in else parts, templates, bias)

    def forward(self, x: Float[Tensor, "*batch features"], member: int | None = None) -> Float[Tensor, "*batch out"]:
        """Compute the linear layer.

        Args:
            x: features.
            member: 0 or 1, before growth; None is what runs.
        """
        member = self.running(member)
        return F.linear(x, self.weight(member), self.own_bias(member))

    def plain(self, member: int | None) -> nn.Module:
        """Build the ordinary linear layer of a member, or the wide one."""
        return _with(self.weight(member), self.own_bias(member), nn.Linear)


class MemberBatchNorm2d(MemberLayer):
    """Batch norms of both members, and after growth one of all channels: theirs, one behind the other (section 3.2).

    Args:
        num_features: channels of the wide layer.
        member_frac: width of a member, 1/2, 1/3, ... of the layer's.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.

    Raises:
        ArgumentError: if `member_frac` is no such fraction, or the channels cannot be divided.
    """

    def __init__(self, num_features: int, member_frac: float = 0.5, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        parts = parts_of(member_frac)
        if num_features % parts:
            raise ArgumentError(
                f"MemberBatchNorm2d: {num_features} channels cannot be divided into {parts} equal parts. Choose a width that can."
            )
        self.members = nn.ModuleList(nn.BatchNorm2d(num_features // parts, eps, momentum) for _ in range(SETS))
        self.full = nn.BatchNorm2d(num_features, eps, momentum)

    def forward(self, x: Float[Tensor, "batch channels h w"], member: int | None = None) -> Float[Tensor, "batch channels h w"]:
        """Normalise by the norm of a member, or by the wide one.

        Args:
            x: the map.
            member: 0 or 1, before growth; None is what runs.
        """
        return self._norm(self.running(member))(x)

    def _norm(self, member: int | None) -> Any:
        return self.full if member is None else self.members[member]

    @torch.no_grad()
    def grow(self, init: Init, scale: float, noise: float, orthogonal_mode: OrthogonalMode) -> None:
        """Put weights, biases and running statistics of the members one behind the other."""
        first, last = (norm.state_dict() for norm in self.members)
        for name, tensor in self.full.state_dict().items():
            tensor.copy_(side_by_side(tensor, first[name], last[name]) if tensor.ndim else first[name])
        self.grown.fill_(True)

    def plain(self, member: int | None) -> nn.Module:
        """Copy the ordinary norm of a member, or the wide one."""
        norm = self._norm(member)
        copied: Any = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device, norm.weight.dtype)
        copied.load_state_dict(norm.state_dict())
        return copied


def member_layers(module: nn.Module) -> list[MemberLayer]:
    """List the layers of members in a network.

    Args:
        module: any.
    """
    return [layer for layer in module.modules() if isinstance(layer, MemberLayer)]


def run_member(module: nn.Module, member: int) -> nn.Module:
    """Let a network of these layers run as one of its members, before growth; and return it.

    Args:
        module: holds `TemplateConv2d`, `TemplateLinear` or `MemberBatchNorm2d`.
        member: 0 or 1.

    Raises:
        ArgumentError: if it has no such layer or member, or has grown.
    """
    layers = member_layers(module)
    if not layers:
        raise ArgumentError(f"run_member: {type(module).__name__} has no layer of members. Build it of TemplateConv2d and the like.")
    for layer in layers:
        layer.running(member)
        layer.active.fill_(member)
    return module


@torch.no_grad()
def _with(weight: Tensor, bias: Tensor | None, kind: Any, **options: Any) -> nn.Module:
    """Build an ordinary layer that holds copies of a weight and a bias."""
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype, **options)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer
