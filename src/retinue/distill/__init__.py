"""Better networks at the same cost, from other networks."""

from retinue.distill.guidance import Guidance
from retinue.distill.guidance_layers import map_layers

__all__ = ["Guidance", "map_layers"]
