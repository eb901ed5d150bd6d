"""rotnet: its exact checks, laws, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import retinue
from retinue.data import Batch
from retinue.errors import ArgumentError, ShapeError
from retinue.models import tiny
from retinue.pretrain import RotNet, rotate_batch


def batch_of(images: torch.Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def test_quarter_turns_run_counter_clockwise() -> None:
    turned, labels = rotate_batch(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert turned[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert labels.tolist() == [0, 1, 2, 3]


def test_all_turns_of_an_image_stand_together() -> None:
    images = torch.rand(2, 3, 5, 5)
    turned, labels = rotate_batch(images)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert torch.equal(turned[4], images[1])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_quarter_turn_is_rot90(k: int) -> None:
    images = torch.rand(2, 3, 6, 6)
    assert torch.equal(rotate_batch(images)[0][k::4], torch.rot90(images, k, (2, 3)))


@settings(max_examples=20, deadline=None)
@given(side=st.integers(1, 9), seed=st.integers(0, 99))
def test_turning_there_and_back_changes_nothing(side: int, seed: int) -> None:
    image = torch.rand(1, 2, side, side, generator=torch.Generator().manual_seed(seed))
    once = rotate_batch(image)[0][1:2]
    assert torch.equal(rotate_batch(once)[0][3:4], image)
    assert torch.equal(once.flatten().sort().values, image.flatten().sort().values)
    for _ in range(3):
        once = rotate_batch(once)[0][1:2]
    assert torch.equal(once, image)


def test_other_angles_turn_the_same_way_and_have_no_corners() -> None:
    column = torch.arange(33.0) - 16
    hill = torch.exp(-((column[None] - 8) ** 2 + column[:, None] ** 2) / 8)[None, None]  # a spot on the right
    turned, labels = rotate_batch(hill, (0, 45, 90), interpolate=True)
    assert labels.tolist() == [0, 1, 2]
    for image, degrees in zip(turned[:, 0], (0, 45, 90)):
        row, place = divmod(int(image.argmax()), 33)
        assert math.degrees(math.atan2(16 - row, place - 16)) == pytest.approx(degrees, abs=6)  # to the right, up right, up
    corners = rotate_batch(torch.ones(1, 1, 9, 9), (0, 45), interpolate=True)[0][..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).all()
    assert rotate_batch(torch.ones(1, 1, 9, 9), (0, 45), interpolate=True)[0][1, 0, 4, 0] == pytest.approx(1)


def test_a_head_of_zeros_pays_log_four() -> None:
    model = tiny("ours")
    objective = RotNet(model)
    nn.init.zeros_(objective.head.weight)
    nn.init.zeros_(objective.head.bias)
    numbers = objective(model, batch_of(torch.rand(2, 3, 32, 32)))
    assert numbers["loss"].item() == pytest.approx(math.log(4), abs=3e-7)
    assert numbers["turn_accuracy"] == 0.25


def test_a_backbone_that_cannot_see_the_turn_stays_above_log_four() -> None:
    class Mean(nn.Module):
        """Knows the mean of each channel alone."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.mean((2, 3)))

    model: Any = retinue.models.adapt(Mean(), num_classes=3)
    objective = RotNet(model)
    images = torch.rand(8, 3, 8, 8)
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.05)
    for _ in range(60):
        loss = objective(model, batch_of(images))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() > math.log(4) - 1e-4


def test_a_network_learns_the_turns_of_one_picture() -> None:
    torch.manual_seed(0)
    model = retinue.create_model("small_convnet", widths=[8, 8, 16], num_classes=0)
    objective = RotNet(model)
    batch = batch_of(torch.rand(1, 3, 12, 12))
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=0.01)
    for _ in range(60):
        numbers = objective(model, batch)
        optimizer.zero_grad()
        numbers["loss"].backward()
        optimizer.step()
    assert numbers["turn_accuracy"] == 1


@pytest.mark.parametrize(
    ("rotations", "interpolate", "message"),
    [
        ((0,), False, r"`rotations` must be two angles or more, each once, got \[0\]"),
        ((0, 90, 360), False, r"each once, got \[0, 90, 360\]"),
        ((0, 45), False, r"45 degrees is no multiple of 90, so that pixels must be interpolated\. Allow it with interpolate=True"),
    ],
)
def test_rotations_that_cannot_be_are_refused(rotations: tuple[float, ...], interpolate: bool, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RotNet(tiny("ours"), rotations, interpolate)


def test_oblong_images_are_refused_before_anything_is_computed() -> None:
    message = r"square images, got height=16 and width=24\. Open the data with input_size=16\."
    with pytest.raises(ShapeError, match=message):
        rotate_batch(torch.zeros(1, 3, 16, 24))
    data = retinue.data.open("digits", input_size=(16, 24), train_images=20, test_images=20)
    model = tiny("ours", in_chans=1)
    with pytest.raises(ShapeError, match=message):
        retinue.fit(model, RotNet(model), data, max_steps=1, progress=False)


@pytest.mark.parametrize("shown", ["crop(1), vertical_flip", "rotate(90)", "choose([flip, rotate((0, 180))])"])
def test_views_that_destroy_the_turn_are_refused(shown: str) -> None:
    data = retinue.data.open("digits", input_size=16, train_images=20, test_images=20)
    model = tiny("ours", in_chans=1)
    with pytest.raises(ArgumentError, match=r"destroys what is to be guessed: how far an image was turned.*Leave it out"):
        retinue.fit(model, RotNet(model), data, max_steps=1, views=shown, progress=False)
    retinue.fit(model, RotNet(model), data, max_steps=1, views="crop(1), flip, rotate(10)", progress=False)
