"""Crop plans of 1, 12 and 144, and probabilities averaged over crops and networks."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import ensemble_predict, multi_crop


class Reads(nn.Module):
    """Classifies by two pixels or by a mean: logits that a test can predict."""

    def __init__(self, read: Any, classes: int = 2) -> None:
        super().__init__()
        self.read, self.num_classes = read, classes
        self.seen: list[torch.Size] = []
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape)
        return self.dropout(self.read(x))


def test_the_single_crop_is_the_centre() -> None:
    x = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert multi_crop(x, 2, "1").tolist() == [[[[[14, 15], [20, 21]]]]]
    assert torch.equal(multi_crop(x, 6, "1")[:, 0], x)


def test_twelve_crops_are_corners_centre_whole_and_their_mirror_images() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    crops = multi_crop(x, 2, "12")
    assert crops.shape == (1, 12, 1, 2, 2)
    assert crops[0, :5, 0].tolist() == [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]], [[5, 6], [9, 10]]]
    whole = TF.resize(x, [2, 2], TF.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(crops[0, 5], whole[0])
    assert torch.equal(crops[:, 6:], crops[:, :6].flip(-1))


def test_corners_and_centre_are_those_of_torchvision() -> None:
    x = images(2, 3, 31, 40)
    for ours, theirs in zip(multi_crop(x, 24, "12").unbind(1), TF.five_crop(x, [24, 24]), strict=False):
        assert torch.equal(ours, theirs)


def test_one_hundred_and_forty_four_crops_of_which_72_mirror_the_others() -> None:
    crops = multi_crop(images(2, 3, 40, 90), 28, "144")  # so wide that no two squares overlap in a crop
    assert crops.shape == (2, 144, 3, 28, 28)
    assert torch.equal(crops[:, 72:], crops[:, :72].flip(-1))
    assert len({tuple(crop.flatten().tolist()) for crop in crops[0]}) == 144


def test_the_scales_are_those_of_the_paper_and_its_like_for_299_px(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def resize(x: Tensor, size: list[int], *args: Any, **kwargs: Any) -> Tensor:
        asked.append(size)
        return x.new_zeros(*x.shape[:2], *size)

    monkeypatch.setattr("retinue.models.crops.TF.resize", resize)
    multi_crop(torch.zeros(1, 1, 300, 400), 224, "144")
    assert [size for size in asked if size != [224, 224]] == [[256, 341], [288, 384], [320, 427], [352, 469]]
    assert asked.count([224, 224]) == 12
    asked.clear()
    multi_crop(torch.zeros(1, 1, 500, 300), 299, "144")
    assert [size[1] for size in asked if size != [299, 299]] == [342, 384, 427, 470]


def test_squares_lie_left_centre_right_of_a_wide_image_and_top_centre_bottom_of_a_high_one() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 32, 64)
    squares = multi_crop(ramp, 28, "144")[0, :18].unflatten(0, (3, 6))  # the first scale, 32 px: nothing is resized
    assert torch.equal(squares[0, 0, 0, 0], ramp[0, 0, 0, :28])
    assert torch.equal(squares[1, 0, 0, 0], ramp[0, 0, 0, 16:44])
    assert torch.equal(squares[2, 1, 0, 0], ramp[0, 0, 0, 36:])
    high = multi_crop(ramp.transpose(2, 3), 28, "144")[0, :18].unflatten(0, (3, 6))
    assert torch.equal(high[2, 2, 0, :, 0], ramp[0, 0, 0, 36:])


@settings(max_examples=10)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.sampled_from(["1", "12", "144"]))
def test_every_plan_gives_its_number_of_crops_of_a_constant_image(height: int, width: int, size: int, plan: str) -> None:
    if plan != "144" and min(height, width) < size:
        with pytest.raises(ShapeError):
            multi_crop(torch.ones(1, 1, height, width), size, plan)
        return
    crops = multi_crop(torch.full((2, 1, height, width), 0.5), size, plan)
    assert crops.shape == (2, int(plan), 1, size, size)
    torch.testing.assert_close(crops, torch.full_like(crops, 0.5), rtol=0, atol=1e-6)  # bicubic weights add up to 1


def test_bytes_stay_bytes() -> None:
    assert multi_crop(torch.full((1, 3, 20, 30), 200, dtype=torch.uint8), 14, "144").unique().tolist() == [200]


def test_a_network_that_ignores_left_and_right_says_the_same_of_both_halves() -> None:
    def symmetric(x: Tensor) -> Tensor:
        both = x + x.flip(-1)
        return torch.stack([both[:, 0, 0].sum(-1), both[:, 0, -1].sum(-1)], 1)

    crops = multi_crop(images(3, 1, 24, 20), 16, "144")
    probabilities = symmetric(crops.flatten(0, 1)).softmax(1).unflatten(0, (3, 144))
    torch.testing.assert_close(probabilities[:, :72].mean(1), probabilities[:, 72:].mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        ensemble_predict(Reads(symmetric), images(3, 1, 24, 20), "144", net_size=16), probabilities[:, :72].mean(1), rtol=0, atol=1e-6
    )


def test_probabilities_are_averaged_not_logits() -> None:
    model = Reads(lambda x: torch.stack([x[:, 0, 0, 0], torch.zeros(len(x))], 1))
    x = torch.tensor([[0.0, 8.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    crops = multi_crop(x, 1, "12")[0, :, 0, 0, 0]
    expected = torch.sigmoid(crops).mean()
    torch.testing.assert_close(ensemble_predict(model, x, "12", net_size=1)[0, 0], expected, rtol=0, atol=1e-6)
    assert abs(expected - torch.sigmoid(crops.mean())) > 0.1


def test_networks_weigh_alike() -> None:
    sure, unsure = Reads(lambda x: x.new_tensor([[9.0, 0.0]]).repeat(len(x), 1)), Reads(lambda x: x.new_zeros(len(x), 2))
    p = torch.sigmoid(torch.tensor(9.0))
    out = ensemble_predict([sure, unsure, unsure], torch.zeros(2, 1, 4, 4), net_size=4)
    torch.testing.assert_close(out, torch.stack([(p + 1) / 3, (2 - p) / 3]).expand(2, 2), rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_the_ensembles_log_loss_is_at_most_the_members_mean(members: int, seed: int) -> None:
    models = [Reads(lambda x, w=images(12, 3, seed=seed + i): x.flatten(1) @ w, classes=3) for i in range(members)]
    x, labels = images(20, 3, 2, 2, seed=seed), torch.arange(20) % 3

    def loss(who: Any) -> Tensor:
        return F.nll_loss(ensemble_predict(who, x, net_size=2).log(), labels)

    assert loss(models) <= torch.stack([loss(model) for model in models]).mean() + 1e-6  # Jensen; 1e-6 for the rounding of one member


def test_each_network_sees_its_own_size_in_batches_and_gets_its_mode_back() -> None:
    small, large = Reads(lambda x: x.new_zeros(len(x), 2)), Reads(lambda x: x.new_zeros(len(x), 2))
    small.default_cfg, large.default_cfg = {"input_size": (3, 8, 8)}, {"input_size": (3, 12, 12)}
    large.dropout.eval()
    ensemble_predict([small, large], images(5, 3, 16, 16), "12", batch_size=30)
    assert [tuple(shape) for shape in small.seen] == [(24, 3, 8, 8), (24, 3, 8, 8), (12, 3, 8, 8)]
    assert [tuple(shape) for shape in large.seen] == [(24, 3, 12, 12), (24, 3, 12, 12), (12, 3, 12, 12)]
    assert (small.training, small.dropout.training, large.training, large.dropout.training) == (True, True, True, False)
    small.seen.clear()
    ensemble_predict(small, images(1, 3, 16, 16), "144", batch_size=100)
    assert [shape[0] for shape in small.seen] == [100, 44]


def test_ours_and_timms_predict_together() -> None:
    ours = retinue.create_model("inception_v4", num_classes=3, input_size=28, width_mult=0.1, depths=[1, 1, 1])
    theirs = timm.create_model("resnet18", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 8, 8, 8])
    x = images(2, 3, 32, 32)
    out = ensemble_predict([ours, ours], x, "12")
    torch.testing.assert_close(out.sum(1), torch.ones(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(out, ensemble_predict(ours, x, "12"), rtol=0, atol=1e-6)
    assert ensemble_predict([ours, theirs], x, "144", net_size=28).shape == (2, 3)
    assert not out.requires_grad


def test_plans_and_sizes_that_cannot_be_are_refused() -> None:
    x = torch.zeros(1, 3, 20, 30)
    with pytest.raises(ArgumentError, match=r'multi_crop: no `plan` is called "14"\. Did you mean 144'):
        multi_crop(x, 8, "14")  # type: ignore[arg-type]
    for size in (0, -3, 2.5):
        with pytest.raises(
            ArgumentError, match=rf"`net_size` must be a positive whole number of pixels, got {size}\. It is the side of the crops"
        ):
            multi_crop(x, size, "144")  # type: ignore[arg-type]
    with pytest.raises(
        ShapeError, match=r'images of 20x30 px hold no crop of 24 px\. Read them larger, or use plan="144", which scales them'
    ):
        multi_crop(x, 24, "12")


def test_ensembles_that_cannot_be_are_refused() -> None:
    two, three = Reads(lambda x: x.new_zeros(len(x), 2)), Reads(lambda x: x.new_zeros(len(x), 3))
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ArgumentError, match=r"the networks have 2, 3 classes\. They can be averaged only over the same classes"):
        ensemble_predict([two, three], x, net_size=8)
    with pytest.raises(ArgumentError, match=r"needs at least one network and one image, got 0 and 1"):
        ensemble_predict([], x)
    with pytest.raises(ArgumentError, match=r"needs at least one network and one image, got 1 and 0"):
        ensemble_predict(two, x[:0])
    with pytest.raises(ArgumentError, match=r"`images` must be normalised floats, got torch.uint8\. Call preprocessing.normalize"):
        ensemble_predict(two, x.byte(), net_size=8)
    with pytest.raises(ArgumentError, match=r"`batch_size` must be positive, got 0"):
        ensemble_predict(two, x, net_size=8, batch_size=0)
    with pytest.raises(ArgumentError, match=r"Reads does not say its image size\. Give it: net_size=224"):
        ensemble_predict(two, x)
    oblong = retinue.create_model("small_convnet", input_size=(8, 12))
    with pytest.raises(ArgumentError, match=r"takes images of 8x12 px, and crops are square\. Give `net_size`"):
        ensemble_predict(oblong, x)
