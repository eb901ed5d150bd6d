"""The whole audit: what it finds in a set with known faults, what it says of them, comparing, and its memory."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit.test_audit_duplicates import CHANGES, photographs
from PIL import Image
from support import python

import retinue
from retinue.audit.comparison import compare
from retinue.audit.dataset_report import DatasetReport, dataset_report
from retinue.audit.image_statistics import between_classes, file_statistics, image_statistics
from retinue.audit.survey import resolution_of, survey
from retinue.audit.verdicts import Verdict, overall, verdicts
from retinue.data import from_arrays
from retinue.errors import ArgumentError, DataError
from retinue.models import tiny


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with every fault: two broken files, a leak, a clash, a rare class, a flat image, and classes told by their light."""
    root = tmp_path_factory.mktemp("faulty")
    images = photographs(150).numpy()
    images[:100] //= 2  # the first class is darker
    for part, start, stop in (("train", 0, 110), ("test", 110, 150)):
        for i in range(start, stop):
            name = "dark" if (i < 100 if part == "train" else i % 2) else "rare"
            (root / part / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i].transpose(1, 2, 0)).save(root / part / name / f"{i:03}.png")
    near = CHANGES["brighter"](torch.from_numpy(images[5:6]))[0].numpy()
    Image.fromarray(near.transpose(1, 2, 0)).save(root / "test" / "dark" / "leak.png")
    (root / "train" / "rare" / "clash.png").write_bytes((root / "train" / "dark" / "007.png").read_bytes())
    Image.new("RGB", (40, 32), (9, 9, 9)).save(root / "train" / "dark" / "flat.png")
    (root / "train" / "dark" / "broken.png").write_bytes(b"no image at all")
    whole = (root / "train" / "dark" / "001.png").read_bytes()
    (root / "train" / "dark" / "torn.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def report(faulty: Path) -> DatasetReport:
    return dataset_report(retinue.data.open(faulty, on_bad="skip", val_fraction=0.0), curve_images=0, n_bootstrap=20)


def by_topic(report: DatasetReport) -> dict[str, Verdict]:
    return {one.topic: one for one in verdicts(report)}


def test_every_fault_is_found(report: DatasetReport) -> None:
    assert sorted(Path(name).name for name, _ in report.broken) == ["broken.png", "torn.png"]
    assert {Path(name).name: why for name, why in report.broken}["broken.png"] == "not an image"
    assert report.copies["leaks"]["test in train"] == 1
    assert report.copies["clashes"] == 1
    pair = report.copies["clashing_pairs"][0]
    assert sorted(Path(name).name for name in pair["images"]) == ["007.png", "clash.png"]
    assert sorted(pair["labels"]) == ["dark", "rare"]
    assert [Path(name).name for name in report.images["flat"]] == ["flat.png"]
    assert report.images["class_signal"]["brightness"] > 0.5
    assert report.files is not None
    assert report.files["width"] == [32, 32, 40]
    assert report.files["sizes"][1] == [40, 32, 1]
    assert report.files["count"] == 155  # 150, leak, clash, flat, and the two broken ones
    assert sum(one["train"] + one["val"] + one["test"] for one in report.classes) == 153


def test_every_fault_is_told_with_what_to_do(report: DatasetReport) -> None:
    found = by_topic(report)
    assert found["Broken files"].level == "mend"
    assert found["Broken files"].text == "2 files cannot be read, 153 can."
    assert found["Copies"].level == "mend"
    assert "test image" in found["Copies"].text
    assert "1 pair of copies has different labels." in found["Copies"].text
    assert found["Classes"].level in ("look", "mend")
    assert "Brightness alone gives the class away" in found["Images"].text
    assert "1 image shows nothing" in found["Images"].text
    assert all(one.advice for one in found.values() if one.level != "good")
    assert overall(list(found.values())).startswith("Mend this first: broken files, copies")


def test_images_with_two_labels_do_not_make_the_sharpness_infinite(report: DatasetReport) -> None:
    assert report.sharpness is not None
    assert math.isfinite(report.sharpness["value"])
    assert report.sharpness["left_out"] == 2
    assert report.sharpness["value"] == pytest.approx(1 / report.sharpness["distance"])
    size = math.prod(report.convention["size"]) * report.convention["channels"]
    assert report.sharpness["grey_levels"] == pytest.approx(report.sharpness["distance"] / math.sqrt(size))


def test_the_report_is_plain_json(report: DatasetReport) -> None:
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["convention"]["range"] == [0, 255]
    assert set(values["dimension"]) == {"mle", "twonn"}
    assert "survey" not in values


def test_a_sound_set_is_called_sound_and_its_loss_predicted() -> None:
    report = dataset_report("digits", curve_images=800, n_bootstrap=50)
    found = by_topic(report)
    assert report.notes == []
    assert {one.level for topic, one in found.items() if topic in ("Broken files", "Copies", "Classes", "Images")} == {"good"}
    assert found["Classes"].text == '10 classes, from 125 training images ("8") to 131 ("1").'
    assert report.dimension is not None
    assert report.dimension["mle"]["ci"][0] < report.dimension["mle"]["value"] < report.dimension["mle"]["ci"][1]
    assert report.curve is not None
    assert sorted({row["images"] for row in report.curve["rows"]}) == [100, 200, 400, 800]
    assert report.curve["r2"] > 0.8
    losses = [loss for _, _, loss, _, _ in report.curve["ahead"]]
    assert report.curve["now"][0] > losses[0] > losses[1] > losses[2]
    assert all(low < loss < high for _, _, loss, low, high in report.curve["ahead"])
    assert report.curve["ahead"][-1][1] == 8000


def test_a_model_is_measured_and_runs_give_the_curve() -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=300)
    model = tiny("ours", num_classes=10)
    model.classes = data.classes
    rows = [{"images": n, "loss": 4 * n**-0.5} for n in (100, 200, 400)]
    report = dataset_report(data, model, curve=rows, n_bootstrap=10)
    assert report.representation is not None
    assert set(report.representation) == {"mle", "twonn"}
    assert report.attack is not None
    assert list(report.attack) == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert report.curve is not None
    assert report.curve["by"] == "your runs"
    assert report.curve["exponent"] == pytest.approx(-0.5)
    assert report.curve["ahead"][1][2] == pytest.approx(4 * 1600**-0.5)


