"""Training with labels: from nothing, and by transfer from a network that was trained before."""

from retinue.engine import Supervised
from retinue.train.attentive_probe import AttentiveProbe, FrozenClassifier, attentive_probe
from retinue.train.noprop import NoProp, NoPropCT, NoPropDT, NoPropFM, activation_bytes, local_step
from retinue.train.probe import knn, linear, probe
from retinue.train.self_training import SelfTraining
from retinue.train.transfer import TwoPhaseSchedule, WeightedCrossEntropy, compare_backbones, transfer

__all__ = [
    "AttentiveProbe",
    "FrozenClassifier",
    "attentive_probe",
    "NoProp",
    "NoPropCT",
    "NoPropDT",
    "NoPropFM",
    "activation_bytes",
    "local_step",
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
