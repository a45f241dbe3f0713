"""Noise depends on seed, position and token id alone, and has the right distribution."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.workers.randomness import gumbel, row_key, scramble

SEEDS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
DETERMINISTIC = settings(derandomize=True, deadline=None, database=None, max_examples=50)
POSITIONS = st.integers(min_value=0, max_value=2**20)


def keys(*pairs: tuple[int, int]) -> mx.array:
    return mx.array([row_key(seed, position) for seed, position in pairs], dtype=mx.uint32)


@pytest.mark.parametrize(
    ("seed", "position", "key"),
    [
        (0, 0, (2802244911, 1293516399)),
        (0, 1, (3011683077, 4097920862)),
        (1, 0, (1581361928, 1949917470)),
        (42, 1000, (2986118274, 1297238169)),
        (-1, 7, (3108947616, 1299924519)),
    ],
)
def test_keys_never_change(seed: int, position: int, key: tuple[int, int]) -> None:
    assert row_key(seed, position) == key


@DETERMINISTIC
@given(SEEDS, POSITIONS)
def test_keys_are_two_32_bit_numbers(seed: int, position: int) -> None:
    assert all(0 <= number < 2**32 for number in row_key(seed, position))


@DETERMINISTIC
@given(st.lists(st.tuples(SEEDS, POSITIONS), unique=True, min_size=2, max_size=50))
def test_keys_differ_when_seed_or_position_does(pairs: list[tuple[int, int]]) -> None:
    assert len({row_key(*pair) for pair in pairs}) == len(pairs)


def test_neighbours_have_unrelated_keys() -> None:
    flips = []
    for seed in range(50):
        for position in range(50):
            here = row_key(seed, position)
            for there in (row_key(seed + 1, position), row_key(seed, position + 1)):
                flips += [(a ^ b).bit_count() for a, b in zip(here, there, strict=True)]
    assert abs(np.mean(flips) - 16) < 0.1


def test_scramble_is_the_finalizer_of_murmurhash3() -> None:
    def finalize(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    numbers = [0, 1, 2, 12345, 2**31, 2**32 - 1]
    scrambled = scramble(mx.array(numbers, dtype=mx.uint32))
    assert scrambled.tolist() == [finalize(x) for x in numbers]


def test_noise_never_changes() -> None:
    noise = gumbel(keys((0, 0), (7, 3)), mx.array([0, 1, 49_151]))
    golden = [[-0.0056287, -0.9993294, 0.3620256], [0.7612565, 0.3227212, -0.2243010]]
    assert np.array(noise) == pytest.approx(np.array(golden), abs=1e-5)


@DETERMINISTIC
@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=20), SEEDS, POSITIONS)
def test_a_token_has_the_same_noise_in_any_company(
    tokens: list[int], seed: int, position: int
) -> None:
    together = gumbel(keys((1, 2), (seed, position)), mx.array(tokens))[1].tolist()
    alone = [gumbel(keys((seed, position)), mx.array([token])).item() for token in tokens]
    assert together == pytest.approx(alone, abs=1e-6)


def test_rows_may_ask_for_tokens_of_their_own() -> None:
    two = keys((1, 1), (2, 2))
    own = gumbel(two, mx.array([[5, 6], [7, 8]]))
    every = gumbel(two, mx.arange(10))
    assert own.tolist() == [every[0, 5:7].tolist(), every[1, 7:9].tolist()]


def test_noise_is_gumbel_distributed() -> None:
    noise = np.array(gumbel(keys(*((seed, 0) for seed in range(50))), mx.arange(20_000)))
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.005)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.01)
    for quantile in (0.001, 0.1, 0.5, 0.9, 0.999):
        below = (noise < -math.log(-math.log(quantile))).mean()
        assert below == pytest.approx(quantile, abs=4 * math.sqrt(quantile / noise.size))


def test_rows_and_tokens_are_uncorrelated() -> None:
    noise = np.array(gumbel(keys(*((3, position) for position in range(200))), mx.arange(2_000)))
    for shifted in (noise[1:, :], noise[:, 1:]):
        same = noise[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.corrcoef(same.ravel(), shifted.ravel())[0, 1]) < 0.01
