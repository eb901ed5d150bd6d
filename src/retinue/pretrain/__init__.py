"""Backbones from images without labels."""

from retinue.pretrain.cae import CAE
from retinue.pretrain.cae_dvae import train_dvae
from retinue.pretrain.cae_finetuning import FineTune
from retinue.pretrain.cae_masks import BlockMask, RandomMask
from retinue.pretrain.cae_released import PluggedTokenizer
from retinue.pretrain.cae_tokenizers import PatchKMeans
from retinue.pretrain.fractal import FractalDataset
from retinue.pretrain.fractal_data import fractals
from retinue.pretrain.fractal_objectives import FastHead, MultiInstance, multi_instance_loss
from retinue.pretrain.fractal_render import render_batch, render_ifs
from retinue.pretrain.fractal_simsiam import SimSiam, simsiam_loss
from retinue.pretrain.fractal_systems import iterate_ifs, sample_ifs
from retinue.pretrain.jigsaw import JigsawPretext
from retinue.pretrain.rotnet import RotNet, rotate_batch
from retinue.pretrain.scatsimclr import PretextRegularized, RotationPretext, ScatSimCLR
from retinue.pretrain.selfcon import SelfCon
from retinue.pretrain.simclr_v2 import SimCLRv2, contrastive_views, learning_rate
from retinue.pretrain.simclr_v2_labels import Distillation, FineTuning, distillation_loss
from retinue.pretrain.simclr_v2_stages import distill, finetune, pretrain, semi_supervised

__all__ = [
    "BlockMask",
    "CAE",
    "contrastive_views",
    "distill",
    "Distillation",
    "distillation_loss",
    "FastHead",
    "FineTune",
    "finetune",
    "FineTuning",
    "FractalDataset",
    "fractals",
    "iterate_ifs",
    "JigsawPretext",
    "learning_rate",
    "multi_instance_loss",
    "MultiInstance",
    "PatchKMeans",
    "PluggedTokenizer",
    "PretextRegularized",
    "pretrain",
    "RandomMask",
    "render_batch",
    "render_ifs",
    "rotate_batch",
    "RotationPretext",
    "RotNet",
    "sample_ifs",
    "ScatSimCLR",
    "SelfCon",
    "semi_supervised",
    "SimCLRv2",
    "SimSiam",
    "simsiam_loss",
    "train_dvae",
]
