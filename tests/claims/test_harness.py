"""The engine of claims: figures, errors of means, verdicts and records."""

import json
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retinue.claims import harness
from retinue.claims.harness import (
    Budget,
    Figures,
    NotShowableError,
    pooled_standard_error,
    read_results,
    run_claim,
    standard_error,
    summary,
)
from retinue.errors import ArgumentError, DataError, MissingExtraError

FINITE = st.floats(-1e6, 1e6)
Measure = Callable[[int, Budget], dict[str, Any]]


def fake(monkeypatch: pytest.MonkeyPatch, measure: Measure, **attributes: Any) -> None:
    """Put a claim in the place of rotnet's."""
    module = types.ModuleType("rotnet", "rotnet: turned images teach something.\n\nMore words.")
    module.__dict__.update({"RULE": "the probe gains more than its pooled standard error", "measure": measure, **attributes})
    module.__dict__.setdefault("shown", lambda figures: bool(figures["gain"].mean() > 0))
    monkeypatch.setattr(harness, "claim_module", lambda slug: module)


def test_the_pooled_error_by_hand() -> None:
    # variances 1 and 4, both n = 3: s_p^2 = 2.5, so sqrt(2.5 * 2 / 3)
    assert pooled_standard_error(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0])) == pytest.approx(math.sqrt(5 / 3), rel=1e-12)


@given(arrays(float, 4, elements=FINITE), arrays(float, 3, elements=FINITE))
def test_the_pooled_error_is_the_one_of_the_t_test(a: np.ndarray, b: np.ndarray) -> None:
    error = pooled_standard_error(a, b)
    assert error == pytest.approx(pooled_standard_error(b, a), rel=1e-9)
    if error > 1e-3 and abs(a.mean() - b.mean()) > 1e-3:
        t = scipy.stats.ttest_ind(a, b, equal_var=True).statistic
        assert (a.mean() - b.mean()) / error == pytest.approx(t, rel=1e-6)


def test_one_value_has_no_error() -> None:
    assert math.isnan(standard_error(np.array([1.0])))
    with pytest.raises(ArgumentError, match=r"needs two values of each group at least, got 1 and 3\. Give more seeds\."):
        pooled_standard_error(np.ones(1), np.ones(3))


def test_figures_are_arrays_over_seeds_and_curves_have_two_dimensions() -> None:
    figures = Figures([{"a": 1.0, "curve": [1.0, 2.0]}, {"a": 3, "curve": [3.0, 4.0]}])
    assert figures["a"].tolist() == [1, 3]
    assert figures["curve"].shape == (2, 2)
    assert list(figures) == ["a", "curve"]
    with pytest.raises(ArgumentError, match=r'no figure is called "b"\. There is a, curve\.'):
        figures["b"]


def test_seeds_that_disagree_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"same names for every seed, got \[\['a'\], \['b'\]\]"):
        Figures([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ArgumentError, match="same length for every seed"):
        Figures([{"a": [1.0]}, {"a": [1.0, 2.0]}])


def test_a_budget_picks_and_refuses_other_names() -> None:
    assert Budget().pick(laptop="much", smoke="little") == "much"
    with pytest.raises(ArgumentError, match=r'claim: no budget is called "smok"\. Did you mean smoke\?'):
        Budget("smok")  # type: ignore[arg-type]


def test_a_run_is_judged_by_its_rule_and_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(
        monkeypatch,
        lambda seed, budget: {"gain": float(seed), "base": 1.0, "curve": [1.0, 0.5]},
        EFFECTS={"gain over base": ("gain", "base")},
        DATA=("digits",),
        parts=lambda figures: {"first": True, "second": False},
    )
    lines: list[str] = []
    result = run_claim("rotnet", seeds=[1, 2, 6], folder=tmp_path, tell=lines.append)
    assert (result.verdict, result.seeds, result.data) == ("shown", [1, 2, 6], ["digits"])
    assert result.sentence == "turned images teach something."
    assert result.parts == {"first": True, "second": False}
    assert result.effects["gain over base"] == pytest.approx((2.0, math.sqrt(7 / 2 * 2 / 3)))
    assert summary(result) == [("gain over base", "2", "1.5")]
    assert [line.split(" (")[0] for line in lines] == ["seed 1", "seed 2", "seed 6"]
    assert read_results(tmp_path)["rotnet"].figures == {"gain": [1, 2, 6], "base": [1, 1, 1], "curve": [[1, 0.5]] * 3}
    recorded = json.loads((tmp_path / "rotnet.json").read_text())
    assert {"torch", "timm", "retinue", "python"} <= set(recorded["versions"])
    assert (tmp_path / "rotnet.png").stat().st_size > 1000


def test_what_is_not_shown_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, lambda seed, budget: {"gain": -1.0})
    assert run_claim("rotnet", folder=None).verdict == "not shown"
    assert run_claim("rotnet", folder=None).seeds == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_smoke_run_judges_nothing_and_leaves_the_verdict_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, lambda seed, budget: {"gain": budget.pick(laptop=1.0, smoke=-1.0)})
    run_claim("rotnet", folder=tmp_path)
    assert run_claim("rotnet", budget="smoke", folder=tmp_path).verdict == "smoke run, no verdict"
    assert read_results(tmp_path)["rotnet"].verdict == "shown"
    assert (tmp_path / "rotnet.smoke.json").exists()


@pytest.mark.parametrize("error", [NotShowableError("no second network"), DataError("no cifar10"), MissingExtraError("no captum")])
def test_what_cannot_be_tried_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    def measure(seed: int, budget: Budget) -> dict[str, float]:
        raise error

    fake(monkeypatch, measure)
    result = run_claim("rotnet", folder=tmp_path)
    assert (result.verdict, result.reason) == ("not showable here", str(error))
    assert summary(result) == []


def test_a_bug_in_a_claim_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, lambda seed, budget: {"gain": 1 / 0})
    with pytest.raises(ZeroDivisionError):
        run_claim("rotnet", folder=None)


def test_a_claim_may_draw_its_own_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, lambda seed, budget: {"gain": 1.0}, draw=lambda figures, folder: (folder / "own.png").write_bytes(b"x"))
    run_claim("rotnet", folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rotnet.json", "own.png"}


def test_unknown_and_unwritten_claims_are_named() -> None:
    with pytest.raises(ArgumentError, match=r'no system is called "rotnett"\. Did you mean rotnet'):
        run_claim("rotnett", folder=None)
    with pytest.raises(ArgumentError, match=r'the claim of "geoscience" is not written yet\. Those that are: inception-v4'):
        run_claim("geoscience", folder=None)


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "rotnet.json").write_text("{}")
    with pytest.raises(DataError, match=r"rotnet\.json is not the record of a claim: .*Run: retinue claim rotnet"):
        read_results(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, lambda seed, budget: {"gain": 1.0})
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"claim: .*rotnet\.json could not be written"):
        run_claim("rotnet", folder=tmp_path / "file" / "below")
