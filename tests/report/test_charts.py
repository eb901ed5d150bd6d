"""Curves as geometry: places by hand, gaps, scales, and what the pointer finds."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.report.charts import MOST_BANDS, MOST_POINTS, Chart, line_chart


def chart(*args: Any, **options: Any) -> Chart:
    found = line_chart("Loss", *args, **options)
    assert found is not None
    return found


def test_places_by_hand() -> None:
    found = chart({"val": [(0, 1.0), (1, 0.0), (2, 0.5)]})
    assert found.lines[0].path == "M0.00 0.00h0L50.00 100.00L100.00 50.00"
    assert found.y_ticks == [(100, "0"), (75, "0.25"), (50, "0.5"), (25, "0.75"), (0, "1")]
    assert found.x_ticks == [(0, "0"), (50, "1"), (100, "2")]
    assert found.lines[0].last == "0.500"
    assert found.description == "Loss by epoch. val goes from 1.00 to 0.500."


def test_the_axis_begins_where_training_did_and_ends_with_the_longest_line() -> None:
    found = chart({"a": [(1, 0.0), (2, 1.0)], "b": [(1, 0.0), (4, 1.0)]})
    assert found.lines[0].path == "M25.00 100.00h0L50.00 0.00"
    assert found.lines[1].path == "M25.00 100.00h0L100.00 0.00"


def test_what_is_not_finite_breaks_the_line_and_a_lone_point_is_a_dot() -> None:
    found = chart({"a": [(0, 0.0), (1, math.nan), (2, 1.0), (3, math.inf), (4, 0.0)]})
    assert found.lines[0].path == "M0.00 100.00h0M50.00 0.00h0M100.00 100.00h0"
    assert found.description.endswith("a goes from 0 to 0.")


def test_nothing_finite_gives_no_chart() -> None:
    assert line_chart("Loss", {}) is None
    assert line_chart("Loss", {"a": [], "b": [(0, math.nan)]}) is None


def test_a_logarithmic_scale_has_even_steps_for_even_factors() -> None:
    found = chart({"a": [(0, 1.0), (1, 0.1), (2, 0.01)]}, logarithmic=lambda values: True)
    places = {text: place for place, text in found.y_ticks}
    assert set(places) == {"1", "0.1", "0.01"}
    assert places["0.1"] - places["1"] == pytest.approx(places["0.01"] - places["0.1"], abs=1e-9)
    assert found.logarithmic


def test_shares_are_written_in_percent_and_the_axis_ends_at_all() -> None:
    found = chart({"a": [(0, 0.9), (1, 0.999)]}, percent=True)
    assert found.lines[0].last == "99.9 %"
    assert found.y_ticks[-1][1] == "100 %"


def test_the_mark_stands_at_its_epoch_or_not_at_all() -> None:
    points = {"a": [(0.0, 1.0), (4.0, 2.0)]}
    assert chart(points, mark=3.0).mark == 75
    assert chart(points, mark=9.0).mark is None


@pytest.mark.parametrize(
    ("value", "text"), [(2550, "2,550"), (0.00001, "1e-5"), (0.5, "0.500"), (0, "0"), (-3.25, "-3.25"), (3e7, "3e7"), (99.96, "100.")]
)
def test_last_values_are_brief(value: float, text: str) -> None:
    assert chart({"a": [(0, value)]}).lines[0].last == text.rstrip(".")


def test_many_points_are_averaged() -> None:
    found = chart({"a": [(float(i), float(i % 2)) for i in range(6 * MOST_POINTS)]})
    assert found.lines[0].path.count("L") == MOST_POINTS - 1
    assert found.lines[0].last == "0.500"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.booleans())
def test_everything_lies_in_the_axes_and_the_bands_cover_the_width(values: list[float], from_zero: bool) -> None:
    found = chart({"a": [(float(i), value) for i, value in enumerate(values)]}, from_zero=from_zero)
    numbers = found.lines[0].path.replace("h0", "").replace("M", " ").replace("L", " ").split()
    assert all(-0.01 <= float(number) <= 100.01 for number in numbers)
    assert all(-1e-6 <= place <= 100 + 1e-6 for place, _ in [*found.y_ticks, *found.x_ticks])
    assert len(found.bands) <= MOST_BANDS
    assert sum(width for _, width, _ in found.bands) == pytest.approx(100, abs=0.01 * len(found.bands))


def test_the_pointer_finds_every_lines_nearest_value() -> None:
    found = chart({"train": [(x / 4, 1.0 + x) for x in range(1, 9)], "val": [(1, 10.0), (2, 20.0)]})
    assert [text for *_, text in found.bands] == ["epoch 1: train 5.00, val 10.0", "epoch 2: train 9.00, val 20.0"]
    assert [(start, width) for start, width, _ in found.bands] == [(0, 75), (75, 25)]
