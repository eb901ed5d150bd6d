"""What a hypernetwork is asked by: a code made of a task's number, of images, of noise, or of several of these."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown

Part = Literal["task", "data", "noise"]
PARTS: tuple[Part, ...] = ("task", "data", "noise")
LENGTHS: dict[Part, int] = {"task": 8, "data": 32, "noise": 32}  # of a code where nobody says
TRIED = 64  # codes drawn to measure how large a trunk's features are


class CodeEncoder(nn.Module):
    """A small convolutional network that makes a code of an image.

    Args:
        in_chans: channels of the images.
        code: length of the code.
    """

    def __init__(self, in_chans: int, code: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(in_chans, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.code = nn.Linear(32, code)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch code"]:
        """Compute the codes."""
        return self.code(self.maps(x).mean((2, 3)))


class Condition(nn.Module):
    """Codes, of unit variance at the start.

    Args:
        parts: what the code is made of, joined by "+", such as "task" or "task+noise".
        num_tasks: tasks, each with a learned embedding.
        emb_dim: length of each part of the code; None takes 8 for a task, 32 for data and for noise.
        encoder: images to codes of length `emb_dim`, for data.

    Raises:
        ArgumentError: if there is no such part, or something is missing that it needs.
    """

    def __init__(self, parts: str, num_tasks: int | None, emb_dim: int | None, encoder: nn.Module | None) -> None:
        super().__init__()
        self.parts = parts.split("+")
        for part in self.parts:
            if part not in PARTS:
                raise unknown("HyperNetwork", "`condition`", part, PARTS, 'Several are joined by "+", such as "task+noise".')
        if len(set(self.parts)) < len(self.parts):
            raise ArgumentError(f'HyperNetwork: `condition` names a part twice, got "{parts}".')
        if emb_dim is not None and emb_dim < 1:
            raise ArgumentError(f"HyperNetwork: `emb_dim` must be at least 1, got {emb_dim}. It is the length of a code.")
        if "task" in self.parts and (num_tasks is None or num_tasks < 1):
            raise ArgumentError(
                f'HyperNetwork: condition="{parts}" needs `num_tasks`, a whole number of at least 1, got {num_tasks}. For one network '
                "without tasks say num_tasks=1."
            )
        if "task" not in self.parts and num_tasks is not None:
            raise ArgumentError(f'HyperNetwork: `num_tasks` belongs to condition="task", and it is "{parts}". Leave it out.')
        self.num_tasks = num_tasks or 0
        self.lengths = [emb_dim or LENGTHS[part] for part in self.parts]  # type: ignore[index]
        self.length, self.noise_length = sum(self.lengths), self._length("noise")
        # one tensor a task, so that each can be frozen alone; one-dimensional ones are not decayed
        self.tasks = nn.ParameterList(torch.randn(self._length("task")) for _ in range(self.num_tasks))
        self.encoder = encoder

    def _length(self, part: str) -> int:
        return self.lengths[self.parts.index(part)] if part in self.parts else 0

    def forward(
        self, task: int | None, images: Float[Tensor, "images ..."] | None, noise: Float[Tensor, "draws noise"] | None
    ) -> Float[Tensor, "codes code"]:
        """Put a code together; parts of which there is one serve all rows.

        Raises:
            ArgumentError: if a part is missing, or there is no such task.
            ShapeError: if the noise is of another length.
        """
        found: list[Tensor] = []
        for part, length in zip(self.parts, self.lengths):
            if part == "task":
                found.append(self.tasks[self.check_task(task)][None])
            elif part == "data":
                if images is None or self.encoder is None:
                    raise ArgumentError('HyperNetwork: condition "data" asks for images from which the code is made. Give `support`.')
                found.append(F.layer_norm(self.encoder(images), (length,)))
            else:
                if noise is None or noise.shape[-1] != length:
                    got = None if noise is None else tuple(noise.shape)
                    raise ShapeError(f"HyperNetwork: `noise` must be of length {length}, got {got}. Draw it: torch.randn({length}).")
                found.append(noise)
        rows = max(len(part) for part in found)
        return torch.cat([part.expand(rows, -1) for part in found], -1)

    def check_task(self, task: int | None) -> int:
        """Return the task; the only one need not be named.

        Raises:
            ArgumentError: if there is no such task.
        """
        if task is None and self.num_tasks == 1:
            return 0
        if task is None or not 0 <= task < self.num_tasks:
            raise ArgumentError(
                f"HyperNetwork: `task` must lie between 0 and {self.num_tasks - 1}, got {task}. Say it, as in model(images, task=0), or "
                "make the network of one task: model.materialise(0)."
            )
        return task

    def draw(self, count: int, device: torch.device | str, generator: torch.Generator | None = None) -> Float[Tensor, "{count} noise"]:
        """Draw noise."""
        return torch.randn(count, self.noise_length, generator=generator).to(device)

    @torch.no_grad()
    def typical(self, like: Tensor) -> Float[Tensor, "codes code"]:
        """Return codes such as will come, on a tensor's device: those of the tasks, with drawn ones for images and noise."""
        drawn = "data" in self.parts or "noise" in self.parts
        rows = max(TRIED if drawn else 1, self.num_tasks)
        found = []
        for part, length in zip(self.parts, self.lengths):
            own = torch.stack(list(self.tasks)) if part == "task" else torch.randn(rows, length).to(like)
            found.append(own[torch.arange(rows) % len(own)])
        return torch.cat(found, -1)
