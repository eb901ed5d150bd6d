"""What README and docs show is true: their Python runs and prints what they say, their commands parse, their names and links exist.

In a page, an HTML comment above a block says what is special about it:

    <!-- output -->              the text that the Python block before it prints; decimals may differ by 0.05
    <!-- needs a network -->     read for syntax only
    <!-- not run: a reason -->   read for syntax only

A block with a `title` is a file; those of `add-a-system.md` are put together to a system, which is then tested.
"""

import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import yaml
from support import ROOT, tool

from retinue import catalog, views
from retinue.cli import COMMANDS, training
from retinue.cli.parser import Parser
from retinue.data.views.base import registered
from retinue.models import factory

GENERATED = {ROOT / "docs/claims.md"}  # and docs/systems/, which the pattern below leaves out
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted({*(ROOT / "docs").glob("*.md")} - GENERATED)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)``` *$", re.DOTALL | re.MULTILINE)
UNREAD = ("needs a network", "not run:")
CHEAP = ("systems", "show", "claims")  # commands that are run, not only parsed
TOLERANCE = 0.05  # of decimals in outputs: processors round differently, and training amplifies it
IDS: dict[str, Any] = {"ids": lambda value: value.name if isinstance(value, Path) else None}


class Block(NamedTuple):
    """A fenced block: where it stands, its language, title and text, and what the comment above it says."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    note: str


@functools.cache
def blocks(page: Path) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(source):
        above = source[: match.start()].rstrip().rsplit("\n", 1)[-1].strip()
        note = re.fullmatch(r"<!-- (.*) -->", above)
        title = re.search(r'title="([^"]*)"', match["info"])
        line = source[: match.start("text")].count("\n") + 1
        found.append(
            Block(page, line, match["language"], title[1] if title else "", textwrap.dedent(match["text"]), note[1] if note else "")
        )
    return found


def prose(page: Path) -> str:
    """The text of a page without its blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)


def parsed(block: Block) -> Any:
    """Compile a block so that a traceback names the line of the page."""
    return compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")


def same_output(printed: str, expected: str) -> bool:
    """Tell whether two texts agree, but for decimals that differ a little."""
    decimal = r"-?\d+\.\d+(?:e-?\d+)?"
    if re.sub(decimal, "#", printed.strip()) != re.sub(decimal, "#", expected.strip()):
        return False
    pairs = zip(re.findall(decimal, printed), re.findall(decimal, expected), strict=True)
    return all(abs(float(a) - float(b)) <= TOLERANCE for a, b in pairs)


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))], **IDS)
def test_python_blocks_run_in_order_and_print_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETINUE_DATA", str(tmp_path / "named"))  # what stands there would appear among the near misses
    monkeypatch.setattr(factory, "_networks", dict(factory._networks))  # a page registers a network, for itself alone
    monkeypatch.setattr(timm.models, "register_model", lambda build: build)
    names: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    monkeypatch.setitem(sys.modules, names["__name__"], type(sys)(names["__name__"]))
    printed = ""
    for block in blocks(page):
        if block.language == "python":
            code = parsed(block)
            if block.title or block.note.startswith(UNREAD):
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, names)
            printed = out.getvalue()
        elif block.note == "output":
            assert same_output(printed, block.text), f"{page.name}:{block.line} says\n{block.text}\nand it prints\n{printed}"


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line and words of every command in the bash blocks of a page."""
    for block in blocks(page):
        if block.language == "bash" and not block.note.startswith("not run:"):
            for offset, line in enumerate(re.sub(r"\\\n\s*", " ", block.text).splitlines()):
                for part in line.split(" && "):
                    if words := shlex.split(part, comments=True):
                        yield block.line + offset, words


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_commands_parse_and_recipes_of_trainings_bind(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "train_and_report", lambda bound, run_dir, progress=True: bound.recipe.blocks())
    (tmp_path / "recipe.yaml").write_text((ROOT / "src/retinue/recipes/inception-v4/laptop.yaml").read_text(encoding="utf-8"))
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    for line, words in commands(page):
        where = f"{page.name}:{line}: {shlex.join(words)}"
        if words[0] == "retinue" and not words[1].startswith("-"):
            assert words[1] in COMMANDS, where
            if words[1] in ("show", "claim") and words[2] not in {one.slug for one in catalog.systems()}:
                assert page.name == "add-a-system.md", where
                continue
            words = ["recipe.yaml" if word.endswith("recipe.yaml") else word for word in words]
            module = importlib.import_module(f"retinue.cli.{words[1]}")
            parser = Parser(words[1], COMMANDS[words[1]])
            module.arguments(parser)
            options = parser.read(words[2:])
            if options is not None and words[1] in (*CHEAP, "train", "run", "demo"):
                module.run(options)
        elif words[0] == "make":
            assert words[1] in targets[1].split(), where
        else:
            assert all((ROOT / word).exists() for word in words if word.startswith(("tests/", "tools/"))), where


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"\w+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_names_in_the_text_exist(page: Path) -> None:
    planned = {part for one in catalog.systems() if one.state == "planned" for part in one.parts}
    for paragraph in prose(page).split("\n\n"):
        for line in paragraph.splitlines() if paragraph.lstrip().startswith("|") else [paragraph]:
            for command in re.findall(r"`retinue ([a-z]+)", line):
                assert command in COMMANDS, f"{page.name}: retinue {command}"
            for name in re.findall(r"`@?(retinue(?:\.\w+)+)", line):
                assert exists(name) or (name in planned and "planned" in line), f"{page.name}: {name}"


