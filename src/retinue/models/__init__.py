"""Networks: our own, any of timm's and anyone's `nn.Module`, behind timm's protocol."""

import importlib
from typing import TYPE_CHECKING, Any

from retinue.models.alexnet import alexnet
from retinue.models.cae_vit import CAEViT, cae_base_patch16_224, cae_large_patch16_224, cae_small_patch16_224, cae_vit, for_fine_tuning
from retinue.models.cifar_resnet import cifar_resnet, resnet20
from retinue.models.crops import ensemble_predict, multi_crop
from retinue.models.factory import create_model, list_models, register
from retinue.models.guidance_targets import deep_fcn, plain_resnet50, row_transformer, vanilla_rnn, wide_fcn
from retinue.models.hypernetwork import HyperNetwork
from retinue.models.hypernetwork_by_name import hypernetwork
from retinue.models.ibn_net import densenet_ibn, resnet_ibn
from retinue.models.ibn_net_layers import IBN, convert_to_ibn
from retinue.models.ibn_net_shifts import appearance_shifts, evaluate_shifts, feature_divergence
from retinue.models.iformer import InceptionTransformer, iformer, iformer_base, iformer_large, iformer_small
from retinue.models.iformer_blocks import InceptionMixer
from retinue.models.inception_next import (
    inception_next,
    inception_next_atto,
    inception_next_base,
    inception_next_base_384,
    inception_next_small,
    inception_next_tiny,
)
from retinue.models.inception_next_blocks import InceptionDWConv2d, MetaNeXtBlock
from retinue.models.inception_resnet import inception_resnet_v1, inception_resnet_v2
from retinue.models.inception_v4 import inception_v4
from retinue.models.layer_probe import LayerProbe
from retinue.models.lenet import lenet
from retinue.models.macs import count_macs
from retinue.models.mlp import mlp
from retinue.models.nasnet import (
    nasnet,
    nasnet_a_cifar,
    nasnet_a_cifar_large,
    nasnet_a_large,
    nasnet_a_mobile,
    nasnet_a_proxy,
    nasnet_a_tiny,
)
from retinue.models.nasnet_cells import Genotype, ScheduledDropPath
from retinue.models.network_in_network import network_in_network
from retinue.models.noprop import noprop_ct, noprop_dt, noprop_fm
from retinue.models.prob_psenn_network import ProbPSENN, prob_psenn
from retinue.models.projection import ProjectedClassifier, ProjectionHead, projected_classifier
from retinue.models.protocol import adapt, config, feature_size, pooled_features
from retinue.models.protopnet import ProtoPNet, STProtoPNet, protopnet, st_protopnet
from retinue.models.prototype_network import PrototypeClassifier, prototype_dl
from retinue.models.relative import relative
from retinue.models.resnet_rs import (
    resnet_rs,
    resnet_rs_50,
    resnet_rs_101,
    resnet_rs_152,
    resnet_rs_200,
    resnet_rs_270,
    resnet_rs_350,
    resnet_rs_420,
)
from retinue.models.resnet_rs_3d import resnet3d_rs
from retinue.models.resnet_rs_training import RSRecipe, pseudo_label, scaling_advisor
from retinue.models.scatsimclr import scatsimclr
from retinue.models.scattering import Scattering2d
from retinue.models.selfcon import SelfConEncoder, no_down, resnet_no_down
from retinue.models.simclr_resnet import simclr_resnet
from retinue.models.simplenet import simplenet
from retinue.models.small_convnet import small_convnet
from retinue.models.synthetic_detector import SyntheticDetector, synthetic_detector
from retinue.models.tiny import tiny
from retinue.models.untrained import untrained
from retinue.models.wide_deep_network import HermiteActivation, WideDeepNetwork, empirical_kernel, wide_deep

if TYPE_CHECKING:
    from retinue.models.optimized import optimize as optimize
