"""`make new`: the stubs of a system, which fail by name until they are filled."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ROOT, SOURCE, python, tool

from retinue.catalog import systems
from retinue.errors import ArgumentError

new: Any = tool("new")
PLANNED = next(
    one
    for one in systems()
    if one.state == "planned" and not any((SOURCE / place).exists() for place in (one.module, f"recipes/{one.slug}"))
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library, with the stubs of a new system in it."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(SOURCE, root / "src/retinue", ignore=shutil.ignore_patterns("__pycache__"))
    new.lay_down("my-system", "pretrain", root)
    return root


def run(tree: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return python(code, *words, check=False, cwd=tree, PYTHONPATH=str(tree / "src"))


def test_six_files_and_an_entry_in_the_order_in_which_to_fill_them(tmp_path: Path) -> None:
    (tmp_path / "src/retinue").mkdir(parents=True)
    shutil.copy(SOURCE / "catalog_entries.py", tmp_path / "src/retinue")
    paths = [str(path.relative_to(tmp_path)) for path in new.lay_down("my-system", "pretrain", tmp_path)]
    assert paths == [
        "src/retinue/catalog_entries.py",
        "src/retinue/pretrain/my_system.py",
        "tests/pretrain/test_my_system.py",
        "src/retinue/recipes/my-system/laptop.yaml",
        "src/retinue/recipes/my-system/paper.yaml",
        "src/retinue/claims/my_system.py",
    ]
    assert all((tmp_path / path).is_file() for path in paths)


def test_the_stubs_are_well_formed(tree: Path) -> None:
    files = [
        tree / "src/retinue/pretrain/my_system.py",
        tree / "src/retinue/claims/my_system.py",
        tree / "tests/pretrain/test_my_system.py",
    ]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [Path(sys.executable).with_name("ruff"), *command, "--config", ROOT / "pyproject.toml", *files],
            capture_output=True,
            text=True,
            cwd=tree,
        )
        assert done.returncode == 0, done.stdout
    for scale in ("laptop", "paper"):
        recipe = yaml.safe_load((tree / f"src/retinue/recipes/my-system/{scale}.yaml").read_text())
        assert recipe["objective"] == "retinue.pretrain.MySystem"


def test_the_catalogue_has_the_new_system_and_all_others(tree: Path) -> None:
    code = "import retinue.catalog as c; print(len(c.systems()), c.system('my-system').state, c.system('my-system').parts, c.__file__)"
    told = run(tree, code).stdout.split()
    assert told[:3] == [str(len(systems()) + 1), "planned", "('retinue.pretrain.MySystem',)"]
    assert told[3].startswith(str(tree))


COMMANDS = """
import retinue.cli
try:
    from retinue.pretrain.my_system import MySystem
except ImportError as error:
    print(error)
for words in ("run my-system", "claim my-system --budget smoke"):
    print(retinue.cli.main(words.split()))
"""


def test_each_stub_fails_by_name_until_it_is_filled(tree: Path) -> None:
    done = run(tree, COMMANDS)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["my-system: MySystem is not written yet; it belongs in src/retinue/pretrain/my_system.py", "2"]
    assert lines[-1] == "2"
    recipe, claim = done.stderr.splitlines()
    assert recipe.startswith("error: recipe (my-system, laptop): ")
    assert "MySystem" in recipe
    assert claim == "error: my-system: its claim is not written yet; it belongs in src/retinue/claims/my_system.py"


def test_the_stub_of_the_test_fails_for_each_part_and_for_the_exact_checks(tree: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", tree, "-c", "/dev/null"]
    done = run(tree, f"import subprocess, sys; sys.exit(subprocess.run({[*map(str, command), 'tests/pretrain']!r}).returncode)")
    assert done.returncode == 1
    assert "2 failed" in done.stdout
    assert "my-system: write each exact check of its paper as a test of its own, here" in done.stdout
    assert "has no attribute 'MySystem'" in done.stdout


def test_a_system_that_is_planned_takes_its_facts_from_the_catalogue(tree: Path) -> None:
    before = (tree / "src/retinue/catalog_entries.py").read_bytes()
    new.lay_down(PLANNED.slug, PLANNED.room, tree)
    assert (tree / "src/retinue/catalog_entries.py").read_bytes() == before
    text = (tree / "src/retinue" / PLANNED.module).read_text()
    assert f"{PLANNED.authors} {PLANNED.year}, arXiv {PLANNED.arxiv}" in text


def test_what_is_there_is_never_overwritten(tree: Path) -> None:
    (tree / "src/retinue/recipes/my-system/paper.yaml").unlink()
    before = (tree / "src/retinue/pretrain/my_system.py").read_bytes()
    with pytest.raises(
        ArgumentError, match=r"^new: src/retinue/pretrain/my_system\.py, .*exist\(s\) already, nothing was written\. Remove what"
    ):
        new.lay_down("my-system", "pretrain", tree)
    assert not (tree / "src/retinue/recipes/my-system/paper.yaml").exists()
    assert (tree / "src/retinue/pretrain/my_system.py").read_bytes() == before


@pytest.mark.parametrize("slug", ["", "My-System", "my_system", "my--system", "-my", "my-", "1st", "../x", "my system"])
def test_a_slug_that_cannot_be_is_refused(tmp_path: Path, slug: str) -> None:
    with pytest.raises(
        ArgumentError, match=r'^new: a slug is small letters, digits and single dashes, got ".*"\. Example: SLUG=my-system\.$'
    ):
        new.lay_down(slug, "pretrain", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_room_that_is_not_there_or_not_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(ArgumentError, match=r'^new: no room is called "pretrian"\. Did you mean pretrain'):
        new.lay_down("my-system", "pretrian", tmp_path)
    with pytest.raises(
        ArgumentError, match=rf'^new: the catalogue has {PLANNED.slug} in the room "{PLANNED.room}", got ROOM=.*Give ROOM={PLANNED.room},'
    ):
        new.lay_down(PLANNED.slug, next(one.room for one in systems() if one.room != PLANNED.room), tmp_path)
    monkeypatch.setattr(sys, "argv", ["new.py", "--slug", "", "--room", ""])
    assert new.main() == 2
    assert capsys.readouterr().err.startswith("new: a slug is")
