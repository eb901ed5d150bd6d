"""`retinue demo`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser

SLUG = "inception-v4"


def arguments(parser: Parser) -> None:
    """Take the run's folder."""
    parser.add_argument("--run_dir", type=str, default="runs/demo", help="the run's folder")


def run(options: Namespace) -> None:
    """Train a small Inception-ResNet on the bundled digits, and write its report."""
    print("A small Inception-ResNet learns to read scikit-learn's 1,797 digits: under two minutes on two cores.", flush=True)
    from retinue.cli import recipes
    from retinue.cli.training import train_and_report

    train_and_report(recipes.bind(recipes.load(SLUG, "laptop")), options.run_dir)
