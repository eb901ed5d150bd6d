"""The picture of a confusion matrix."""

import io

import pytest
import torch

from retinue.errors import ShapeError
from retinue.plots import confusion


def test_cells_are_numbered_and_coloured_by_the_root_of_their_share() -> None:
    figure = confusion(torch.tensor([[3, 1], [0, 9]]), classes=["cat", "dog"])
    axes = figure.axes[0]
    assert sorted((text.get_position(), text.get_text()) for text in axes.texts) == [((0, 0), "3"), ((1, 0), "1"), ((1, 1), "9")]
    right, wrong = (image.get_array() for image in axes.images)
    assert right.compressed().tolist() == pytest.approx([0.75**0.5, 1])
    assert wrong.compressed().tolist() == pytest.approx([0.5, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    figure.savefig(io.BytesIO(), format="png")


def test_classes_without_names_are_numbered_and_many_have_none() -> None:
    assert [label.get_text() for label in confusion(torch.eye(3, dtype=torch.long)).axes[0].get_xticklabels()] == ["0", "1", "2"]
    many = confusion(torch.eye(200, dtype=torch.long))
    assert not many.axes[0].texts
    assert max(many.get_size_inches()) <= 8


def test_a_class_without_images_is_drawn() -> None:
    confusion(torch.zeros(2, 2, dtype=torch.long)).savefig(io.BytesIO(), format="png")


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"the matrix has 2 rows and there are 1 names\. Give a name for each class"):
        confusion(torch.eye(2, dtype=torch.long), classes=["cat"])
