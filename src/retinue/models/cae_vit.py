"""The encoder of the context autoencoder: a plain vision transformer with fixed positions (Chen et al. 2022, arXiv 2202.03026)."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.models.cae_attention import SelfAttention, check_heads, sincos_positions
from retinue.models.factory import create_model, image_size, register
from retinue.models.protocol import config

TOKENS = 7  # a side of the grid of patches, at least, where the patch can be chosen
EPS = 1e-6  # of every layer norm
STD = 0.02  # of the truncated normal initialisation, cut at one standard deviation as in the official code
CFG = {"first_conv": "patch_embed.proj", "classifier": "head", "crop_pct": 0.9}
VARIANTS: dict[str, dict[str, Any]] = {  # 12, 12 and 16 heads
    "small": {"embed_dim": 384},
    "base": {"embed_dim": 768},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "init_values": 1e-5, "init": "scaled"},
}
GAMMAS = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}  # official name -> ours and timm's


class CAEViT(VisionTransformer):
    """timm's vision transformer with sine-cosine positions that do not learn, none for the class token, and no bias on keys.

    Its tensors are named as in timm, but for `q_bias` and `v_bias`; `to_timm` turns them into those of timm's network.

    Args:
        img_size: height and width of the images.
        embed_dim: width, a multiple of 4 and of the heads.
        options: those of timm's network.
    """

    def __init__(self, img_size: tuple[int, int], embed_dim: int, **options: Any) -> None:
        super().__init__(
            img_size=img_size, embed_dim=embed_dim, pos_embed="none", no_embed_class=True, attn_layer=SelfAttention, weight_init="skip",
            **options,
        )  # fmt: skip
        self.adaptation: list[str] = []
        self._set_positions()

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the size of images or patches, and compute the positions of the new grid.

        Args:
            img_size: height and width; None keeps them.
            patch_size: of the patches, whose projection is resampled; None keeps it.
        """
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        self._set_positions()

    def _set_positions(self) -> None:
        if hasattr(self, "pos_embed"):
            del self.pos_embed
        table = sincos_positions(self.patch_embed.grid_size, self.embed_dim)[None]
        self.register_buffer("pos_embed", table.to(self.patch_embed.proj.weight.device), persistent=False)


@register(cfg=CFG)
def cae_vit(
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    *,
    input_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    embed_dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    init_values: float | None = 0.1,
    init: Literal["xavier", "scaled"] = "xavier",
    global_pool: Literal["avg", "token"] = "avg",
    fc_norm: bool = False,
) -> CAEViT:
    """Build the encoder of a context autoencoder.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: share of the pooled features dropped before the classifier in training.
        drop_path_rate: probability with which the branches of the last block are left out in training; it rises linearly from 0.
        input_size: side, or height and width, of the images; None is 224.
        patch_size: side of a patch; None is 16, or less where that would leave fewer than 7 patches on a side.
        embed_dim: width, a multiple of 4 and of the heads.
        depth: number of blocks.
        num_heads: heads of attention.
        mlp_ratio: hidden units of a block's MLP, in widths.
        init_values: what the layer scale begins with, 0.1 in the base network and 1e-5 in the large; None leaves it out.
        init: "xavier" for all linear layers; or "scaled", as the large network has it: a normal of deviation 0.02 cut at one deviation, and
            what ends a branch of block l divided by sqrt(2 l).
        global_pool: "avg" of the patches, or the class "token".
        fc_norm: put the last layer norm behind the average instead of before it, as in fine-tuning (`for_fine_tuning`).

    Raises:
        ArgumentError: if an argument cannot be.

    >>> model = cae_vit(num_classes=10, input_size=16, embed_dim=64, depth=3, num_heads=4)
    >>> model.patch_embed.grid_size, model.adaptation
    ((8, 8), ['patch_size 16 -> 2: 8x8 tokens'])
    """
    sides = image_size(input_size) or (224, 224)
    check_heads(embed_dim, num_heads)
    if init not in ("xavier", "scaled"):
        raise unknown("cae_vit", "`init`", init, ("xavier", "scaled"))
    if global_pool not in ("avg", "token"):
        raise unknown("cae_vit", "`global_pool`", global_pool, ("avg", "token"))
    if not 0 <= drop_path_rate < 1:
        raise ArgumentError(
            f"cae_vit: `drop_path_rate` must lie in [0, 1), got {drop_path_rate}. It is the share dropped, not the share kept."
        )
    if depth < 1:
        raise ArgumentError(f"cae_vit: `depth` must be at least 1, got {depth}.")
    patch = _patch(sides) if patch_size is None else patch_size
    if patch < 1 or sides[0] % patch or sides[1] % patch:
        raise ArgumentError(
            f"cae_vit: images of {sides[0]}x{sides[1]} px cannot be cut into patches of {patch}x{patch}. Choose a `patch_size` that "
            f"divides both sides, such as {_patch(sides)}."
        )
    network = CAEViT(
        sides, embed_dim, patch_size=patch, in_chans=in_chans, num_classes=num_classes, depth=depth, num_heads=num_heads,
        mlp_ratio=mlp_ratio, init_values=init_values, global_pool=global_pool, fc_norm=fc_norm, drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )  # fmt: skip
    initialise(network, init)
    if patch_size is None and patch != 16:
        network.adaptation = [f"patch_size 16 -> {patch}: {sides[0] // patch}x{sides[1] // patch} tokens"]
    return network


