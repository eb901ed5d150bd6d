"""What a student is worth to N2N, and how much faster it really is."""

import time
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.engine import evaluating
from retinue.errors import ArgumentError

INVALID = -1.0  # reward of a student that is not trained at all
SOFT_EPOCHS = 15  # policy epochs over which a limit becomes hard


def softness(epoch: int | None) -> float:
    """Compute (1 - e / 15)^4 for policy epoch e, and 0 from epoch 15 on: how much a broken limit is still forgiven.

    The authors' formula is not clipped, so it would forgive again after epoch 15.

    >>> [round(softness(e), 6) for e in (0, 1, 5, 10, 15, 20)]
    [1.0, 0.758835, 0.197531, 0.012346, 0.0, 0.0]
    """
    return 0.0 if epoch is None else max(1 - epoch / SOFT_EPOCHS, 0.0) ** 4


def compression_reward(
    acc: float,
    params: int,
    teacher_acc: float,
    teacher_params: int,
    max_params: int | None = None,
    min_acc: float | None = None,
    epoch: int | None = None,
) -> float:
    """Compute R = A / A_T C (2 - C) with C = 1 - params / teacher's params (section 3.3).

    C (2 - C) has slope 2 at C = 0 and 0 at C = 1: the smaller the student is already, the more its accuracy counts. Where a limit is broken
    the reward is (eps - 1) + eps R, with eps the `softness` of the policy's epoch.

    Args:
        acc: accuracy of the student on the validation images, in [0, 1].
        params: its parameters.
        teacher_acc: accuracy of the teacher, above 0.
        teacher_params: its parameters.
        max_params: limit of the parameters; None is none.
        min_acc: least accuracy; None is none.
        epoch: policy epoch, from 0; None makes limits hard.

    Raises:
        ArgumentError: if the teacher's accuracy is 0, it has no parameters, or a limit is impossible.

    >>> round(compression_reward(0.90, 50, 0.92, 100), 6)
    0.733696
    """
    if not 0 < teacher_acc <= 1:
        raise ArgumentError(
            f"compression_reward: `teacher_acc` must lie in (0, 1], got {teacher_acc}. A teacher that is never right has nothing to teach."
        )
    if teacher_params < 1:
        raise ArgumentError(f"compression_reward: `teacher_params` must be at least 1, got {teacher_params}.")
    check_limits(max_params, min_acc)
    compression = 1 - params / teacher_params
    reward = acc / teacher_acc * compression * (2 - compression)
    if (max_params is not None and params > max_params) or (min_acc is not None and acc < min_acc):
        soft = softness(epoch)
        return (soft - 1) + soft * reward
    return reward


def check_limits(max_params: int | None, min_acc: float | None) -> None:
    """Refuse limits that no student can keep.

    Raises:
        ArgumentError: if `max_params` is below 1 or `min_acc` outside [0, 1].
    """
    if max_params is not None and max_params < 1:
        raise ArgumentError(f"n2n: `max_params` must be at least 1, got {max_params}. No student has fewer parameters.")
    if min_acc is not None and not 0 <= min_acc <= 1:
        raise ArgumentError(f"n2n: `min_acc` must lie in [0, 1], got {min_acc}. For 90 percent write min_acc=0.9.")


@torch.inference_mode()
def milliseconds(models: Sequence[nn.Module], images: Float[Tensor, "batch channels height width"], rounds: int = 15) -> list[float]:
    """Measure how long each network takes for one image: the median over rounds in which they take turns.

    On a CPU it is processor time, of all threads: on a busy machine the clock on the wall favours whoever is not interrupted.

    Args:
        models: networks on the device of the images.
        images: shown as one batch.
        rounds: after three more that are not counted.

    Raises:
        ArgumentError: if there is no round.
    """
    if rounds < 1:
        raise ArgumentError(f"milliseconds: `rounds` must be at least 1, got {rounds}.")
    clock = time.perf_counter if images.is_cuda else time.process_time
    took: list[list[float]] = [[] for _ in models]
    with evaluating(*models):
        for round_ in range(rounds + 3):
            for model, times in zip(models, took, strict=True):
                _wait(images)
                start = clock()
                model(images)
                _wait(images)
                if round_ >= 3:
                    times.append((clock() - start) * 1000 / len(images))
    return [float(torch.tensor(times, dtype=torch.float64).median()) for times in took]


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
