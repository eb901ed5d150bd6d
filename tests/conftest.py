"""Every test runs on one thread, draws the same numbers each time, and has the shapes and types of retinue checked while it runs."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("MPLBACKEND", "agg")

import jaxtyping

jaxtyping.install_import_hook("retinue", "checker.check")  # before the first import of any part of retinue

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from retinue.errors import RetinueError  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("retinue", deadline=None, derandomize=True, database=None, max_examples=25, print_blob=True)
hypothesis.settings.load_profile("retinue")

_enter, _exit = pytest.RaisesExc.__enter__, pytest.RaisesExc.__exit__


def _enter_unchecked(raises: Any) -> Any:
    """Begin `pytest.raises(one of ours)` without run-time checks, which users do not have: our own words are what such a test is about."""
    if any(issubclass(kind, RetinueError) for kind in raises.expected_exceptions):
        raises.checked_before = not jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
    return _enter(raises)


def _exit_checked(raises: Any, *error: Any) -> bool:
    if getattr(raises, "checked_before", False):
        jaxtyping.config.update("jaxtyping_disable", False)
    return _exit(raises, *error)


pytest.RaisesExc.__enter__, pytest.RaisesExc.__exit__ = _enter_unchecked, _exit_checked  # type: ignore[method-assign]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time checks off where a compiler must read the code as it is."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose named set is not on this machine."""
    for mark in item.iter_markers("needs_data"):
        for name in mark.args:
            if not (Path(os.environ.get("RETINUE_DATA") or "/nowhere") / name).exists():
                pytest.skip(f"$RETINUE_DATA has no {name}")
