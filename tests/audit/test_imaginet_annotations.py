"""Annotation files: their exact form, tracks, round trips, images at their own resolution, and every bad line at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import retinue
from retinue.data import annotations as kit
from retinue.data.annotated import open_annotated, window
from retinue.data.annotations import (
    FAMILY_OF,
    Annotation,
    Annotations,
    SyntheticImageDataset,
    by_family,
    by_origin,
    read_annotations,
    write_annotations,
)
from retinue.errors import ArgumentError, DataError

ROWS = [
    Annotation("imagenet/a.png", 0, 0, 4, 8),
    Annotation("wikiart/b.png", 0, 1, 4, 8),
    Annotation("stylegan3/c,1.png", 1, 2, 0, 2),
    Annotation("sdxl/d.png", 1, 0, 1, 4),
    Annotation("midjourney/e.png", 1, 3, 2, 6),
    Annotation("dalle/f.png", 1, 1, 3, 7),
]


def stored(root: Path, rows: list[Annotation] = ROWS, side: int = 40) -> Path:
    """Write an image for each row, each of its own grey, and the file of annotations."""
    for number, row in enumerate(rows):
        path = root / row.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side + 8, 3), 10 * number % 256, dtype=np.uint8)).save(path)
    write_annotations(rows, root / "list.txt")
    return root / "list.txt"


def test_a_line_is_path_origin_content_model_specific(tmp_path: Path) -> None:
    write_annotations(ROWS, tmp_path / "list.txt")
    assert (tmp_path / "list.txt").read_text().splitlines()[2] == "stylegan3/c,1.png,1,2,0,2"
    table = read_annotations(tmp_path / "list.txt")
    assert table.paths[2] == "stylegan3/c,1.png"
    assert table.codes.tolist() == [list(row[1:]) for row in ROWS]
    assert table.rows() == ROWS


@pytest.mark.parametrize(
    ("track", "places", "labels", "classes"),
    [
        ("origin", [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 1], ["real", "synthetic"]),
        ("model", [2, 3, 4, 5], [0, 1, 2, 3], ["GAN", "Stable Diffusion", "Midjourney", "DALL-E 3"]),
        ("specific_model", [2, 3, 4, 5], [2, 4, 6, 7], list(kit.SPECIFIC[:8])),
        ("content_type", [2, 3, 4, 5], [2, 0, 3, 1], ["photos", "paintings", "faces", "uncategorised"]),
        ("family", [0, 1, 2, 3, 4, 5], [4, 4, 0, 1, 2, 3], list(kit.FAMILIES)),
        ("all", [0, 1, 2, 3, 4, 5], [list(row[1:]) for row in ROWS], []),
    ],
)
def test_a_track_chooses_rows_and_labels(track: Any, places: list[int], labels: list[Any], classes: list[str]) -> None:
    chosen, found, names = kit.annotations(ROWS).track(track)
    assert chosen.paths == [ROWS[i].path for i in places]
    assert found.tolist() == labels
    assert names == classes


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(categories=["L", "N"], include_characters=",/ ._"), min_size=1), st.integers(0, 8), st.integers(0, 3)
        )
    )
)
def test_what_is_written_is_read_back(tmp_path_factory: Any, rows: list[tuple[str, int, int]]) -> None:
    made = [Annotation(f"x{name}.png", int(specific != 8), content, FAMILY_OF[specific], specific) for name, specific, content in rows]
    path = tmp_path_factory.mktemp("rows") / "list.txt"
    write_annotations([ROWS[0], *made], path)
    assert read_annotations(path).rows() == [ROWS[0], *made]


def test_all_bad_lines_are_listed_at_once(tmp_path: Path) -> None:
    stored(tmp_path)
    good = (tmp_path / "list.txt").read_text()
    bad = [
        "a.png,0,0,4",
        "a.png,0,7,4,8",
        "a.png,1,0,4,8",
        "a.png,0,0,1,3",
        "a.png,x,0,4,8",
        "a.png,1,0,0,7",
        "gone.png,0,0,4,8",
        ",0,0,4,8",
    ]
    (tmp_path / "list.txt").write_text(good + "\n".join(bad) + "\n\n")
    with pytest.raises(DataError) as caught:
        read_annotations(tmp_path / "list.txt", tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"annotations: 8 of 14 lines of {tmp_path / 'list.txt'} cannot be used. Mend or remove them:"
    assert lines[1:] == [
        '  line 7: "a.png,0,0,4" has 4 fields, not 5 (path,origin,content,model,specific)',
        "  line 8: content 7 is out of range: 0 to 3",
        "  line 9: origin 1 (synthetic) contradicts model 4 (real)",
        "  line 10: origin 0 (real) contradicts model 1 (Stable Diffusion)",
        '  line 11: "x,0,4,8" are not four whole numbers',
        "  line 12: specific 7 (DALL-E 3) is not of model 0 (GAN)",
        f"  line 13: there is no file {tmp_path / 'gone.png'}",
        '  line 14: ",0,0,4,8" has 5 fields, not 5 (path,origin,content,model,specific)',
    ]


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read: .*It is a text file with a line"):
        read_annotations(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.txt has no line\. Write one for each image"):
        read_annotations(tmp_path / "empty.txt")
    (tmp_path / "long.txt").write_text("a\n" * 300)
    with pytest.raises(DataError, match=r"300 of 300 lines[\s\S]*and 100 more"):
        read_annotations(tmp_path / "long.txt")
    with pytest.raises(DataError, match=r"the path 'a\\nb\.png' cannot stand in a line of text\. Rename the file"):
        write_annotations([ROWS[0]._replace(path="a\nb.png")], tmp_path / "list.txt")
    with pytest.raises(DataError, match=r"row 1 \(b\.png\) cannot be: origin 5 is out of range: 0 to 1"):
        kit.annotations([ROWS[0], Annotation("b.png", 5, 0, 4, 8)])
    with pytest.raises(ArgumentError, match=r'no track is called "modell"\. Did you mean model'):
        kit.annotations(ROWS).track("modell")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'no column is called "origins"\. Did you mean origin'):
        kit.annotations(ROWS).column("origins")


def test_the_dataset_decodes_images_at_their_own_size(tmp_path: Path) -> None:
    path = stored(tmp_path)
    dataset = SyntheticImageDataset(tmp_path, path, "model")
    image, label = dataset[2]
    assert len(dataset) == 4
    assert (image.shape, int(image[0, 0, 0]), label) == ((3, 40, 48), 40, 2)
    assert SyntheticImageDataset(tmp_path, path, "all", transform=lambda image: image.float().mean().item())[3][1].tolist() == [1, 0, 1, 4]
    batch = next(iter(torch.utils.data.DataLoader(SyntheticImageDataset(tmp_path, path), batch_size=6)))
    assert batch[1].tolist() == [0, 0, 1, 1, 1, 1]
    (tmp_path / ROWS[3].path).unlink()
    with pytest.raises(DataError, match=r"1 of 6 lines[\s\S]*line 4: there is no file"):
        SyntheticImageDataset(tmp_path, path)


def many(count: int = 6) -> list[Annotation]:
    return [row._replace(path=f"{number}-{row.path}") for number in range(count) for row in ROWS]


def test_opened_for_the_engine_images_are_cut_and_never_resized(tmp_path: Path) -> None:
    root = tmp_path
    ramp = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    rows = many()
    for row in rows:
        (root / row.path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(root / row.path)
    data = open_annotated(root, kit.annotations(rows), input_size=16, read_size=24)
    assert data.classes == list(kit.FAMILIES)
    assert len(data.train) + len(data.val) + len(data.test) == 36
    assert np.array_equal(data.train.images([0])[0, 0].numpy(), ramp[8:32, 18:42])
    batch = next(iter(data.train.loader(4).batches()))
    middle = data.preprocessing.denormalize(batch.images)[0, 0] * 255
    assert np.allclose(middle.numpy(), ramp[12:28, 22:38], atol=1e-3)
    own = {row.path: row.model for row in rows}
    assert [own[data.train.name(i)] for i in range(len(data.train))] == data.train.labels.tolist()


def test_a_test_file_is_the_test_split(tmp_path: Path) -> None:
    training, testing = many(), [row._replace(path=f"t-{row.path}") for row in ROWS]
    stored(tmp_path, training + testing)
    write_annotations(training, tmp_path / "train.txt")
    write_annotations(testing, tmp_path / "test.txt")
    data = open_annotated(tmp_path, tmp_path / "train.txt", test=tmp_path / "test.txt", track="model", input_size=8)
    assert [data.test.name(i) for i in range(len(data.test))] == [row.path for row in testing[2:]]
    assert data.test.labels.tolist() == [0, 1, 2, 3]
    assert len(data.train) + len(data.val) == 24


def test_images_that_cannot_be_opened_are_all_listed(tmp_path: Path) -> None:
    rows = many(2)
    stored(tmp_path, rows)
    for row in rows[:2]:
        (tmp_path / row.path).write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"2 of 12 images cannot be used\. Mend or remove them:\n  0-imagenet/a\.png: [^\n]*\n  0-wikiart/b\.png: "
    ):
        open_annotated(tmp_path, kit.annotations(rows), input_size=8)
    with pytest.raises(ArgumentError, match=r'the track "all" has four labels for each image, and classes need one\. Take "family"'):
        open_annotated(tmp_path, kit.annotations(rows), track="all")


def test_small_images_are_padded_by_reflection_and_large_ones_cut() -> None:
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    assert window(image, (2, 1)).tolist() == [[[1], [4]]]
    assert window(image, (2, 5)).tolist() == [[[1, 0, 1, 2, 1], [4, 3, 4, 5, 4]]]
    assert window(image[:, :1, :1], (2, 2)).tolist() == [[[0, 0], [0, 0]]]
    assert window(torch.zeros(3, 5, 5, dtype=torch.uint8), (64, 64)).shape == (3, 64, 64)


def test_families_become_origins_and_synthetic_images_alone() -> None:
    data = retinue.data.from_arrays(torch.zeros(60, 3, 8, 8, dtype=torch.uint8), [0, 1, 2] * 20, classes=["GAN", "real", "SD"])
    origins, families = by_origin(data), by_family(data)
    assert origins.classes == ["real", "synthetic"]
    assert origins.train.classes == origins.classes
    assert origins.test.labels.tolist() == [int(label != 1) for label in data.test.labels.tolist()]
    assert families.classes == ["GAN", "SD"]
    kept = [label for label in data.train.labels.tolist() if label != 1]
    assert families.train.labels.tolist() == [label // 2 for label in kept]
    assert [families.train.name(i) for i in range(3)] == [data.train.name(i) for i, label in enumerate(data.train.labels) if label != 1][:3]
    with pytest.raises(ArgumentError, match=r'no class of the data \(`real`\) is called "reel"\. Did you mean real'):
        by_origin(data, "reel")
    alone = retinue.data.from_arrays(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), [0] * 9, classes=["real"])
    with pytest.raises(ArgumentError, match=r"has real images alone\. Add synthetic ones"):
        by_family(alone)


def test_tables_are_cut_in_the_order_asked_for() -> None:
    table = kit.annotations(ROWS).subset([4, 0])
    assert isinstance(table, Annotations)
    assert table.paths == ["midjourney/e.png", "imagenet/a.png"]
    assert table.column("specific").tolist() == [6, 8]
