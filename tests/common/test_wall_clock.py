"""The time of day of moments on the monotonic clock."""

from __future__ import annotations

import time

import pytest

from mlxfleet.common import wall_clock
from mlxfleet.common.wall_clock import STEP_NS, WallClock

TOLERANCE_NS = 1_000_000


def test_a_moment_has_its_time_of_day() -> None:
    clock = WallClock()
    before = time.time_ns()
    at = clock.ns(time.monotonic())
    after = time.time_ns()
    assert before - TOLERANCE_NS <= at <= after + TOLERANCE_NS


def test_both_monotonic_clocks_are_one() -> None:
    """So that times of time.perf_counter() may stand in spans."""
    kinds = [time.get_clock_info(name) for name in ("monotonic", "perf_counter")]
    assert kinds[0].implementation == kinds[1].implementation


@pytest.mark.parametrize(("moved_ns", "follows"), [(STEP_NS // 2, False), (3600 * 10**9, True)])
def test_it_follows_a_clock_that_is_set_and_nothing_less(
    monkeypatch: pytest.MonkeyPatch, moved_ns: int, follows: bool
) -> None:
    offset_ns = 10**18
    monkeypatch.setattr(wall_clock, "measured_offset_ns", lambda: offset_ns)
    monkeypatch.setattr(wall_clock, "AGAIN_AFTER_S", -1.0)
    clock = WallClock()
    assert clock.ns(5.0) == 5 * 10**9 + 10**18
    offset_ns += moved_ns
    assert clock.ns(5.0) == 5 * 10**9 + 10**18 + (moved_ns if follows else 0)
