"""Backbones from images without labels."""

from retinue.pretrain.rotnet import RotNet, rotate_batch

__all__ = ["RotNet", "rotate_batch"]