from retinue.models.edited_network import edited_network
from retinue.models.learngene_pool import LearngenePool, learngene_pool, learngene_stitched
from retinue.models.mixture_growth import MixtureGrowthNet
from retinue.models.mixture_growth_by_name import mixture_growth, mixture_growth_member
from retinue.models.mixture_growth_networks import resnet_v1_5, wide_resnet
from retinue.models.stage_shared_vit import StageSharedViT, stage_shared_vit, sws_descendant
from retinue.models.stage_sharing_by_name import stage_descendant, stage_shared

__all__ = [
    "MixtureGrowthNet",
    "mixture_growth",
    "mixture_growth_member",
    "resnet_v1_5",
    "wide_resnet",
    "edited_network",
    "LearngenePool",
    "learngene_pool",
    "learngene_stitched",
    "StageSharedViT",
    "stage_shared_vit",
    "sws_descendant",
    "stage_descendant",
    "stage_shared",
    "CAEViT",
    "cae_base_patch16_224",
    "cae_large_patch16_224",
    "cae_small_patch16_224",
    "cae_vit",
    "for_fine_tuning",
    "adapt",
    "alexnet",
    "appearance_shifts",
    "cifar_resnet",
    "config",
    "convert_to_ibn",
    "count_macs",
    "create_model",
    "deep_fcn",
    "densenet_ibn",
    "empirical_kernel",
    "ensemble_predict",
    "evaluate_shifts",
    "feature_divergence",
    "feature_size",
    "Genotype",
    "HermiteActivation",
    "hypernetwork",
    "HyperNetwork",
    "IBN",
    "iformer",
    "iformer_base",
    "iformer_large",
    "iformer_small",
    "inception_next",
    "inception_next_atto",
    "inception_next_base",
    "inception_next_base_384",
    "inception_next_small",
    "inception_next_tiny",
    "inception_resnet_v1",
    "inception_resnet_v2",
    "inception_v4",
    "InceptionDWConv2d",
    "InceptionMixer",
    "InceptionTransformer",
    "LayerProbe",
    "lenet",
    "list_models",
    "MetaNeXtBlock",
    "mlp",
    "multi_crop",
    "nasnet",
    "nasnet_a_cifar",
    "nasnet_a_cifar_large",
    "nasnet_a_large",
    "nasnet_a_mobile",
    "nasnet_a_proxy",
    "nasnet_a_tiny",
    "network_in_network",
    "plain_resnet50",
    "no_down",
    "noprop_ct",
    "noprop_dt",
    "noprop_fm",
    "pooled_features",
    "prob_psenn",
    "ProbPSENN",
    "ProjectedClassifier",
    "ProjectionHead",
    "projected_classifier",
    "prototype_dl",
    "PrototypeClassifier",
    "protopnet",
    "ProtoPNet",
    "pseudo_label",
    "register",
    "relative",
    "resnet20",
    "resnet3d_rs",
    "resnet_ibn",
    "resnet_no_down",
    "resnet_rs",
    "resnet_rs_101",
    "resnet_rs_152",
    "resnet_rs_200",
    "resnet_rs_270",
    "resnet_rs_350",
    "resnet_rs_420",
    "resnet_rs_50",
    "row_transformer",
    "RSRecipe",
    "scaling_advisor",
    "ScheduledDropPath",
    "Scattering2d",
    "scatsimclr",
    "SelfConEncoder",
    "simclr_resnet",
    "simplenet",
    "small_convnet",
    "SyntheticDetector",
    "synthetic_detector",
    "st_protopnet",
    "STProtoPNet",
    "tiny",
    "untrained",
    "vanilla_rnn",
    "wide_deep",
    "wide_fcn",
    "WideDeepNetwork",
]


def __getattr__(name: str) -> Any:
    if name == "optimize":
        return importlib.import_module("retinue.models.optimized").optimize
    raise AttributeError(f"module 'retinue.models' has no attribute {name!r}")
