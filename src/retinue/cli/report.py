"""`retinue report RUN ...`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take one run or several."""
    parser.add_argument("runs", type=str, nargs="+", help="a run's folder, or several to be compared")
    parser.add_argument("--out", type=str, default=None, help="the file to write (default: report.html in the run, or beside the runs)")


def run(options: Namespace) -> None:
    """Write the page and say where it is."""
    from retinue.engine import check_run
    from retinue.report import report

    folders = [check_run(folder) for folder in options.runs]
    print(f"report: {report(folders if len(folders) > 1 else folders[0], out=options.out)}")
