"""Answers about what deep networks can do that are computed, not trained."""

from retinue.models.wide_deep_network import HermiteActivation, WideDeepNetwork, empirical_kernel
from retinue.theory.dual_activation import DualActivation, optimal_activation
from retinue.theory.wide_and_deep import WideDeepClassifier, infinite_networks

__all__ = [
    "DualActivation",
    "HermiteActivation",
    "WideDeepClassifier",
    "WideDeepNetwork",
    "empirical_kernel",
    "infinite_networks",
    "optimal_activation",
]
