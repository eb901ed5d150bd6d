"""What learns beside the encoder: the regressor that guesses features of hidden patches, the decoder that reads them ("Architecture")."""

import torch
from jaxtyping import Float
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.cae_attention import CrossAttention, SelfAttention

EPS = 1e-6


class RegressorBlock(nn.Module):
    """Attention of the hidden patches to the visible ones and to themselves.

    The norm before the MLP replaces what it normalises, so that the MLP's shortcut starts from normalised values:
    x = q + a(q); x = norm2(x); x = x + mlp(x). Positions enter queries and keys, not values.

    Args:
        dim: width.
        num_heads: heads.
        init_values: what the layer scale begins with; None leaves it out.
        drop_path: probability with which a branch is left out in training.
    """

    def __init__(self, dim: int, num_heads: int, init_values: float | None = 0.1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v, self.norm2 = (nn.LayerNorm(dim, eps=EPS) for _ in range(4))
        self.attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls1, self.ls2 = layer_scale(dim, init_values), layer_scale(dim, init_values)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self,
        queries: Float[Tensor, "batch hidden dim"],
        visible: Float[Tensor, "batch visible dim"],
        query_places: Float[Tensor, "batch hidden dim"],
        places: Float[Tensor, "batch visible+hidden dim"],
    ) -> Float[Tensor, "batch hidden dim"]:
        """Compute the next queries.

        Args:
            queries: of the hidden patches.
            visible: features of the visible ones, without the class token.
            query_places: positions of the hidden patches.
            places: positions of the visible, then of the hidden patches.
        """
        context = torch.cat([visible, queries], dim=1)
        seen = self.attn(self.norm_q(queries + query_places), self.norm_k(context + places), self.norm_v(context))
        x = self.norm2(queries + self.drop_path(self.ls1(seen)))
        return x + self.drop_path(self.ls2(self.mlp(x)))


class Regressor(nn.Module):
    """The latent contextual regressor: guesses the encoder's features of hidden patches from those of the visible ones.

    Args:
        dim: width.
        depth: number of blocks.
        num_heads: heads.
        init_values: what the layer scale begins with; None leaves it out.
        drop_path_rate: of the last block; it rises linearly from 0 at the first.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, init_values: float | None = 0.1, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(RegressorBlock(dim, num_heads, init_values, rate) for rate in rates(drop_path_rate, depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(
        self,
        visible: Float[Tensor, "batch visible dim"],
        visible_places: Float[Tensor, "batch visible dim"],
        hidden_places: Float[Tensor, "batch hidden dim"],
    ) -> Float[Tensor, "batch hidden dim"]:
        """Guess the features of the hidden patches.

        Args:
            visible: features of the visible patches, without the class token.
            visible_places: their positions.
            hidden_places: positions of the hidden patches.
        """
        queries = self.mask_token.expand(len(visible), hidden_places.shape[1], -1)
        places = torch.cat([visible_places, hidden_places], dim=1)
        for block in self.blocks:
            queries = block(queries, visible, hidden_places, places)
        return self.norm(queries)


class DecoderBlock(nn.Module):
    """A pre-norm block of a vision transformer, with biases on queries and values only.

    Args:
        dim: width.
        num_heads: heads.
        init_values: what the layer scale begins with; None leaves it out.
        drop_path: probability with which a branch is left out in training.
    """

    def __init__(self, dim: int, num_heads: int, init_values: float | None = 0.1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls1, self.ls2 = layer_scale(dim, init_values), layer_scale(dim, init_values)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "batch hidden dim"]) -> Float[Tensor, "batch hidden dim"]:
        """Compute the next features."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Decoder(nn.Module):
    """Reads targets off the features of hidden patches; it never sees a visible one.

    Args:
        dim: width.
        depth: number of blocks.
        num_heads: heads.
        outputs: numbers for each patch: codes of the tokenizer, or pixels.
        init_values: what the layer scale begins with; None leaves it out.
        drop_path_rate: of the last block; it rises linearly from 0 at the first.
    """

    def __init__(
        self, dim: int, depth: int, num_heads: int, outputs: int, init_values: float | None = 0.1, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, init_values, rate) for rate in rates(drop_path_rate, depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, latents: Float[Tensor, "batch hidden dim"], places: Float[Tensor, "batch hidden dim"]
    ) -> Float[Tensor, "batch hidden outputs"]:
        """Compute the outputs for the hidden patches from their features and positions."""
        x = latents + places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def layer_scale(dim: int, init_values: float | None) -> nn.Module:
    """Return a learned factor for each channel, or nothing."""
    return nn.Identity() if init_values is None else LayerScale(dim, init_values)


def rates(last: float, depth: int) -> list[float]:
    """Return stochastic depth's rates, linear from 0 to `last`.

    >>> rates(0.2, 3)
    [0.0, 0.1, 0.2]

    Raises:
        ArgumentError: if there is no block, or the rate is no share.
    """
    if depth < 1:
        raise ArgumentError(f"CAE: regressor and decoder need at least one block each, got {depth}. The paper has 4 and 4.")
    if not 0 <= last < 1:
        raise ArgumentError(f"CAE: `drop_path_rate` must lie in [0, 1), got {last}. It is the share dropped, not the share kept.")
    return [last * i / max(depth - 1, 1) for i in range(depth)]
