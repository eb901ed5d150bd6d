"""`retinue show SLUG`."""

import json
from importlib.resources import files
from pathlib import Path

from jsonargparse import Namespace

from retinue.catalog import system
from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take one slug."""
    parser.add_argument("slug", type=str, help="a system, such as inception-v4; all: retinue systems")


def run(options: Namespace) -> None:
    """Print what the catalogue, the recipes and the recorded claim say of it."""
    one = system(options.slug)
    print(f"{one.slug} ({one.state})\n{one.use}\n")
    print(f"paper    {one.title}\n         {one.authors}, {one.year}, {one.url}")
    print(f"file     retinue/{one.module}" + ("" if one.state == "ready" else "   (not written yet)"))
    print(f"parts    {', '.join(one.parts)}")
    for law, reason in one.exceptions.items():
        print(f"except   {law}: {reason}")
    recipes = files("retinue") / "recipes" / one.slug
    for scale in ("laptop", "paper"):
        if (recipes / f"{scale}.yaml").is_file():
            print(f"recipe   retinue run {one.slug} --scale {scale}")
    if (files("retinue") / "claims" / f"{one.slug.replace('-', '_')}.py").is_file():
        print(f"claim    retinue claim {one.slug}{_verdict(one.slug)}")


def _verdict(slug: str) -> str:
    path = Path("claims") / f"{slug}.json"
    return f"   (here: {json.loads(path.read_text(encoding='utf-8'))['verdict']})" if path.is_file() else ""
