"""Loss functions that several rooms share."""

from retinue.losses.contrastive import nt_xent, supcon
from retinue.losses.distillation import distillation_kl, soft_cross_entropy, target_kl
from retinue.losses.gathering import gather_with_gradient
from retinue.losses.self_contrastive import ImagiNetLoss, SelfConLoss
from retinue.losses.sparse_targets import densify, sparsify

__all__ = [
    "ImagiNetLoss",
    "SelfConLoss",
    "densify",
    "distillation_kl",
    "gather_with_gradient",
    "nt_xent",
    "soft_cross_entropy",
    "sparsify",
    "supcon",
    "target_kl",
]
