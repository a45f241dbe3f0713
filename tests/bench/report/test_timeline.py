"""Speed over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.bench.records import Request
from mlxfleet.bench.report.loaded import LoadedRun
from mlxfleet.bench.report.timeline import GAP_S, Span, pieces
from tests.bench.report.sample_records import make_run

TIMES = st.lists(st.floats(0.0, 9.9), min_size=1, max_size=50).map(sorted)


def make_span(times_s: list[float], length_s: float) -> Span:
    """A run of one request that began 100 s after the first."""
    run = make_run("a", {"kind": "closed_loop", "concurrency": 1})
    request = Request(run="a", index=0, due_s=0.0, sent_s=0.0, token_times_s=times_s)
    return Span(LoadedRun(run, [request]), 100.0, 100.0 + length_s)


@given(TIMES)
def test_all_tokens_are_in_some_bin(times_s: list[float]) -> None:
    *points, last = make_span(times_s, 10.0).speed(0.5)
    assert sum(speed * 0.5 for _, speed in points) == pytest.approx(len(times_s))
    assert last == (110.0, points[-1][1])


def test_a_run_shorter_than_a_bin_has_its_own_speed() -> None:
    assert make_span([0.01, 0.02, 0.03, 0.04], 0.05).speed(1.0)[0] == (100.0, pytest.approx(80))


def test_a_long_silence_breaks_a_line() -> None:
    readings = [(0.0, 1.0), (1.0, 1.0), (2.0 + GAP_S, 1.0)]
    assert pieces(readings) == [readings[:2], readings[2:]]
