"""The index of systems: complete, consistent, and found by words."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import retinue
from retinue.catalog import ROOMS, System, system, systems
from retinue.errors import ArgumentError

SOURCE = Path(retinue.__file__).parent
EVERY = systems()


def test_there_are_52_systems_each_with_a_slug_a_file_and_a_paper_of_its_own() -> None:
    assert len(EVERY) == 52
    for name in ("slug", "module", "title", "arxiv", "use"):
        assert len({getattr(system, name) for system in EVERY}) == 52, name


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.slug)
def test_every_entry_is_well_formed(one: System) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.slug)
    assert re.fullmatch(r"\d{4}\.\d{4,5}", one.arxiv)
    assert 2000 + int(one.arxiv[:2]) == one.year, "the year is the one of the first publication"
    assert one.room in ROOMS
    assert (SOURCE / one.room).is_dir()
    assert re.fullmatch(rf"{one.room}/[a-z0-9_]+\.py", one.module)
    assert one.parts
    assert all(re.fullmatch(r"retinue\.[a-z]+\.\w+", part) and part.split(".")[1] in ROOMS for part in one.parts)
    assert one.use.endswith((".", "?"))
    assert len(one.use) <= 160
    assert one.state in ("planned", "ready")
    assert one.url == f"https://arxiv.org/abs/{one.arxiv}"


@pytest.mark.parametrize("one", [one for one in EVERY if one.state == "ready"], ids=lambda one: one.slug)
def test_what_is_called_ready_is_there(one: System) -> None:
    assert (SOURCE / one.module).is_file()
    assert (SOURCE / "claims" / f"{one.slug.replace('-', '_')}.py").is_file()
    assert (SOURCE.parents[1] / "claims" / f"{one.slug}.json").is_file()
    for scale in ("laptop", "paper"):
        assert (SOURCE / "recipes" / one.slug / f"{scale}.yaml").is_file()
    for part in one.parts:
        package, name = part.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(package), name)), part


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.slug)
def test_a_system_is_the_best_answer_to_its_own_line_of_use(one: System) -> None:
    assert systems(one.use)[0] == one


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("few labels", {"simclr-v2", "rotnet"}),
        ("my model is too big", {"lottery-ticket", "n2n"}),
        ("why did it say that?", {"grad-cam"}),
        ("a new class arrived", {"lifelong", "federated-reconnaissance"}),
        ("is this picture AI-generated", {"imaginet"}),
        ("labelling", {"simclr-v2", "rotnet"}),  # endings do not matter
        ("Szegedy", {"inception-v4"}),
        ("segmentation", {"simple-segmentation", "catnet"}),
        ("lottery_ticket", {"lottery-ticket"}),
    ],
)
def test_questions_find_what_answers_them(query: str, expected: set[str]) -> None:
    assert expected <= {one.slug for one in systems(query)[:5]}


def test_words_that_occur_nowhere_find_nothing_and_no_words_find_all() -> None:
    assert systems("zeppelin") == []
    assert systems("  ") == EVERY
    assert systems("the of and") == EVERY, "words without meaning are no words"


@given(st.text(max_size=40))
def test_any_text_gives_a_list_without_repeats(query: str) -> None:
    found = [one.slug for one in systems(query)]
    assert len(found) == len(set(found))


def test_word_order_and_case_do_not_matter() -> None:
    assert systems("Labels FEW") == systems("few labels")


def test_a_wrong_slug_names_its_neighbours() -> None:
    assert system("rotnet").year == 2018
    with pytest.raises(
        ArgumentError, match=r'no system is called "inception4"\. Did you mean inception-v4.*All systems: retinue systems\.'
    ):
        system("inception4")


def test_the_catalogue_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "sklearn", "timm"}
    code = f"import sys, retinue.catalog; retinue.catalog.systems('few labels'); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
