"""`retinue probe RUN [--data DATA]`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a run, other data if wanted, and every argument of `retinue.train.probe`."""
    from retinue.train import probe

    parser.add_argument("run", type=str, help="a run's folder: the backbone that it trained")
    parser.add_argument("--data", type=str, default=None, help="labelled images (default: the run's own data)")
    parser.options_of(probe, skip=["model", "data", "run_dir", "progress"])
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace) -> None:
    """Print top-1 of every method with every share of the labels, beside the same network from scratch, and draw it."""
    import inspect
    import json

    import retinue
    from retinue.engine import check_run
    from retinue.engine.checkpoint import write_whole
    from retinue.engine.loading import reopen
    from retinue.plots import few_labels
    from retinue.train import probe

    folder = check_run(options.run)
    data = reopen(folder, options.data)
    chosen = {name: getattr(options, name) for name in inspect.signature(probe).parameters if hasattr(options, name) and name != "data"}
    table = probe(retinue.load(folder), data, **chosen, progress=not options.json)
    if options.json:
        print(json.dumps(table))
    else:
        for name, row in table.items():
            numbers = "  ".join(f"{key} {value:.4f}" for key, value in row.items() if key != "images")
            print(f"{name} ({row['images']:.0f} images): {numbers}")
    place = folder / "probe"
    write_whole(place / "probe.json", (json.dumps(table, indent=1) + "\n").encode())
    few_labels(table).savefig(place / "probe.png", dpi=110)
    if not options.json:
        print(f"picture: {place / 'probe.png'}")
