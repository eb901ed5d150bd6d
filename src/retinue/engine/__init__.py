"""The engine: one loop, its checkpoints and runs, evaluation, and procedures of several stages."""

from retinue.engine.evaluation import evaluate, judge, logits
from retinue.engine.loading import best, check_run, held_out, load, reopen
from retinue.engine.loop import fit
from retinue.engine.modes import evaluating, train_mode
from retinue.engine.objective import Objective
from retinue.engine.parallel import map
from retinue.engine.prediction import find_images, predict, read_images
from retinue.engine.procedures import Stages, stages
from retinue.engine.run import Run, environment

__all__ = [
    "Objective", "Run", "Stages", "best", "check_run", "environment", "evaluate", "evaluating", "find_images", "fit", "held_out", "judge",
    "load", "logits", "map", "predict", "read_images", "reopen", "stages", "train_mode",
]  # fmt: skip
