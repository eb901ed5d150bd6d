"""Attention as the context autoencoder has it, and its fixed table of positions (Chen et al. 2022, arXiv 2202.03026)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError

LONGEST_WAVE = 10_000  # of the positions: the slowest of the D/4 frequencies is 1 / 10000^(1 - 4/D)


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "places {dim}"]:
    """Compute the fixed two-dimensional positions of a grid's cells, row by row: [sin rw, cos rw, sin cw, cos cw] of row r and column c.

    The D/4 frequencies are w_k = 10000^(-k / (D/4)).

    Args:
        grid: rows and columns.
        dim: D, a multiple of 4.

    Raises:
        ArgumentError: if `dim` is no multiple of 4.

    >>> sincos_positions((1, 2), 4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.8414709568023682, 0.5403022766113281]]
    """
    if dim < 4 or dim % 4:
        raise ArgumentError(
            f"positions: the width must be a multiple of 4, got {dim}: a quarter each for sine and cosine of row and column."
        )
    quarter = dim // 4
    waves = LONGEST_WAVE ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [(numbers.flatten()[:, None] * waves) for numbers in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class SelfAttention(nn.Module):
    """Attention among the tokens of one sequence, with biases on queries and values only (as in BEiT); tensors are named as there.

    Args:
        dim: width, a multiple of `num_heads`.
        num_heads: heads.
        qkv_bias: learn the two biases.
        attn_drop: share of the attention weights dropped in training.
        proj_drop: share of the output dropped in training.
        unused: what else timm's blocks hand to their attention; nothing of it changes this one.

    Raises:
        ArgumentError: if the width is no multiple of the number of heads.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0, **unused: object
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens dim"]:
        """Let every token attend to all.

        Args:
            x: tokens.
            attn_mask: as in torch's `scaled_dot_product_attention`.
            is_causal: let a token attend to itself and earlier ones only.
        """
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        mixed = attend(q, k, v, self.num_heads, self.attn_drop.p if self.training else 0.0, attn_mask, is_causal)
        return self.proj_drop(self.proj(mixed))


class CrossAttention(nn.Module):
    """Attention of queries to other tokens, whose keys and values may come from different tensors; biases on queries and values only.

    Args:
        dim: width, a multiple of `num_heads`.
        num_heads: heads.

    Raises:
        ArgumentError: if the width is no multiple of the number of heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Float[Tensor, "batch asking dim"],
        keys: Float[Tensor, "batch tokens dim"],
        values: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch asking dim"]:
        """Let every query attend to all tokens."""
        mixed = attend(self.q(queries) + self.q_bias, self.k(keys), self.v(values) + self.v_bias, self.num_heads)
        return self.proj(mixed)


def attend(
    q: Float[Tensor, "batch asking dim"],
    k: Float[Tensor, "batch tokens dim"],
    v: Float[Tensor, "batch tokens dim"],
    num_heads: int,
    drop: float = 0.0,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Float[Tensor, "batch asking dim"]:
    """Average values by the softmax of q k / sqrt(width of a head), head by head."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, is_causal=causal).transpose(1, 2).flatten(2)


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that the heads cannot share.

    Raises:
        ArgumentError: if it is no multiple of their number.
    """
    if num_heads < 1 or dim % num_heads:
        raise ArgumentError(f"attention: the width must be a multiple of the number of heads, got {dim} and {num_heads}.")
