"""`retinue claims`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take the folder of records."""
    parser.add_argument("--folder", type=str, default="claims", help="where the records are")


def run(options: Namespace) -> None:
    """Print the verdict of every claim that was tried, and name those that were not."""
    from rich.console import Console
    from rich.table import Table

    from retinue.claims.harness import claim_slugs, read_results, summary

    results = read_results(options.folder)
    table = Table("system", "claim", "effect ± standard error", "verdict", show_lines=True)
    for slug in claim_slugs():
        result = results.get(slug)
        if result is None:
            table.add_row(slug, "", "", f"not tried here: retinue claim {slug}")
        else:
            effects = "\n".join(f"{name}: {value} ± {error}" for name, value, error in summary(result)[:4])
            table.add_row(slug, result.sentence, effects, result.verdict)
    Console().print(table)
