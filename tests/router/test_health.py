"""A node's health from its reports: dead, hung and busy are told apart."""

from __future__ import annotations

from typing import Any

import pytest

from mlxfleet.common.liveness import HUNG_AFTER_S, LOAD_STUCK_S
from mlxfleet.common.messages import LoadProgress
from mlxfleet.router.health import LONGEST_LOAD_S, MAX_LOADS, SLOW_PASSES, NodeHealth, State
from tests.router.reports import node_status

REPORT_S = 0.25


def reported(seconds: float, **fields: Any) -> tuple[NodeHealth, float]:
    """A node that has sent the same report for so long, and the time after the last."""
    health = NodeHealth(node_status(**fields), 0.0)
    now = 0.0
    while now < seconds:
        now += REPORT_S
        health.report(node_status(**fields), now)
    return health, now


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, State.READY),
        ({"queued": 3}, State.BUSY),
        ({"worker": "loading"}, State.LOADING),
        ({"worker": "dead"}, State.DEAD),
        ({"worker": "hung"}, State.HUNG),
        ({"running": 2}, State.HUNG),
        ({"running": 2, "queued": 9}, State.HUNG),
    ],
)
def test_the_same_report_for_long(fields: dict[str, Any], state: State) -> None:
    health, now = reported(2 * HUNG_AFTER_S, **fields)
    assert health.state(now) is state


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({}, False),
        ({"running": 1}, True),
        ({"worker": "dead"}, True),
        ({"worker": "hung"}, True),
        ({"worker": "loading"}, False),
        ({"worker": "loading", "worker_restarts": 3}, True),
        ({"worker": "loading", "worker_restarts": 2}, False),
    ],
)
def test_a_worker_that_fails_is_told_from_a_node_that_is_gone(
    fields: dict[str, Any], failed: bool
) -> None:
    health, now = reported(2 * HUNG_AFTER_S, **fields)
    assert health.worker_failed(2, now) is failed
    assert not health.worker_failed(2, now + 2 * HUNG_AFTER_S)
    health.link_closed()
    assert not health.worker_failed(2, now)


def test_one_that_works_and_moves_is_well() -> None:
    health = NodeHealth(node_status(), 0.0)
    for step in range(100):
        health.report(node_status(running=1, steps=step), step * REPORT_S)
        assert health.state(step * REPORT_S) is State.READY


def test_the_clock_starts_with_the_work() -> None:
    health, now = reported(2 * HUNG_AFTER_S)
    health.report(node_status(running=1), now + 1)
    assert health.state(now + 1) is State.READY


def test_one_with_slow_passes_gets_more_time() -> None:
    slow = {"running": 1, "steps": 10, "busy_s": 10.0}
    health, now = reported(2 * HUNG_AFTER_S, **slow)
    assert health.state(now) is State.READY
    health, now = reported(SLOW_PASSES + 1, **slow)
    assert health.state(now) is State.HUNG


def test_silence_is_a_hang_and_a_closed_link_is_death() -> None:
    health, now = reported(1.0)
    assert health.state(now + HUNG_AFTER_S - 0.1) is State.READY
    assert health.state(now + HUNG_AFTER_S + 0.1) is State.HUNG
    health.link_closed()
    assert health.state(now + 0.1) is State.DEAD
    health.report(node_status(), now + 1)
    assert health.state(now + 1) is State.READY


def test_draining_shows_only_on_one_that_is_well() -> None:
    health, now = reported(1.0)
    health.draining = True
    assert health.state(now) is State.DRAINING
    assert health.state(now).well
    assert health.state(now + 2 * HUNG_AFTER_S) is State.HUNG


def test_the_rate_of_tokens_follows_the_counter_and_survives_a_restart() -> None:
    health = NodeHealth(node_status(), 0.0)
    for report in range(1, 80):
        status = node_status(generated_tokens=report * 25, steps=report)
        health.report(status, report * REPORT_S)
    assert health.tokens_per_s == pytest.approx(100, rel=0.01)
    health.report(node_status(incarnation="2"), 80 * REPORT_S)
    assert health.tokens_per_s == pytest.approx(100, rel=0.01)


def loading(done: int) -> dict[str, Any]:
    """A report of a worker that has done so much of its loading."""
    return {"worker": "loading", "loading": LoadProgress(stage="reading", done=done)}


def test_one_that_loads_gets_on_until_it_stands_still_for_long() -> None:
    health = NodeHealth(node_status(**loading(0)), 0.0)
    now = 0.0
    for done in range(100):
        now += LOAD_STUCK_S / 2
        health.report(node_status(**loading(done)), now)
        assert health.loads(now)
    while now < 100 * LOAD_STUCK_S / 2 + LOAD_STUCK_S:
        assert health.loads(now)
        now += REPORT_S
        health.report(node_status(**loading(99)), now)
    health.report(node_status(**loading(99)), now + REPORT_S)
    assert not health.loads(now + REPORT_S)
    health.report(node_status(**loading(100)), now + 2 * REPORT_S)
    assert health.loads(now + 2 * REPORT_S)


def test_one_that_loads_to_and_fro_does_not_get_on() -> None:
    health = NodeHealth(node_status(), 0.0)
    now = 0.0
    while now <= LOAD_STUCK_S:
        assert health.loads(now) or not now
        now += REPORT_S
        health.report(node_status(**loading(int(now / REPORT_S) % 2)), now)
    now += 2 * REPORT_S
    health.report(node_status(**loading(0)), now)
    assert not health.loads(now)


def test_one_that_loads_for_ever_is_not_waited_for() -> None:
    health = NodeHealth(node_status(), 0.0)
    for done in range(100):
        health.report(node_status(**loading(done)), done * LONGEST_LOAD_S / 90)
    assert not health.loads(99 * LONGEST_LOAD_S / 90)


def test_one_that_loads_and_is_silent_does_not_get_on() -> None:
    health = NodeHealth(node_status(**loading(0)), 0.0)
    assert not health.loads(HUNG_AFTER_S + 0.1)
    health.report(node_status(**loading(1)), HUNG_AFTER_S + 0.2)
    assert health.loads(HUNG_AFTER_S + 0.2)
    health.link_closed()
    assert not health.loads(HUNG_AFTER_S + 0.2)


def test_one_that_dies_again_and_again_while_it_loads_does_not_get_on() -> None:
    health = NodeHealth(node_status(worker="dead"), 0.0)
    got_on = []
    for now in range(MAX_LOADS + 2):
        health.report(node_status(**loading(now)), float(now))
        got_on.append(health.loads(float(now)))
        health.report(node_status(worker="dead"), now + 0.5)
        assert not health.loads(now + 0.5)
    assert got_on == [True] * MAX_LOADS + [False] * 2
    health.report(node_status(), 100.0)
    health.report(node_status(**loading(0)), 101.0)
    assert health.loads(101.0)
