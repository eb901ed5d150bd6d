"""`retinue run SLUG [--scale laptop|paper] [--data D] [BLOCK.KEY VALUE ...]`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a system or a recipe's file, and changes to it."""
    parser.add_argument("slug", type=str, help="a system, or the path of a recipe such as a run's recipe.yaml")
    parser.add_argument(
        "changes", nargs="*", default=[], help="pairs of a setting and its value, such as: fit.epochs 3 model.width_mult 0.5"
    )
    parser.add_argument("--scale", type=str, default="laptop", help="which recipe: laptop, or paper (the paper's own settings)")
    parser.add_argument("--data", type=str, default=None, help="other data than the recipe's")
    parser.add_argument("--run_dir", type=str, default=None, help="the run's folder (default: runs/SLUG-SCALE)")
    parser.add_argument("--progress", type=bool, default=True, help="show a live bar")


def run(options: Namespace) -> None:
    """Bind the recipe, run it, and write the report."""
    from pathlib import Path

    from retinue.cli import recipes
    from retinue.cli.training import train_and_report

    bound = recipes.bind(recipes.load(options.slug, options.scale, changes(options.changes, options.data)))
    folder = options.run_dir or f"runs/{Path(options.slug).stem}-{options.scale}"
    train_and_report(bound, folder, options.progress)


def changes(words: list[str], data: str | None) -> dict[str, object]:
    """Turn pairs of words into changes of a recipe.

    Raises:
        ArgumentError: if a setting has no value.
    """
    import yaml

    from retinue.errors import ArgumentError

    if len(words) % 2:
        raise ArgumentError(f"run: {words[-1]} has no value. Settings come in pairs, such as: fit.epochs 3")
    pairs: dict[str, object] = {key: yaml.safe_load(value) for key, value in zip(words[::2], words[1::2])}
    return pairs if data is None else {**pairs, "data.name": data}
