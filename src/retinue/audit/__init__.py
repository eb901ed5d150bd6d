"""Data and pictures looked into before they are trusted."""

from retinue.audit.imaginet import Calibration, balanced_images, calibrate, fit_calibration, synthetic_logit, throughput
from retinue.audit.imaginet_perturbations import SocialNetworkPerturbation, sweep
from retinue.audit.imaginet_report import TwoTrackReport, joined, two_track_report
from retinue.audit.imaginet_stages import Detectors, train_detector

__all__ = [
    "Calibration",
    "Detectors",
    "SocialNetworkPerturbation",
    "TwoTrackReport",
    "balanced_images",
    "calibrate",
    "fit_calibration",
    "joined",
    "sweep",
    "synthetic_logit",
    "throughput",
    "train_detector",
    "two_track_report",
]
