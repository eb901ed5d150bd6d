"""Networks made smaller: which weights and which layers a trained network can do without."""

from retinue.compress.lottery_ticket import IMP, Level, lottery_ticket, matching, reinitialised
from retinue.compress.masked_training import SpanTraining
from retinue.compress.masks import Mask, apply_mask, density, full_mask, magnitude_mask, masked, prunable, random_mask_like
from retinue.compress.n2n import N2N, CompressionResult
from retinue.compress.n2n_edits import apply_removal, apply_shrinkage, layer_descriptions, uniform_width
from retinue.compress.n2n_policies import RemovalPolicy, ShrinkagePolicy, load_policy, save_policy
from retinue.compress.n2n_procedure import n2n_search, random_search
from retinue.compress.n2n_reward import compression_reward
from retinue.compress.n2n_students import TeachersAnswers
from retinue.compress.sparse_checkpoint import load_sparse, read_sparse, save_sparse
from retinue.compress.stability import Barrier, angle_deg, error_barrier, l2_distance

__all__ = [
    "N2N",
    "CompressionResult",
    "apply_removal",
    "apply_shrinkage",
    "layer_descriptions",
    "uniform_width",
    "RemovalPolicy",
    "ShrinkagePolicy",
    "load_policy",
    "save_policy",
    "n2n_search",
    "random_search",
    "compression_reward",
    "TeachersAnswers",
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
