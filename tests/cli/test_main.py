"""The command line's door: exit codes, one clear line for what went wrong, and help without a heavy import."""

import subprocess
import sys
import types
from typing import Any

import pytest
from support import SOURCE, python, retinue_command

import retinue.cli
from retinue.cli import COMMANDS, main
from retinue.errors import DataError


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a command "fake" in place that does what the test wants."""

    def put(run: Any, resumable: bool = False) -> None:
        module = types.ModuleType("retinue.cli.fake")
        module.arguments = lambda parser: parser.add_argument("--number", type=int, default=3)  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "retinue.cli.fake", module)
        monkeypatch.setitem(COMMANDS, "fake", "do what a test wants")
        if resumable:
            monkeypatch.setattr(retinue.cli, "RESUMABLE", ("fake",))

    return put


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert f"  {name}" in text
        assert summary in text
    assert len(text.splitlines()) < 25


def test_every_command_has_its_file_and_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, summary in COMMANDS.items():
        assert (SOURCE / "cli" / f"{name}.py").is_file()
        if name in ("systems", "show", "claims", "predict", "evaluate"):
            assert main([name, "--help"]) == 0
            text = capsys.readouterr().out
            assert text.startswith(f"usage: retinue {name} ")
            assert summary in " ".join(text.split())


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"retinue {retinue.__version__}\n"


def test_a_wrong_command_is_answered_with_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute", "runs/digits"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == 'error: retinue: no command is called "evalute". Did you mean evaluate, audit? All commands: retinue --help.\n'
    assert main(["show", "inception4"]) == 2
    assert capsys.readouterr().err.startswith('error: catalog: no system is called "inception4". Did you mean inception-v4')


def test_options_reach_the_command(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake(lambda options: print(options.number))
    assert main(["fake"]) == 0
    assert main(["fake", "--number", "7"]) == 0
    assert capsys.readouterr().out == "3\n7\n"
    assert main(["fake", "--numbr", "7"]) == 2
    assert capsys.readouterr().err == (
        "error: retinue fake: there is no option --numbr. Did you mean --number? All options: retinue fake --help.\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("no images in here. Give another folder."), 2, "error: no images in here. Give another folder."),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 2, "error: FileNotFoundError: [Errno 2] No such file"),
        (KeyError("a mistake\nof ours"), 1, "error: KeyError: 'a mistake\\nof ours' (add --debug to see where)"),
        (ZeroDivisionError("in two\n  lines"), 1, "error: ZeroDivisionError: in two lines (add --debug to see where)"),
    ],
)
def test_an_error_is_one_line_and_a_code_and_debug_shows_where(
    fake: Any, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    def run(options: Any) -> None:
        raise error

    fake(run)
    assert main(["fake"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert len(captured.err.splitlines()) == 1
    for words in (["--debug", "fake"], ["fake", "--debug"]):
        assert main(words) == code
        text = capsys.readouterr().err
        assert text.startswith("Traceback (most recent call last):")
        assert "raise error" in text


def test_the_broken_images_of_a_data_error_are_listed_line_by_line(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: Any) -> None:
        raise DataError("2 images are broken:\n  a.png: empty\n  b.png: cut\n")

    fake(run)
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == "error: 2 images are broken:\n  a.png: empty\n  b.png: cut\n"


@pytest.mark.parametrize("resumable", [True, False])
def test_ctrl_c_is_130_and_says_how_to_go_on(fake: Any, capsys: pytest.CaptureFixture[str], resumable: bool) -> None:
    def run(options: Any) -> None:
        raise KeyboardInterrupt

    fake(run, resumable)
    assert main(["fake", "--number", "7"]) == 130
    again = " The same command goes on from the last checkpoint: retinue fake --number 7" if resumable else ""
    assert capsys.readouterr().err == f"\nStopped.{again}\n"


def test_the_process_ends_with_the_code_and_its_words_go_where_they_belong() -> None:
    done = retinue_command("show", "rotnet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Unsupervised Representation Learning by Predicting Image Rotations" in done.stdout
    done = retinue_command("shwo")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(unbuffered: str) -> None:
    code = "import sys, time; from retinue.cli import main; time.sleep(0.3); sys.exit(main(['systems']))"
    command = [sys.executable, *(["-u"] if unbuffered else []), "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `head` does
    assert process.wait() == 0
    assert process.stderr.read() == b""


def test_the_installed_command_is_this_door() -> None:
    code = "from importlib.metadata import entry_points; print(entry_points(group='console_scripts', name='retinue')['retinue'].value)"
    assert python(code).stdout == "retinue.cli:main\n"
