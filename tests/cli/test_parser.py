"""The parser of all commands: options out of signatures, never abbreviated, and errors of one line that name the nearest."""

from typing import Any, Literal

import pytest

from retinue.cli.parser import Parser
from retinue.errors import ArgumentError


def train(
    data: str, epochs: int = 3, lr: float = 0.1, size: int | None = None, kind: Literal["sgd", "adamw"] = "sgd", ema: bool = False
) -> None:
    """Train something.

    Args:
        data: where the images are.
        epochs: passes over the images.
        lr: peak learning rate.
        size: side of the images.
        kind: the optimiser.
        ema: keep a moving average.
    """


@pytest.fixture
def parser() -> Parser:
    parser = Parser("train", "train a network")
    parser.options_of(train)
    parser.block("model")
    return parser


def read(parser: Parser, words: str) -> dict[str, Any]:
    options = parser.read(words.split())
    assert options is not None
    return options.as_dict()


def test_options_come_from_the_signature_with_types_and_defaults(parser: Parser) -> None:
    assert read(parser, "--data folder") == {
        "data": "folder", "epochs": 3, "lr": 0.1, "size": None, "kind": "sgd", "ema": False, "model_arguments": {},
    }  # fmt: skip
    found = read(parser, "--data folder --epochs 5 --lr=1e-3 --size 32 --kind adamw --ema true")
    assert (found["epochs"], found["lr"], found["size"], found["kind"], found["ema"]) == (5, 0.001, 32, "adamw", True)
    assert read(parser, "--data folder --size null")["size"] is None


def test_help_tells_what_the_docstring_says(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        assert parser.read([word]) is None
        text = " ".join(capsys.readouterr().out.split())
        assert text.startswith("usage: retinue train ")
        assert "train a network" in text
        for words in ("passes over the images", "peak learning rate", "default: 0.1", "{sgd,adamw}"):
            assert words in text


def test_some_arguments_are_left_out_and_given_ones_kept() -> None:
    parser = Parser("train", "train a network")
    parser.add_argument("--epochs", type=int, default=99)
    parser.options_of(train, skip=("data", "lr"))
    assert read(parser, "") == {"epochs": 99, "size": None, "kind": "sgd", "ema": False}


def test_dashes_are_underscores_in_names_and_stay_in_values() -> None:
    parser = Parser("x", "y")
    parser.add_argument("--run_dir", type=str)
    parser.block("model")
    for words in ("--run-dir a-b", "--run_dir a-b", "--run-dir=a-b"):
        assert read(parser, words)["run_dir"] == "a-b"
    assert read(parser, "--model.drop-rate 0.5")["model_arguments"] == {"drop_rate": 0.5}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--model.widths [8,16]", {"widths": [8, 16]}),
        ("--model.widths=[8,16] --model.depth 3", {"widths": [8, 16], "depth": 3}),
        ("--model.shortcut padding", {"shortcut": "padding"}),
        ("--model.name=a=b", {"name": "a=b"}),
        ("--model.flag false --model.none null", {"flag": False, "none": None}),
        ("--model.offset -1", {"offset": -1}),
    ],
)
def test_a_block_takes_any_key(parser: Parser, words: str, found: dict[str, Any]) -> None:
    options = read(parser, f"{words} --data folder")
    assert options["model_arguments"] == found
    assert options["data"] == "folder"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data x --epohcs 3", r"there is no option --epohcs\. Did you mean --epochs\? All options: retinue train --help\.$"),
        ("--data x --epoch 3", r"there is no option --epoch\. Did you mean --epochs\?"),  # abbreviations are not taken
        ("--data x --zzz 3", r"there is no option --zzz\. All options"),
        ("--data x more", r"more is one word too many\. All options: retinue train --help\.$"),
        ("--data x --epochs many", r"`epochs` must be int, got many\. All options"),
        ("--data x --lr fast", r"`lr` must be float, got fast\."),
        ("--data x --kind adam", r"`kind`.*sgd.*adamw.*adam"),
        ("--data x --size big", r"`size` must be int or null, got big\."),
        ("--data x --ema maybe", r"`ema` must be bool, got maybe\."),
        ("--epochs 3", r"^retinue train: --data must be given\. All options: retinue train --help\.$"),
        ("--data x --epochs", r"--epochs.*expected one argument"),
        ("--data x --modle.widths 3", r"there is no option --modle\.widths\."),
        ("--data x --model.widths", r"^retinue train: --model\.widths needs a value\.$"),
        ("--data x --model.widths [1", r"^retinue train: the value of --model\.widths is no YAML: while parsing"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(parser: Parser, words: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        parser.read(words.split())
    text = str(caught.value)
    assert text.startswith("retinue train: ")
    assert "\n" not in text
    assert "typing." not in text
    assert "<class" not in text


def test_a_word_that_is_missing_is_named_as_it_is_written() -> None:
    parser = Parser("show", "tell of a system")
    parser.add_argument("slug", type=str)
    with pytest.raises(ArgumentError, match=r"^retinue show: SLUG must be given\. All options: retinue show --help\.$"):
        parser.read([])


def test_values_that_were_not_typed_are_checked_too() -> None:
    parser = Parser("recipe (rotnet, laptop)")
    parser.options_of(train, skip=["data"])
    assert parser.read_values({"size": None, "epochs": 4}) == {"size": None, "epochs": 4}
    assert parser.read_values({"lr": 1}) == {"lr": 1.0}
    with pytest.raises(ArgumentError, match=r"^recipe \(rotnet, laptop\): `epochs` must be int, got many\.$"):
        parser.read_values({"epochs": "many"})
    with pytest.raises(ArgumentError, match=r"^recipe \(rotnet, laptop\): .*epohcs"):
        parser.read_values({"epohcs": 3})
