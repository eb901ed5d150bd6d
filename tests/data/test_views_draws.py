"""The numbers that views draw: splitmix64's own, the same for a key whatever the batch, and distributed as they should be."""

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retinue import views
from retinue.data.views import draws
from retinue.engine.seeds import mix
from retinue.errors import ArgumentError

MANY = 50_000
ENOUGH = 1e-4  # a test that is right fails so often, and the numbers are the same in every run

numbers = st.integers(-(1 << 63), (1 << 63) - 1)


def some_keys(count: int, seed: int = 0) -> Tensor:
    return views.keys(seed, 0, torch.arange(count))


def unsigned(tensor: Tensor) -> list[int]:
    return [number & draws.MASK for number in tensor.flatten().tolist()]


def test_the_stream_of_a_key_is_splitmix64_seeded_with_it() -> None:
    # the published first numbers of splitmix64 for the seed 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert unsigned(draws.bits(torch.tensor([1234567]), 5)) == expected


@given(numbers)
def test_numbers_and_tensors_are_mixed_alike(number: int) -> None:
    assert unsigned(draws._mix(torch.tensor([number]))) == [draws._mix_number(number)]
    assert unsigned(draws.bits(torch.tensor([number]), 1))[0] >> 1 == mix(number)  # the engine's scalar form drops the last bit


@given(st.integers(-5, 1 << 70), st.integers(0, 1000), st.lists(st.integers(-1, 1 << 40), min_size=1, max_size=6, unique=True))
def test_a_key_depends_on_seed_epoch_and_index_alone(seed: int, epoch: int, indices: list[int]) -> None:
    keys = views.keys(seed, epoch, torch.tensor(indices))
    for place, index in enumerate(indices):
        assert torch.equal(views.keys(seed, epoch, torch.tensor([index])), keys[place : place + 1])
    changed = [views.keys(seed + 1, epoch, torch.tensor(indices)), views.keys(seed, epoch + 1, torch.tensor(indices))]
    assert not any((keys == other).any() for other in changed)


def test_no_two_images_epochs_or_derived_keys_share_a_key() -> None:
    index = torch.arange(2000)
    found = torch.cat([views.keys(seed, epoch, index) for seed in range(4) for epoch in range(4)])
    found = torch.cat([found, *(views.derive(found[:2000], number) for number in range(-2, 6))])
    assert len(found.unique()) == len(found)


@given(st.lists(numbers, min_size=1, max_size=8), st.integers(1, 40), st.data())
def test_a_row_draws_the_same_in_any_batch_and_for_any_count(numbers: list[int], count: int, data: st.DataObject) -> None:
    keys = torch.tensor(numbers)
    row = data.draw(st.integers(0, len(numbers) - 1))
    alone = keys[row : row + 1]
    for draw in (draws.uniform, draws.normal, draws.bits):
        assert torch.equal(draw(keys, count)[row], draw(alone, count)[0])
        assert torch.equal(draw(keys, count + 3)[:, :count], draw(keys, count))
    assert torch.equal(views.derive(keys, count)[row], views.derive(alone, count)[0])
    assert torch.equal(views.partner_indices(keys, count)[row], views.partner_indices(alone, count)[0])


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    drawn = views.uniform(some_keys(MANY), 3).double()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for place in range(3):
        assert scipy.stats.kstest(drawn[:, place].numpy(), "uniform").pvalue > ENOUGH
    correlation = torch.corrcoef(drawn.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4 / MANY**0.5
    neighbours = torch.corrcoef(torch.stack((drawn[:-1, 0], drawn[1:, 0])))[0, 1]
    assert abs(neighbours) < 4 / MANY**0.5
    derived = torch.corrcoef(torch.stack((drawn[:, 0], views.uniform(views.derive(some_keys(MANY), 0), 1)[:, 0].double())))[0, 1]
    assert abs(derived) < 4 / MANY**0.5


def test_whole_numbers_by_hand() -> None:
    assert draws.whole(torch.tensor([0.0, 0.2499, 0.25, 1 - 2.0**-24]), 4).tolist() == [0, 0, 1, 3]
    assert draws.whole(torch.tensor([0.5, 0.5]), torch.tensor([10, 1])).tolist() == [5, 0]


def test_normal_numbers_are_normal() -> None:
    drawn = draws.normal(some_keys(MANY // 8), 8)
    assert scipy.stats.kstest(drawn.flatten().numpy(), "norm").pvalue > ENOUGH
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 5 / (MANY / 8) ** 0.5


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 20.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    # At 99 places rather than everywhere: for a small alpha much of the mass lies closer to 1 than float32 can tell.
    drawn = draws.beta(views.uniform(some_keys(MANY), 1)[:, 0], alpha)
    places = torch.arange(1, 100) / 100
    below = (drawn[:, None] <= places).double().mean(0)
    expected = torch.from_numpy(scipy.stats.beta(alpha, alpha).cdf(places.numpy()))
    assert (below - expected).abs().max() < scipy.stats.kstwo(MANY).isf(ENOUGH)
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()


def test_beta_of_one_is_the_uniform_number_itself() -> None:
    drawn = views.uniform(some_keys(1000), 1)[:, 0]
    assert torch.equal(draws.beta(drawn, 1.0), drawn)  # the quantiles and the steps between them are exact in float32


def test_partners_come_from_all_images_equally_often() -> None:
    drawn = views.partner_indices(some_keys(MANY), 50)
    assert scipy.stats.chisquare(torch.bincount(drawn, minlength=50).numpy()).pvalue > ENOUGH
    assert views.partner_indices(some_keys(4), 1).tolist() == [0] * 4


def test_partners_of_nothing_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`count` must be at least 1, got 0\. It is the number of images to draw from\."):
        views.partner_indices(some_keys(3), 0)


def test_fresh_keys_follow_torchs_seed() -> None:
    torch.manual_seed(5)
    first = draws.fresh_keys(4, torch.device("cpu"))
    torch.manual_seed(5)
    assert torch.equal(draws.fresh_keys(4, torch.device("cpu")), first)
    assert not torch.equal(draws.fresh_keys(4, torch.device("cpu")), first)
