"""N2N from beginning to end: a teacher, the search, and its baselines with the same budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from retinue.compress.n2n import N2N, SETTINGS, CompressionResult, Stage
from retinue.data import Data
from retinue.engine import Supervised, fit, load, stages
from retinue.errors import ArgumentError, unknown

__all__ = ["n2n_search", "random_search"]
BASELINES = ("random", "uniform")


def random_search(
    teacher: nn.Module,
    data: Data,
    stage: Stage = "both",
    *,
    epochs: int | Sequence[int] = 100,
    rollouts: int = 5,
    **options: Any,
) -> CompressionResult:
    """Judge as many students as N2N does, with actions drawn uniformly: the baseline of the policies.

    Args:
        teacher: as in `N2N`.
        data: as there.
        stage: as there.
        epochs: as in `N2N.run`.
        rollouts: as there.
        options: of `N2N`.
    """
    return N2N(teacher, data, stage, **{**options, "learn": False}).run(epochs, rollouts)


def n2n_search(
    model: nn.Module,
    data: Data,
    *,
    teacher: str | None = None,
    teacher_fit: Mapping[str, Any] | None = None,
    stage: Stage = "both",
    epochs: int | Sequence[int] = 100,
    rollouts: int = 5,
    student_fit: Mapping[str, Any] | None = None,
    final_fit: Mapping[str, Any] | None = None,
    max_params: int | None = None,
    min_acc: float | None = None,
    policy_lr: Sequence[float] = (0.003, 0.01),
    removal_policy: str | None = None,
    shrinkage_policy: str | None = None,
    shared_reward: bool = False,
    skips: bool = False,
    temperature: float = 3.0,
    label_weight: float = 0.3,
    baselines: Sequence[str] = BASELINES,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Train a teacher if need be, compress it, and do the same without a policy; a killed call goes on where it stopped.

    Args:
        model: the teacher; trained in place where `teacher_fit` says how.
        data: labelled images; those of validation give the rewards.
        teacher: folder of a run whose model is the teacher instead.
        teacher_fit: arguments of `retinue.fit` for the teacher's own training; None takes the model as it is.
        stage: "removal", "shrinkage" or "both".
        epochs: of the policies; of both stages, or a pair.
        rollouts: candidates of an epoch.
        student_fit: as in `N2N`.
        final_fit: as there.
        max_params: as there.
        min_acc: as there.
        policy_lr: as there.
        removal_policy: folder of a policy that was trained on another teacher, such as `RUN/search/policies/removal`.
        shrinkage_policy: as well.
        shared_reward: as in `N2N`.
        skips: as there.
        temperature: as there.
        label_weight: as there.
        baselines: "random" (random search with the same budget), "uniform" (all widths by one factor, to the size that was found).
        seed: of everything random.
        run_dir: the folder; the student stands in its `search/student` for `retinue.load`, the policies in `search/policies`.
        progress: say how it goes.

    Returns:
        Accuracy, parameters, multiply-adds and measured milliseconds of "teacher", "student" and of each baseline; and "policy": for each
        stage the mean reward of its first and its last third of epochs, and its number of invalid students.

    Raises:
        ArgumentError: as `N2N`, or if there is no such baseline or setting of `teacher_fit`, or both `teacher` and `teacher_fit` are given.
    """
    for name in baselines:
        if name not in BASELINES:
            raise unknown("n2n", "baseline", name, BASELINES)
    if teacher is not None and teacher_fit is not None:
        raise ArgumentError("n2n: `teacher` names a trained network, and `teacher_fit` trains one. Leave one out.")
    for name in teacher_fit or ():
        if name not in (*SETTINGS, "seed"):
            raise unknown("n2n", "setting of `teacher_fit`", name, SETTINGS)
    folder = None if run_dir is None else Path(run_dir)
    network = model if teacher is None else load(teacher)
    if teacher_fit is not None:
        finished = stages(run_dir)

        def train() -> dict[str, Any]:
            run = fit(model, Supervised(), data, **{"seed": seed, **teacher_fit}, run_dir=finished.folder("teacher"), progress=progress)
            return {"weights": dict(run.model.state_dict())}

        network.load_state_dict(finished("teacher", train)["weights"])
    options: dict[str, Any] = {
        "student_fit": student_fit, "final_fit": final_fit, "max_params": max_params, "min_acc": min_acc, "policy_lr": policy_lr,
        "shared_reward": shared_reward, "skips": skips, "temperature": temperature, "label_weight": label_weight, "seed": seed,
        "progress": progress,
    }  # fmt: skip
    search = N2N(
        network, data, stage, removal_policy=removal_policy, shrinkage_policy=shrinkage_policy,
        run_dir=None if folder is None else folder / "search", **options,
    )  # fmt: skip
    found = search.run(epochs, rollouts)
    numbers: dict[str, dict[str, Any]] = {"teacher": found.teacher, "student": found.chosen}
    if "random" in baselines:
        place = None if folder is None else folder / "random"
        numbers["random"] = random_search(network, data, stage, epochs=epochs, rollouts=rollouts, run_dir=place, **options).chosen
    if "uniform" in baselines:
        numbers["uniform"] = search.uniform(found.chosen["parameters"])[1]
    numbers["policy"] = {kind: thirds(found, kind) for kind in found.policies}
    return numbers


def thirds(found: CompressionResult, stage: str) -> dict[str, float]:
    """Compare the first third of a stage's policy epochs with the last.

    Args:
        found: by N2N.
        stage: "removal" or "shrinkage".

    Returns:
        "first" and "last", the mean rewards of both, and "invalid", how many students were.
    """
    rows = [row for row in found.table if row["stage"] == stage]
    third = max(len({row["epoch"] for row in rows}) // 3, 1)
    return {
        "first": found.mean_reward(stage, slice(third)),
        "last": found.mean_reward(stage, slice(-third, None)),
        "invalid": sum(bool(row["invalid"]) for row in rows),
    }
