"""Training with labels: from nothing, and by transfer from a network that was trained before."""

from retinue.train.probe import knn, linear, probe
from retinue.train.self_training import SelfTraining
from retinue.train.supervised import Supervised
from retinue.train.transfer import TwoPhaseSchedule, WeightedCrossEntropy, compare_backbones, transfer

__all__ = [
    "SelfTraining",
    "Supervised",
    "TwoPhaseSchedule",
    "WeightedCrossEntropy",
    "compare_backbones",
    "knn",
    "linear",
    "probe",
    "transfer",
]
