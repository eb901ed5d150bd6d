"""Networks made smaller: which weights and which layers a trained network can do without."""

from retinue.compress.lottery_ticket import IMP, Level, lottery_ticket, matching, reinitialised
from retinue.compress.masked_training import SpanTraining
from retinue.compress.masks import Mask, apply_mask, density, full_mask, magnitude_mask, masked, prunable, random_mask_like
from retinue.compress.sparse_checkpoint import load_sparse, read_sparse, save_sparse
from retinue.compress.stability import Barrier, angle_deg, error_barrier, l2_distance

__all__ = [
    "IMP",
    "Barrier",
    "Level",
    "Mask",
    "SpanTraining",
    "angle_deg",
    "apply_mask",
    "density",
    "error_barrier",
    "full_mask",
    "l2_distance",
    "load_sparse",
    "lottery_ticket",
    "magnitude_mask",
    "masked",
    "matching",
    "prunable",
    "random_mask_like",
    "read_sparse",
    "reinitialised",
    "save_sparse",
]
