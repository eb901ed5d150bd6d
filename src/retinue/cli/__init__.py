"""The command line: one file per command, imported only when it is the one that was called."""

import importlib
import shlex
import sys
import traceback
from collections.abc import Sequence

COMMANDS = {
    "demo": "train a small network on the bundled digits, and write a report: under two minutes",
    "systems": "list the systems, or find those that answer a question",
    "show": "tell what one system is, what it brings and how to run it",
    "train": "train a network on your images, evaluate it and write the report",
    "run": "run the recipe of a system",
    "evaluate": "measure a run's best model on held-out images",
    "probe": "measure a run's backbone on few labels, beside the same network from scratch",
    "reinforce": "store teachers' answers beside a data set, and train on them",
    "predict": "name what is on images, with probabilities",
    "explain": "show where a network looked, what an image is like, or images that fool it",
    "audit": "look into a data set: duplicates, broken files, balance, dimension, how far more images would take you",
    "report": "write the report of a run, or of several side by side",
    "export": "write a run's model for other programs",
    "claim": "try what a paper claims, and judge by a rule fixed beforehand",
    "claims": "list the verdicts of all claims tried so far",
}
RESUMABLE = ("demo", "train", "run", "reinforce")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 2 for what the user can mend, 1 for our own mistakes, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    from retinue.errors import RetinueError

    try:
        _call(words)
        sys.stdout.flush()  # here, where a broken pipe is no error, and not when Python ends
    except KeyboardInterrupt:
        again = (
            f" The same command goes on from the last checkpoint: retinue {shlex.join(words)}"
            if words[:1] and words[0] in RESUMABLE
            else ""
        )
        print(f"\nStopped.{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, RetinueError):
            print(f"error: {str(error).rstrip()}", file=sys.stderr)
        else:
            text = " ".join(str(error).split())
            print(f"error: {type(error).__name__}: {text} (add --debug to see where)", file=sys.stderr)
        return 2 if isinstance(error, RetinueError | OSError) else 1
    return 0


def _call(words: list[str]) -> None:
    from retinue.errors import unknown

    if not words or words[0] in ("-h", "--help"):
        print(_help())
    elif words[0] == "--version":
        from retinue import __version__

        print(f"retinue {__version__}")
    elif words[0] not in COMMANDS:
        raise unknown("retinue", "command", words[0], COMMANDS, "All commands: retinue --help.")
    else:
        from retinue.cli.parser import Parser

        module = importlib.import_module(f"retinue.cli.{words[0]}")
        parser = Parser(words[0], COMMANDS[words[0]])
        module.arguments(parser)
        options = parser.read(words[1:])
        if options is not None:
            module.run(options)


def _help() -> str:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "retinue: image-model methods from 52 papers, as interchangeable parts of one engine.\n\n"
        f"usage: retinue COMMAND ...\n\n{listed}\n\n"
        "retinue COMMAND --help lists a command's options; --debug shows where an error came from; --version."
    )
