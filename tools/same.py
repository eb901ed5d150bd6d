"""Do two commits train alike, bit for bit? `python tools/same.py main~1 main` names the first step at which a loss differs.

`.` stands for the working tree as it is. Each side is checked out beside the repository and trains in a process of its own.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What each side runs: a system's laptop recipe, or plain supervised training, for a few steps on the bundled digits.
TRAINING = """
import sys
import retinue
from retinue.cli.recipes import bind, load
slug, steps, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if slug == "supervised":
    data = retinue.data.open("digits", input_size=16)
    model = retinue.models.tiny("ours", in_chans=1, input_size=16)
    retinue.fit(model, retinue.train.Supervised(), data, max_steps=steps, log_every=1, run_dir=folder, progress=False)
else:
    bind(load(slug, "laptop", {"fit.max_steps": steps, "fit.log_every": 1})).run(folder, progress=False)
"""


@contextmanager
def checked_out(commit: str, root: Path = ROOT) -> Iterator[Path]:
    """Give the folder of a commit's files, or of the working tree for "."."""
    if commit == ".":
        yield root
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, commit], cwd=root, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=root, check=True)


def losses(commit: str, slug: str, steps: int, root: Path = ROOT) -> list[tuple[int, str, str]]:
    """Train at a commit; return step, name and value, as text, of every number in the log."""
    with checked_out(commit, root) as tree, tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        subprocess.run([sys.executable, "-c", TRAINING, slug, str(steps), folder], check=True, env=environment, cwd=tree)
        with (Path(folder) / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [(int(row["step"]), row["name"], row["value"]) for row in csv.DictReader(file)]


def first_difference(a: list[tuple[int, str, str]], b: list[tuple[int, str, str]]) -> str | None:
    """Say where two logs differ first; None if they are equal."""
    for (step, name, value), (other_step, other_name, other) in zip(a, b, strict=False):
        if (step, name) != (other_step, other_name):
            return f"step {step} logs {name}, the other side step {other_step} {other_name}"
        if value != other:
            return f"step {step}: {name} is {value}, on the other side {other}"
    return None if len(a) == len(b) else f"one side logs {len(a)} numbers, the other {len(b)}"


def main() -> int:
    """Print the first difference of two commits; return 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("commits", nargs=2, metavar="COMMIT", help='two commits; "." is the working tree')
    parser.add_argument(
        "--system", default="supervised", help="a system whose laptop recipe is trained; by default plain supervised training"
    )
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    try:
        sides = [losses(commit, options.system, options.steps) for commit in options.commits]
    except subprocess.CalledProcessError as error:
        print(f"{options.commits}: a side could not be trained (its own words stand above): exit code {error.returncode}", file=sys.stderr)
        return 2
    difference = first_difference(*sides)
    print(json.dumps({"commits": options.commits, "system": options.system, "steps": options.steps, "first_difference": difference}))
    return int(difference is not None)


if __name__ == "__main__":
    sys.exit(main())
