"""`retinue explain RUN IMAGES ...`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a run and images."""
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("images", type=str, nargs="+", help="image files, folders of them, or patterns")
    parser.add_argument("--method", type=str, default="gradcam", help="gradcam, gradcam++, layercam, gradient or guided")
    parser.add_argument("--layer", type=str, default=None, help="the layer to look at (default: the last with a map)")
    parser.add_argument("--target", type=str, default=None, help="the class to explain (default: the predicted one)")
    parser.add_argument("--out", type=str, default=None, help="a folder for the pictures (default: explain in the run)")
    parser.add_argument("--on_bad", type=str, default="raise", help="raise: list the files that cannot be read; skip: leave them out")


def run(options: Namespace) -> None:
    """Write a heat map over each image."""
    from pathlib import Path

    import retinue
    from retinue.engine import check_run, find_images
    from retinue.explain.files import explain_files

    folder = check_run(options.run)
    out = Path(options.out or folder / "explain")
    model = retinue.load(folder)
    for path in explain_files(
        model, find_images(options.images), out, method=options.method, layer=options.layer, target=options.target, on_bad=options.on_bad
    ):
        print(path)
