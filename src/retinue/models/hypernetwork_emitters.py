"""The part of a hypernetwork that turns codes into weights: a trunk, and heads in one of four forms."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown

Emit = Literal["full", "multi_head", "component", "chunk"]
EMITS: tuple[Emit, ...] = ("full", "multi_head", "component", "chunk")
Trunk = Literal["mlp", "linear", "cnn", "rnn", "attention"]
TRUNKS: tuple[Trunk, ...] = ("mlp", "linear", "cnn", "rnn", "attention")
LIMIT = 1 << 28  # values of a hypernetwork, or of what it emits at once: one GiB in single precision


class Recurrent(nn.Module):
    """A gated recurrent network over the layers (or chunks) of the target, in their order.

    Args:
        inputs: length of a token.
        hidden: units of each layer; all alike.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden[-1], num_layers=len(hidden), batch_first=True)

    def forward(self, tokens: Float[Tensor, "codes tokens inputs"]) -> Float[Tensor, "codes tokens hidden"]:
        """Compute the states."""
        return self.gru(tokens)[0]


class Grid(nn.Module):
    """A small picture of weights, painted by transposed convolutions and read row by row.

    Args:
        inputs: length of a token.
        hidden: channels of each layer, which doubles the sides.
        outputs: weights; the picture is the smallest square of at least so many.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.side = math.ceil(math.ceil(math.sqrt(outputs)) / 2 ** len(hidden))
        self.first = nn.Linear(inputs, hidden[0] * self.side**2)
        layers: list[nn.Module] = []
        for channels, following in zip(hidden, [*hidden[1:], 1]):
            layers += [nn.ReLU(), nn.ConvTranspose2d(channels, following, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Float[Tensor, "codes tokens inputs"]) -> Float[Tensor, "codes tokens outputs"]:
        """Paint one picture a token."""
        grid = self.first(tokens).flatten(0, 1).unflatten(1, (-1, self.side, self.side))
        return self.layers(grid).flatten(1)[:, : self.outputs].unflatten(0, tokens.shape[:2])


class Emitter(nn.Module):
    """Codes to the numbers of all generated tensors, one after the other.

    Args:
        emit: "full": one head emits all numbers; "multi_head": one linear head a tensor on a shared trunk; "component": the same small
            network for each tensor, told which by a learned embedding, emits as many as the largest has and is cut; "chunk": the same for
            pieces of `chunk_size` numbers, of which what exceeds the last is dropped.
        trunk: "mlp", "linear" (the head alone), "cnn" (transposed convolutions, which are head and trunk in one), and for tokens, that is
            "component" and "chunk": "rnn" or "attention" over them.
        code: length of a code.
        numels: numbers in each generated tensor.
        hidden: units of each layer of the trunk (channels for "cnn").
        chunk_size: numbers of a chunk.
        token_dim: length of the embedding of a component or a chunk.

    Raises:
        ArgumentError: if the two do not go together, or the network would be too large.
    """

    def __init__(
        self, emit: Emit, trunk: Trunk, code: int, numels: Sequence[int], hidden: Sequence[int], chunk_size: int, token_dim: int
    ) -> None:
        super().__init__()
        total = sum(numels)
        if emit not in EMITS:
            raise unknown("HyperNetwork", "`emit`", emit, EMITS)
        if trunk not in TRUNKS:
            raise unknown("HyperNetwork", "`trunk`", trunk, TRUNKS)
        if not hidden or any(units < 1 for units in hidden):
            raise ArgumentError(f"HyperNetwork: `hidden` must be one positive number of units or more, got {list(hidden)}.")
        if chunk_size < 1:
            raise ArgumentError(f"HyperNetwork: `chunk_size` must be at least 1, got {chunk_size}. It counts the numbers of a chunk.")
        if trunk in ("rnn", "attention") and emit in ("full", "multi_head"):
            raise ArgumentError(
                f'HyperNetwork: the trunk "{trunk}" runs over tokens, and emit="{emit}" has one. Take "component" or "chunk".'
            )
        if trunk == "rnn" and len(set(hidden)) > 1:
            raise ArgumentError(f'HyperNetwork: the layers of the trunk "rnn" are of one size, got `hidden`={list(hidden)}.')
        if trunk == "cnn" and emit == "multi_head":
            raise ArgumentError(
                'HyperNetwork: the trunk "cnn" is a head too, and "multi_head" has one a tensor. Take emit="full" or "chunk".'
            )
        self.emit, self.numels, self.total = emit, list(numels), total
        self.tokens = {"full": 1, "multi_head": 1, "component": len(numels), "chunk": -(-total // chunk_size)}[emit]
        self.token_dim = token_dim if emit in ("component", "chunk") else 0
        outputs = {"full": [total], "multi_head": list(numels), "component": [max(numels)], "chunk": [chunk_size]}[emit]
        inputs = code + self.token_dim
        self.trunk, features = _trunk(trunk, inputs, hidden)
        _fits(emit, features * sum(outputs) if trunk != "cnn" else inputs * hidden[0] * (outputs[0] // 4 ** len(hidden)), "hold")
        _fits(emit, self.tokens * max(outputs), "emit")
        # one-dimensional, so that the engine decays it no more than biases: an embedding near zero says nothing
        self.embedding = nn.Parameter(torch.randn(self.tokens * self.token_dim)) if self.token_dim else None
        heads = [Grid(inputs, hidden, outputs[0])] if trunk == "cnn" else [nn.Linear(features, size) for size in outputs]
        self.heads = nn.ModuleList(heads)
        self.shared = trunk == "cnn" or emit in ("component", "chunk")

    def features(self, codes: Float[Tensor, "codes code"]) -> Float[Tensor, "codes tokens features"]:
        """Compute what enters the heads."""
        tokens = codes[:, None]
        if self.embedding is not None:
            own = self.embedding.view(self.tokens, self.token_dim)
            tokens = torch.cat([tokens.expand(-1, self.tokens, -1), own.expand(len(codes), -1, -1)], -1)
        return self.trunk(tokens)

    def forward(self, codes: Float[Tensor, "codes code"]) -> Float[Tensor, "codes numbers"]:
        """Compute the numbers."""
        features = self.features(codes)
        raw = torch.cat([head(features) for head in self.heads], -1)
        if self.emit == "component":
            return torch.cat([raw[:, i, :size] for i, size in enumerate(self.numels)], -1)
        return raw.flatten(1)[:, : self.total]

    def for_each_number(self, values: Float[Tensor, " slots"]) -> Float[Tensor, " numbers"]:
        """Repeat a value of each tensor for each of its numbers."""
        return torch.cat([value.expand(size) for value, size in zip(values, self.numels)])

    @torch.no_grad()
    def start(self, codes: Float[Tensor, "codes code"], moments: Float[Tensor, "2 slots"], zero: bool) -> None:
        """Fill the heads so that what is emitted has given moments (hyperfan: Var(head) = Var(weight) / (features * their mean square)).

        Heads that all tensors share emit variance 1 instead: each tensor is scaled afterwards.

        Args:
            codes: such as will come.
            moments: mean and standard deviation of each tensor.
            zero: emit zeros instead.
        """
        features = self.features(codes)
        spread = (features.shape[-1] * features.square().mean()).rsqrt()
        ends = [m for head in self.heads for m in head.modules() if isinstance(m, (nn.Linear, nn.ConvTranspose2d))]
        if zero:
            for layer in ends if not isinstance(self.heads[0], Grid) else ends[-1:]:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        elif isinstance(self.heads[0], Grid):
            nn.init.zeros_(ends[-1].bias)  # type: ignore[arg-type]
            ends[-1].weight.mul_(self(codes).square().mean().rsqrt())
        elif self.shared:
            nn.init.normal_(ends[0].weight).mul_(spread)
            nn.init.zeros_(ends[0].bias)  # type: ignore[arg-type]
        else:
            means, stds = (self.for_each_number(row) for row in moments)
            sizes = [head.out_features for head in self.heads]
            for head, mean, std in zip(self.heads, means.split(sizes), stds.split(sizes)):
                nn.init.normal_(head.weight).mul_(spread * std[:, None])  # type: ignore[arg-type]
                head.bias.copy_(mean)  # type: ignore[operator]


def _trunk(kind: Trunk, inputs: int, hidden: Sequence[int]) -> tuple[nn.Module, int]:
    """Build a trunk, and say how many features it has."""
    if kind in ("linear", "cnn"):
        return nn.Identity(), inputs
    if kind == "rnn":
        return Recurrent(inputs, hidden), hidden[-1]
    if kind == "attention":
        width = hidden[-1]
        heads = next(count for count in (4, 2, 1) if width % count == 0)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        encoder = nn.TransformerEncoder(layer, len(hidden), norm=nn.LayerNorm(width), enable_nested_tensor=False)
        return nn.Sequential(nn.Linear(inputs, width), encoder), width
    sizes = [inputs, *hidden]
    return nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU()))), hidden[-1]


def _fits(emit: Emit, values: int, what: str) -> None:
    """Refuse what would not fit into memory."""
    if values > LIMIT:
        raise ArgumentError(
            f'HyperNetwork: with emit="{emit}" the hypernetwork would {what} {values:,} values, more than {LIMIT:,}. Take emit="chunk" '
            "with a smaller `chunk_size`, or `generate` fewer tensors."
        )
