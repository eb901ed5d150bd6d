"""CAE: pre-train a vision transformer by guessing hidden patches: their features, then their tokens (Chen et al. 2022, arXiv 2202.03026).

The encoder sees the visible patches alone. A regressor guesses the features that it would give the hidden ones, a decoder reads their
tokens off these guesses, and the alignment keeps the guesses in the encoder's own space, so that the encoder does all the understanding.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from retinue.data import Batch, Data, views
from retinue.engine import Objective
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.cae_attention import sincos_positions
from retinue.models.cae_vit import initialise
from retinue.pretrain.cae_masks import BlockMask, RandomMask, places_of
from retinue.pretrain.cae_regressor import Decoder, Regressor
from retinue.pretrain.cae_tokenizers import PatchKMeans, make_tokenizer, normalised_patches
from retinue.pretrain.cae_tokens import checked_vit, encode, grid_of

__all__ = ["CAE", "BlockMask", "PatchKMeans", "RandomMask", "encode"]

Masks = Callable[[Int64[Tensor, " batch"]], Bool[Tensor, "batch places"]]


class CAE(Objective):
    """Cross-entropy of the hidden patches' tokens plus `align_weight` times the squared error of their guessed features.

    The model must be a plain vision transformer, ours or timm's. Held-out images are always shown with the same masks.

    Args:
        model: the encoder.
        data: the training images, from which the tokenizer is learned.
        tokenizer: "patch-kmeans" or a small "dvae", trained here; "pixels" for each patch's normalised pixels and a squared error instead
            of tokens; or a module of your own (see `cae_tokenizers`, and `PluggedTokenizer` for the published one).
        tokenizer_args: options of the first two, such as {"codes": 64}.
        mask: "block" for rectangles, "random", or a function of keys, one a row, that returns masks.
        masked: how many patches are hidden; None hides half.
        mask_args: options of the masks, such as {"min_area": 4}.
        regressor_depth: blocks of the regressor.
        decoder_depth: blocks of the decoder.
        decoder_width: of both; None is the encoder's. Another width puts a linear layer and a norm between.
        decoder_heads: heads of both; None gives the encoder's number, or 64 channels to each head where the width differs.
        init_values: what layer scale begins with in both; None leaves it out.
        init: how both begin: "xavier" or "scaled" (see `retinue.models.cae_vit`).
        drop_path_rate: of both, in their last block.
        align_weight: lambda.
        target: whose features of the hidden patches are to be guessed: "shared", the encoder's own, without gradient; or "momentum", those
            of a copy that follows it, in evaluation mode.
        momentum: m in copy <- m copy + (1 - m) encoder after each update.

    Raises:
        ArgumentError: if the model is no vision transformer, or an argument cannot be.

    >>> from retinue.models import tiny
    >>> objective = CAE(tiny("timm_vit"), tokenizer="pixels")
    >>> objective.decoder.head.out_features
    48
    """

    monitor, mode = "loss_main", "min"

    def __init__(
        self,
        model: nn.Module,
        data: Data | None = None,
        *,
        tokenizer: str | nn.Module = "patch-kmeans",
        tokenizer_args: Mapping[str, Any] | None = None,
        mask: Literal["block", "random"] | Masks = "block",
        masked: int | None = None,
        mask_args: Mapping[str, Any] | None = None,
        regressor_depth: int = 4,
        decoder_depth: int = 4,
        decoder_width: int | None = None,
        decoder_heads: int | None = None,
        init_values: float | None = 0.1,
        init: Literal["xavier", "scaled"] = "xavier",
        drop_path_rate: float = 0.0,
        align_weight: float = 2.0,
        target: Literal["shared", "momentum"] = "shared",
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        vit = checked_vit(model)
        if not align_weight >= 0:
            raise ArgumentError(f"CAE: `align_weight` must be 0 or more, got {align_weight}. The paper has 2.")
        if target not in ("shared", "momentum"):
            raise unknown("CAE", "`target`", target, ("shared", "momentum"))
        if not 0 <= momentum <= 1:
            raise ArgumentError(f"CAE: `momentum` must lie in [0, 1], got {momentum}. It is the share of the old copy that stays.")
        if init not in ("xavier", "scaled"):
            raise unknown("CAE", "`init`", init, ("xavier", "scaled"))
        self.grid = grid_of(model, None if data is None else data.preprocessing.input_size)
        self.patch = tuple(vit.patch_embed.patch_size)
        self.align_weight, self.target, self.momentum = align_weight, target, momentum
        self.mask = _masks(mask, self.grid, masked, dict(mask_args or {}))
        if tokenizer_args and (tokenizer == "pixels" or isinstance(tokenizer, nn.Module)):
            raise ArgumentError("CAE: `tokenizer_args` are options of a tokenizer that is trained here. Leave them out.")
        self.tokenizer: Any = tokenizer if isinstance(tokenizer, nn.Module) else None
        if isinstance(tokenizer, str) and tokenizer != "pixels":
            self.tokenizer = make_tokenizer(tokenizer, data, self.patch, tokenizer_args or {})
        if self.tokenizer is not None:
            self.tokenizer.requires_grad_(False).eval()
        outputs = vit.in_chans * self.patch[0] * self.patch[1] if self.tokenizer is None else int(self.tokenizer.codes)
        width = vit.embed_dim if decoder_width is None else decoder_width
        same = width == vit.embed_dim
        heads = decoder_heads or (vit.blocks[0].attn.num_heads if same else max(1, width // 64))
        self.project: nn.Module = nn.Identity() if same else nn.Sequential(nn.Linear(vit.embed_dim, width), nn.LayerNorm(width, eps=1e-6))
        self.regressor = Regressor(width, regressor_depth, heads, init_values, drop_path_rate)
        self.decoder = Decoder(width, decoder_depth, heads, outputs, init_values, drop_path_rate)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(self.grid, width), persistent=False)
        for part in (self.project, self.regressor, self.decoder):
            initialise(part, init)
        self.teacher: Any = None
        if target == "momentum":
            self.teacher = copy.deepcopy(model)
            self.teacher.reset_classifier(0)
            self.teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "CAE":
        """Switch between training and evaluation; tokenizer and copy stay in evaluation."""
        super().train(mode)
        for frozen in (self.tokenizer, self.teacher):
            if frozen is not None:
                frozen.eval()
        return self

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse another network or size of images than the objective was made for, and a tokenizer that does not fit, by a trial."""
        size = data.preprocessing.input_size
        if grid_of(model, size) != self.grid:
            raise ArgumentError(f"CAE: the objective was made for {self.grid[0]}x{self.grid[1]} patches. Make it anew: CAE(model, data).")
        like = next(model.parameters())
        images = torch.zeros(2, data.preprocessing.channels, *size, device=like.device, dtype=like.dtype)
        mask = self.mask(torch.tensor([0, 1])).to(like.device)
        with torch.no_grad():
            encode(model, images, places_of(mask))
            if self.tokenizer is not None:
                images = data.preprocessing.normalize(data.preprocessing.centre(data.train.images(range(min(2, len(data.train))))))
                parts = [*self.tokenizer.parameters(), *self.tokenizer.buffers()]
                self._check_tokens(self.tokenizer(images.to(parts[0].device) if parts else images))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss and its parts, the share of tokens guessed right, and the variance of the features that are to be guessed.

        `loss_align` over `target_variance` is the share that the regressor does not explain; a variance near 0 would mean a collapse.
        """
        draw = int(torch.randint(1 << 62, ())) if self.training else 0
        mask = self.mask(views.keys(draw, 0, batch.indices))
        out = self._loss(model, batch.images, self.targets(batch.images), mask)
        numbers = {name: out[name] if name == "loss" else out[name].detach() for name in ("loss", "loss_main", "loss_align")}
        numbers["target_variance"] = out["latent_target"].flatten(0, 1).float().var(0, correction=0).mean()
        if self.tokenizer is not None:
            numbers["token_accuracy"] = (out["logits"].argmax(-1) == out["asked"]).float().mean()
        return numbers

    def after_step(self, model: nn.Module, step: int) -> None:
        """Let the copy follow the encoder, where there is one."""
        if self.teacher is None:
            return
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                parameter.mul_(self.momentum).add_(own[name].to(parameter.dtype), alpha=1 - self.momentum)

    @torch.no_grad()
    def targets(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return every patch's token, or its normalised pixels."""
        return normalised_patches(images, self.patch) if self.tokenizer is None else self.tokenizer(images)

    def loss(
        self,
        model: nn.Module,
        images: Float[Tensor, "batch channels height width"],
        targets: Int[Tensor, "batch places"] | Float[Tensor, "batch places numbers"],
        mask: Bool[Tensor, "batch places"],
    ) -> dict[str, Tensor]:
        """Compute everything for given masks and targets.

        Args:
            model: the encoder.
            images: normalised images.
            targets: what `targets` returns: of all patches.
            mask: True where a patch is hidden; as many in each row.

        Returns:
            "loss" = "loss_main" + `align_weight` * "loss_align"; "logits" and "asked", a row for each hidden patch of the batch;
            "latent_pred" and "latent_target" (batch, hidden, width).

        Raises:
            ShapeError: if the mask or the targets have another shape or type, or rows hide different numbers.
            ArgumentError: if nothing or everything is hidden, or a token is no code.
        """
        wanted = (len(images), self.grid[0] * self.grid[1])
        if mask.dtype != torch.bool or tuple(mask.shape) != wanted:
            raise ShapeError(
                f"CAE: `mask` must be a boolean tensor of shape {wanted}, True where a patch is hidden, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}. Draw it with BlockMask or RandomMask."
            )
        if not 0 < int(mask.sum(1).max()) < wanted[1]:
            raise ArgumentError(f"CAE: at least 1 and less than all {wanted[1]} patches must be hidden, got {int(mask.sum(1).max())}.")
        if self.tokenizer is not None:
            self._check_tokens(targets)
        return self._loss(model, images, targets, mask)

    def _loss(self, model: nn.Module, images: Tensor, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
        vit: Any = model
        visible, hidden = places_of(~mask), places_of(mask)
        seen = self.project(encode(model, images, visible)[:, vit.num_prefix_tokens :])
        guessed = self.regressor(seen, self.positions[visible], self.positions[hidden])
        with torch.no_grad():
            truth = self.project(encode(self.teacher or model, images, hidden)[:, vit.num_prefix_tokens :])
        logits = self.decoder(guessed, self.positions[hidden]).flatten(0, 1)
        asked = targets[mask]
        main = F.mse_loss(logits, asked) if self.tokenizer is None else F.cross_entropy(logits, asked)
        align = F.mse_loss(guessed, truth)
        return {
            "loss": main + self.align_weight * align if self.align_weight else main,
            "loss_main": main,
            "loss_align": align,
            "logits": logits,
            "asked": asked,
            "latent_pred": guessed,
            "latent_target": truth,
        }

    def _check_tokens(self, tokens: Tensor) -> None:
        places = self.grid[0] * self.grid[1]
        if tokens.ndim != 2 or tokens.shape[1] != places:
            raise ShapeError(
                f"CAE: the tokenizer must give one token for each of {self.grid[0]}x{self.grid[1]} patches, got a shape of "
                f"{tuple(tokens.shape)}. Its stride must be the side of a patch."
            )
        codes = int(self.tokenizer.codes)
        if tokens.is_floating_point() or int(tokens.min()) < 0 or int(tokens.max()) >= codes:
            raise ArgumentError(
                f"CAE: tokens must be whole numbers from 0 to {codes - 1}, got {tokens.dtype} from {tokens.min().item()} to "
                f"{tokens.max().item()}. The tokenizer's `codes` must be their number."
            )


def _masks(mask: Any, grid: tuple[int, int], masked: int | None, options: dict[str, Any]) -> Masks:
    """Return what draws masks."""
    if callable(mask):
        if masked is not None or options:
            raise ArgumentError("CAE: `masked` and `mask_args` are options of masks that are named; yours is a function. Leave them out.")
        return mask
    kinds: dict[str, Any] = {"block": BlockMask, "random": RandomMask}
    if mask not in kinds:
        raise unknown("CAE", "`mask`", mask, kinds)
    try:
        return kinds[mask](grid, masked, **options)
    except TypeError as error:
        raise ArgumentError(f'CAE: the masks "{mask}" do not take {sorted(options)}: {error}.') from error
