"""The tests' own house: types and shapes are checked while they run, but not where a refusal is what is tested."""

import os
import random
import types
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from retinue.errors import ArgumentError, RetinueError
from retinue.models import cifar_resnet, pooled_features, tiny
from retinue.models.factory import image_size

CONFTEST = Path(__file__).with_name("conftest.py")


def test_shapes_and_types_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="images"):
        pooled_features(tiny("ours"), torch.zeros(3, 32, 32))
    with pytest.raises(jaxtyping.TypeCheckError, match="depth"):
        cifar_resnet("20")  # type: ignore[arg-type]


def test_a_refusal_is_seen_as_users_see_it_and_the_checks_come_back() -> None:
    for kind in (ArgumentError, RetinueError):
        with pytest.raises(kind, match="positive side"):
            image_size("32")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError):  # noqa: PT012 - one inside the other
        with pytest.raises(RetinueError):
            image_size("16")  # type: ignore[arg-type]
        image_size("32")  # type: ignore[arg-type]
    test_shapes_and_types_are_checked()


def test_checks_can_be_switched_off_for_compilers(unchecked: None) -> None:
    assert jaxtyping.config.jaxtyping_disable


def test_one_thread_and_the_same_numbers() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(0))
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert random.random() == random.Random(0).random()


@pytest.mark.parametrize("home", [True, False])
def test_a_set_that_is_not_there_skips_its_test_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pytestconfig: pytest.Config, home: bool
) -> None:
    conftest: Any = next(plugin for plugin in pytestconfig.pluginmanager.get_plugins() if getattr(plugin, "__file__", "") == str(CONFTEST))
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("RETINUE_DATA", str(tmp_path) if home else "")

    def setup(*names: str) -> None:
        marks = [pytest.mark.needs_data(name).mark for name in names]
        conftest.pytest_runtest_setup(types.SimpleNamespace(iter_markers=lambda kind: marks))

    setup()
    if home:
        setup("cifar10")
    else:
        with pytest.raises(pytest.skip.Exception, match=r"^\$RETINUE_DATA has no cifar10$"):
            setup("cifar10")
    with pytest.raises(pytest.skip.Exception, match=r"^\$RETINUE_DATA has no cifar100$"):
        setup("cifar100")
