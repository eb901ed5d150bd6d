"""`retinue train --data DATA --model NAME ...`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take the data and the model, and every argument of `retinue.data.open` and `retinue.fit`."""
    import retinue

    parser.add_argument(
        "--data", type=str, required=True, help="a folder of class folders, a parquet or npz file, or a name such as digits"
    )
    parser.add_argument(
        "--model", type=str, default="timm:resnet18", help="a network: retinue.list_models(), timm:NAME; its options: --model.KEY"
    )
    parser.add_argument(
        "--objective", type=str, default="Supervised", help="what is minimised, by dotted name; its options: --objective.KEY"
    )
    parser.add_argument("--pretrained", action="store_true", help="start from the published weights, with their normalisation")
    parser.add_argument("--run_dir", type=str, default=None, help="the run's folder (default: runs/DATA-MODEL)")
    parser.block("model")
    parser.block("objective")
    parser.options_of(retinue.fit, skip=["model", "objective", "data", "run_dir"])
    parser.options_of(retinue.data.open, skip=["source"])


def run(options: Namespace) -> None:
    """Train, evaluate on the test split, and write the report."""
    import inspect
    from pathlib import Path

    import retinue
    from retinue.cli import recipes
    from retinue.cli.training import train_and_report

    values = {name: value for name, value in vars(options).items() if value is not None}

    def chosen(function: object) -> dict[str, object]:
        return {name: value for name, value in values.items() if name in inspect.signature(function).parameters and name not in GIVEN}  # type: ignore[arg-type]

    model = {"name": options.model, **options.model_arguments}
    data = {"name": options.data, **chosen(retinue.data.open)}
    if options.pretrained:
        model["pretrained"] = True
        data |= recipes.normalisation_of(options.model, data)
    blocks = {
        "model": model,
        "objective": {"name": options.objective, **options.objective_arguments},
        "data": data,
        "fit": chosen(retinue.fit),
    }
    folder = options.run_dir or f"runs/{Path(options.data).stem}-{options.model.replace(':', '-')}"
    train_and_report(recipes.bind(recipes.from_blocks(blocks, "train")), folder, options.progress)


GIVEN = ("model", "objective", "data", "run_dir", "progress")
