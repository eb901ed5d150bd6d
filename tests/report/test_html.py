"""The page: whole, alone, readable in both schemes, and nothing of the data can become markup."""

import base64
import dataclasses
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from report.cases import PIXEL, Page, collected, held_out

from retinue.report import LARGEST, page
from retinue.report.contents import Collected, Mistake
from retinue.report.html import confusion_cells, confusion_picture, curves, headline, pairs, render, render_comparison, story

SECTIONS = ["curves", "confusion", "classes", "confidence", "mistakes", "throughput", "settings", "environment"]
EVIL = "<script>alert(1)</script>"
QUOTE = '" onload="alert(2)'


def selfsupervised() -> Collected:
    run = collected(held_out=None, mistakes=[], notes=["This training did not learn the classes."])
    run.history = [{name: value for name, value in row.items() if "top1" not in name and "ece" not in name} for row in run.history]
    return run


def every_page() -> dict[str, str]:
    two = [collected("one"), collected("two", settings={"fit": {"lr": 0.1}})]
    many = held_out(np.eye(30, dtype=np.int64) * 5 + 1, [f"class {i}" for i in range(30)], top5=0.99)
    empty = Collected("empty")
    return {
        "run": render(collected()),
        "two runs": render_comparison(two),
        "no labels": render(selfsupervised()),
        "thirty classes": render(collected(held_out=many)),
        "nothing": render(empty),
        "nothing beside something": render_comparison([empty, collected()]),
        "no mistakes": render(collected(held_out=held_out(np.eye(3, dtype=np.int64) * 5), mistakes=[])),
    }


PAGES = every_page()


@pytest.mark.parametrize("html", PAGES.values(), ids=PAGES)
def test_it_is_well_formed_and_needs_nothing_beside_it(html: str) -> None:
    found = Page(html)
    for _, attributes in found.tags:
        assert "srcset" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
        assert re.match(r"data:|#|https://arxiv\.org/abs/", attributes.get("href") or "#")
    assert "@import" not in found.style
    assert "url(" not in found.style
    assert "http" not in html[html.index("<script>") :].split("</script>")[0]
    assert len(found.ids) == len(set(found.ids))
    assert {(link["href"] or "")[1:] for link in found.all("a") if (link["href"] or "").startswith("#")} <= set(found.ids)


@pytest.mark.parametrize("html", PAGES.values(), ids=PAGES)
def test_it_can_be_read_without_seeing_it(html: str) -> None:
    found = Page(html)
    assert ("html", {"lang": "en"}) in found.tags
    assert len(found.all("h1")) == 1
    assert all(picture.get("alt") for picture in found.all("img"))
    assert all(attributes.get("aria-label") for _, attributes in found.tags if attributes.get("role") in ("img", "region"))
    assert all(attributes.get("aria-hidden") == "true" for attributes in found.all("svg"))
    assert len(found.all("caption")) == len(found.all("table"))
    headings = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_every_section_is_there() -> None:
    assert Page(PAGES["run"]).ids == SECTIONS
    assert Page(PAGES["no labels"]).ids == ["curves", "throughput", "settings", "environment"]
    assert Page(PAGES["no mistakes"]).ids == [name for name in SECTIONS if name != "mistakes"]
    assert Page(PAGES["two runs"]).ids == ["results", "differences", "curves", "run-1", "run-2"]


def test_the_page_says_what_was_measured() -> None:
    words = Page(PAGES["run"]).words
    assert "small_convnet, trained for 20 epochs on 1,294 images of digits with the objective Supervised." in words
    assert "Of 100 test images 94 are recognised." in words
    assert "94.0 % accuracy ± 2.4 standard error" in words  # sqrt(0.94 * 0.06 / 100) = 0.0237
    assert "3.2 % calibration error ECE, 2 bins" in words
    assert "16.8 k parameters 157 k multiply-adds an image" in words
    assert "640 images a second 40 s of training" in words
    assert "The dashed line marks epoch 17" in words
    assert "On average the model is 90.0 % sure and 94.0 % of its answers are right: it is about as sure as it should be." in words
    assert "says class 1 98.0 % is class 0 1.0 % img/7.png" in words
    assert "widths [8, 8]" in words
    assert "clip_grad –" in words
    assert "packages. torch 2.11.0" in words


