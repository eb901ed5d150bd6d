"""Views: augmentations of whole batches in which each image draws for itself.

A view is called with images (bytes, or floats in [0, 1]) and one key for each; row i of the result depends on image i and key i alone.
They work in any loop:

>>> import torch
>>> from retinue import views
>>> images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
>>> view = views.parse("crop(4), flip, color_jitter(0.4, 0.4, 0.4, 0.1)")
>>> view(images, views.keys(seed=0, epoch=3, indices=torch.arange(8))).shape
torch.Size([8, 3, 32, 32])

Without keys, a view draws from torch's default generator. A view that mixes takes a second image for each and returns shares of labels:

>>> keys = views.keys(seed=0, epoch=3, indices=torch.arange(8))
>>> mixed, share = views.Mixup(0.2)(images, keys, partners=images[views.partner_indices(keys, 8)])
"""

from retinue.data.views.auto import RandAugment, TrivialAugment
from retinue.data.views.base import View
from retinue.data.views.compose import Choose, Compose, flat
from retinue.data.views.crops import CenterCrop, Crop, Flip, VerticalFlip
from retinue.data.views.draws import derive, keys, partner_indices, uniform
from retinue.data.views.erase import Erase
from retinue.data.views.jitter import ColorJitter, Grayscale, Normalize, Solarize
from retinue.data.views.mixing import CutMix, Mixup
from retinue.data.views.noise import GaussianNoise
from retinue.data.views.perturbations import Compress, Perturb, QuarterTurn, calibration_views, training_views
from retinue.data.views.resampling import GaussianBlur, RandomResizedCrop, Resize
from retinue.data.views.text import parse
from retinue.data.views.warps import Affine, Rotate, Translate

__all__ = [
    "Affine",
    "CenterCrop",
    "Choose",
    "ColorJitter",
    "Compose",
    "Compress",
    "Crop",
    "CutMix",
    "Erase",
    "Flip",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "Mixup",
    "Normalize",
    "Perturb",
    "QuarterTurn",
    "RandAugment",
    "RandomResizedCrop",
    "Resize",
    "Rotate",
    "Solarize",
    "Translate",
    "TrivialAugment",
    "VerticalFlip",
    "View",
    "calibration_views",
    "derive",
    "flat",
    "keys",
    "parse",
    "partner_indices",
    "uniform",
    "training_views",
]
