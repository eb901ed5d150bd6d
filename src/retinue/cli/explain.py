"""`retinue explain RUN IMAGES ...`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a run and images."""
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("images", type=str, nargs="*", default=[], help="image files, folders of them, or patterns; none for fool-...")
    parser.add_argument(
        "--method",
        type=str,
        default=None,
        help="gradcam, gradcam++, layercam, gradient or guided: where it looked; prototypes: what an image is like, for networks that have "
        "some; fool-direct, fool-cppn or fool-gradient: images of nothing of which it is certain (default: prototypes or gradcam)",
    )
    parser.add_argument("--layer", type=str, default=None, help="the layer to look at (default: the last with a map)")
    parser.add_argument("--target", type=str, default=None, help="the class to explain, or to fool (default: the predicted one, or all)")
    parser.add_argument("--out", type=str, default=None, help="a folder for the pictures (default: explain/METHOD in the run)")
    parser.add_argument("--on_bad", type=str, default="raise", help="raise: list the files that cannot be read; skip: leave them out")
    parser.add_argument("--generations", type=int, default=None, help="of the search for fooling images (default: 200, or 300 steps)")
    parser.add_argument("--seed", type=int, default=0, help="of that search")


def run(options: Namespace) -> None:
    """Write the pictures, and say where."""
    import retinue
    from retinue.engine import check_run, find_images
    from retinue.explain.files import explain_files, method_for

    folder = check_run(options.run)
    model = retinue.load(folder)
    method = options.method or method_for(model)
    out = options.out or folder / "explain" / method
    images = find_images(options.images) if options.images else []
    chosen = {name: getattr(options, name) for name in ("layer", "target", "on_bad", "generations", "seed")}
    for path in explain_files(model, images, out, method=method, **chosen):
        print(path)
