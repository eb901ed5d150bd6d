"""Better networks at the same cost, from other networks."""

from retinue.distill.dataset_reinforcement import Reinforced, ReinforcedDataset, ReinforcementBuilder, ReinforcementStore
from retinue.distill.ensemble import EnsembleTeacher
from retinue.distill.guidance import Guidance
from retinue.distill.guidance_layers import map_layers
from retinue.distill.meal_v2 import LogitDiscriminator, MEALv2, similarity_loss
from retinue.distill.meal_v2_stages import distill_ensemble
from retinue.distill.reinforced_training import reinforced_training
from retinue.distill.replayable import KeyedViews, ReplayableTransform
from retinue.distill.teacher_store import StoredMEALv2, store_teachers

__all__ = [
    "EnsembleTeacher",
    "Guidance",
    "KeyedViews",
    "LogitDiscriminator",
    "MEALv2",
    "Reinforced",
    "ReinforcedDataset",
    "ReinforcementBuilder",
    "ReinforcementStore",
    "ReplayableTransform",
    "StoredMEALv2",
    "distill_ensemble",
    "map_layers",
    "reinforced_training",
    "similarity_loss",
    "store_teachers",
]
