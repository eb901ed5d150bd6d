"""Loss functions that several rooms share."""

from retinue.losses.distillation import distillation_kl, soft_cross_entropy
from retinue.losses.sparse_targets import densify, sparsify

__all__ = ["densify", "distillation_kl", "soft_cross_entropy", "sparsify"]
