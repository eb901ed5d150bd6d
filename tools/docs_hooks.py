"""What mkdocs does before it builds: pictures of the claims become part of the site, and doctests in docstrings become blocks of code."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

CLAIMS = Path(__file__).resolve().parents[1] / "claims"
DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)  # up to the next empty line


def on_files(files: Files, config: Any) -> Files:
    """Add `claims/*.png`, which stand beside their records, to the site."""
    for picture in sorted(CLAIMS.glob("*.png")):
        files.append(File.generated(config, f"claims/{picture.name}", abs_src_path=str(picture)))
    return files


class Doctests(griffe.Extension):
    """Fences doctests; without a heading of their own they would be read as quotations and links."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of everything that is documented."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(lambda lines: f"```pycon\n{lines[0]}\n```", obj.docstring.value)
