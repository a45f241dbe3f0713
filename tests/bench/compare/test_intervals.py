"""Intervals hold the true value as often as they say, also for few and ugly blocks."""

from __future__ import annotations

import random
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.compare.intervals import (
    MOST_ENUMERATED,
    drawn_means,
    least_blocks,
    mean_interval,
    smallest_visible,
    subset_means,
)

VALUES = st.lists(st.floats(-10, 10), min_size=8, max_size=MOST_ENUMERATED)


def skewed(rng: random.Random) -> float:
    """Noise as likely to be up as down, with now and then a lot of it."""
    return rng.choice((-1, 1)) * (rng.expovariate(50.0) + (rng.random() < 0.1) * 0.2)


@pytest.mark.parametrize(
    ("confidence", "least"), [(0.5, 2), (0.95, 6), (0.99, 8), (0.995, 9), (0.875, 4)]
)
def test_blocks_that_a_confidence_needs(confidence: float, least: int) -> None:
    assert least_blocks(confidence) == least
    mean_interval([1.0] * least, confidence)
    with pytest.raises(ValueError, match="too few"):
        mean_interval([1.0] * (least - 1), confidence)


def test_means_of_subsets_are_those_of_all_subsets() -> None:
    values = [0.3, -1.0, 2.0, 0.7]
    subsets = [fmean(some) for size in range(1, 5) for some in combinations(values, size)]
    assert subset_means(values) == pytest.approx(sorted(subsets))


@given(VALUES)
def test_interval_is_around_the_mean_and_within_the_values(values: list[float]) -> None:
    found = mean_interval(values, 0.99)
    tiny = 1e-9
    assert min(values) - tiny <= found.low <= found.mean + tiny
    assert found.mean - tiny <= found.high <= max(values) + tiny


@given(VALUES, st.floats(-5, 5))
def test_interval_moves_with_the_values(values: list[float], shift: float) -> None:
    found, moved = mean_interval(values, 0.95), mean_interval([v + shift for v in values], 0.95)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-9)


@pytest.mark.parametrize("blocks", [6, 7, 10])
def test_coverage_is_what_was_asked_for(blocks: int) -> None:
    rng, runs, held = random.Random(1), 1500, 0
    for _ in range(runs):
        found = mean_interval([skewed(rng) for _ in range(blocks)], 0.95)
        held += found.low <= 0 <= found.high
    # Four standard errors; 6 blocks can only give 96.9%.
    assert 0.93 <= held / runs <= 0.985


def test_many_blocks_are_sampled_to_nearly_the_same_interval() -> None:
    rng = random.Random(2)
    values = [rng.gauss(0.0, 1.0) for _ in range(MOST_ENUMERATED)]
    exact, drawn = subset_means(values), drawn_means(values, 0)
    for share in (0.02, 0.5, 0.98):
        wanted = exact[int(share * len(exact))]
        assert drawn[int(share * len(drawn))] == pytest.approx(wanted, abs=0.05)
    many = mean_interval([rng.gauss(0.0, 1.0) for _ in range(100)], 0.99)
    assert 0.4 < many.high - many.low < 0.65


def test_what_is_visible_is_found_four_times_out_of_five() -> None:
    rng, effect, runs = random.Random(3), 0.033, 400
    blocks = [[rng.gauss(effect, 0.028) for _ in range(10)] for _ in range(runs)]
    intervals = [mean_interval(values, 0.99) for values in blocks]
    visible = [smallest_visible(v, found) for v, found in zip(blocks, intervals, strict=True)]
    found = sum(interval.low > 0 for interval in intervals) / runs
    assert fmean(visible) == pytest.approx(effect, rel=0.15)
    assert 0.65 < found < 0.92
