"""The rules of the house that no linter keeps: no heap of helpers, no long file, no unfinished work."""

import re
from pathlib import Path

import pytest
from support import ROOT, SOURCE

FOLDERS = ("src", "tests", "tools", "benchmarks", "docs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b|Not" r"ImplementedError|#\s*type:\s*ignore\s*$")
MOST = 500  # lines


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 100
    assert {SOURCE / "__init__.py", Path(__file__)} <= set(FILES)


def test_no_file_is_a_heap_of_helpers() -> None:
    heaps = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py", "utils", "helpers"}
    assert [str(path) for path in FILES if heaps & set(path.relative_to(ROOT).parts)] == []


def test_no_file_is_long() -> None:
    long = {str(path.relative_to(ROOT)): count for path in FILES if (count := len(path.read_text().splitlines())) > MOST}
    assert long == {}, f"a file above {MOST} lines is a sign that a wall stands in the wrong place"


def test_the_tools_are_small() -> None:
    assert [path.name for path in (ROOT / "tools").glob("*.py") if len(path.read_text().splitlines()) > 200] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_left_unfinished(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        if path.is_relative_to(ROOT / folder)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_each_folder_of_tests_mirrors_one_of_the_source() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()} | {"tools", "docs", "benchmarks"}
    strange = [path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name not in rooms and path.name[0] not in "._"]
    assert strange == []


def test_tests_are_not_skipped_or_expected_to_fail() -> None:
    excuse = re.compile(r"pytest\.(skip|xfail|importorskip)\(|mark\.(skip|skipif|xfail)\b")
    excused = [str(path.relative_to(ROOT)) for path in FILES if path.is_relative_to(ROOT / "tests") and excuse.search(path.read_text())]
    assert set(excused) <= {"tests/conftest.py", "tests/tools/test_house.py"}, "a set that is not on this machine is the one excuse"
