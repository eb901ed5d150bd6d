"""Small trainings that the engine's tests share."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retinue
from retinue.data import Batch, Data
from retinue.engine import Objective


class Noisy(nn.Module):
    """A bare network with dropout and batch norm, so that a training depends on randomness and on buffers."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.classify = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class Duel(Objective):
    """A generator of images against a critic, each with its own optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"critic": list(self.critic.parameters()), "generator": list(model.parameters())}

    def _fake(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.images.flatten(1)[:, :4].unsqueeze(-1).unsqueeze(-1)).reshape(-1, 1, 8, 8)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        real, fake = self.critic(batch.images), self.critic(self._fake(model, batch).detach())
        yield "critic", {"loss": F.softplus(-real).mean() + F.softplus(fake).mean()}
        yield "generator", {"loss": F.softplus(-self.critic(self._fake(model, batch))).mean()}

    def evaluate(self, model: nn.Module, loader: Any) -> dict[str, float]:
        return {"loss": float(sum(p.detach().abs().sum() for p in model.parameters()))}


def digits(count: int = 160, **options: Any) -> Data:
    """A few of the bundled digits, 8x8 px."""
    return retinue.data.open("digits", train_images=count, test_images=60, **options)


def noisy(seed: int = 0) -> Noisy:
    torch.manual_seed(seed)
    return Noisy()


def settings(**changes: Any) -> dict[str, Any]:
    """Arguments of a training in which much is remembered from step to step."""
    common: dict[str, Any] = {
        "epochs": 3, "batch_size": 16, "lr": 3e-3, "ema": 0.9, "log_every": 4, "loggers": ("csv",), "progress": False,
        "views": "crop(1), flip", "checkpoint_every": 3, "seed": 5,
    }  # fmt: skip
    return {**common, **changes}


def train(run_dir: Any = None, objective: Objective | None = None, data: Data | None = None, **changes: Any) -> retinue.engine.Run:
    return retinue.fit(noisy(), objective or retinue.train.Supervised(), data or digits(), run_dir=run_dir, **settings(**changes))
