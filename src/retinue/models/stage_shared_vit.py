"""The auxiliary vision transformer of stage-wise weight sharing, and its descendants (Xia et al. 2024, arXiv 2404.16897, section 3).

Both are timm's transformer without a class token: layers, then the last norm, then the mean over tokens. Aux-S has 16 layers in 5 stages.
(In the official code Aux-S has 12 heads and its descendants 6, and descendants take the mean before the norm; so they do not compute what
they inherit. Here heads agree, and `official_pooling` asks for the mean before the norm.)
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model, image_size, register
from retinue.models.stage_resizing import Run
from retinue.models.stage_sharing import tie

TOKENS = 7  # a side of the grid of patches, at least, where the patch can be chosen
CFG = {"first_conv": "patch_embed.proj", "classifier": "head", "crop_pct": 0.9}
SIZES: dict[str, dict[str, Any]] = {"small": {"embed_dim": 384, "num_heads": 6}, "base": {"embed_dim": 768, "num_heads": 12}}
INITS = {"trunc": "", "torch": "skip"}  # ours -> timm's
OPTIONS = ("num_classes", "in_chans", "mlp_ratio", "drop_rate", "drop_path_rate")  # of timm's, those that descendants inherit
Init = Literal["trunc", "torch"]


class StageSharedViT(VisionTransformer):
    """A vision transformer in which all layers of a stage have the same parameters: both norms, attention and MLP.

    Drop-path rates follow the layers, not the stages.

    Args:
        img_size: side of the images, or height and width.
        patch_size: side of a patch.
        embed_dim: width.
        num_heads: heads of attention, in descendants too.
        stages: layers of each stage.
        init: "trunc" is timm's truncated normal of deviation 0.02; "torch" is that of torch's layers, which narrow networks need.
        options: of timm's network: num_classes, in_chans, mlp_ratio, drop_rate, drop_path_rate.

    Raises:
        ArgumentError: if the stages or another argument cannot be, or there is no such option.

    >>> model = StageSharedViT(8, 2, 32, 2, stages=(2, 2), num_classes=10, in_chans=1)
    >>> len(model.blocks), len({id(block.mlp.fc1.weight) for block in model.blocks})
    (4, 2)
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        num_heads: int = 6,
        stages: Sequence[int] = (3, 3, 4, 3, 3),
        init: Init = "trunc",
        **options: Any,
    ) -> None:
        if not stages or not all(isinstance(count, int) and count >= 1 for count in stages):
            raise ArgumentError(f"stage_shared_vit: `stages` must be the layers of each stage, at least 1, got {list(stages)}.")
        for name in options:
            if name not in OPTIONS:
                raise unknown("StageSharedViT", "option", name, OPTIONS, "For any other transformer of timm: share_stages(model).")
        sides = image_size(img_size) or (224, 224)
        super().__init__(**_options(sides, patch_size, embed_dim, num_heads, sum(stages), init, options), fc_norm=False)
        _positions(self, init)
        self.adaptation: list[str] = []
        self.shape = {
            "patch_size": patch_size, "embed_dim": embed_dim, "num_heads": num_heads, "mlp_ratio": options.get("mlp_ratio", 4.0),
            "init": init,
        }  # fmt: skip
        self.dropped = {name: options.get(name, 0.0) for name in ("drop_rate", "drop_path_rate")}
        tie(self, [Run("blocks", 0, list(stages))])

    @property
    def stages(self) -> list[int]:
        """Layers of each stage."""
        return list(self.stage_plan[0]["stages"])  # type: ignore[index]

    def learngene(self) -> dict[str, Tensor]:
        """Return what is kept: one set of parameters for each stage, patch and position embedding, last norm and head, each once."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    def as_descendant(self, network: Any, **options: Any) -> VisionTransformer:
        """Turn a copy of another depth, with parameters of its own, into the ordinary network; `stage_sharing.descend` calls this.

        Args:
            network: the copy.
            options: of `sws_descendant`: official_pooling, drop_rate, drop_path_rate.

        Raises:
            ArgumentError: if there is no such option.
        """
        for name in options:
            if name not in ("official_pooling", *self.dropped):
                raise unknown("descend", "option of a descendant", name, ("official_pooling", *self.dropped))
        like = self.patch_embed.proj.weight
        made: Any = create_model(
            "sws_descendant", **{**self.shape, **self.dropped, **options}, depth=len(network.blocks), num_classes=self.num_classes,
            in_chans=like.shape[1], input_size=list(self.patch_embed.img_size),
        )  # fmt: skip
        norm = {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"} if options.get("official_pooling") else {}
        made.load_state_dict({norm.get(name, name): tensor for name, tensor in network.state_dict().items()})
        made.train(self.training)
        return made.to(like)


@register(cfg=CFG)
def stage_shared_vit(
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    *,
    input_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    embed_dim: int = 384,
    num_heads: int = 6,
    stages: Sequence[int] = (3, 3, 4, 3, 3),
    mlp_ratio: float = 4.0,
    init: Init = "trunc",
) -> StageSharedViT:
    """Build the auxiliary network, a `StageSharedViT`.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the pooled features dropped before the classifier in training.
        drop_path_rate: probability with which the branches of the last layer are left out in training; it rises linearly from 0.
        input_size: side of the images, or height and width; None is 224.
        patch_size: side of a patch; None is 16, or less where that would leave fewer than 7 patches on a side.
        embed_dim: width.
        num_heads: heads of attention.
        stages: layers of each stage.
        mlp_ratio: hidden units of a layer's MLP, in widths.
        init: "trunc" or "torch".

    Raises:
        ArgumentError: if an argument cannot be.
    """
    sides = image_size(input_size) or (224, 224)
    patch, notes = _patch(sides, patch_size)
    network = StageSharedViT(
        sides, patch, embed_dim, num_heads, stages, init, num_classes=num_classes, in_chans=in_chans, mlp_ratio=mlp_ratio,
        drop_rate=drop_rate, drop_path_rate=drop_path_rate,
    )  # fmt: skip
    network.adaptation = notes
    return network


@register(cfg=CFG)
def sws_descendant(
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    *,
    input_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    embed_dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    official_pooling: bool = False,
    init: Init = "trunc",
) -> VisionTransformer:
    """Build an ordinary vision transformer of the kind that inherits, with weights drawn at random.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the pooled features dropped before the classifier in training.
        drop_path_rate: as in `stage_shared_vit`.
        input_size: side of the images, or height and width; None is 224.
        patch_size: side of a patch; None is 16, or less where that would leave fewer than 7 patches on a side.
        embed_dim: width.
        depth: number of layers.
        num_heads: heads of attention.
        mlp_ratio: hidden units of a layer's MLP, in widths.
        official_pooling: take the mean over tokens before the last norm, as the official code does, instead of after it.
        init: "trunc" or "torch", as in `StageSharedViT`.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    if depth < 1:
        raise ArgumentError(f"sws_descendant: `depth` must be at least 1, got {depth}.")
    sides = image_size(input_size) or (224, 224)
    patch, notes = _patch(sides, patch_size)
    options = {
        "num_classes": num_classes, "in_chans": in_chans, "mlp_ratio": mlp_ratio, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate,
    }  # fmt: skip
    network: Any = VisionTransformer(**_options(sides, patch, embed_dim, num_heads, depth, init, options), fc_norm=official_pooling)
    _positions(network, init)
    network.adaptation = notes
    return network


