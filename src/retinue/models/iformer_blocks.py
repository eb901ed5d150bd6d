"""The parts of iFormer (Si et al. 2022, arXiv 2205.12956, section 3): the Inception mixer, its two paths, the block and the stage."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError


class HighMixer(nn.Module):
    """The path of high frequencies: half of its channels are convolved, half max-pooled; each half leaves `dim` channels (equations 3, 4).

    Args:
        dim: channels that come in.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.part = dim // 2
        self.conv1 = nn.Conv2d(self.part, dim, 1, bias=False)
        self.proj1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.proj2 = nn.Conv2d(self.part, dim, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, Tensor]:
        """Convolve and pool; returns both results, each with all the channels."""
        convolved, pooled = x.split(self.part, dim=1)
        pooled = self.proj2(F.max_pool2d(pooled, 3, stride=1, padding=1))
        return F.gelu(self.proj1(self.conv1(convolved))), F.gelu(pooled)


class LowMixer(nn.Module):
    """The path of low frequencies: self-attention between averages of `pool` x `pool` pixels, without a projection behind it (equation 5).

    Args:
        dim: channels in and out.
        heads: of the attention.
        pool: side of the averaged cells; a cell that is cut off by the border averages what it has. Maps of 2 and 3 px are not averaged.
        qkv_bias: add a bias to queries, keys and values.
        official: refuse maps whose sides `pool` does not divide, as the official code does.
    """

    def __init__(self, dim: int, heads: int, pool: int = 1, qkv_bias: bool = True, official: bool = False) -> None:
        super().__init__()
        self.heads, self.pool, self.official = heads, pool, official
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Attend, and repeat each result over its cell.

        Raises:
            ShapeError: if there is nothing to average, or (where `official`) a cell is cut off.
        """
        cells = averaged(x, self.pool, self.official)
        batch, channels, height, width = cells.shape
        qkv = self.qkv(cells.flatten(2).transpose(1, 2)).view(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value)
        return repeated(found.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2), x)


def averaged(x: Tensor, pool: int, official: bool) -> Tensor:
    """Average cells of `pool` x `pool` pixels.

    Raises:
        ShapeError: if there is nothing to average, or (where `official`) a cell is cut off.
    """
    height, width = x.shape[2], x.shape[3]
    if pool > 1 and min(height, width) < 2:
        raise ShapeError(
            f"LowMixer: a map of {height}x{width} px has nothing to average over cells of side pool={pool}. Take larger images, or pool=1."
        )
    if official and height % pool + width % pool > 0:
        raise ShapeError(
            f"LowMixer: pool={pool} does not divide a map of {height}x{width} px, which the official code cannot take. "
            "Take images whose sides are multiples of 16, or official=False."
        )
    if pool == 1 or (min(height, width) < 4 and not official):  # px; maps below would leave one cell to attend to
        return x
    return F.avg_pool2d(x, pool, pool, ceil_mode=True, count_include_pad=False)


def repeated(cells: Tensor, like: Tensor) -> Tensor:
    """Repeat what was found for each cell over its pixels."""
    height, width = like.shape[2], like.shape[3]
    if cells.shape[2] == height and cells.shape[3] == width:
        return cells
    return F.interpolate(cells, size=(height, width), mode="nearest")


class InceptionMixer(nn.Module):
    """The Inception mixer: the first channels take the path of high frequencies, the others that of low ones, then all are fused.

    With Y = [high, low], the result is a 1x1 convolution of Y + DW3x3(Y) (equations 6 and 7).

    Args:
        dim: channels in and out.
        num_heads: parts into which the channels are divided.
        low_heads: how many of them are heads of the attention; "all" leaves out the path of high frequencies, 0 that of low ones.
        pool: 1, or 2 to attend between averages of 2x2 pixels.
        qkv_bias: add a bias to queries, keys and values.
        official: refuse maps that the official code cannot take.

    Raises:
        ArgumentError: if the channels cannot be divided so.

    >>> mixer = InceptionMixer(96, num_heads=3, low_heads=1, pool=2)
    >>> sum(p.numel() for p in mixer.parameters())
    24800
    """

    def __init__(
        self, dim: int, num_heads: int, low_heads: int | str, pool: int = 1, qkv_bias: bool = True, official: bool = False
    ) -> None:
        super().__init__()
        low = num_heads if low_heads == "all" else low_heads
        if num_heads < 1 or dim % num_heads:
            raise ArgumentError(f"InceptionMixer: `num_heads` must divide the {dim} channels, got {num_heads}.")
        if not isinstance(low, int) or not 0 <= low <= num_heads:
            raise ArgumentError(
                f'InceptionMixer: `low_heads` must lie in 0..{num_heads}, the number of heads, or be "all", got {low_heads}.'
            )
        if pool not in (1, 2):
            raise ArgumentError(f"InceptionMixer: `pool` must be 1 or 2, got {pool}.")
        low_dim = dim // num_heads * low
        high_dim = dim - low_dim
        if high_dim % 2:
            raise ArgumentError(
                f"InceptionMixer: the high path's {high_dim} channels cannot be halved. Take an even number of channels for each head."
            )
        self.dims = [high_dim, low_dim]
        self.high_mixer = HighMixer(high_dim) if high_dim else None
        self.low_mixer = LowMixer(low_dim, low, pool, qkv_bias, official) if low_dim else None
        fused = 2 * high_dim + low_dim
        self.conv_fuse = nn.Conv2d(fused, fused, 3, padding=1, groups=fused, bias=False)
        self.proj = nn.Conv2d(fused, dim, 1)

    def forward(self, x: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch height width channels"]:
        """Mix each pixel with those near it and with all others."""
        x = x.permute(0, 3, 1, 2)
        high, low = x.split(self.dims, dim=1)
        paths = [] if self.high_mixer is None else [*self.high_mixer(high)]
        if self.low_mixer is not None:
            paths.append(self.low_mixer(low))
        x = paths[0] if len(paths) == 1 else torch.cat(paths, dim=1)
        return self.proj(x + self.conv_fuse(x)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """The block x + g1 * Mixer(LN(x)), then x + g2 * MLP(LN(x)) (equations 8 and 9), on maps with the channels last.

    Args:
        dim: channels.
        mixer: the mixer of space.
        mlp_ratio: hidden channels of the MLP for each channel.
        layer_scale: initial value of g1 and g2, one number for each channel; None leaves them out.
        drop_path: probability with which a branch of an image is left out in training.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)))
        self.layer_scale_1 = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.layer_scale_2 = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path) if drop_path else None

    def forward(self, x: Float[Tensor, "batch height width channels"]) -> Float[Tensor, "batch height width channels"]:
        """Compute the block."""
        x = self._add(x, self.attn(self.norm1(x)), self.layer_scale_1)
        return self._add(x, self.mlp(self.norm2(x)), self.layer_scale_2)

    def _add(self, x: Tensor, change: Tensor, scale: Tensor | None) -> Tensor:
        if scale is None:
            return x + (change if self.drop_path is None else self.drop_path(change))
        if self.drop_path is not None and self.training:
            scale = self.drop_path(scale.expand(x.shape[0], 1, 1, -1))  # zeros here cost less than a mask on the map
        return torch.addcmul(x, change, scale)