def test_what_cannot_be_measured_is_noted_and_the_rest_goes_on() -> None:
    data = from_arrays(photographs(12), [0] * 12, val_fraction=0.0, test_fraction=0.0)
    report = dataset_report(data)
    assert report.dimension is None
    assert report.sharpness is None
    assert any("`k` must be smaller than the number of distinct points, 12" in note for note in report.notes)
    assert any("all images have one class" in note for note in report.notes)
    assert by_topic(report)["Classes"].text == "There is one class, so there are no labels to learn."
    few = dataset_report(from_arrays(photographs(60), torch.arange(60) % 2))
    assert any("are needed" in note for note in few.notes)


def changed(report: DatasetReport, **values: Any) -> DatasetReport:
    import dataclasses

    return dataclasses.replace(report, **values)


def test_verdicts_of_classes_copies_and_splits() -> None:
    base = dataset_report(from_arrays(photographs(120), torch.arange(120) % 2), curve_images=0, n_bootstrap=0)

    def classes(*trains: int, test: int = 10) -> Verdict:
        rows = [{"name": f"c{i}", "train": n, "val": 0, "test": test} for i, n in enumerate(trains)]
        return by_topic(changed(base, classes=rows))["Classes"]

    assert classes(100, 100).text == "2 classes of 100 training images each."
    assert classes(100, 350).level == "look"
    assert classes(100, 1100).level == "mend"
    assert classes(19, 19).level == "look"
    absent = changed(base, classes=[{"name": "a", "train": 50, "val": 0, "test": 5}, {"name": "b", "train": 50, "val": 0, "test": 0}])
    assert by_topic(absent)["Classes"].text.endswith("Without a test image: b.")
    copies = {**base.copies, "exact": 1, "near": 2}
    assert by_topic(changed(base, copies=copies))["Copies"].text == "1 exact copy and 2 near copies, hardly any across the splits."
    parts = {"train": {"brightness": 0.3, "spread": 0.1}, "test": {"brightness": 0.5, "spread": 0.1}}
    shifted = by_topic(changed(base, images={**base.images, "parts": parts}))["Images"]
    assert shifted.text == "The test images are brighter than those to train on."
    near = changed(base, sharpness={**(base.sharpness or {}), "grey_levels": 4.2})
    assert "4.2 of 255 grey levels apart on average. That is very near." in by_topic(near)["Label sharpness"].text
    high = changed(base, dimension={"mle": {"value": 35.0, "ci": None, "n": 9, "duplicates": 0}})
    assert by_topic(high)["Dimension"].level == "look"
    assert "would take 10^10 times the images" in by_topic(high)["Dimension"].advice


