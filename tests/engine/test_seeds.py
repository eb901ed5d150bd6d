"""Randomness as a function of position."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retinue.engine.seeds import mix, own_randomness, seed_all

NUMBERS = st.integers(-(2**70), 2**70)


def test_one_number_is_hashed_as_splitmix64_has_it() -> None:
    # the first outputs of the reference (Vigna, splitmix64.c) for the states 0 and 1234567; the last bit is dropped
    assert mix(0) == 0xE220A8397B1DCDAF >> 1
    assert mix(1234567) == 6457827717110365317 >> 1
    assert mix() == 0


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_a_hash_has_63_bits_and_depends_on_64_of_each_number(numbers: list[int]) -> None:
    assert 0 <= mix(*numbers) < 2**63
    assert mix(*numbers) == mix(*(number % 2**64 for number in numbers))
    assert mix(*numbers) != mix(*numbers, 0)


def test_neighbours_and_orders_give_different_hashes() -> None:
    found = {mix(seed, epoch, rank) for seed in range(20) for epoch in range(20) for rank in range(20)}
    assert len(found) == 8000


def test_hashes_of_neighbours_are_spread_evenly() -> None:
    bits = np.array([[mix(0, i) >> k & 1 for k in range(63)] for i in range(2000)])
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.06  # 5 standard deviations of a fair coin
    assert abs(np.corrcoef(bits.T) - np.eye(63)).max() < 0.12


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_a_position_seeds_torch_numpy_and_python() -> None:
    seed_all(3, 5, 0)
    first = draw()
    draw()
    seed_all(3, 5, 0)
    assert draw() == first
    seed_all(3, 6, 0)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    assert torch.initial_seed() == mix(3, 6, 0)


@pytest.mark.parametrize("failing", [True, False])
def test_the_callers_randomness_goes_on_as_if_nothing_had_been_drawn(failing: bool) -> None:
    seed_all(1)
    expected = [draw(), draw()]
    seed_all(1)
    found = [draw()]
    try:
        with own_randomness():
            seed_all(99)
            draw()
            if failing:
                raise KeyError
    except KeyError:
        pass
    assert [*found, draw()] == expected
