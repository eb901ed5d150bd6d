"""Numbers that say how good something is, torchmetrics' where it has them."""

from retinue.metrics.cka import hsic, linear_cka, minibatch_cka, rsa
from retinue.metrics.classification import (
    Calibration,
    PerClass,
    balanced_accuracy,
    brier_score,
    calibration,
    confusion_matrix,
    expected_calibration_error,
    most_confused,
    negative_log_likelihood,
    per_class,
    top_k_accuracy,
)
from retinue.metrics.dimension import IDResult, intrinsic_dimension
from retinue.metrics.spaces import affine_map, compare_spaces, jaccard, mean_reciprocal_rank, procrustes

__all__ = [
    "IDResult",
    "intrinsic_dimension",
    "affine_map",
    "compare_spaces",
    "jaccard",
    "mean_reciprocal_rank",
    "procrustes",
    "Calibration",
    "PerClass",
    "balanced_accuracy",
    "brier_score",
    "calibration",
    "confusion_matrix",
    "expected_calibration_error",
    "hsic",
    "linear_cka",
    "minibatch_cka",
    "most_confused",
    "negative_log_likelihood",
    "per_class",
    "rsa",
    "top_k_accuracy",
]
