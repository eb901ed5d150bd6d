"""What retinue says when something is wrong: every message names what, where, and what to do."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class RetinueError(Exception):
    """Any error that a user can cause; the command line prints its text as one line and exits with 2."""


class ArgumentError(RetinueError, ValueError):
    """An argument has a value that cannot work."""


class ShapeError(RetinueError, ValueError):
    """A tensor or an image has a shape that cannot work."""


class DataError(RetinueError):
    """Files or labels of a data set are missing, broken or contradict each other."""


class CheckpointError(RetinueError):
    """A checkpoint is missing, damaged, or belongs to something else."""


class NonFiniteError(RetinueError):
    """A loss became NaN or infinite; training stopped before the update."""


class MissingExtraError(RetinueError, ImportError):
    """An optional library is not installed."""


def near_misses(name: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return the `most` names most like `name`, best first.

    >>> near_misses("incepton_v4", ["inception_v4", "resnet18"])
    ['inception_v4']
    """
    return difflib.get_close_matches(str(name), list(names), n=most, cutoff=0.5)


def unknown(where: str, kind: str, name: str, names: Iterable[str], hint: str = "") -> ArgumentError:
    """Build the error for a name that does not exist: it lists the near misses, or all names where they are few.

    Args:
        where: the function or command that was called.
        kind: what the name should have named, such as "network" or "view".
        name: what the user wrote.
        names: all names that exist.
        hint: one more sentence, such as where all names are listed.
    """
    names = sorted(names)
    close = near_misses(name, names)
    if close:
        told = f" Did you mean {', '.join(close)}?"
    elif 1 <= len(names) <= 12:
        told = f" There is {', '.join(names)}."
    else:
        told = ""
    return ArgumentError(f'{where}: no {kind} is called "{name}".{told}{" " + hint if hint else ""}')


def need(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say how to install it.

    Args:
        module: the module to import, such as "onnxruntime".
        extra: the extra of retinue that brings it, such as "export".

    Raises:
        MissingExtraError: if the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f'{module} is not installed. Run: pip install "retinue[{extra}]"') from error
