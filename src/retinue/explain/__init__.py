"""Why a network said what it said, and whether the answer can be trusted."""

from retinue.explain.faithfulness import (
    area,
    average_drop,
    curve,
    deletion_auc,
    energy_in_mask,
    insertion_auc,
    iou,
    pointing_game,
    probability,
    sanity_check,
    spearman,
    summarize,
)
from retinue.explain.grad_cam import GradCAM, heat_maps
from retinue.explain.relative import Relative, RelativeModel, RelativeProjection, select_anchors, stitch

__all__ = [
    "Relative", "RelativeModel", "RelativeProjection", "select_anchors", "stitch",
    "GradCAM", "area", "average_drop", "curve", "deletion_auc", "energy_in_mask", "heat_maps", "insertion_auc", "iou", "pointing_game",
    "probability", "sanity_check", "spearman", "summarize",
]  # fmt: skip
