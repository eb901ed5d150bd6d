"""The parts of NoProp blocks: embeddings of labels, prototypes by hand, output layers, and branches."""

import math
from typing import Any

import pytest
import torch
from support import images
from torch.testing import assert_close

from retinue.errors import DataError
from retinue.models.noprop import NoPropDT, noprop_dt
from retinue.models.noprop_blocks import ConvStack, LabelBranch, LabelEmbedding, Readout, prototypes

SHAPE = (1, 4, 4)


def test_onehot_is_the_identity_and_does_not_learn() -> None:
    embedding = LabelEmbedding(5, "onehot", None, SHAPE)
    assert torch.equal(embedding(torch.arange(5)), torch.eye(5))
    assert not list(embedding.parameters())
    assert LabelEmbedding(5, "onehot", 5, SHAPE).dim == 5


@pytest.mark.parametrize(("classes", "dim"), [(10, 4), (4, 10)])
def test_embeddings_of_another_length_than_the_classes_are_orthogonal_at_first(classes: int, dim: int) -> None:
    weight = LabelEmbedding(classes, "learned", dim, SHAPE).weight
    assert weight.shape == (classes, dim)
    gram = weight @ weight.T if dim > classes else weight.T @ weight
    assert_close(gram, torch.eye(min(classes, dim)), rtol=0, atol=2e-6)
    assert weight.requires_grad
    assert LabelEmbedding(10, "learned", None, SHAPE).dim == 20  # the paper's
    assert torch.equal(LabelEmbedding(6, "learned", 6, SHAPE).weight, torch.eye(6))


def test_a_prototype_is_the_image_with_the_smallest_median_distance_to_its_class() -> None:
    """Of 0, 1, 3, 9, 20 the medians of distances (0 to itself counted) are 3, 2, 3, 8, 17; the mean would choose 3."""
    values = torch.tensor([0.0, 1, 3, 9, 20, 50, 51, 70])
    labels = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0])
    shown = torch.zeros(8, *SHAPE)
    shown[:, 0, 0, 0] = values
    found = prototypes(shown, labels, 2)
    assert found.shape == (2, 16)
    assert found[1, 0] == 1
    assert found[0, 0] == 50  # medians 1, 1, 19: the first of equals
    embedding = LabelEmbedding(2, "prototype", None, SHAPE)
    assert not embedding.filled
    embedding.fill(found)
    assert embedding.filled
    assert torch.equal(embedding(torch.tensor([1])), found[1:])


def test_a_class_without_image_has_no_prototype() -> None:
    with pytest.raises(
        DataError, match=r'^noprop: class 1 has no training image, so it has no prototype\. Use embed="learned" or "onehot"\.$'
    ):
        prototypes(torch.zeros(3, *SHAPE), torch.tensor([0, 2, 0]), 3)


def test_the_output_layer_by_distance_by_hand() -> None:
    readout = Readout(3, 3, "distance", sigma=0.5)
    with torch.no_grad():
        readout.linear.weight.copy_(1e4 * torch.eye(3))
        readout.linear.bias.zero_()
    logits = readout(torch.eye(3)[:2], torch.eye(3))
    assert_close(logits, torch.tensor([[0.0, -4, -4], [-4, 0, -4]]))  # |e_i - e_j|^2 / (2 * 0.25)
    linear = Readout(3, 3, "linear")
    z = images(4, 3)
    assert_close(linear(z, torch.eye(3)), z @ linear.linear.weight.T + linear.linear.bias)


def test_a_block_answers_with_a_mean_of_embeddings_or_with_a_vector_of_its_own() -> None:
    options: dict[str, Any] = {"embed": "learned", "embed_dim": 2, "widths": (), "hidden": 8}
    out = torch.tensor([[0.0, math.log(2), math.log(5)]])
    mean = NoPropDT(3, 1, 4, 2, **options)
    assert_close(mean.cleaned(out), torch.tensor([[1 / 8, 2 / 8, 5 / 8]]) @ mean.embedding.weight)
    direct = NoPropDT(3, 1, 4, 2, answer="embedding", **options)
    x, z = images(3, 1, 4, 4), images(3, 2)
    block = direct.blocks[0]
    assert block(z, block.image(x)).shape == (3, 2)
    assert torch.equal(direct.cleaned(z), z)


def test_the_labels_branch_has_a_skip_round_each_layer_but_the_first() -> None:
    branch = LabelBranch(3, 5, 3, False, None, SHAPE)
    z = images(2, 3)
    first = branch.layers[0](z)
    second = first + branch.layers[1](first)
    assert torch.equal(branch(z), second + branch.layers[2](second))


def test_labels_that_are_images_go_through_convolutions_of_their_own() -> None:
    model = noprop_dt(num_blocks=2, embed="prototype", widths=(4,), hidden=8, num_classes=3, in_chans=2, input_size=(4, 6))
    assert model.num_features == 48
    label = model.blocks[0].label
    assert isinstance(label.images, ConvStack)
    z = images(3, 48).requires_grad_()
    assert_close(label.eval()(z), label.images(z.view(3, 2, 4, 6)))
    assert model.blocks[0].image is not label.images
    assert model.eval()(images(2, 2, 4, 6)).shape == (2, 3)


def test_maps_are_pooled_down_to_one_pixel_and_dropped_in_training() -> None:
    stack = ConvStack((1, 4, 4), (3, 3, 3, 3), 5, True, 0.5)
    pools = [m for m in stack.maps if isinstance(m, torch.nn.MaxPool2d)]
    assert len(pools) == 2
    assert stack.maps(images(2, 1, 4, 4)).shape == (2, 3, 1, 1)
    assert sum(isinstance(m, torch.nn.Dropout) for m in stack.maps) == 4
    assert ConvStack((1, 4, 4), (), 5, False, 0.0)(images(2, 1, 4, 4)).shape == (2, 5)
