"""`retinue export RUN --format onnx`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser

SUFFIX = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}


def arguments(parser: Parser) -> None:
    """Take a run and a format."""
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("--format", type=str, default="onnx", help="onnx, torchscript or safetensors")
    parser.add_argument("--out", type=str, default=None, help="the file to write (default: model.SUFFIX in the run)")


def run(options: Namespace) -> None:
    """Write the model with its classes and preprocessing."""
    import retinue
    from retinue.engine import check_run
    from retinue.errors import unknown
    from retinue.models.export import export

    if options.format not in SUFFIX:
        raise unknown("export", "format", options.format, SUFFIX)
    folder = check_run(options.run)
    out = options.out or folder / f"model{SUFFIX[options.format]}"
    print(f"exported: {export(retinue.load(folder), out, format=options.format)}")
