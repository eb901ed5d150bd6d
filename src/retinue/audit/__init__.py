"""Data and pictures looked into before they are trusted."""

from retinue.audit.adversarial import attacked, fgsm
from retinue.audit.comparison import compare
from retinue.audit.dataset_properties import (
    LabelSharpness,
    intrinsic_dimension,
    label_sharpness,
    representation_dimension,
)
from retinue.audit.dataset_report import DatasetReport, dataset_report
from retinue.audit.duplicates import find_duplicates
from retinue.audit.imaginet import Calibration, balanced_images, calibrate, fit_calibration, synthetic_logit, throughput
from retinue.audit.imaginet_perturbations import SocialNetworkPerturbation, sweep
from retinue.audit.imaginet_report import TwoTrackReport, joined, two_track_report
from retinue.audit.imaginet_stages import Detectors, train_detector
from retinue.audit.learning_curve import learning_curve
from retinue.audit.scaling import ScalingFit, ScalingRecord, fit_scaling
from retinue.audit.verdicts import verdicts
from retinue.metrics.dimension import IDResult

__all__ = [
    "Calibration",
    "DatasetReport",
    "Detectors",
    "IDResult",
    "LabelSharpness",
    "ScalingFit",
    "ScalingRecord",
    "SocialNetworkPerturbation",
    "TwoTrackReport",
    "attacked",
    "balanced_images",
    "calibrate",
    "compare",
    "dataset_report",
    "fgsm",
    "find_duplicates",
    "fit_calibration",
    "fit_scaling",
    "intrinsic_dimension",
    "joined",
    "label_sharpness",
    "learning_curve",
    "representation_dimension",
    "sweep",
    "synthetic_logit",
    "throughput",
    "train_detector",
    "two_track_report",
    "verdicts",
]
