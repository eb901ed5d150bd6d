"""The parser of all commands: jsonargparse, with errors of one line that name the nearest option."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonargparse
import yaml

from retinue.errors import ArgumentError, near_misses


class Parser(jsonargparse.ArgumentParser):
    """Reads the words after `retinue COMMAND`; options may be written with dashes or underscores, and are never abbreviated.

    Args:
        command: its name.
        summary: what it does, for `--help`.
    """

    def __init__(self, command: str = "", summary: str = "", **options: Any) -> None:
        self.command = command
        self.blocks: tuple[str, ...] = ()
        super().__init__(
            prog=f"retinue {command}" if summary else command, description=summary, allow_abbrev=False, exit_on_error=False, **options
        )

    def options_of(self, function: Callable[..., Any], skip: Sequence[str] = ()) -> None:
        """Add an option for each argument of a function, with its type, default and docstring, except those in `skip` and those there."""
        there = {action.dest for action in self._actions}
        self.add_function_arguments(function, skip={*skip, *there}, fail_untyped=False)

    def block(self, name: str) -> None:
        """Take `--NAME.KEY VALUE` for any key; what is given stands in the namespace as the dict `NAME_arguments`."""
        self.blocks = (*self.blocks, name)

    def _without_blocks(self, words: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
        rest: list[str] = []
        found: dict[str, dict[str, Any]] = {name: {} for name in self.blocks}
        waiting = iter(words)
        for word in waiting:
            option, equals, value = word.partition("=")
            name, dot, key = option.removeprefix("--").partition(".")
            if not (option.startswith("--") and dot and name in self.blocks):
                rest.append(word)
                continue
            text = value if equals else next(waiting, None)
            if text is None:
                raise ArgumentError(f"{self.prog}: {option} needs a value.")
            try:
                found[name][key.replace("-", "_")] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ArgumentError(f"{self.prog}: the value of {option} is no YAML: {' '.join(str(error).split())}.") from error
        return rest, found

    def read(self, words: Sequence[str]) -> jsonargparse.Namespace | None:
        """Parse the words of a command; None after `--help`, which has been printed.

        Raises:
            ArgumentError: in one line, with the nearest options, if they do not fit.
        """
        words, found = self._without_blocks(words)
        words = [
            re.sub(r"^--[^=]*", lambda option: f"--{option[0][2:].replace('-', '_')}", word) if word.startswith("--") else word
            for word in words
        ]
        if "--help" in words or "-h" in words:
            print(self.format_help().rstrip())
            return None
        try:
            options = self.parse_args(self._bare_first(words))
        except Exception as error:  # jsonargparse raises argparse's error here, some types raise their own
            raise ArgumentError(f"{self.prog}: {self._one_line(str(error))} All options: {self.prog} --help.") from error
        for name, arguments in found.items():
            options[f"{name}_arguments"] = arguments
        return options

    def _bare_first(self, words: list[str]) -> list[str]:
        """Put words that belong to no option in front, where a command takes any number of them: argparse gives up behind an option."""
        if not any(action.nargs == "*" and not action.option_strings for action in self._actions):
            return words
        flags = {option for action in self._actions if action.nargs == 0 for option in action.option_strings}
        bare: list[str] = []
        rest: list[str] = []
        waiting = iter(words)
        for word in waiting:
            if not word.startswith("--"):
                bare.append(word)
                continue
            rest.append(word)
            if "=" not in word and word not in flags:
                rest += [value for value in [next(waiting, None)] if value is not None]
        return bare + rest

    def read_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check values that were not typed on the command line, and return them converted.

        Raises:
            ArgumentError: in one line, if one has the wrong type.
        """
        try:
            return self.parse_object(dict(values), defaults=False).as_dict()
        except Exception as error:
            raise ArgumentError(f"{self.prog}: {self._one_line(str(error))}") from error

    def _one_line(self, text: str) -> str:
        text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("typing.", "").replace("NoneType", "null")
        if found := re.match(r"unrecognized arguments: (.*)", text, re.IGNORECASE):
            word = found[1].split()[0]
            if not word.startswith("-"):
                return f"{word} is one word too many."
            options = [option.removeprefix("--") for action in self._actions for option in action.option_strings if option.startswith("--")]
            close = [f"--{option}" for option in near_misses(word.removeprefix("--"), options)]
            return f"there is no option {word}." + (f" Did you mean {', '.join(close)}?" if close else "")
        if found := re.match(r"the following arguments are required: (.*)", text):
            options = [option for action in self._actions for option in action.option_strings]
            names = [f"--{name}" if f"--{name}" in options else name.upper() for name in found[1].split(", ")]
            return f"{', '.join(names)} must be given."
        if found := re.search(r'key "([^"]+)":\s+(.*)', text, re.DOTALL):
            option, reason = found.groups()
            union = re.search(r"Subtypes: \[(.*?)\]\n.*Given value: ([^\n]*)", reason, re.DOTALL)
            plain = re.search(r"Expected an? (.*?)\. Got value: ([^\n]*)", reason, re.DOTALL)
            if union or plain:
                expected, value = (union or plain).groups()  # type: ignore[union-attr]
                return f"`{option}` must be {' or '.join(expected.split(', ')) if union else expected}, got {value}."
            return f"`{option}`: {' '.join(reason.split())}"
        return " ".join(text.split()) + "."
