"""The parts of InceptionNeXt (Yu et al. 2023, arXiv 2303.16900, section 3): the mixer, the block and the head; each works alone too."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from timm.layers import DropPath, SelectAdaptivePool2d, trunc_normal_
from torch import Tensor, nn

from retinue.errors import ArgumentError

Layer = Callable[[int], nn.Module]  # builds a layer for a number of channels


class InceptionDWConv2d(nn.Module):
    """Inception depthwise convolution: most channels pass, three small groups meet a square, a wide and a high kernel (equations 3 to 5).

    With g = int(dim * branch_ratio), the channels are [identity | square | width band | height band] = [dim - 3g | g | g | g], in and out.
    Stride 1, zero padding, a bias and no activation.

    Args:
        dim: channels.
        square_kernel_size: side of the square kernel; odd.
        band_kernel_size: length of the bands; odd.
        branch_ratio: share of the channels in each of the three groups, in (0, 1/3].

    Raises:
        ArgumentError: if a kernel is even, the ratio lies outside, or it leaves a group without a channel.

    >>> InceptionDWConv2d(20).groups
    [14, 2, 2, 2]
    """

    def __init__(self, dim: int, square_kernel_size: int = 3, band_kernel_size: int = 11, branch_ratio: float = 0.125) -> None:
        super().__init__()
        for argument, kernel in (("square_kernel_size", square_kernel_size), ("band_kernel_size", band_kernel_size)):
            if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
                raise ArgumentError(
                    f"InceptionDWConv2d: `{argument}` must be odd and positive, got {kernel}. An even kernel would move the map."
                )
        if not 0 < branch_ratio <= 1 / 3:
            raise ArgumentError(
                f"InceptionDWConv2d: `branch_ratio` must lie in (0, 1/3], got {branch_ratio}. "
                "It is the share of the channels in each of three groups; the paper has 1/8."
            )
        group = int(dim * branch_ratio)
        if group < 1:
            raise ArgumentError(
                f"InceptionDWConv2d: `branch_ratio` {branch_ratio} of {dim} channels leaves none for a group. Take at least 1/{dim}."
            )
        self.groups = [dim - 3 * group, group, group, group]
        square, band = square_kernel_size, band_kernel_size
        self.dwconv_hw = nn.Conv2d(group, group, square, padding=square // 2, groups=group)
        self.dwconv_w = nn.Conv2d(group, group, (1, band), padding=(0, band // 2), groups=group)
        self.dwconv_h = nn.Conv2d(group, group, (band, 1), padding=(band // 2, 0), groups=group)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Mix each pixel with those around it."""
        same, square, wide, high = torch.split(x, self.groups, dim=1)
        return torch.cat((same, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(high)), dim=1)


