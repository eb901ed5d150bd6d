"""Weights as mixtures of templates, W = sum_k c_k T_k, and the block matrix of a grown layer (Pham et al. 2024, arXiv 2311.04251)."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown

Init = Literal["orthogonal", "copy", "zero", "random", "none"]
INITS: tuple[Init, ...] = ("orthogonal", "copy", "zero", "random", "none")
OrthogonalMode = Literal["exact", "reference"]
ORTHOGONAL_MODES: tuple[OrthogonalMode, ...] = ("exact", "reference")
TemplateInit = Literal["member", "stack"]
TEMPLATE_INITS: tuple[TemplateInit, ...] = ("member", "stack")
SETS = 2  # a set of templates for each of the two members


def template_counts(templates: Any, name: str = "") -> tuple[int, int]:
    """Read how many templates each of the two sets of a layer has.

    Args:
        templates: K of both, or a pair, or a table of such by names of layers, with wildcards; later lines of it overrule earlier ones.
        name: the layer's.

    Raises:
        ArgumentError: if it is none of these, a number is below 1, or the table has no line for the layer.

    >>> template_counts(2), template_counts([4, 3]), template_counts({"*": 2, "layer4.*": 3}, "layer4.0.conv1")
    ((2, 2), (4, 3), (3, 3))
    """
    said = templates
    if isinstance(templates, Mapping):
        found = [value for pattern, value in templates.items() if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ArgumentError(f'`templates` has no line for the layer "{name}". Add one for all others: {{"*": 2, ...}}.')
        said = found[-1]
    pair = list(said) if isinstance(said, Sequence) and not isinstance(said, str) else [said] * SETS
    if len(pair) != SETS or not all(isinstance(count, int) and not isinstance(count, bool) and count >= 1 for count in pair):
        raise ArgumentError(f"`templates` must be at least 1, or a pair of such for the two sets, got {said!r}. The paper has 2 on CIFAR.")
    return pair[0], pair[1]


def check_table(table: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a line of a table of `templates` that belongs to no layer.

    Args:
        table: by names of layers, with wildcards.
        names: of the layers.

    Raises:
        ArgumentError: naming the line.
    """
    for pattern in table:
        if not fnmatch.filter(names, pattern):
            raise unknown("convert", "layer for `templates`", pattern, names, "Names are those of network.named_modules().")


def fresh_templates(shape: Sequence[int], counts: Sequence[int], init: TemplateInit = "member") -> list[nn.Parameter]:
    """Draw a set of templates for each member, Kaiming normal.

    Args:
        shape: of a template: outputs, inputs, and the kernel.
        counts: K of each set.
        init: "member" for the inputs of a member's layer; "stack" as the released code does, which takes all numbers of a template for
            inputs, so that they are smaller by the square root of a member's outputs.

    Raises:
        ArgumentError: if there is no such `init`.
    """
    if init not in TEMPLATE_INITS:
        raise unknown("MixtureGrowthNet", "`template_init`", init, TEMPLATE_INITS)
    sets = [torch.empty(count, *shape) for count in counts]
    for drawn in sets:
        for part in drawn if init == "member" else [drawn]:
            nn.init.kaiming_normal_(part)
    return [nn.Parameter(drawn) for drawn in sets]


def block_numbers(rows: int, columns: int) -> list[list[int]]:
    """Number the blocks of a grown weight: member 0 at the top left, member 1 at the bottom right, the rest row by row from 2.

    Args:
        rows: parts of the outputs.
        columns: parts of the inputs.

    >>> block_numbers(2, 2), block_numbers(2, 1), block_numbers(1, 2)
    ([[0, 2], [3, 1]], [[0], [1]], [[0, 1]])
    """
    last = rows * columns - 1
    numbers = [0, *range(2, last + 1), 1] if last else [0]
    return [numbers[row * columns : (row + 1) * columns] for row in range(rows)]


def least_covered(earlier: Float[Tensor, "vectors templates"]) -> Float[Tensor, " templates"]:
    """Return the unit vector that earlier vectors cover least: orthogonal to all of them where there are fewer than numbers in each.

    It is the last right singular vector of the matrix of the earlier ones; of its two signs, that which makes its largest number positive.

    >>> least_covered(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).tolist()
    [0.0, 0.0, 1.0]
    """
    direction = torch.linalg.svd(earlier.cpu().double(), full_matrices=True).Vh[-1].to(earlier)  # not every device has doubles
    return direction * torch.where(direction[direction.abs().argmax()] < 0, -1.0, 1.0)


