"""Networks of other sizes, and of other weights, from one that is trained."""

from retinue.grow.hypernetwork_tasks import learn_tasks, task_data
from retinue.grow.hypernetworks import HyperTraining, OutputRegulariser, diversity_loss, output_units, save_network
from retinue.models.hypernetwork import HyperNetwork

__all__ = [
    "HyperNetwork",
    "HyperTraining",
    "OutputRegulariser",
    "diversity_loss",
    "learn_tasks",
    "output_units",
    "save_network",
    "task_data",
]