class MetaNeXtBlock(nn.Module):
    """The block x + gamma * MLP(norm(mixer(x))), with one shortcut around all of it (equation 2).

    Args:
        dim: channels.
        token_mixer: builds the mixer for `dim` channels.
        norm_layer: builds the norm for `dim` channels.
        mlp_ratio: hidden channels of the MLP for each channel.
        ls_init_value: initial value of gamma, one number for each channel; None leaves gamma out.
        drop_path: probability with which the branch of an image is left out in training.
    """

    def __init__(
        self,
        dim: int,
        token_mixer: Layer = InceptionDWConv2d,
        norm_layer: Layer = nn.BatchNorm2d,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.token_mixer = token_mixer(dim)
        self.norm = norm_layer(dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Conv2d(dim, hidden, 1), act=nn.GELU(), fc2=nn.Conv2d(hidden, dim, 1)))
        self.gamma = None if ls_init_value is None else nn.Parameter(torch.full((dim,), float(ls_init_value)))
        self.drop_path = DropPath(drop_path) if drop_path else None

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Compute the block."""
        change = self.mlp(self.norm(self.token_mixer(x)))
        if self.gamma is None:
            return x + (change if self.drop_path is None else self.drop_path(change))
        gamma = self.gamma.view(1, -1, 1, 1)
        if self.drop_path is not None and self.training:
            gamma = self.drop_path(gamma.expand(x.shape[0], -1, 1, 1))  # zeros here cost less than a mask on the map
        return torch.addcmul(x, change, gamma)


class MlpHead(nn.Module):
    """Pooling, a hidden layer of three times the channels, GELU, layer norm, dropout, classifier.

    Args:
        in_features: channels of the map.
        num_classes: outputs; 0 leaves out the classifier.
        drop_rate: share of the hidden features dropped in training.
        global_pool: timm's name of the pooling.
    """

    def __init__(self, in_features: int, num_classes: int, drop_rate: float = 0.0, global_pool: str = "avg") -> None:
        super().__init__()
        self.in_features = in_features
        self.global_pool: nn.Module = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        pooled = in_features * self.global_pool.feat_mult()
        self.num_features = 3 * in_features
        self.fc1: nn.Module = nn.Linear(pooled, self.num_features)
        self.act: nn.Module = nn.GELU()
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=1e-6)
        self.drop = nn.Dropout(drop_rate)
        self.fc2: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        truncated_normal_(self)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the old one.

        Args:
            num_classes: its outputs; 0 leaves it out.
            global_pool: another pooling; None keeps the present one. A pooling of another length needs a new hidden layer; "" is for
                features alone, and takes pooling and hidden layer away.

        Raises:
            ArgumentError: if there is nothing to pool for a classifier.
        """
        if global_pool == "" and num_classes:
            raise ArgumentError(
                'InceptionNeXt: the head needs pooled features, got global_pool="" with a classifier. Take "avg", or num_classes=0.'
            )
        like = next(self.parameters(), torch.empty(0))
        bare = isinstance(self.fc1, nn.Identity)
        pool = global_pool if global_pool is not None else "avg" if bare and num_classes else None
        if pool == "":
            self.global_pool = self.fc1 = self.act = self.norm = nn.Identity()
            self.num_features = self.in_features
        elif pool is not None:
            fresh = MlpHead(self.in_features, 0, global_pool=pool).to(like.device, like.dtype).train(self.training)
            self.global_pool, self.num_features = fresh.global_pool, fresh.num_features
            if bare or fresh.fc1.weight.shape != self.fc1.weight.shape:
                self.fc1, self.act, self.norm = fresh.fc1, fresh.act, fresh.norm
        self.fc2 = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()
        truncated_normal_(self.fc2)

    def forward(self, x: Float[Tensor, "batch channels height width"], pre_logits: bool = False) -> Float[Tensor, "batch ..."]:
        """Compute the logits, or the hidden features."""
        x = self.drop(self.norm(self.act(self.fc1(self.global_pool(x)))))
        return x if pre_logits else self.fc2(x)


def truncated_normal_(network: nn.Module) -> None:
    """Draw all weights of convolutions and linear layers with a standard deviation of 0.02, and set their biases to 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_layout(sides: Sequence[int], stages: int) -> tuple[int, int]:
    """Choose the stem's stride and the number of stages of a pyramid that halves its maps, so that the last one is 4x4 at 32 px and above.

    Args:
        sides: height and width of the images.
        stages: number of stages for large images.

    >>> [small_layout((side, side), 4) for side in (224, 64, 32, 16)]
    [(4, 4), (2, 4), (2, 3), (1, 3)]
    """
    side = min(sides)
    return 4 if side >= 128 else 2 if side >= 28 else 1, stages if side >= 64 else min(stages, 3)


def linear_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return each block's probability of being left out: it rises linearly from 0 at the first to `rate` at the last, over all stages.

    >>> linear_rates(0.3, (2, 2))
    [[0.0, 0.1], [0.2, 0.3]]
    """
    last = max(1, sum(depths) - 1)
    return [[round(rate * (sum(depths[:i]) + j) / last, 12) for j in range(depth)] for i, depth in enumerate(depths)]
