"""Accuracy on corrupted images: worked on a network whose answers are known, and what is refused."""

import pytest
import torch
from torch import nn

import retinue
from retinue.data import Data, from_arrays
from retinue.engine.robustness import corruption_robustness
from retinue.errors import ArgumentError


class Bright(nn.Module):
    """Says class 1 for images brighter than half, with a logit of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.stack((torch.zeros(len(images)), (images.mean((1, 2, 3)) > 0).float() * 2 - 1), 1)


@pytest.fixture
def data() -> Data:
    levels = torch.tensor([40, 80, 160, 220], dtype=torch.uint8).repeat(5)
    images = levels[:, None, None, None].expand(20, 1, 16, 16).contiguous()
    return from_arrays(images, (levels > 128).long(), split=["test"] * 16 + ["train"] * 4, mean=(0.5,), std=(0.5,))


def test_each_kind_has_its_row_and_the_mean_is_theirs(data: Data) -> None:
    table = corruption_robustness(Bright(), data.test, kinds=["brightness", "darkness"], batch_size=5)
    assert list(table) == ["clean", "brightness", "darkness", "mean"]
    assert table["clean"] == retinue.evaluate(Bright(), data.test)
    assert table["clean"]["top1"] == 1
    # 80 becomes bright with 0.2 more (131 of 255) and 40 with 0.4 more (142); 160 dark at 0.6, 220 at 0.45
    light = [table["brightness"][f"top1_severity_{severity}"] for severity in (1, 2, 3, 4, 5)]
    assert light == [1, 0.75, 0.75, 0.5, 0.5]
    dark = [table["darkness"][f"top1_severity_{severity}"] for severity in (1, 2, 3, 4, 5)]
    assert dark == [1, 0.75, 0.5, 0.5, 0.5]
    assert table["brightness"]["top1"] == pytest.approx(sum(light) / 5)
    for name in ("top1", "ece", "loss"):
        assert table["mean"][name] == pytest.approx((table["brightness"][name] + table["darkness"][name]) / 2)


def test_every_model_meets_the_same_images_whatever_the_batch(data: Data) -> None:
    seen: list[torch.Tensor] = []

    class Look(Bright):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().forward(images)

    for size in (3, 16):
        corruption_robustness(Look(), data.test, kinds=["impulse_noise"], severities=[2], batch_size=size)
    assert torch.equal(torch.cat(seen[:12]), torch.cat(seen[12:]))  # six batches as they are and six corrupted, then one of each
    corruption_robustness(Look(), data.test, kinds=["impulse_noise"], severities=[2], seed=1)
    assert not torch.equal(seen[-1], seen[13])


def test_training_mode_is_given_back(data: Data) -> None:
    model = Bright().train()
    corruption_robustness(model, data.test, kinds=["fog"], severities=[1])
    assert model.training


def test_what_cannot_be_is_refused(data: Data) -> None:
    with pytest.raises(ArgumentError, match=r'corruption_robustness: no corruption is called "frog"\. Did you mean fog'):
        corruption_robustness(Bright(), data.test, kinds=["frog"])
    with pytest.raises(ArgumentError, match=r"give one kind and one severity from 1 to 5 at least, got kinds=\['fog'\] and"):
        corruption_robustness(Bright(), data.test, kinds=["fog"], severities=[0])
    with pytest.raises(ArgumentError, match=r"got kinds=\[\]"):
        corruption_robustness(Bright(), data.test, kinds=[])
