"""Loss functions that several rooms share."""

from retinue.losses.distillation import distillation_kl, soft_cross_entropy

__all__ = ["distillation_kl", "soft_cross_entropy"]
