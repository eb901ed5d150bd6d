"""Why a network said what it said, and whether the answer can be trusted."""

from retinue.explain.faithfulness import (
    area,
    average_drop,
    curve,
    deletion_auc,
    energy_in_mask,
    insertion_auc,
    iou,
    pointing_game,
    probability,
    sanity_check,
    spearman,
    summarize,
)
from retinue.explain.fooling import FoolingResult, MapElites, fool
from retinue.explain.fooling_ascent import Ascent
from retinue.explain.fooling_cppn import CPPN, CPPNEncoding
from retinue.explain.fooling_encodings import DirectEncoding
from retinue.explain.fooling_retraining import retrain_with_fooling, with_fooling_class
from retinue.explain.grad_cam import GradCAM, heat_maps
from retinue.explain.prob_psenn import ProbPSENNLoss, train_prob_psenn, training_distances
from retinue.explain.prototype_dl import PrototypeLoss, prototype_loss
from retinue.explain.prototype_elastic import Elastic
from retinue.explain.relative import Relative, RelativeModel, RelativeProjection, select_anchors, stitch
from retinue.explain.st_protopnet import PartPrototypes
from retinue.explain.st_protopnet_localisation import class_heat, localisation
from retinue.explain.st_protopnet_push import prune, push, table
from retinue.explain.st_protopnet_stages import fit_prototypes
from retinue.models.prob_psenn_network import ProbPSENN
from retinue.models.prob_psenn_uncertainty import entropies, overlaps, typicality
from retinue.models.protopnet import ProtoPNet, STProtoPNet
from retinue.models.prototype_autoencoders import ConvDecoder, ConvEncoder
from retinue.models.prototype_network import Evidence, PrototypeClassifier

__all__ = [
    "PartPrototypes", "ProtoPNet", "STProtoPNet", "class_heat", "fit_prototypes", "localisation", "prune", "push", "table",
    "Ascent", "CPPN", "CPPNEncoding", "DirectEncoding", "FoolingResult", "MapElites", "fool", "retrain_with_fooling", "with_fooling_class",
    "ConvDecoder", "ConvEncoder", "Elastic", "Evidence", "ProbPSENN", "ProbPSENNLoss", "PrototypeClassifier", "PrototypeLoss", "entropies",
    "overlaps", "prototype_loss", "train_prob_psenn", "training_distances", "typicality",
    "Relative", "RelativeModel", "RelativeProjection", "select_anchors", "stitch",
    "GradCAM", "area", "average_drop", "curve", "deletion_auc", "energy_in_mask", "heat_maps", "insertion_auc", "iou", "pointing_game",
    "probability", "sanity_check", "spearman", "summarize",
]  # fmt: skip
