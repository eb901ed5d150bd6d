"""Networks of other sizes, and of other weights, from one that is trained."""

from retinue.grow.hypernetwork_tasks import learn_tasks, task_data
from retinue.grow.hypernetworks import HyperTraining, OutputRegulariser, diversity_loss, output_units, save_network
from retinue.grow.learngene_distillation import LearngeneDistillation, PoolTraining, depth_points, distil_instance
from retinue.grow.learngene_pool import measure_pool, read_pool, save_pool, select, train_learngene_pool
from retinue.grow.mixture_growth import (
    MemberBatchNorm2d,
    MixtureGrowth,
    MixtureGrowthNet,
    TemplateConv2d,
    TemplateLinear,
    TemplateWeight,
    convert,
    grow,
    materialise,
    run_member,
)
from retinue.grow.mixture_growth_costs import GrowthPlan, multiply_adds, sizes
from retinue.grow.mixture_growth_stages import ensemble, refresh_norms, save_ordinary, train_mixture_growth
from retinue.grow.sws import (
    SoftDistillation,
    StageSharedViT,
    descend,
    fit_learngene,
    initialise_descendant,
    load_learngene,
    save_learngene,
    share_stages,
    stage_map,
)
from retinue.grow.sws_stages import train_sws
from retinue.models.hypernetwork import HyperNetwork
from retinue.models.learngene_pool import LearngenePool
from retinue.models.stitches import Configuration, stitch_pairs

__all__ = [
    "MemberBatchNorm2d",
    "MixtureGrowth",
    "MixtureGrowthNet",
    "TemplateConv2d",
    "TemplateLinear",
    "TemplateWeight",
    "convert",
    "grow",
    "materialise",
    "run_member",
    "GrowthPlan",
    "multiply_adds",
    "sizes",
    "ensemble",
    "refresh_norms",
    "save_ordinary",
    "train_mixture_growth",
    "Configuration",
    "HyperNetwork",
    "HyperTraining",
    "LearngeneDistillation",
    "LearngenePool",
    "OutputRegulariser",
    "PoolTraining",
    "SoftDistillation",
    "StageSharedViT",
    "depth_points",
    "descend",
    "distil_instance",
    "diversity_loss",
    "fit_learngene",
    "initialise_descendant",
    "learn_tasks",
    "load_learngene",
    "measure_pool",
    "output_units",
    "read_pool",
    "save_learngene",
    "save_network",
    "save_pool",
    "select",
    "share_stages",
    "stage_map",
    "stitch_pairs",
    "task_data",
    "train_learngene_pool",
    "train_sws",
]
