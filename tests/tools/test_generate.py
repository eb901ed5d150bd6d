"""What is generated: up to date, the same every time, and said when it is not."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, tool

from retinue.catalog import ROOMS, system, systems
from retinue.claims.harness import Result

generate: Any = tool("generate")


def test_every_generated_file_is_up_to_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = call(monkeypatch, "--check")
    assert (capsys.readouterr().out, code) == ("", 0)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own, with README, docs, what is measured for them, and nothing else."""
    for name in ("docs/sizes.json", "tests/twelve.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    for name, tables in {"README.md": ["table"], "docs/index.md": ["table"], "docs/sizes.md": ["sizes", "networks"]}.items():
        (tmp_path / name).write_text("".join(f"before\n{generate.START.format(t)}\nold\n{generate.END.format(t)}\nafter\n" for t in tables))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate.pages, "__defaults__", (tmp_path,))
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    return generate.main()


def test_check_names_what_would_change_and_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--check") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "is out of date, run make generated: README.md"
    assert len(lines) == 6 + len(systems())
    assert "old" in (copy / "README.md").read_text()
    assert not (copy / "CLAIMS.md").exists()


def test_writing_twice_changes_nothing_the_second_time(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 0
    assert "rewritten: docs/systems/rotnet.md" in capsys.readouterr().out
    assert call(monkeypatch, "--check") == 0
    assert call(monkeypatch) == 0
    assert capsys.readouterr().out == ""
    readme = (copy / "README.md").read_text()
    assert readme.startswith(f"before\n{generate.START.format('table')}\n| I have | I want |")
    assert readme.endswith(f"|\n{generate.END.format('table')}\nafter\n"), "what stands around the table is left alone"
    (copy / "docs/systems/rotnet.md").write_text("by hand")
    assert call(monkeypatch, "--check") == 1


def test_the_table_has_a_row_for_each_room_and_a_link_for_each_system() -> None:
    rows = generate.table("docs/systems/").splitlines()[2:]
    assert len(rows) == len(ROOMS)
    links = re.findall(r"\[([\w-]+)\]\(docs/systems/([\w-]+)\.md\)", "\n".join(rows))
    assert sorted(links) == sorted((one.slug, one.slug) for one in systems())
    bold = re.findall(r"\*\*\[([\w-]+)\]", "\n".join(rows))
    assert sorted(bold) == sorted(one.slug for one in systems() if one.state == "ready")


RESULT = Result(
    slug="inception-v4",
    sentence="residual connections speed up training.",
    rule="fewer epochs",
    verdict="not shown",
    budget="laptop",
    seeds=[0, 1],
    figures={"plain": [1.0, 2.0], "residual": [0.5, 0.25], "curve": [[1.0], [2.0]]},
    parts={"faster": True, "better": False},
    effects={"gain": (0.5, 0.125)},
    data=["digits"],
    seconds=12.3,
    versions={"torch": "2.11"},
    machine="a laptop",
    reason="",
)  # fmt: skip


def test_a_claim_that_is_not_shown_stands_in_the_table_as_not_shown() -> None:
    text = generate.claims_page({"inception-v4": RESULT}, "docs/systems/", pictures="claims/")
    assert "| gain: 0.5 ± 0.12 | **not shown** |" in text
    assert "residual connections speed up training." in text
    assert "- passed: faster\n- failed: better" in text
    assert "| plain | 1 | 2 |" in text
    assert "| curve |" not in text, "curves are in the picture"
    assert "2 seeds in 12 s on a laptop; data: digits; torch 2.11" in text
    untried = generate.claims_page({}, "docs/systems/", pictures="claims/")
    assert "| not tried yet |" in untried


def test_the_page_of_a_system_says_what_it_is_and_what_is_planned() -> None:
    planned = next(one for one in systems() if one.state == "planned")
    text = generate.system_page(planned, None, ROOT)
    assert f"# {planned.slug}\n\n{planned.use}" in text
    assert '!!! note "Planned"' in text
    assert ":::" not in text
    ready = dataclasses.replace(system("inception-v4"), state="ready", exceptions={"resume": "it has no state"})
    text = generate.system_page(ready, RESULT, ROOT)
    assert "Planned" not in text
    assert "- resume: it has no state" in text
    assert "Verdict: **not shown** (2 seeds" in text
    assert re.search(r"^::: retinue\.\w+\.\w+$", text, re.MULTILINE)
