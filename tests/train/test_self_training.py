import math

import pytest
import torch
from torch import Tensor, nn

import retinue
from retinue.data import Batch
from retinue.errors import ShapeError
from retinue.models import create_model
from retinue.train import SelfTraining


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def batch(indices: list[int]) -> Batch:
    images = torch.zeros(len(indices), 1, 2, 2)
    return Batch(images=images, labels=torch.zeros(len(indices), dtype=torch.long), indices=torch.tensor(indices))


def test_each_kind_has_a_mean_of_its_own() -> None:
    # softmax of (log 3, 0) is (3/4, 1/4)
    model = Fixed(torch.tensor([math.log(3.0), 0.0]))
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    objective = SelfTraining(targets, torch.tensor([False, True, True]))
    first, second = -math.log(0.75), -math.log(0.25)
    assert objective(model, batch([0]))["loss"].item() == pytest.approx(first)
    assert objective(model, batch([0, 0, 0, 1]))["loss"].item() == pytest.approx(first + second)
    assert objective(model, batch([1, 2]))["loss"].item() == pytest.approx((second + (first + second) / 2) / 2)


def test_it_trains() -> None:
    data = retinue.data.open("digits", train_images=64, val_fraction=0.0, seed=0)
    targets = torch.nn.functional.one_hot(data.train.labels, 10).float()
    objective = SelfTraining(targets, torch.arange(64) >= 32)
    run = retinue.fit(
        create_model("mlp", num_classes=10, in_chans=1, input_size=8), objective, data, max_steps=2, batch_size=16, progress=False
    )
    assert all(math.isfinite(row["loss"]) for row in run.history if "loss" in row)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"^SelfTraining: `targets` has 2 rows and `pseudo` 3\. Both need one an image\.$"):
        SelfTraining(torch.eye(2), torch.tensor([False, True, True]))
    data = retinue.data.open("digits", train_images=64, val_fraction=0.0, seed=0)
    with pytest.raises(ShapeError, match=r"^SelfTraining: `targets` must be 64 images x 10 classes, .* got \(2, 2\)\. Give one row"):
        retinue.fit(
            create_model("mlp", num_classes=10, in_chans=1, input_size=8),
            SelfTraining(torch.eye(2), torch.tensor([False, True])),
            data,
            max_steps=1,
            progress=False,
        )
