"""`retinue predict RUN IMAGES ...`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a run and images."""
    parser.add_argument("run", type=str, help="a run's folder")
    parser.add_argument("images", type=str, nargs="+", help="image files, folders of them, or patterns")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    parser.add_argument("--format", type=str, default="csv", help="csv or json")
    parser.add_argument("--out", type=str, default=None, help="a file to write (default: print)")
    parser.add_argument("--on_bad", type=str, default="raise", help="raise: list the files that cannot be read; skip: leave them out")


def run(options: Namespace) -> None:
    """Print or write file, classes and probabilities."""
    import csv
    import io
    import json
    from pathlib import Path

    import retinue
    from retinue.engine import check_run, find_images, predict
    from retinue.engine.checkpoint import write_whole
    from retinue.errors import unknown

    if options.format not in ("csv", "json"):
        raise unknown("predict", "format", options.format, ("csv", "json"))
    model = retinue.load(check_run(options.run))
    answers = predict(model, find_images(options.images), top=options.top, on_bad=options.on_bad)
    if options.format == "json":
        text = json.dumps(answers, indent=1, ensure_ascii=False) + "\n"
    else:
        count = len(answers[0]["classes"])
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(["image", *(word for i in range(1, count + 1) for word in (f"class_{i}", f"probability_{i}"))])
        for answer in answers:
            pairs = zip(answer["classes"], answer["probabilities"])
            table.writerow([answer["image"], *(word for name, share in pairs for word in (name, f"{share:.6f}"))])
        text = buffer.getvalue()
    if options.out is None:
        print(text, end="")
    else:
        write_whole(Path(options.out), text.encode())
