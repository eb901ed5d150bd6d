"""What mkdocs does before it builds: the pictures of the claims, which stand beside their records, become part of the site."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

CLAIMS = Path(__file__).resolve().parents[1] / "claims"


def on_files(files: Files, config: Any) -> Files:
    """Add `claims/*.png` to the site."""
    for picture in sorted(CLAIMS.glob("*.png")):
        files.append(File.generated(config, f"claims/{picture.name}", abs_src_path=str(picture)))
    return files