class TemplateWeight(nn.Module):
    """The coefficients of one layer's weight, which mix the templates of two sets into the weights of both members and of the grown layer.

    Block b of the grown weight is made of set b mod 2: the trained members lie on the diagonal, and only coefficients are new beside it.

    Args:
        shape: of the grown layer's weight: outputs, inputs of a group, and the kernel.
        rows: parts of the outputs; 1 where members have all of them (a classifier).
        columns: parts of the inputs; 1 where members have all of them (a stem, or a convolution in groups).
        templates: K of both sets, or of each; a bank may hold more, of which the first are taken.
        order: where each input of the grown layer lies among the inputs of the parts, one behind the other; None: in this order.

    Raises:
        ArgumentError: if `templates` is below 1, or neither side has parts.
        ShapeError: if a side cannot be divided.

    >>> layer = TemplateWeight((4, 4), 2, 2)
    >>> sets = fresh_templates(layer.template_shape, layer.counts)
    >>> layer(sets, None).shape, layer(sets, 0).shape
    (torch.Size([4, 4]), torch.Size([2, 2]))
    """

    def __init__(
        self, shape: Sequence[int], rows: int, columns: int, templates: int | Sequence[int] = 2, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.counts = template_counts(templates)
        if rows * columns < SETS:
            raise ArgumentError(f"TemplateWeight: a weight of {tuple(shape)} in {rows} x {columns} parts has no place for two members.")
        if shape[0] % rows or shape[1] % columns:
            raise ShapeError(
                f"TemplateWeight: {shape[0]} outputs and {shape[1]} inputs cannot be divided into {rows} and {columns} equal parts. "
                "Choose widths that can."
            )
        self.blocks = block_numbers(rows, columns)
        self.template_shape = (shape[0] // rows, shape[1] // columns, *shape[2:])
        self.order: Tensor | None
        plain = order is None or list(order) == list(range(len(order)))
        self.register_buffer("order", None if plain else torch.tensor(order), persistent=False)
        if self.alike:  # all vectors of one orthogonal matrix, as far as K allows
            drawn = list(nn.init.orthogonal_(torch.empty(rows * columns, self.counts[0])))
        else:
            drawn = [torch.randn(self.counts[number % SETS]) for number in range(rows * columns)]
        self.coefficients = nn.ParameterList([nn.Parameter(nn.functional.normalize(row, dim=0)) for row in drawn])

    @property
    def alike(self) -> bool:
        """Whether both sets have as many templates."""
        return self.counts[0] == self.counts[1]

    def block(self, sets: Sequence[Tensor], number: int) -> Tensor:
        """Mix block `number`, of set `number` mod 2."""
        side = number % SETS
        return torch.tensordot(self.coefficients[number], sets[side][: self.counts[side]], dims=1)

    def forward(self, sets: Sequence[Tensor], member: int | None) -> Tensor:
        """Mix the weight of a member, or of the grown layer where `member` is None.

        Args:
            sets: the templates of both, each [K, outputs, inputs, ...].
            member: 0, 1 or None.
        """
        if member is not None:
            return self.block(sets, member)
        whole = torch.cat([torch.cat([self.block(sets, number) for number in row], 1) for row in self.blocks])
        return whole if self.order is None else whole[:, self.order]

    @torch.no_grad()
    def grow(self, init: Init = "orthogonal", scale: float = 1.0, noise: float = 0.0, orthogonal_mode: OrthogonalMode = "exact") -> None:
        """Set the coefficients of the blocks that no member has (section 3.3).

        Args:
            init: "orthogonal" to earlier coefficients; "copy" those of the member whose set it is; "zero", which makes the grown network
                the sum of the members; "random", uniform in [0, 1); "none" keeps what was drawn when the layer was made.
            scale: norm of "orthogonal", factor of "random".
            noise: standard deviation of what is added to "copy".
            orthogonal_mode: "exact" is orthogonal to all earlier vectors where K allows, else to those of the same set, else the direction
                that these cover least. "reference" does as the official code does: block 2 keeps what was drawn, and later ones are the
                direction that all earlier vectors cover least, which for K = 2 is orthogonal to none.

        Raises:
            ArgumentError: if there is no such `init` or `orthogonal_mode`, or "copy" meets sets of different sizes.
        """
        if init not in INITS:
            raise unknown("grow", "`init`", init, INITS)
        if orthogonal_mode not in ORTHOGONAL_MODES:
            raise unknown("grow", "`orthogonal_mode`", orthogonal_mode, ORTHOGONAL_MODES)
        if init == "copy" and not self.alike and len(self.coefficients) > SETS:
            raise ArgumentError(
                f'grow: "copy" needs as many templates in both sets, and a layer has {self.counts[0]} and {self.counts[1]}. Take another '
                f"`init`: {', '.join(INITS[:1] + INITS[2:])}."
            )
        for number in range(SETS, len(self.coefficients)):
            vector, member = self.coefficients[number], self.coefficients[number % SETS]
            if init == "zero":
                vector.zero_()
            elif init == "copy":
                vector.copy_(member + noise * torch.randn_like(member))
            elif init == "random":
                vector.copy_(scale * torch.rand_like(vector))
            elif init == "orthogonal" and (orthogonal_mode == "exact" or number > SETS):
                earlier = list(self.coefficients[:number])
                if not self.alike or (orthogonal_mode == "exact" and number >= self.counts[0]):
                    earlier = earlier[number % SETS :: SETS]
                vector.copy_(scale * least_covered(torch.stack(earlier)))
