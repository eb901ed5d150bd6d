"""Learning curves: what belongs together, and what is drawn."""

import io
import math

import pytest

from retinue.errors import ArgumentError
from retinue.plots import curves
from retinue.plots.curves import COLOURS, grouped, is_share, logarithmic, title

ROWS = [
    {"step": 5, "epoch": 0.5, "train/loss": 2.0, "train/top1": 0.2, "lr": 0.1},
    {"step": 10, "epoch": 1.0, "train/loss": 1.0, "train/top1": 0.6, "lr": 0.05, "val/loss": 1.5, "val/top1": 0.5, "val/ece": 0.1},
]


def test_training_and_validation_share_a_chart_in_a_fixed_order() -> None:
    found = grouped({"": ROWS})
    assert list(found) == ["loss", "top1", "ece", "lr"]
    assert found["loss"] == {"train": [(0.5, 2.0), (1.0, 1.0)], "val": [(1.0, 1.5)]}
    assert found["ece"] == {"val": [(1.0, 0.1)]}
    assert found["lr"] == {"": [(0.5, 0.1), (1.0, 0.05)]}


def test_players_keep_their_names() -> None:
    found = grouped(
        {"": [{"step": 1, "epoch": 1.0, "train/critic/loss": 1.0, "train/generator/loss": 2.0, "lr/critic": 0.1, "lr/generator": 0.2}]}
    )
    assert list(found) == ["critic/loss", "generator/loss", "lr"]
    assert found["lr"] == {"critic": [(1.0, 0.1)], "generator": [(1.0, 0.2)]}


def test_of_several_runs_each_is_a_line_and_training_gives_way_to_validation() -> None:
    unjudged = [{"step": 1, "epoch": 1.0, "train/loss": 3.0, "lr/critic": 0.1}]
    found = grouped({"a": ROWS, "b": ROWS, "c": unjudged})
    assert found["loss"] == {"a": [(1.0, 1.5)], "b": [(1.0, 1.5)], "c, train": [(1.0, 3.0)]}
    assert list(found["lr"]) == ["a", "b", "c, critic"]


def test_numbers_have_titles() -> None:
    assert [title(name) for name in ("loss", "lr", "turn_accuracy", "critic/loss", "")] == [
        "Loss",
        "Learning rate",
        "Turn accuracy",
        "Critic, loss",
        "",
    ]
    assert [name for name in ("ece", "top1", "turn_accuracy", "loss", "lr") if is_share(name)] == ["ece", "top1", "turn_accuracy"]


def test_only_a_loss_that_spans_much_is_logarithmic() -> None:
    assert logarithmic("loss", [3.1, 0.1])
    assert not logarithmic("loss", [2.9, 0.1])
    assert not logarithmic("loss", [3.1, 0.0])
    assert not logarithmic("lr", [3.1, 0.1])


def test_the_figure_holds_every_point() -> None:
    figure = curves(ROWS)
    loss = figure.axes[0]
    assert loss.get_title(loc="left") == "Loss"
    assert [line.get_label() for line in loss.lines] == ["train", "val"]
    assert [line.get_color() for line in loss.lines] == [COLOURS[1], COLOURS[0]]
    assert loss.lines[0].get_xydata().tolist() == [[0.5, 2.0], [1.0, 1.0]]
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2
    figure.savefig(io.BytesIO(), format="png")


def test_several_runs_and_numbers_that_are_none_are_drawn() -> None:
    figure = curves({"a": [*ROWS, {"step": 15, "epoch": 1.5, "train/loss": math.nan, "val/loss": 0.01}], "b": ROWS})
    assert [line.get_label() for line in figure.axes[0].lines] == ["a", "b"]
    assert figure.axes[0].get_yscale() == "log"
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize("nothing", [[], {}, {"a": []}])
def test_an_empty_history_is_refused(nothing: object) -> None:
    with pytest.raises(ArgumentError, match=r"the history is empty\. Take it from a run that logged something: Run\.history"):
        curves(nothing)  # type: ignore[arg-type]