class Stage(nn.Module):
    """A convolution that halves the map (nothing in the first stage), a learned number for each place and channel, then blocks.

    Args:
        downsample: what halves the map.
        sides: height and width of the map for which the positions are learned; for another they are interpolated bilinearly.
        dim: channels.
        blocks: the blocks.
    """

    def __init__(self, downsample: nn.Module, sides: tuple[int, int], dim: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.pos_embed = nn.Parameter(torch.zeros(1, *sides, dim))
        self.blocks = nn.Sequential(*blocks)

    def place(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch height width channels"]:
        """Put the channels last and add the positions."""
        return x.permute(0, 2, 3, 1).contiguous() + resized(self.pos_embed, x.shape[2], x.shape[3])

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch wider newheight newwidth"]:
        """Compute the stage; channels come and go in the second place."""
        return self.blocks(self.place(self.downsample(x))).permute(0, 3, 1, 2)


def resized(table: Tensor, height: int, width: int) -> Tensor:
    """Interpolate a table of positions, of shape (1, height, width, channels), bilinearly; as it is where the sides are its own."""
    if table.shape[1] == height and table.shape[2] == width:
        return table
    return F.interpolate(table.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


for _name in ("averaged", "repeated", "resized"):  # they look at shapes: a call each to torch.fx, and so written for TorchScript too
    torch.fx.wrap(_name)
