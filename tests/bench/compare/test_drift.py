"""A server whose speed drifts by 30% over the run, compared with itself and with a faster one."""

from __future__ import annotations

from mlxfleet.bench.compare.verdict import FASTER, NOTHING_SHOWN
from tests.bench.compare.drifting import compare, one_after_the_other

RUNS = range(100)


def test_one_after_the_other_shows_a_difference_that_is_not_there() -> None:
    assert sum(one_after_the_other(seed) >= 0.10 for seed in RUNS) > 50


def test_no_difference_is_shown_where_there_is_none() -> None:
    verdicts = [compare(seed, 1.0).verdict for seed in RUNS]
    assert verdicts.count(NOTHING_SHOWN) >= 95


def test_a_difference_of_five_percent_is_found() -> None:
    verdicts = [compare(seed, 1.05).verdict for seed in RUNS]
    assert verdicts.count(FASTER) >= 80