@pytest.mark.parametrize(("sure", "told"), [(0.999, "it is too sure"), (0.5, "it is less sure than it could be")])
def test_over_and_under_confidence_are_told_apart(sure: float, told: str) -> None:
    held = collected().held_out
    assert held is not None
    bins = [held.bins[0], dataclasses.replace(held.bins[1], confidence=sure)]
    html = render(collected(held_out=dataclasses.replace(held, bins=bins)))
    assert told in Page(html).words
    assert f'class="{"over" if sure > 0.94 else "under"}"' in html


def test_a_run_without_labels_shows_its_validation() -> None:
    words = Page(PAGES["no labels"]).words
    assert "This training did not learn the classes." in words
    assert "0.129 loss validation" in words  # 2.2 / 17, of the best epoch
    assert headline(selfsupervised())[0] == ("0.129", "loss", "validation")


def test_nothing_of_the_data_becomes_markup() -> None:
    names = [EVIL, QUOTE, "a & b"]
    held = held_out([[3, 1, 0], [1, 3, 0], [0, 1, 3]], names)
    run = collected(EVIL, held_out=held, mistakes=[Mistake(QUOTE, EVIL, QUOTE, 0.9, 0.1, PIXEL, PIXEL)], notes=[EVIL, QUOTE])
    run.settings["fit"] = {EVIL: QUOTE, QUOTE: EVIL}
    run.environment = {"command": EVIL + QUOTE}
    run.history.append({"step": 999, "epoch": 21.0, f"val/{EVIL}": 1.0, f"{QUOTE}/loss": 1.0})
    for html in (render(run), render_comparison([run, collected(QUOTE)])):
        found = Page(html)
        assert len(found.all("script")) == 1
        assert "alert" not in html[html.index("<script>") :].split("</script>")[0]
        assert not any("onload" in attributes for _, attributes in found.tags)
        assert EVIL in found.text
        assert QUOTE in found.text
        assert "a & b" in found.text


