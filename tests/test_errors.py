"""What is said when something is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue import errors
from retinue.errors import ArgumentError, MissingExtraError, RetinueError, near_misses, need, unknown

NAMES = ("inception_v3", "inception_v4", "inception_next_tiny", "resnet20", "mlp")


def test_every_error_of_ours_is_a_retinue_error_and_of_the_kind_that_python_would_raise() -> None:
    children = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, RetinueError) for kind in children)
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
    assert not issubclass(errors.DataError, ValueError)


def test_near_misses_come_best_first_and_three_at_most() -> None:
    assert near_misses("incepton_v4", NAMES) == ["inception_v4", "inception_v3", "inception_next_tiny"]
    assert near_misses("incepton_v4", NAMES, most=1) == ["inception_v4"]
    assert near_misses("zebra", NAMES) == []


@given(st.text(max_size=20))
def test_near_misses_of_any_text_are_existing_names(text: str) -> None:
    assert set(near_misses(text, NAMES)) <= set(NAMES)


@given(st.sampled_from(NAMES), st.integers(0, 30))
def test_one_letter_too_few_still_finds_the_name(name: str, place: int) -> None:
    place %= len(name)
    wrong = name[:place] + name[place + 1 :]
    assert name in near_misses(wrong, NAMES)


def test_an_unknown_name_lists_its_neighbours_and_the_hint() -> None:
    error = unknown("create_model", "network", "incepton_v4", NAMES, "All names: retinue.list_models().")
    assert isinstance(error, ArgumentError)
    assert str(error) == (
        'create_model: no network is called "incepton_v4". Did you mean inception_v4, inception_v3, inception_next_tiny? '
        "All names: retinue.list_models()."
    )


def test_few_names_are_all_listed_and_many_are_not() -> None:
    assert str(unknown("fit", "logger", "zebra", ["tensorboard", "csv"])) == 'fit: no logger is called "zebra". There is csv, tensorboard.'
    many = [f"name{i}" for i in range(13)]
    assert str(unknown("fit", "logger", "zebra", many)) == 'fit: no logger is called "zebra".'
    assert str(unknown("fit", "logger", "zebra", many, "See the docs.")) == 'fit: no logger is called "zebra". See the docs.'
    assert str(unknown("fit", "logger", "zebra", [])) == 'fit: no logger is called "zebra".'


def test_a_library_that_is_missing_says_how_to_install_it() -> None:
    with pytest.raises(
        MissingExtraError, match=r'^nowhere_to_be_found is not installed\. Run: pip install "retinue\[explain\]"$'
    ) as caught:
        need("nowhere_to_be_found", "explain")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert need("json", "explain").loads("[1]") == [1]


def test_messages_are_one_line() -> None:
    assert "\n" not in str(unknown("f", "x", "y", NAMES, "hint"))