def _sized(name: str, kind: Callable[..., nn.Module], size: str) -> Callable[..., nn.Module]:
    """Register one size of a network."""

    def build(num_classes: int = 1000, in_chans: int = 3, *, input_size: int | tuple[int, int] | None = None, **options: Any) -> nn.Module:
        return kind(num_classes, in_chans, input_size=input_size, **{**SIZES[size], **options})

    build.__name__ = build.__qualname__ = f"{name}_{size}"
    build.__doc__ = f"Build `{kind.__name__}` in the paper's size {size}; the other options are the same."
    build.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]  # so that a misspelt option is noticed by name
    return register(build, cfg=CFG)


sws_aux_small = _sized("sws_aux", stage_shared_vit, "small")
sws_aux_base = _sized("sws_aux", stage_shared_vit, "base")
sws_des_small = _sized("sws_des", sws_descendant, "small")
sws_des_base = _sized("sws_des", sws_descendant, "base")


def _options(sides: tuple[int, int], patch: int, width: int, heads: int, depth: int, init: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check what both kinds of network are built of, and say it in timm's words."""
    if patch < 1 or sides[0] % patch or sides[1] % patch:
        raise ArgumentError(
            f"stage_shared_vit: images of {sides[0]}x{sides[1]} px cannot be cut into patches of {patch}x{patch}. Choose a `patch_size` "
            f"that divides both sides, such as {_patch(sides, None)[0]}."
        )
    if heads < 1 or width < 1 or width % heads:
        raise ArgumentError(f"stage_shared_vit: `embed_dim` must be a multiple of `num_heads`, got {width} and {heads}.")
    if init not in INITS:
        raise unknown("stage_shared_vit", "`init`", init, INITS)
    for name in ("drop_rate", "drop_path_rate"):
        if not 0 <= options.get(name, 0.0) < 1:
            raise ArgumentError(f"stage_shared_vit: `{name}` must lie in [0, 1), got {options[name]}. It is the share dropped.")
    return {
        "img_size": sides, "patch_size": patch, "embed_dim": width, "num_heads": heads, "depth": depth, "class_token": False,
        "global_pool": "avg", "weight_init": INITS[init], **options,
    }  # fmt: skip


def _positions(network: Any, init: str) -> None:
    """Draw the position embedding where timm leaves it as the memory was."""
    if init == "torch":
        with torch.no_grad():
            nn.init.trunc_normal_(network.pos_embed, std=0.02)


def _patch(sides: tuple[int, int], patch_size: int | None) -> tuple[int, list[str]]:
    """Return the side of a patch, and what was changed for the size of the images, in words."""
    if patch_size is not None:
        return patch_size, []
    fine = [patch for patch in range(16, 0, -1) if sides[0] % patch == sides[1] % patch == 0 and min(sides) // patch >= TOKENS]
    patch = fine[0] if fine else 1
    return patch, [] if patch == 16 else [f"patch_size 16 -> {patch}: {sides[0] // patch}x{sides[1] // patch} tokens"]
