"""Stitches between blocks of two networks: which positions share one linear layer, and with what it begins.

The pool of learngenes (Shi et al. 2024, arXiv 2312.05743) takes the positions of SN-Net (Pan et al. 2023, arXiv 2302.06586), and begins
with what distillation has learned instead of SN-Net's least squares.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError
from retinue.models.modes import evaluating
from retinue.models.probe import trial_images
from retinue.models.protocol import taps

Inverse = Literal["transposed", "pseudo_inverse"]
FITTING = (
    "Take a timm ViT or DeiT, a CAE encoder or an MLP-Mixer, whose blocks all see the same tokens; convolutional and hierarchical networks "
    "do not fit."
)
TOLERANCE = 1e-5  # of the largest value: the same sums in the same order
RIDGE = 1e-3  # of the mean square of the features, where least squares has too few rows


class Tokens(NamedTuple):
    """What the blocks of a network see: `depth` blocks, `number` tokens of `width` channels, `prefix` of them before the patches."""

    depth: int
    number: int
    width: int
    prefix: int
    shape: tuple[int, int, int]  # of an image: channels, height, width


class Configuration(NamedTuple):
    """One network out of a pool: the embedding and first blocks of one instance, a stitch, the last blocks and head of another.

    Attributes:
        front: number of the instance whose embedding and blocks 0 to `last` run.
        back: number of the instance whose blocks from `first` on, norm and head run; equal to `front` for an instance alone.
        last: a, the last block of the front.
        first: b, the first block of the back; the number of blocks for an instance alone.

    >>> str(Configuration(0, 2, 1, 2))
    '0.1-2.2'
    """

    front: int
    back: int
    last: int
    first: int

    @property
    def alone(self) -> bool:
        """Whether it is one instance, without a stitch."""
        return self.front == self.back

    def __str__(self) -> str:
        return str(self.front) if self.alone else f"{self.front}.{self.last}-{self.back}.{self.first}"


def stitch_pairs(depth: int, window: int = 2, stride: int = 1) -> list[tuple[int, int, int]]:
    """List the positions of stitches between two networks of as many blocks, and the linear layer of each.

    A window slides over the blocks. Every (a, b) with both in it that no earlier window had belongs to its layer: block a of the front goes
    through that layer into block b of the back.

    Args:
        depth: n, blocks of each network.
        window: blocks that a window covers.
        stride: blocks by which it moves on.

    Returns:
        (a, b, layer), in the order of the layers.

    Raises:
        ArgumentError: if a number is below 1, or the window wider than the network is deep.

    >>> stitch_pairs(3)
    [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 1, 1), (2, 2, 1)]
    """
    for name, value in (("depth", depth), ("window", window), ("stride", stride)):
        if value < 1:
            raise ArgumentError(f"stitch_pairs: `{name}` must be at least 1, got {value}. The paper has window=2 and stride=1.")
    if window > depth:
        raise ArgumentError(f"stitch_pairs: `window` must be at most the {depth} blocks of a network, got {window}. The paper has 2.")
    layers: dict[tuple[int, int], int] = {}
    for start in range(0, depth, stride):
        inside = range(start, min(start + window, depth))
        fresh = [(a, b) for a in inside for b in inside if (a, b) not in layers]
        layer = 1 + max(layers.values(), default=-1)
        layers.update(dict.fromkeys(fresh, layer))
    return [(a, b, layer) for (a, b), layer in layers.items()]


def map_weight(
    front: Sequence[Float[Tensor, "narrow teacher"]],
    back: Sequence[Float[Tensor, "wide teacher"]] | None = None,
    inverse: Inverse = "transposed",
) -> Float[Tensor, "wide narrow"]:
    """Make a stitch's weight of the maps that distillation learned from the teacher's width down to an instance's.

    The front's maps are averaged and turned round: what leads from the front to the teacher leads to a back of the teacher's width. To a
    back of another width it is led on by that back's own averaged map (ours: the paper stitches into an instance of the teacher's width).

    Args:
        front: of the narrow instance, one for each depth that was supervised.
        back: of the wide one; None where it is as wide as the teacher.
        inverse: "transposed" (the paper's, approximate), or "pseudo_inverse".

    Raises:
        ArgumentError: if there is no map, or no such inverse.
    """
    if inverse not in ("transposed", "pseudo_inverse"):
        raise ArgumentError(f'map_weight: `inverse` must be "transposed" or "pseudo_inverse", got {inverse!r}.')
    if not len(front) or (back is not None and not len(back)):
        raise ArgumentError("map_weight: there must be one learned map at least for each side. Distil with the blocks' outputs.")
    down = torch.stack(list(front)).mean(0)
    up = down.T if inverse == "transposed" else torch.linalg.pinv(down)
    return up.contiguous() if back is None else torch.stack(list(back)).mean(0) @ up


def least_squares(
    features: Float[Tensor, "rows narrow"], targets: Float[Tensor, "rows wide"]
) -> tuple[Float[Tensor, "wide narrow"], Float[Tensor, " wide"]]:
    """Fit weight and bias of the linear layer that comes nearest to turning features into targets: [W b] = pinv([F 1]) E (SN-Net).

    Args:
        features: F, one row a token of an image: what leaves block a of the front.
        targets: E, the same tokens, as they enter block b of the back.

    Returns:
        Weight and bias, computed in double precision. With fewer rows than columns of [F 1] a warning is given, and a small ridge chooses
        among the solutions.

    Raises:
        ShapeError: if the rows differ in number.
    """
    rows, columns = len(features), features.shape[1] + 1
    if len(targets) != rows:
        raise ShapeError(f"least_squares: features and targets must be of the same tokens, got {rows} and {len(targets)} rows.")
    known = torch.cat([features.double(), features.new_ones(rows, 1, dtype=torch.float64)], 1)
    if rows >= columns:
        found = torch.linalg.pinv(known) @ targets.double()
    else:
        warnings.warn(
            f"least_squares: {rows} tokens cannot determine {columns} numbers for each output, so a ridge is used. Give more images.",
            stacklevel=2,
        )
        gram = known.T @ known
        penalty = RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
        found = torch.linalg.solve(gram + penalty * torch.eye(columns, dtype=gram.dtype, device=gram.device), known.T @ targets.double())
    found = found.to(features.dtype)
    return found[:-1].T.contiguous(), found[-1]


class StitchedNetwork(nn.Module):
    """The embedding and first blocks of one network, a linear layer on each token, and the last blocks, norm and head of another.

    Its parts share their parameters with the two networks; a deep copy has its own.

    Args:
        front: gives embedding and blocks 0 to `last`.
        back: gives the blocks from `first` on, norm and head; of as many tokens.
        last: a, number of the front's last block.
        first: b, number of the back's first block.
        stitch: from the front's width to the back's; None makes a new linear layer, or the identity where both widths are equal.

    Raises:
        ArgumentError: if there is no such block.
    """

    def __init__(self, front: nn.Module, back: nn.Module, last: int, first: int, stitch: nn.Module | None = None) -> None:
        super().__init__()
        networks: list[Any] = [front, back]
        for name, block, network in (("last", last, networks[0]), ("first", first, networks[1])):
            if not 0 <= block < len(network.blocks):
                raise ArgumentError(f"StitchedNetwork: `{name}` must be a block from 0 to {len(network.blocks) - 1}, got {block}.")
        self.front: Any = _cut(front, range(last + 1), tail=False)
        self.stitch = stitch if stitch is not None else new_stitch(networks[0].num_features, networks[1].num_features)
        self.back: Any = _cut(back, range(first, len(networks[1].blocks)), embedding=False)
        self.num_classes: int = networks[1].num_classes
        self.num_features: int = networks[1].num_features
        self.head_hidden_size: int = getattr(back, "head_hidden_size", self.num_features)
        self.num_prefix_tokens = getattr(self.back, "num_prefix_tokens", 0)
        self.in_chans = in_channels(front)
        self.adaptation: list[str] = list(getattr(front, "adaptation", []))
        before, after = taps(front, "front.")[: last + 1], taps(back)[first:]
        self.feature_info = [*before, *({**tap, "module": f"back.blocks.{i}"} for i, tap in enumerate(after))]

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.back.get_classifier()

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place of the old one; 0 leaves it out."""
        self.back.reset_classifier(num_classes)
        self.num_classes = num_classes

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Compute the tokens behind the last norm."""
        x = self.stitch(self.front.forward_features(x))
        for block in self.back.blocks:
            x = block(x)
        return self.back.norm(x)

    def forward_head(self, x: Float[Tensor, "batch tokens dim"], pre_logits: bool = False) -> Float[Tensor, "batch out"]:
        """Classify the tokens, or only pool them where `pre_logits`."""
        return self.back.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))


def new_stitch(narrow: int, wide: int) -> nn.Module:
    """Make a stitch: a linear layer on each token, or the identity where both widths are equal."""
    return nn.Identity() if narrow == wide else nn.Linear(narrow, wide)


def in_channels(network: nn.Module) -> int:
    """Return the channels of a network's images."""
    first = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)
    return int(getattr(network, "in_chans", first))


