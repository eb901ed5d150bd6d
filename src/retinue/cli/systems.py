"""`retinue systems [QUERY]`."""

import shutil
import textwrap
from itertools import groupby

from jsonargparse import Namespace

from retinue.catalog import ROOMS, System, systems
from retinue.cli.parser import Parser

MOST = 8  # answers to a question


def arguments(parser: Parser) -> None:
    """Take the words of a question."""
    parser.add_argument("query", nargs="*", default=[], help="words of your question, such as: few labels")


def run(options: Namespace) -> None:
    """Print the systems that answer it, best first; or all, room by room."""
    query = " ".join(options.query)
    found = systems(query)
    if not query.strip():
        for room, members in groupby(sorted(found, key=lambda one: list(ROOMS).index(one.room)), key=lambda one: one.room):
            have, want = ROOMS[room]
            print(f"\n{room}: I have {have}; I want {want}.")
            for one in members:
                print(line(one))
    elif found:
        for one in found[:MOST]:
            print(line(one))
    else:
        print(f'No system speaks of "{query}". All of them: retinue systems')
    print("\nMore of one: retinue show SLUG")


def line(one: System) -> str:
    """Write a system in a line, or more where the terminal is narrow."""
    width = max(60, min(160, shutil.get_terminal_size((120, 24)).columns))
    head = f"  {one.slug:<24} {one.state:<8} "
    return textwrap.fill(one.use, width, initial_indent=head, subsequent_indent=" " * len(head))
