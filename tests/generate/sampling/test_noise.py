"""Random numbers are those of the published generator, and have the distribution they should."""

import hashlib
import math

import pytest
import torch

from bc2.generate.sampling.noise import gumbel
from bc2.generate.sampling.seeds import sequence_key

MASK = 2**64 - 1


def mixed(x):
    """SplitMix64's output function, in Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_the_mixing_is_splitmix64s():
    """The first outputs of the reference implementation for the seed 1234567."""
    state, found = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        found.append(mixed(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def number(key, place, token, stream):
    step = 0x9E3779B97F4A7C15
    state = mixed((key + stream * step) & MASK)
    state = mixed((state + place * step) & MASK)
    uniform = ((mixed((state + token * step) & MASK) >> 11) + 0.5) / 2**53
    return -math.log(-math.log1p(-uniform))


def test_numbers_are_a_function_of_key_place_token_and_stream():
    keys = torch.tensor([0, 1, 2**63 - 1, sequence_key(7, 3)])
    places = torch.tensor([0, 5, 100_000, 1])
    ids = torch.tensor([0, 1, 63, 125_695])
    for stream in (0, 1):
        found = gumbel(keys, places, ids, stream)
        expected = [
            [number(key, place, token, stream) for token in ids.tolist()]
            for key, place in zip(keys.tolist(), places.tolist(), strict=True)
        ]
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5
        )
        each = torch.stack([ids, ids.flip(0), ids, ids])
        alike = gumbel(keys, places, each, stream)
        assert torch.equal(alike[0], found[0])
        assert torch.equal(alike[1], found[1].flip(0))


def numbers(which, count=40_000):
    """Numbers that differ in one argument."""
    some, one = torch.arange(count), torch.tensor([3])
    if which == "key":
        keys = torch.tensor([sequence_key(seed, 0) for seed in range(count)])
        return gumbel(keys, one.expand(count), one, 0)[:, 0]
    if which == "continuation":
        keys = torch.tensor([sequence_key(5, at) for at in range(count)])
        return gumbel(keys, one.expand(count), one, 0)[:, 0]
    if which == "place":
        return gumbel(one.expand(count), some, one, 0)[:, 0]
    return gumbel(one, one, some, 0)[0]


@pytest.mark.parametrize("which", ["key", "continuation", "place", "token"])
def test_numbers_follow_the_gumbel_distribution_and_are_independent(which):
    found = numbers(which).double()
    count = len(found)
    # Kolmogorov-Smirnov: above 1.95 / √n once in a thousand; the numbers are fixed.
    uniform = (-(-found).exp()).exp().sort().values
    distance = (uniform - (torch.arange(count) + 0.5) / count).abs().max()
    assert distance < 1.95 / math.sqrt(count)
    neighbours = torch.corrcoef(torch.stack([found[:-1], found[1:]]))[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(count)


def test_streams_are_independent():
    one, some = torch.tensor([9]), torch.arange(40_000)
    both = torch.cat([gumbel(one, one, some, stream) for stream in (0, 1)])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / math.sqrt(40_000)


def test_keys_are_a_hash_of_seed_and_number():
    digest = hashlib.sha256(b"12/3").digest()
    assert sequence_key(12, 3) == int.from_bytes(digest[:8], "little") // 2
    keys = {sequence_key(seed, number) for seed in range(50) for number in range(50)}
    assert len(keys) == 2500
    assert all(0 <= key < 2**63 for key in keys)
