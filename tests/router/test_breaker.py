"""A breaker opens after faults, probes with one request, and closes when that went well."""

from __future__ import annotations

from mlxfleet.router.breaker import (
    FAULTS_TO_OPEN,
    FAULTS_WITHIN_S,
    OPEN_FIRST_S,
    OPEN_MOST_S,
    Breaker,
    BreakerState,
)


def opened() -> Breaker:
    """A breaker that has just opened, at time 0."""
    breaker = Breaker()
    for _ in range(FAULTS_TO_OPEN):
        breaker.fault(0.0)
    return breaker


def test_it_opens_after_faults_in_a_row_only() -> None:
    breaker = Breaker()
    for number in range(10 * FAULTS_TO_OPEN):
        breaker.fault(number * FAULTS_WITHIN_S)
        assert breaker.allows(number * FAULTS_WITHIN_S)
    assert not opened().allows(0.0)


def test_half_open_it_lets_one_request_pass() -> None:
    breaker = opened()
    assert breaker.state(OPEN_FIRST_S - 0.1) is BreakerState.OPEN
    assert breaker.state(OPEN_FIRST_S) is BreakerState.HALF_OPEN
    assert breaker.allows(OPEN_FIRST_S)
    breaker.sent("a", OPEN_FIRST_S)
    assert not breaker.allows(OPEN_FIRST_S)
    breaker.succeeded("other")
    assert not breaker.allows(OPEN_FIRST_S)
    breaker.succeeded("a")
    assert breaker.state(OPEN_FIRST_S) is BreakerState.CLOSED


def test_a_probe_that_shows_nothing_makes_room_for_the_next() -> None:
    breaker = opened()
    breaker.sent("a", OPEN_FIRST_S)
    breaker.probe_ended("a")
    assert breaker.state(OPEN_FIRST_S) is BreakerState.HALF_OPEN
    assert breaker.allows(OPEN_FIRST_S)


def test_a_probe_that_fails_opens_it_for_longer_up_to_a_limit() -> None:
    breaker = opened()
    now, pause_s = OPEN_FIRST_S, OPEN_FIRST_S
    for _ in range(10):
        breaker.sent("a", now)
        breaker.fault(now)
        pause_s = min(2 * pause_s, OPEN_MOST_S)
        assert breaker.state(now + pause_s - 0.1) is BreakerState.OPEN
        assert breaker.state(now + pause_s) is BreakerState.HALF_OPEN
        now += pause_s
    breaker.sent("a", now)
    breaker.succeeded("a")
    for _ in range(FAULTS_TO_OPEN):
        assert breaker.allows(now)
        breaker.fault(now)
    assert breaker.state(now + OPEN_FIRST_S) is BreakerState.HALF_OPEN


def test_it_says_how_long_it_stays_open() -> None:
    assert Breaker().closes_in_s(0.0) == 0.0
    breaker = opened()
    assert breaker.closes_in_s(1.0) == OPEN_FIRST_S - 1.0
    assert breaker.closes_in_s(OPEN_FIRST_S + 1.0) == 0.0
