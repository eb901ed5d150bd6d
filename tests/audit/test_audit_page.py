"""The page of an audit: whole, alone, with the pictures it speaks of, and nothing of the data can become markup."""

import base64
import dataclasses
import io
import re

import pytest
import torch
from audit.test_audit_duplicates import CHANGES, photographs
from PIL import Image

from retinue.audit.comparison import compare
from retinue.audit.dataset_report import DatasetReport, dataset_report
from retinue.data import from_arrays
from retinue.report.audit import attacks, audit_page, curve, galleries, headline, histograms, intervals, sharpest

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def report() -> DatasetReport:
    images = photographs(160)
    labels = torch.arange(160) % 2
    images[150], labels[150] = images[10], labels[10]  # test in train
    images[151] = CHANGES["noisy"](images[11:12])[0]
    images[21], labels[20], labels[21] = images[20], 0, 1  # a clash
    split = ["train"] * 130 + ["test"] * 30
    rows = [{"images": n, "loss": 3 * n**-0.3} for n in (100, 200, 400)]
    data = from_arrays(images, labels, classes=["cat", EVIL], split=split, val_fraction=0.0, name=EVIL)
    data.skipped = [("bad/one.png", "not an image")]
    return dataset_report(data, curve=rows, n_bootstrap=20)


def test_the_page_is_whole_and_needs_nothing_beside_it(report: DatasetReport) -> None:
    text = audit_page(report).decode()
    assert text.lstrip().startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert EVIL not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#|https://arxiv)', text)
    ids, links = set(re.findall(r'<section id="(\w+)"', text)), set(re.findall(r'href="#(\w+)"', text))
    assert ids == links == {"verdicts", "broken", "copies", "classes", "images", "dimension", "sharpness", "more", "measured"}
    assert "bad/one.png" in text
    for opening in ("section", "div", "ul", "table", "figure", "li"):
        assert len(re.findall(rf"<{opening}[ >]", text)) == text.count(f"</{opening}>"), opening


def test_the_suspicious_pairs_are_shown_with_their_names(report: DatasetReport) -> None:
    shown = galleries(report)
    assert [title for title, _, _ in shown] == ["Copies with different labels", "Copies across the splits"]
    clash, leaks = shown[0][2], shown[1][2]
    assert [(a.name, b.name, told) for a, b, told in clash] == [("image 20", "image 21", "the same pixels")]
    assert [(a.name, a.part, b.name, b.part) for a, b, _ in leaks] == [
        ("image 10", "train", "image 150", "test"), ("image 11", "train", "image 151", "test"),
    ]  # fmt: skip
    picture = Image.open(io.BytesIO(base64.b64decode(clash[0][0].picture.partition(",")[2])))
    assert picture.size == (160, 160)
    pair = sharpest(report)
    assert pair is not None
    assert {pair[0].label, pair[1].label} == {"cat", EVIL}
    assert all(one.name in audit_page(report).decode() for one in pair[:2])


def test_numbers_on_the_page_are_those_of_the_report(report: DatasetReport) -> None:
    told = {what: value for value, what, _ in headline(report)}
    assert told["images"] == "160"
    assert told["copies"] == "3"
    assert told["broken file"] == "1"
    assert report.dimension is not None
    assert told["dimensions"] == f"{report.dimension['mle']['value']:.1f}"
    bars = intervals(report)
    assert [bar.label for bar in bars] == ["images, maximum likelihood", "images, TwoNN"]
    assert all(0 <= bar.start <= bar.middle <= bar.start + bar.width <= 100 for bar in bars)
    drawn = curve(report)
    assert drawn is not None
    assert [line.label for line in drawn.lines] == ["fit", "measured"]
    assert drawn.lines[0].last == f"{3 * 1600**-0.3:#.3g}"
    assert report.survey is not None
    assert all(max(height for _, _, height, _ in bars) == 100 for bars in histograms(report.survey).values())
    assert attacks(report) == []


def test_a_table_of_other_sets_and_many_classes(report: DatasetReport) -> None:
    text = audit_page(report, compare([report, report])).decode()
    assert 'id="beside"' in text
    many = [{"name": f"class {i}", "train": 100 - i, "val": 0, "test": 5} for i in range(40)]
    text = audit_page(dataclasses.replace(report, classes=many)).decode()
    assert "All 40 classes" in text
    assert text.index(">class 0<") < text.index(">class 39<")


def test_a_page_of_what_could_not_be_measured() -> None:
    report = dataset_report(from_arrays(photographs(12), [0] * 12, val_fraction=0.0, test_fraction=0.0))
    text = audit_page(report).decode()
    assert "Not measured: label sharpness." in text
    assert not {"dimension", "sharpness", "more", "attack", "copies", "broken"} & set(re.findall(r'<section id="(\w+)"', text))
