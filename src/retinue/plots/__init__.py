"""The figures that rooms share, drawn by matplotlib."""

from retinue.plots.confusion import confusion
from retinue.plots.curves import curves
from retinue.plots.few_labels import few_labels
from retinue.plots.galleries import Picture, gallery, to_rgb
from retinue.plots.overlays import explained, overlay, side_by_side
from retinue.plots.reliability import reliability

__all__ = ["Picture", "confusion", "curves", "explained", "few_labels", "gallery", "overlay", "reliability", "side_by_side", "to_rgb"]
