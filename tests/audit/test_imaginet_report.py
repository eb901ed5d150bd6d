"""The two-track report: exact scores, pairs, a peer, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from retinue.audit.imaginet_report import Row, joined, two_track_report
from retinue.data.annotations import FAMILY_OF, Annotation, Annotations, annotations
from retinue.errors import DataError, ShapeError


def table_of(specific: list[int], content: list[int] | None = None) -> Annotations:
    kinds = content or [0] * len(specific)
    return annotations(
        Annotation(f"{i}.png", int(one != 8), kind, FAMILY_OF[one], one) for i, (one, kind) in enumerate(zip(specific, kinds))
    )


TABLE = table_of([8, 8, 8, 8, 0, 1, 3, 6], [0, 0, 1, 2, 0, 1, 0, 1])
ORIGIN = TABLE.column("origin").double()


def test_a_perfect_score_is_one_and_a_constant_one_is_half() -> None:
    perfect = two_track_report(ORIGIN - 0.5, torch.eye(4)[TABLE.column("model").clamp(max=3)], TABLE)
    assert {name: row[:2] for name, row in perfect.families.items()} == dict.fromkeys(("GAN", "Stable Diffusion", "Midjourney"), (1.0, 1.0))
    assert perfect.mean == Row(1.0, 1.0, 8)
    assert perfect.identification == Row(1.0, 1.0, 4)
    constant = two_track_report(torch.full((8,), 0.3), torch.zeros(8, 4), TABLE)
    assert constant.mean[:2] == (0.5, 0.5)
    assert constant.identification is not None
    assert constant.identification[:2] == (1 / 3, 0.5)


def test_families_and_contents_are_judged_each_with_its_real_images() -> None:
    scores = torch.tensor([-3.0, 1, -1, -2, 2, 0.5, -4, 3])
    found = two_track_report(scores, None, TABLE)
    assert {name: row.images for name, row in found.families.items()} == {"GAN": 6, "Stable Diffusion": 5, "Midjourney": 5}
    # 3 of 4 real images are right; of the GAN's 2 both, and of 8 pairs of a real and a GAN's image all but (1, 0.5) are in order
    assert found.families["GAN"] == Row((0.75 + 1) / 2, 7 / 8, 6)
    assert found.families["Stable Diffusion"] == Row(0.375, 0.0, 5)
    assert found.mean.auc == (7 / 8 + 0 + 1) / 3
    assert found.contents == {"photos": Row(0.5, 0.5, 4), "paintings": Row(1.0, 1.0, 3)}  # faces are all real
    assert found.identification is None
    assert list(found.rows()) == ["GAN", "Stable Diffusion", "Midjourney", "mean of families", "photos", "paintings"]


def test_real_images_can_stand_beside_one_family() -> None:
    scores = torch.tensor([-3.0, 1, -1, -2, 2, 0.5, -4, 3])
    pairs = torch.tensor([0, 0, 1, 2, 0, 0, 1, 2])
    found = two_track_report(scores, None, TABLE, pairs=pairs)
    assert found.families == {"GAN": Row(0.75, 0.75, 4), "Stable Diffusion": Row(0.5, 0.0, 2), "Midjourney": Row(1.0, 1.0, 2)}
    pairs[2] = 0
    with pytest.raises(DataError, match=r"no real image stands beside Stable Diffusion\. Put -1 in `pairs` of some"):
        two_track_report(scores, None, TABLE, pairs=pairs)


def test_both_tracks_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    table = table_of(random.integers(0, 9, 200).tolist(), random.integers(0, 4, 200).tolist())
    scores = torch.from_numpy(random.normal(size=200)) + table.column("origin")
    logits = torch.from_numpy(random.normal(size=(200, 4))) + 2 * torch.eye(5)[table.column("model")][:, :4]
    found = two_track_report(scores, logits, table)
    synthetic = table.column("origin") == 1
    model = table.column("model")[synthetic].numpy()
    shares = logits[synthetic].softmax(1).numpy()
    assert found.identification is not None
    assert found.identification.auc == pytest.approx(roc_auc_score(model, shares, multi_class="ovr", average="macro"), abs=1e-12)
    assert found.identification.accuracy == pytest.approx(balanced_accuracy_score(model, shares.argmax(1)))
    rows = ~synthetic | (table.column("model") == 1)
    assert found.families["Stable Diffusion"].auc == pytest.approx(roc_auc_score(table.column("origin")[rows], scores[rows]))


def test_order_scale_above_nought_and_infinite_scores_are_harmless() -> None:
    scores = torch.tensor([-3.0, 1, -1, -2, 2, 0.5, -4, 3], dtype=torch.float64)
    found = two_track_report(scores, None, TABLE)
    assert two_track_report(scores * 1e200, None, TABLE) == found
    assert two_track_report(torch.where(scores.abs() > 2.5, scores * torch.inf, scores), None, TABLE).mean.accuracy == found.mean.accuracy
    order = torch.tensor([7, 3, 1, 0, 2, 6, 5, 4])
    assert two_track_report(scores[order], None, TABLE.subset(order)).families == found.families


def test_a_report_reads_as_a_table() -> None:
    text = two_track_report(ORIGIN - 0.5, None, TABLE, images_per_second=123.4).table()
    assert text.splitlines()[2] == "| GAN | 1.000 | 1.000 | 6 |"
    assert text.splitlines()[-1] == "123 images/s"


def test_files_of_families_are_joined_with_their_pairs() -> None:
    table, pairs = joined([table_of([8, 0, 1]), table_of([3, 8, 8])])
    assert pairs.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.column("model").tolist() == [4, 0, 0, 1, 4, 4]
    with pytest.raises(DataError, match=r"file 1 has synthetic images of 2 families, not of 1\. Give a file for each family"):
        joined([table_of([8, 0]), table_of([0, 3])])


@pytest.mark.parametrize(("specific", "told"), [([8, 8], "real only"), ([0, 3], "synthetic only")])
def test_test_sets_of_one_class_are_refused(specific: list[int], told: str) -> None:
    with pytest.raises(DataError, match=rf"there must be real \(0\) and synthetic \(1\) images, got {told}\. Add the others"):
        two_track_report(torch.zeros(2), None, table_of(specific))


@pytest.mark.parametrize(
    ("scores", "logits", "told"),
    [
        (torch.zeros(7), None, r"the table has 8 images, got scores of \(7,\) and logits of None"),
        (torch.zeros(8), torch.zeros(8, 2), r"there is a family 2, and `logits` has 2 columns"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(scores: Tensor, logits: Tensor | None, told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        two_track_report(scores, logits, TABLE)


def test_other_values_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"`pairs` must be 8 numbers, one for each image, got \(3,\)"):
        two_track_report(torch.zeros(8), None, TABLE, pairs=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match=r"the score of 3\.png is NaN\. Look at the image"):
        two_track_report(torch.tensor([0.0, 0, 0, torch.nan, 0, 0, 0, 0]), None, TABLE)