def exists(dotted: str) -> bool:
    package, *names = dotted.split(".")
    thing: Any = importlib.import_module(package)
    for name in names:
        with contextlib.suppress(ImportError):
            if not hasattr(thing, name):
                importlib.import_module(f"{thing.__name__}.{name}")
        if not hasattr(thing, name):
            return name in getattr(thing, "__annotations__", {})
        thing = getattr(thing, name)
    return True


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_what_is_called_planned_is_planned(page: Path) -> None:
    states = {one.slug: one.state for one in catalog.systems()}
    for line in prose(page).splitlines():
        slugs = re.findall(r"systems/([a-z0-9-]+)\.md", line)
        if re.search(r"\bplanned\b", line.replace("**working**, planned", "")) and slugs:
            assert any(states[slug] == "planned" for slug in slugs if slug in states), f"{page.name} calls planned what is ready: {line}"


def test_the_table_of_views_is_complete_and_each_of_its_texts_is_a_view() -> None:
    named = set()
    for line in prose(ROOT / "docs/views.md").partition("## All views")[2].partition("## A view")[0].splitlines():
        if line.startswith("| `"):
            texts, classes = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3])
            made = [view for text in texts for view in views.parse(text).views]
            assert [type(view).__name__ for view in made] == classes, line
            named |= {view.name for view in made}
    assert named == {name for name, kind in registered.items() if kind.__module__.startswith("retinue.")} - {"compose"}


def test_outputs_are_compared_word_by_word() -> None:
    assert same_output("top1 0.97 of 3\n", "top1 0.95 of 3")
    assert not same_output("top1 0.97", "top1 0.91")
    assert not same_output("top1 0.97", "top5 0.97")
    assert not same_output("3 images", "4 images")
    assert not same_output("", "0.5")


@pytest.mark.parametrize("page", PAGES, **IDS)
def test_yaml_blocks_are_yaml(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict | list), f"{page.name}:{block.line}"


def test_the_readme_is_short_and_begins_with_use() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any(line.startswith("```bash") for line in lines[:12])
    assert any(line.startswith("```python") for line in lines[:40])


IN_THE_COPY = """
import sys
from pathlib import Path
import pytest
own = ["tests/pretrain/test_quarter_turns.py", "tests/test_every_system.py", "-k", "quarter_turns or quarter-turns-ours"]
failed = pytest.main([*own, "-q", "-p", "no:xdist"])
import retinue.cli
assert str(Path.cwd()) in retinue.__file__
failed = failed or retinue.cli.main(["show", "quarter-turns"]) or retinue.cli.main(["claim", "quarter-turns", "--budget", "smoke"])
sys.path.insert(0, "tools")
import generate
page = generate.pages(Path.cwd())[Path.cwd() / "docs/systems/quarter-turns.md"]
assert "retinue claim quarter-turns" in page and "::: retinue.pretrain.quarter_turns" in page
sys.exit(failed)
"""


def test_the_system_that_a_newcomer_adds_works(tmp_path: Path) -> None:
    """Lay down the stubs in a copy of the repository, fill them from the page, and run the system's tests, laws and claim."""
    for name in ("src", "tools", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "systems", "images"))
    (tmp_path / "tests").mkdir()
    for name in (
        "README.md",
        "pyproject.toml",
        *(f"tests/{name}.py" for name in ("conftest", "checker", "support", "test_every_system", "twelve")),
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    laid = tool("new").lay_down("quarter-turns", "pretrain", tmp_path)
    files = {tmp_path / block.title: block.text for block in blocks(ROOT / "docs/add-a-system.md") if block.title}
    package = tmp_path / "src/retinue/pretrain/__init__.py"
    assert {*laid, package} == set(files), "the page fills what the tool lays down, and makes it public"
    for path, text in files.items():
        if path.name == "catalog_entries.py":
            head, tail = path.read_text(encoding="utf-8").split('    System(\n        slug="quarter-turns"')
            text = head + textwrap.indent(textwrap.dedent(text), "    ") + tail.partition("\n    ),\n")[2]
        elif path == package:
            text = path.read_text(encoding="utf-8") + text
        path.write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IN_THE_COPY], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
