"""Random numbers as a function of a key: row i of every draw depends on key i alone, and comes out the same on every device."""

import functools

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from retinue.errors import ArgumentError

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's step: 2^64 divided by the golden ratio
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SALT = 0xD1B54A32D192ED03  # parts the keys that are derived from a key from the numbers that are drawn with it
PARTNER, PARTNER_VIEWS = -1, -2  # what is derived from a row's key beside the views, which count from 0
QUANTILES = 1 << 14


def keys(seed: int, epoch: int, indices: Int[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Compute the keys of images: one for each (seed, epoch, index), whatever the batch.

    >>> keys(0, 0, torch.tensor([7, 8]))[1] == keys(0, 0, torch.tensor([8]))[0]
    tensor(True)

    Args:
        seed: any integer.
        epoch: which pass over the data.
        indices: the images' positions in the data.
    """
    start = _mix_number(_mix_number(seed + GOLDEN) + epoch + GOLDEN)
    return _mix(indices.long() * _signed(GOLDEN) + _signed(start))


def derive(keys: Int64[Tensor, " batch"], number: int) -> Int64[Tensor, " batch"]:
    """Compute other keys from keys, one set for each number; a view within a view draws with these.

    Args:
        keys: one for each row.
        number: any integer.
    """
    return _mix(_mix(keys ^ _signed(SALT)) + _signed(number * GOLDEN))


def bits(keys: Int64[Tensor, " batch"], count: int) -> Int64[Tensor, "batch count"]:
    """Draw 64 random bits, `count` times for each key: the first `count` numbers of splitmix64 (Steele et al. 2014) seeded with the key."""
    steps = torch.arange(1, count + 1, device=keys.device) * _signed(GOLDEN)
    return _mix(keys[:, None] + steps)


def uniform(keys: Int64[Tensor, " batch"], count: int) -> Float[Tensor, "batch count"]:
    """Draw `count` numbers for each key, uniform in [0, 1): multiples of 2^-24, so that float32 holds them exactly."""
    return _shift(bits(keys, count), 40).float() * 2.0**-24


def whole(uniform: Float[Tensor, "*rows"], count: int | Int[Tensor, "*rows"]) -> Int64[Tensor, "*rows"]:
    """Turn uniform numbers into whole ones, equally likely in 0 to `count` - 1."""
    return (uniform.double() * count).long()


def normal(keys: Int64[Tensor, " batch"], count: int) -> Float[Tensor, "batch count"]:
    """Draw `count` standard normal numbers for each key: one of 65,536 equally likely quantiles, so that no device rounds differently."""
    words = bits(keys, -(-count // 4)).view(torch.int16)[:, :count].int().add_(1 << 15)
    return _normal_quantiles(keys.device).index_select(0, words.flatten()).view(words.shape)


def beta(uniform: Float[Tensor, "*rows"], alpha: float) -> Float[Tensor, "*rows"]:
    """Turn uniform numbers into ones of Beta(alpha, alpha) by its inverse distribution function, linear between 16,384 quantiles."""
    table = _beta_quantiles(alpha, uniform.device)
    place = uniform * QUANTILES
    below = place.long()
    return table[below] + (table[below + 1] - table[below]) * (place - below)


def partner_indices(keys: Int64[Tensor, " batch"], count: int) -> Int64[Tensor, " batch"]:
    """Draw for each row the image it is mixed with, from all `count` images and not from the batch.

    Args:
        keys: the rows' keys.
        count: how many images there are.

    Raises:
        ArgumentError: if there are none.
    """
    if count < 1:
        raise ArgumentError(f"views.partner_indices: `count` must be at least 1, got {count}. It is the number of images to draw from.")
    return _shift(derive(keys, PARTNER), 1) % count


def fresh_keys(count: int, device: torch.device) -> Int64[Tensor, " batch"]:
    """Draw keys from torch's default generator, so that `torch.manual_seed` rules them."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (count,)).to(device)


def _signed(number: int) -> int:
    """Return the number that int64 holds for the last 64 bits of `number`."""
    number &= MASK
    return number - (1 << 64) if number >> 63 else number


def _shift(numbers: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift repeats the sign."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)


def _mix(numbers: Tensor) -> Tensor:
    """Spread the bits (splitmix64's output function); int64 wraps as unsigned numbers do."""
    numbers = (numbers ^ _shift(numbers, 30)) * _signed(FIRST)
    numbers = (numbers ^ _shift(numbers, 27)) * _signed(SECOND)
    return numbers ^ _shift(numbers, 31)


def _mix_number(number: int) -> int:
    """Spread the bits of one number, as `_mix` does."""
    number &= MASK
    number = ((number ^ (number >> 30)) * FIRST) & MASK
    number = ((number ^ (number >> 27)) * SECOND) & MASK
    return number ^ (number >> 31)


@functools.lru_cache(maxsize=8)
def _normal_quantiles(device: torch.device) -> Tensor:
    share = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(share).float().to(device)


@functools.lru_cache(maxsize=32)
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    from scipy.special import betaincinv  # scikit-learn brings it; only mixing needs it

    share = torch.arange(QUANTILES + 1, dtype=torch.float64) / QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, share.numpy())).float().to(device)
