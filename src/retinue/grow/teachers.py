"""What every objective here asks of a teacher before anything is trained."""

from typing import Any

import torch
from torch import nn

from retinue.data import Data
from retinue.errors import ArgumentError
from retinue.models.modes import evaluating


def outputs_of(teacher: nn.Module, data: Data, where: str) -> int:
    """Return how many outputs a teacher has for the images of a data set.

    Args:
        teacher: any network; its mode is left as it was.
        data: whose channels and size of images it is to take.
        where: who asks, for the message.

    Raises:
        ArgumentError: if it cannot take such images.
    """
    like = next(teacher.parameters(), torch.empty(0))
    height, width = data.preprocessing.input_size
    blank = torch.zeros(2, data.preprocessing.channels, height, width, device=like.device, dtype=like.dtype)
    try:
        with torch.no_grad(), evaluating(teacher):
            answers: Any = teacher(blank)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ArgumentError(
            f"{where}: the teacher cannot take images of {height}x{width} px and {data.preprocessing.channels} channels "
            f"({' '.join(str(error).split())[:160]}). Open the data at its size: input_size=..., channels=..."
        ) from error
    return int(answers.shape[-1])
