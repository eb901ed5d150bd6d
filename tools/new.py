"""Lay down the files of a system as stubs that fail by name until they are filled: `make new SLUG=my-system ROOM=pretrain`."""

import argparse
import re
import sys
from pathlib import Path

from retinue.catalog import ROOMS, System, systems
from retinue.errors import ArgumentError, RetinueError, unknown

ROOT = Path(__file__).resolve().parents[1]

MODULE = '''"""{slug}: one line on what it computes, and from which paper ({authors} {year}, arXiv {arxiv})."""

from typing import Any


def __getattr__(name: str) -> Any:
    kind = AttributeError if name.startswith("__") else ImportError  # Python itself asks whether a module has `__path__`
    raise kind(f"{slug}: {{name}} is not written yet; it belongs in src/retinue/{module}")
'''

RECIPE = """# {slug}, {scale}: what is trained on what. Time on which machine. Reached: the number to expect.
# retinue run {slug} --scale {scale}
model: {{name: small_convnet}}
objective: {part}
data: {{name: digits}}
fit: {{epochs: 5, batch_size: 64, seed: 0}}
"""

CLAIM = '''"""{slug}: one sentence which can turn out to be false."""

from retinue.claims.harness import Budget, Figures
from retinue.errors import ArgumentError

RULE = "what must hold for the claim to be shown, fixed before the first run"
DATA = ("digits",)


def measure(seed: int, budget: Budget) -> dict[str, float]:
    """One seed: the figure of the method, and of what it is compared with."""
    raise ArgumentError("{slug}: its claim is not written yet; it belongs in src/retinue/claims/{name}.py")


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    return False
'''

TEST = '''"""{slug}: its exact checks, then laws, then peers, then what it refuses."""

import importlib

import pytest

from retinue.catalog import system


@pytest.mark.parametrize("part", system("{slug}").parts)
def test_every_part_is_where_the_catalogue_says(part: str) -> None:
    package, name = part.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(package), name))


def test_the_exact_checks() -> None:
    pytest.fail("{slug}: write each exact check of its paper as a test of its own, here")
'''

ENTRY = """    System(
        slug="{slug}", room="{room}", module="{module}", year=2000, arxiv="0001.00001",
        authors="Whose paper", parts=("{part}",),
        title="The title of the paper of {slug}",
        use="What somebody with the problem that {slug} solves would ask.",
    ),
"""


def lay_down(slug: str, room: str, root: Path = ROOT) -> list[Path]:
    """Write the stubs of a system and its catalogue entry where it has none, and return the files in the order in which to fill them.

    Raises:
        ArgumentError: if the slug or the room cannot be, or one of the files is there already; nothing is written then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        raise ArgumentError(f'new: a slug is small letters, digits and single dashes, got "{slug}". Example: SLUG=my-system.')
    if room not in ROOMS:
        raise unknown("new", "room", room, ROOMS)
    name = slug.replace("-", "_")
    part = "".join(word.capitalize() for word in slug.split("-"))
    known = {one.slug: one for one in systems()}
    one = known.get(slug) or System(slug, "", "AUTHORS", 2000, "0001.00001", room, "", (f"retinue.{room}.{part}",), f"{room}/{name}.py")
    if one.room != room:
        raise ArgumentError(
            f'new: the catalogue has {slug} in the room "{one.room}", got ROOM={room}. Give ROOM={one.room}, or change the entry.'
        )
    facts = {"slug": slug, "room": room, "name": name, "module": one.module, "part": one.parts[0]}
    facts |= {"authors": one.authors, "year": str(one.year), "arxiv": one.arxiv}
    source = root / "src/retinue"
    files = {
        source / one.module: MODULE,
        root / f"tests/{room}/test_{Path(one.module).stem}.py": TEST,
        source / f"recipes/{slug}/laptop.yaml": RECIPE,
        source / f"recipes/{slug}/paper.yaml": RECIPE,
        source / f"claims/{name}.py": CLAIM,
    }
    if there := [str(path.relative_to(root)) for path in files if path.exists()]:
        raise ArgumentError(f"new: {', '.join(there)} exist(s) already, nothing was written. Remove what you do not want to keep.")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**facts, scale=path.stem), encoding="utf-8")
    catalogue = source / "catalog_entries.py"
    if slug not in known:
        head, tail = catalogue.read_text(encoding="utf-8").rsplit("\n)\n# fmt: on", 1)
        catalogue.write_text(f"{head}\n{ENTRY.format(**facts).rstrip()}\n)\n# fmt: on{tail}", encoding="utf-8")
    return [catalogue, *files]


def main() -> int:
    """Lay down the stubs and say what is to be done with them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--slug", required=True)
    parser.add_argument("--room", required=True)
    options = parser.parse_args()
    try:
        files = lay_down(options.slug, options.room)
    except RetinueError as error:
        print(error, file=sys.stderr)
        return 2
    print("Fill these, in this order; each fails by name until then (docs/add-a-system.md shows how):")
    print("\n".join(f"  {path.relative_to(ROOT)}" for path in files))
    print(f"  src/retinue/{options.room}/__init__.py  (import the parts there)\nThen: make generated test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
