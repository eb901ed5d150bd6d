"""Running a vision transformer on some of an image's patches alone, which is how a context autoencoder sees images."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.models._manipulate import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError


def checked_vit(model: nn.Module) -> Any:
    """Return a network if it is a plain vision transformer.

    Raises:
        ArgumentError: if it is not: patches cannot be left out of a convolution.
    """
    if not isinstance(model, VisionTransformer):
        raise ArgumentError(
            f"CAE: the model must be a plain vision transformer, whose hidden patches can be left out, got {type(model).__name__}. Take "
            'one of ours ("cae_small_patch16_224") or of timm ("timm:vit_small_patch16_224"), or pre-train with RotNet.'
        )
    return model


def encode(
    model: nn.Module, images: Float[Tensor, "batch channels height width"], places: Int64[Tensor, "batch chosen"]
) -> Float[Tensor, "batch tokens dim"]:
    """Compute a vision transformer's last features from some patches of each image, which see each other and the class token only.

    Args:
        model: one of ours or timm's.
        images: normalised images.
        places: which patches of each image, numbered row by row.

    Returns:
        The features of the class token and other prefix tokens, where the network has them, then of the patches in the order of `places`.

    Raises:
        ShapeError: if the images have another size than the network was built for.
    """
    vit = checked_vit(model)
    if not vit.dynamic_img_size and tuple(images.shape[-2:]) != tuple(vit.patch_embed.img_size):
        built = "x".join(map(str, vit.patch_embed.img_size))
        raise ShapeError(
            f"CAE: the network was built for images of {built} px, got {images.shape[-2]}x{images.shape[-1]}. Build it with "
            f"input_size={tuple(images.shape[-2:])}."
        )
    x = vit._pos_embed(vit.patch_embed(images))
    prefix = vit.num_prefix_tokens
    chosen = x[:, prefix:].gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
    x = vit.norm_pre(torch.cat([x[:, :prefix], chosen], dim=1))
    x = checkpoint_seq(vit.blocks, x) if vit.grad_checkpointing else vit.blocks(x)
    return vit.norm(x)


def grid_of(model: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the rows and columns of a network's patches, of images of its own or of a given size."""
    vit = checked_vit(model)
    if size is not None and vit.dynamic_img_size:
        rows, columns = vit.patch_embed.dynamic_feat_size(size)
        return int(rows), int(columns)
    rows, columns = vit.patch_embed.grid_size
    return int(rows), int(columns)
