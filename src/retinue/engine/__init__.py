"""The engine: one loop, its checkpoints and runs, evaluation, and procedures of several stages."""

from retinue.engine.evaluate import evaluate, judge, logits
from retinue.engine.fit import fit
from retinue.engine.load import best, check_run, held_out, load, reopen
from retinue.engine.modes import evaluating, train_mode
from retinue.engine.objective import Objective
from retinue.engine.parallel import map  # noqa: A004 - as in retinue.map
from retinue.engine.predict import find_images, predict, read_images
from retinue.engine.run import Run, environment
from retinue.engine.stages import Stages, stages

__all__ = [
    "Objective", "Run", "Stages", "best", "check_run", "environment", "evaluate", "evaluating", "fit", "held_out", "judge", "load", "logits", "map",
    "find_images", "predict", "read_images", "reopen", "stages", "train_mode",
]  # fmt: skip