def luminance(colour: str) -> float:
    """Relative luminance of a colour, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_both_schemes_are_there_with_enough_contrast() -> None:
    style = Page(PAGES["run"]).style
    light, dark = (dict(re.findall(r"--([\w]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2])
    assert "prefers-color-scheme: dark" in style
    assert set(light) == set(dark) == {"paper", "wash", "line", "ink", "soft", "on", *(f"s{i}" for i in range(8))}
    for scheme in (light, dark):
        ground = luminance(scheme["paper"])
        for name in ("ink", "soft", *(f"s{i}" for i in range(8))):
            lighter, darker = sorted([ground, luminance(scheme[name])], reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{name}: {scheme[name]} on {scheme['paper']}"
    assert luminance(light["paper"]) > 0.9
    assert luminance(dark["paper"]) < 0.02


def test_cells_are_coloured_by_their_share_of_the_row() -> None:
    cells = confusion_cells(held_out([[3, 1], [0, 0]]))
    assert cells == [[(3, 0.75, True), (1, 0.5, False)], [(0, 0, False), (0, 0, True)]]


def test_confused_pairs_are_named_with_their_share() -> None:
    held = collected().held_out
    assert held is not None
    assert pairs(held) == [("class 2", "class 1", 3, 3 / 34), ("class 0", "class 1", 2, 2 / 33), ("class 0", "class 2", 1, 1 / 33)]


def test_classes_stand_worst_first_and_those_without_images_apart() -> None:
    held = held_out([[5, 5, 0], [0, 10, 0], [0, 0, 0]], ["cat", "dog", "unicorn"])
    words = Page(render(collected(held_out=held))).words
    table = words[words.index("Scores of each class") :]
    assert table.index("cat 10") < table.index("dog 10")
    assert "Without a test image: unicorn." in table


def test_numbers_are_sorted_as_numbers_not_as_they_are_written() -> None:
    html = render(collected(held_out=held_out([[1200, 0], [300, 700]])))
    values = [cell["data-value"] for cell in Page(html).all("td") if "data-value" in cell]
    assert values[:4] == ["1000", "1.000000", "0.700000", "0.823529"]  # 2 * 0.7 / 1.7
    assert "1,000" in html


def test_a_thousand_classes_stay_small_and_folded() -> None:
    matrix = np.eye(1000, dtype=np.int64) * 45 + np.roll(np.eye(1000, dtype=np.int64), 7, axis=1) * 5
    html = render(collected(held_out=held_out(matrix), mistakes=[]))
    found = Page(html)
    assert len(html) < 500_000
    assert "1,000 classes, 4 neighbours a dot." in found.words
    assert "All 1,000 classes" in found.words
    assert len(found.all("details")) == 1
    assert found.words.count("class 999") <= 3


def test_many_classes_are_a_picture_of_right_and_wrong() -> None:
    picture = Image.open(io.BytesIO(base64.b64decode(confusion_picture(np.array([[4, 0], [1, 3]])).partition(",")[2])))
    pixels = np.asarray(picture)
    assert pixels.shape == (2, 2, 4)
    assert pixels[0, 0].tolist() == [70, 124, 214, 255]  # all of the row is right
    assert pixels[0, 1, 3] == 0
    assert pixels[1, 0].tolist() == [222, 98, 28, 159]  # 255 (1/4 + 3/4 sqrt(1/4)) = 159.4
    pooled = np.asarray(Image.open(io.BytesIO(base64.b64decode(confusion_picture(np.eye(600, dtype=np.int64)).partition(",")[2]))))
    assert pooled.shape == (200, 200, 4)


def test_several_runs_are_lines_of_the_same_charts_in_their_own_colours() -> None:
    charts = {chart.title: chart for chart in curves({"one": collected(), "two": collected()})}
    assert [(line.label, line.colour) for line in charts["Loss"].lines] == [("one", 0), ("two", 1)]
    alone = {chart.title: chart for chart in curves({"": collected()})}
    assert [(line.label, line.colour) for line in alone["Loss"].lines] == [("train", 1), ("val", 0)]
    assert alone["Loss"].mark == pytest.approx(85)
    assert list(alone) == ["Loss", "Accuracy", "Calibration error", "Learning rate"]


def test_numbers_that_are_none_do_not_break_the_page() -> None:
    run = collected()
    run.history[-1]["val/loss"] = math.nan
    run.history[-2]["train/loss"] = math.inf
    assert "nan" not in "".join(line.path for chart in curves({"": run}) for line in chart.lines)
    Page(render(run))


def test_the_story_leaves_out_what_is_not_known() -> None:
    assert story(Collected("x")) == "A network, trained for 0 epochs on unnamed data."
    run = collected(settings={"model": {"class": "mine.Net"}, "data": {"name": "cats"}}, held_out=None)
    run.history = run.history[:1]
    assert story(run) == "Net, trained for 1 epoch on cats."


def test_pictures_give_way_where_the_page_would_be_too_large() -> None:
    heavy = "data:image/webp;base64," + "A" * 400_000
    mistakes = [Mistake(f"{i}.png", "class 0", "class 1", 0.9, 0.1, heavy, heavy) for i in range(24)]
    run = collected(mistakes=mistakes)
    assert len(page([run])) <= LARGEST
    assert [mistake.name for mistake in run.mistakes] == [f"{i}.png" for i in range(6)]  # 24, then 12, then 6: the surest stay
    two = [collected("one", mistakes=mistakes), collected("two", mistakes=mistakes)]
    assert len(page(two)) <= LARGEST
    assert [len(run.mistakes) for run in two] == [3, 3]
