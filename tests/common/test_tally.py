"""Times counted by bucket, and what is passed on of them."""

from __future__ import annotations

import bisect

from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.metric_family import histogram
from mlxfleet.common.tally import BUCKETS, STAGE_SECONDS, Tally

TIMES = st.lists(st.floats(0, 200), max_size=30)


def tally_of(times: list[float]) -> Tally:
    """A tally that has seen these times."""
    tally = Tally()
    for seconds in times:
        tally.observe(seconds)
    return tally


@given(TIMES)
def test_prometheus_counts_a_time_in_every_bucket_that_is_not_below_it(times: list[float]) -> None:
    family = histogram("a_seconds", "A.", "stage", buckets=STAGE_SECONDS)
    tally = tally_of(times)
    shown = family.of_buckets([(("x",), tally.counts, tally.total_s)])
    buckets = {s.labels["le"]: s.value for s in shown.samples if s.name == "a_seconds_bucket"}
    assert len(buckets) == BUCKETS
    assert buckets["+Inf"] == len(times)
    for border in STAGE_SECONDS:
        assert buckets[str(float(border))] == bisect.bisect_right(sorted(times), border)


@given(TIMES, TIMES, TIMES)
def test_a_process_that_starts_anew_adds_to_what_was_before(
    first: list[float], second: list[float], after_restart: list[float]
) -> None:
    whole, before = Tally(), Tally()
    for now in (tally_of(first), tally_of(first + second)):
        whole.grow(before, now)
        before = now
    whole.grow(Tally(), tally_of(after_restart))
    assert whole.counts == tally_of(first + second + after_restart).counts
