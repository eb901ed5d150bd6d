"""Runs side by side: what is best, what differs, and what cannot be compared."""

import dataclasses
import math

from report.cases import Page, collected, held_out

from retinue.report.comparison import NOT_COMPARABLE, best_of, distinct, results, same_images, settings_apart
from retinue.report.contents import Collected
from retinue.report.html import render_comparison

GOOD, BAD = held_out([[98, 2], [0, 100]], loss=0.05), held_out([[80, 20], [10, 90]], loss=0.4)


def runs() -> dict[str, Collected]:
    second = collected("bad", held_out=BAD, timing=[(10, 1.0, 1280.0)])
    second.settings["fit"] = {"epochs": 20, "clip_grad": 1.0, "seed": 0}
    return {"good": collected("good", held_out=GOOD), "bad": second, "unlabelled": collected("unlabelled", held_out=None)}


def test_the_best_of_each_row_is_marked() -> None:
    table = dict(results(runs()))
    assert table["accuracy"] == [("99.0 %", True), ("85.0 %", False), ("", False)]
    assert table["loss"] == [("0.0500", True), ("0.400", False), ("", False)]
    assert table["images a second"] == [("640", False), ("1,280", True), ("640", False)]
    assert table["time of training"] == [("40 s", False), ("1.0 s", True), ("40 s", False)]
    assert table["test images"] == [("200", False), ("200", False), ("", False)]
    assert table["parameters"] == [("16.8 k", False)] * 3
    assert "among the first five" not in table  # nobody has it


def test_equal_values_are_not_marked_and_what_is_no_number_never_wins() -> None:
    same = {"a": collected(), "b": collected()}
    assert not any(best for _, cells in results(same) for _, best in cells)
    broken = {
        "a": collected(held_out=dataclasses.replace(GOOD, loss=math.nan)),
        "b": collected(held_out=BAD),
        "c": collected(held_out=GOOD),
    }
    assert dict(results(broken))["loss"] == [("nan", False), ("0.400", False), ("0.0500", True)]


def test_results_on_other_images_are_not_set_against_each_other() -> None:
    apart = runs()
    apart["bad"].held_out = dataclasses.replace(BAD, fingerprint="others")
    assert same_images(runs())
    assert not same_images(apart)
    table = dict(results(apart))
    assert not any(best for name in ("accuracy", "loss") for _, best in table[name])
    assert table["images a second"][1] == ("1,280", True)
    assert best_of(apart) == ""
    assert NOT_COMPARABLE in Page(render_comparison(list(apart.values()))).words


def test_the_best_run_is_named_with_a_word_on_chance() -> None:
    assert best_of(runs()) == "good is right most often: 99.0 %, against 85.0 % of bad, the second."
    close = {"a": collected(held_out=held_out([[98, 2], [0, 100]])), "b": collected(held_out=held_out([[97, 3], [0, 100]]))}
    assert best_of(close).endswith("The difference is within two standard errors.")
    assert best_of({"a": collected(), "b": collected()}) == "a and b are right equally often: 94.0 % of the test images."
    assert best_of({"a": collected()}) == ""


def test_settings_are_parted_by_whether_they_differ() -> None:
    differing, common = settings_apart(runs())
    assert differing == [("fit.clip_grad", ["–", "1.0", "–"])]
    assert ("model.widths", "[8, 8]") in common
    assert ("fit.seed", "0") in common


def test_a_setting_that_one_run_lacks_differs() -> None:
    assert settings_apart({"a": Collected("a", {"fit": {"lr": 1}}), "b": Collected("b")})[0] == [("fit.lr", ["1", ""])]


def test_runs_of_one_name_are_numbered() -> None:
    named = distinct([Collected("x"), Collected("x"), Collected("y"), Collected("x"), Collected("x (2)")])
    assert list(named) == ["x", "x (2)", "y", "x (3)", "x (2) (2)"]


def test_the_page_has_results_differences_and_each_runs_figures() -> None:
    words = Page(render_comparison(list(runs().values()))).words
    assert "3 runs good is right most often" in words
    assert "accuracy 99.0 % 85.0 %" in words
    assert "fit.clip_grad – 1.0 –" in words
    assert words.count("Most confident mistakes") == 3
