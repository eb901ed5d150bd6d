"""`retinue evaluate RUN [--data DATA]`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a run, and other data if wanted."""
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("--data", type=str, default=None, help="other data; classes are matched by name (default: the run's own)")
    parser.add_argument("--split", type=str, default="test", help="test, val or train")
    parser.add_argument("--batch_size", type=int, default=256, help="images at a time")
    parser.add_argument("--corruptions", action="store_true", help="measure on corrupted images too: noise, blur, warps and others")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace) -> None:
    """Print top1, top5, ece and loss; of each corruption, their means over five severities."""
    import json

    import retinue
    from retinue.engine import check_run, corruption_robustness, held_out

    folder = check_run(options.run)
    split = held_out(folder, options.data, options.split)
    model = retinue.load(folder)
    numbers = retinue.evaluate(model, split, batch_size=options.batch_size)
    table = corruption_robustness(model, split, batch_size=options.batch_size) if options.corruptions else {}
    if options.json:
        print(json.dumps({**numbers, "images": len(split), **({"corruptions": table} if table else {})}))
        return
    for title, row in {f"{len(split)} images": numbers, **{name: row for name, row in table.items() if name != "clean"}}.items():
        print(f"{title}: " + "  ".join(f"{name} {row[name]:.4f}" for name in numbers))
