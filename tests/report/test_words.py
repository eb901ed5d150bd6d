"""Numbers as they are written."""

from typing import Any

import pytest

from retinue.report.words import LONGEST_TEXT, count, duration, flat, last_name, measured, number, percent, rounded, short


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (percent, 1, "100.0 %"),
        (percent, 0, "0.0 %"),
        (percent, 0.97494, "97.5 %"),
        (percent, 0.0083, "0.83 %"),
        (percent, float("nan"), "nan %"),
        (number, 17.0, "17"),
        (number, 12345.6, "12,346"),
        (measured, 0.1, "0.100"),
        (measured, 250.0, "250"),
        (count, 1e6, "1,000,000"),
        (rounded, 2567.3, "2,570"),
        (rounded, 12.345, "12.3"),
        (short, 999, "999"),
        (short, 912345, "912 k"),
        (short, 1.2e10, "12 G"),
        (duration, 0.04, "0.0 s"),
        (duration, 9.96, "10 s"),
        (duration, 59.7, "1 min 0 s"),
        (duration, 3599.7, "1 h 0 min"),
        (last_name, "a.b.C", "C"),
        (last_name, "C", "C"),
    ],
)
def test_by_hand(write: Any, value: Any, text: str) -> None:
    assert write(value) == text


def test_settings_are_flat_and_their_texts_not_endless() -> None:
    told = dict(flat({"a": {"b": [1, 2], "c": {}}, "d": True, "e": "é" * 1000, "f": None}))
    assert told["a.b"] == "[1, 2]"
    assert told["a.c"] == told["f"] == "–"
    assert told["d"] == "true"
    assert told["e"] == "é" * LONGEST_TEXT + " … (1,000 characters)"