@torch.no_grad()
def block_outputs(network: nn.Module, images: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
    """Compute, in evaluation mode, what enters the first block of a network, and what leaves each block."""
    seen: list[Tensor] = []
    blocks: Any = network.blocks
    hooks = [blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))]
    hooks += [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in blocks]
    try:
        with evaluating(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def tokens_of(network: nn.Module, who: str = "the network") -> Tokens:
    """Look at what the blocks of a network see, and make sure that it can be cut between any two of them.

    Args:
        network: any; one on the meta device is only looked at.
        who: what it is called in an error.

    Raises:
        ArgumentError: if it is no embedding, flat list of blocks, norm and head, in timm's names; or computes more than these say.
    """
    kind = f"{who} ({type(network).__name__})"
    blocks = getattr(network, "blocks", None)
    parts = ("blocks", "norm", "forward_features", "forward_head", "reset_classifier")
    missing = [f"`{name}`" for name in parts if not hasattr(network, name)]
    if missing or not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        lacks = f"has no {' and no '.join(missing)}" if missing else "has no blocks in a list"
        raise ArgumentError(f"learngene_pool: {kind} {lacks}, so it cannot be cut between blocks. {FITTING}")
    images = trial_images(network, where="learngene_pool", batch=1)
    told: list[Any] = []  # what a block is given beside the tokens
    hooks = [block.register_forward_pre_hook(lambda _, a, k: told.extend([*a[1:], *k.values()]), with_kwargs=True) for block in blocks]
    try:
        seen: list[Any] = block_outputs(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    shapes = {tuple(tokens.shape) if isinstance(tokens, Tensor) else (type(tokens).__name__,) for tokens in seen}
    if len(seen) != len(blocks) + 1 or len(shapes) != 1 or len(seen[0].shape) != 3:
        each = ", ".join(str(shape) for shape in sorted(shapes, key=str)[:3])
        raise ArgumentError(f"learngene_pool: the blocks of {kind} see {each}, and not the same tokens one after the other. {FITTING}")
    if any(thing is not None for thing in told):
        raise ArgumentError(f"learngene_pool: {kind} gives its blocks more than the tokens, such as rotary positions. {FITTING}")
    if len(blocks) > 1 and not _can_be_cut(network, images):
        raise ArgumentError(f"learngene_pool: {kind} computes more than embedding, blocks, norm and head, one after the other. {FITTING}")
    _, number, width = seen[0].shape
    channels, height, side = images.shape[1:]
    return Tokens(len(blocks), number, width, int(getattr(network, "num_prefix_tokens", 0)), (channels, height, side))


@torch.no_grad()
def _can_be_cut(network: nn.Module, images: Tensor) -> bool:
    """Tell whether a network that is cut behind its first block and joined again computes the same."""
    joined, whole = StitchedNetwork(network, network, 0, 1, nn.Identity()), cast(Any, network)
    with evaluating(network):
        try:
            pairs = [(whole.forward_features(images), joined.forward_features(images)), (whole(images), joined(images))]
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
    largest = [0.0 if a.is_meta else float(a.nan_to_num().abs().max()) for a, _ in pairs]  # NaN is the loss's to tell
    return all(a.is_meta or torch.allclose(b, a, rtol=0, atol=TOLERANCE * most, equal_nan=True) for (a, b), most in zip(pairs, largest))


def _cut(network: nn.Module, blocks: range, *, embedding: bool = True, tail: bool = True) -> nn.Module:
    """Copy a network's shell, with some of its blocks, and without what comes before or after them; parameters are shared."""
    shell = network.__class__.__new__(network.__class__)
    shell.__dict__.update(network.__dict__)
    children, kept = dict(network._modules), network._modules["blocks"]
    before = True
    for name, child in network._modules.items():
        if name == "blocks":
            before = False
            children[name] = type(kept)(*_of(kept, blocks)) if isinstance(kept, nn.Sequential) else nn.ModuleList(_of(kept, blocks))
            children[name].training = kept.training  # type: ignore[union-attr]
        elif child is not None and not (embedding if before else tail):
            children[name] = nn.Identity()
    shell.__dict__["_modules"] = children
    for kind in ("_parameters", "_buffers"):  # such as positions and class token
        own = dict(network.__dict__[kind])
        shell.__dict__[kind] = own if embedding else dict.fromkeys(own)
    shell.__dict__.pop("retinue_config", None)
    return shell


def _of(blocks: Any, numbers: range) -> list[nn.Module]:
    return [blocks[i] for i in numbers]