def test_brightness_that_gives_the_class_away_by_hand() -> None:
    # between: 2 (0.5)^2 2 = 1; within: 4 (0.1)^2 = 0.04
    values = torch.tensor([-0.1, 0.1, 0.9, 1.1])
    assert between_classes(values, torch.tensor([0, 0, 1, 1])) == pytest.approx(1 / 1.04)
    assert between_classes(torch.ones(4), torch.tensor([0, 0, 1, 1])) == 0


def test_statistics_of_images_by_hand() -> None:
    images = np.stack([np.full((8, 8), value, np.uint8) for value in (0, 51, 102, 153, 204)])
    found = image_statistics(survey(from_arrays(images, [0, 1, 0, 1, 0], split=["train"] * 4 + ["test"])))
    assert found["brightness"] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert found["flat_count"] == 5
    assert found["grey"] == 5
    assert found["parts"]["train"]["brightness"] == pytest.approx(0.3)
    assert found["parts"]["test"]["mean"] == pytest.approx([0.8])


def test_files_of_arrays_and_unknown_sizes(tmp_path: Path) -> None:
    assert file_statistics("digits") == {
        "count": 1797, "width": [8, 8, 8], "height": [8, 8, 8], "sizes": [[8, 8, 1797]], "distinct_sizes": 1, "bytes": None,
    }  # fmt: skip
    assert file_statistics("torchvision:SVHN") is None


@pytest.mark.parametrize(("given", "side", "size"), [((32, 32), None, (32, 32)), ((224, 112), None, (64, 32)), ((100, 50), 20, (20, 10))])
def test_the_resolution_keeps_the_aspect(given: tuple[int, int], side: int | None, size: tuple[int, int]) -> None:
    data = from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], input_size=given)
    assert resolution_of(data, side) == size


def test_audits_are_compared_under_one_convention_only(report: DatasetReport) -> None:
    digits = dataset_report("digits", curve_images=0, n_bootstrap=0)
    table = compare([digits, json.loads(json.dumps(digits.to_dict()))])
    assert list(table) == ["digits (1)", "digits (2)"]
    assert table["digits (1)"] == table["digits (2)"]
    assert table["digits (1)"]["training images"] == 1295
    assert digits.sharpness is not None
    assert table["digits (1)"]["label sharpness"] == digits.sharpness["value"]
    with pytest.raises(
        ArgumentError, match=r"digits was measured at (size|channels) .* so their numbers mean different things\. Audit both alike"
    ):
        compare([digits, report])
    other = changed(digits, convention={**digits.convention, "range": [0, 1]})
    with pytest.raises(ArgumentError, match=r"digits \(1\) was measured at range \[0, 255\] and digits \(2\) at \[0, 1\]"):
        compare([digits, other])
    with pytest.raises(ArgumentError, match=r"compare: at least two audits are needed, got 1"):
        compare([digits])
    with pytest.raises(DataError, match=r"compare: this is no audit: KeyError .* Audits are made by retinue audit DATA"):
        compare([digits, {"name": "x"}])


def test_what_the_audit_refuses(tmp_path: Path) -> None:
    data = retinue.data.open("digits")
    with pytest.raises(ArgumentError, match=r"`k` must be at least 3, got 2\. The paper has 20"):
        dataset_report(data, k=2)
    with pytest.raises(ArgumentError, match=r"`curve_images` must be 0 or more, got -1\. 0 trains nothing"):
        dataset_report(data, curve_images=-1)
    with pytest.raises(ArgumentError, match=r"`resolution` must be positive, got 0\. 32 is usual"):
        dataset_report(data, resolution=0)


MEMORY = """
import resource, sys, torch
from retinue.audit import dataset_report
from retinue.data import from_arrays
torch.set_num_threads(1)
peaks = []
for count in (1500, 6000):
    images = torch.randint(256, (count, 1, 32, 32), dtype=torch.uint8)
    data = from_arrays(images, torch.arange(count) % 5)
    dataset_report(data, max_samples=500, n_bootstrap=5, curve_images=0)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
print(peaks[1] - peaks[0])
"""


def test_memory_grows_with_the_images_and_not_with_their_square() -> None:
    grown = int(python(MEMORY).stdout)
    own = 4500 * (2 * 1024 + 1024 + 1500)  # the data itself twice while it is made, the pixels kept, the search for copies
    blocks = 60_000_000  # a block of likenesses, 1024 x 6000, and what the allocator keeps; the square would be 140 MB more
    assert grown < own + blocks
