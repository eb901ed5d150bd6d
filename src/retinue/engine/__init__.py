"""The engine: one loop, its checkpoints and runs, evaluation, and procedures of several stages."""

from retinue.engine.evaluation import evaluate, judge, logits
from retinue.engine.loading import best, check_run, held_out, load, reopen
from retinue.engine.loop import fit
from retinue.engine.modes import evaluating, train_mode
from retinue.engine.objective import Objective
from retinue.engine.parallel import map
from retinue.engine.prediction import find_images, predict, read_images
from retinue.engine.procedures import Stages, stages
from retinue.engine.robustness import corruption_robustness
from retinue.engine.run import Run, environment
from retinue.engine.supervised import Supervised

__all__ = [
    "Objective", "Run", "Stages", "Supervised", "best", "check_run", "corruption_robustness", "environment", "evaluate", "evaluating",
    "find_images", "fit", "held_out", "judge", "load", "logits", "map", "predict", "read_images", "reopen", "stages",
    "train_mode",
]  # fmt: skip
