"""Backbones from images without labels."""

from retinue.pretrain.cae import CAE
from retinue.pretrain.cae_dvae import train_dvae
from retinue.pretrain.cae_finetuning import FineTune
from retinue.pretrain.cae_masks import BlockMask, RandomMask
from retinue.pretrain.cae_released import PluggedTokenizer
from retinue.pretrain.cae_tokenizers import PatchKMeans
from retinue.pretrain.jigsaw import JigsawPretext
from retinue.pretrain.rotnet import RotNet, rotate_batch
from retinue.pretrain.scatsimclr import PretextRegularized, RotationPretext, ScatSimCLR
from retinue.pretrain.simclr_v2 import SimCLRv2, contrastive_views, learning_rate
from retinue.pretrain.simclr_v2_labels import Distillation, FineTuning, distillation_loss
from retinue.pretrain.simclr_v2_stages import distill, finetune, pretrain, semi_supervised

__all__ = [
    "BlockMask",
    "CAE",
    "Distillation",
    "FineTune",
    "FineTuning",
    "JigsawPretext",
    "PatchKMeans",
    "PluggedTokenizer",
    "RandomMask",
    "PretextRegularized",
    "RotNet",
    "RotationPretext",
    "ScatSimCLR",
    "SimCLRv2",
    "contrastive_views",
    "distill",
    "distillation_loss",
    "finetune",
    "learning_rate",
    "pretrain",
    "rotate_batch",
    "semi_supervised",
    "train_dvae",
]
