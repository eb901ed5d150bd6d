"""Training with labels."""

from retinue.train.supervised import Supervised

__all__ = ["Supervised"]