def _named(variant: str) -> Callable[..., CAEViT]:
    """Register the encoder of one variant."""

    def build(num_classes: int = 1000, in_chans: int = 3, *, input_size: int | tuple[int, int] | None = None, **options: Any) -> CAEViT:
        return cae_vit(num_classes, in_chans, input_size=input_size, **{**VARIANTS[variant], **options})

    build.__name__ = build.__qualname__ = f"cae_{variant}_patch16_224"
    build.__doc__ = f"Build the encoder of CAE-{variant}; its options are those of `cae_vit`."
    build.__signature__ = inspect.signature(cae_vit)  # type: ignore[attr-defined]  # so that a misspelt option is noticed by name
    return register(build, cfg=CFG)


cae_small_patch16_224 = _named("small")
cae_base_patch16_224 = _named("base")
cae_large_patch16_224 = _named("large")


def for_fine_tuning(model: nn.Module, num_classes: int, **options: Any) -> nn.Module:
    """Copy a pre-trained vision transformer with the head for fine-tuning: mean of the patches, then a new layer norm and classifier.

    Args:
        model: from `create_model`, one of ours or a plain vision transformer of timm; it is not changed.
        num_classes: outputs of the classifier.
        options: of the network that differ, such as drop_path_rate=0.1.

    Raises:
        ArgumentError: if the network is no vision transformer, or not from `create_model`.
    """
    made = config(model)
    if made is None or not isinstance(model, VisionTransformer):
        raise ArgumentError(
            f"for_fine_tuning: the model must be a plain vision transformer from retinue.create_model, got {type(model).__name__}. "
            "Fine-tune any other network as it is: model.reset_classifier(num_classes)."
        )
    changed = {"pretrained": False, "num_classes": num_classes, "global_pool": "avg", "fc_norm": True, **options}
    tuned = create_model(made["name"], **{**made["arguments"], **changed})
    own = tuned.state_dict()
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in own and not name.startswith(("head.", "fc_norm."))}
    tuned.load_state_dict({**own, **kept})
    return tuned


def to_timm(model: CAEViT) -> dict[str, Tensor]:
    """Return an encoder's tensors under the names of timm's `vit_*_patch16_*`, which computes the same with them.

    timm's network must have as many patches, `init_values` where ours has, and the same pooling. Its positions, which learn, take our fixed
    ones (zeros at the class token); its bias on keys, which changes no attention, is zero.
    """
    taken = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("attn.q_bias"):
            layer = name.removesuffix("q_bias")
            value = model.get_parameter(layer + "v_bias").detach()
            taken[layer + "qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not name.endswith("attn.v_bias"):
            taken[name] = tensor
    positions: Any = model.pos_embed
    taken["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return taken


def from_official(tensors: Mapping[str, Tensor], model: CAEViT) -> dict[str, Tensor]:
    """Rename the encoder in a published checkpoint of CAE, of pre-training or fine-tuning, to ours.

    Args:
        tensors: the official `state_dict`; what is no encoder in it (regressor, decoder, teacher) is left out.
        model: the network that is to take them; a head of its own keeps what it has.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if a tensor is missing or has another shape.
    """
    inner = any(name.startswith("encoder.") for name in tensors)
    found = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items() if not inner or name.startswith("encoder.")}
    for theirs, ours in GAMMAS.items():
        found = {f"{name.removesuffix(theirs)}{ours}" if name.endswith("." + theirs) else name: t for name, t in found.items()}
    taken = {}
    for name, own in model.state_dict().items():
        given = found.get(name)
        if name.startswith(("head.", "fc_norm.")) and (given is None or given.shape != own.shape):
            given = own
        if given is None:
            raise CheckpointError(f'the checkpoint lacks the tensor "{name}". The network must have the published variant and `fc_norm`.')
        if given.shape != own.shape:
            raise CheckpointError(
                f'the tensor "{name}" has shape {tuple(given.shape)} in the checkpoint and {tuple(own.shape)} in the network. Build the '
                "published variant."
            )
        taken[name] = given
    return taken


@torch.no_grad()
def initialise(network: nn.Module, init: str) -> None:
    """Initialise linear layers, class and mask tokens, as the `init` of `cae_vit` says; each stack of blocks counts its own from 1."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight) if init == "xavier" else cut_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "mask_token"):
            cut_normal_(parameter)
    for name, parameter in network.named_parameters() if init == "scaled" else ():
        ends = re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.weight$", name)
        if ends:
            parameter.div_(math.sqrt(2 * (int(ends[1]) + 1)))


def cut_normal_(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Fill a tensor from a normal of deviation 0.02, cut at one deviation."""
    return nn.init.trunc_normal_(tensor, std=STD, a=-STD, b=STD)


def _patch(sides: tuple[int, int]) -> int:
    """Return the largest side of a patch up to 16 that divides both sides and leaves 7 patches on each; where none does, the smallest."""
    dividing = [p for p in range(16, 0, -1) if sides[0] % p == sides[1] % p == 0]
    return next((p for p in dividing if min(sides) // p >= TOKENS), 1)
