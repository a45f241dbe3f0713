"""Which faults are made, and which of them the router has to notice."""

from __future__ import annotations

from typing import Any

import pytest

from mlxfleet.bench.chaos.faults import Faults, Journal, to_be_noticed
from mlxfleet.bench.chaos.fleet import Seen
from mlxfleet.bench.chaos.plan import Action, Fault
from mlxfleet.common.supervisor import CRASH_LOOP_DEATHS, SERIES_GAP_S

NOW = 1_000.0


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Faults of a fleet that is never touched."""
    monkeypatch.setattr("time.monotonic", lambda: NOW)
    fleet: Any = None
    return Faults(fleet, Journal())


def test_a_process_is_not_killed_so_often_that_its_parent_gives_up(faults: Faults) -> None:
    kill = Fault("kill", "router")
    for _ in range(CRASH_LOOP_DEATHS - 2):
        assert faults.bearable(kill) == kill
        faults.killed("router")
    assert faults.bearable(kill).action == "stop"
    assert faults.bearable(Fault("kill", "worker node-0")).action == "kill"


def test_deaths_of_long_ago_do_not_count(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(CRASH_LOOP_DEATHS):
        faults.killed("router")
    monkeypatch.setattr("time.monotonic", lambda: NOW + SERIES_GAP_S + 1)
    assert faults.bearable(Fault("kill", "router")).action == "kill"


@pytest.mark.parametrize(
    ("action", "target", "noticed"),
    [
        ("kill", "worker node-0", True),
        ("stop", "scheduler node-0", True),
        ("stop", "telemetry node-0", False),
        ("kill", "router", False),
        ("cut", "node-0", True),
        ("kill node", "node-0", True),
        ("swing", "node-0", False),
    ],
)
def test_what_the_router_has_to_notice(action: Action, target: str, noticed: bool) -> None:
    assert to_be_noticed(Fault(action, target)) == noticed


def seen(state: str = "ready", restarts: int = 0, worker_restarts: int = 0) -> Seen:
    """A node in /fleet."""
    return Seen("node-0", state, "closed", restarts, worker_restarts, 0, 0, 0)


def test_a_node_that_is_back_already_was_lost() -> None:
    assert not seen("busy").lost(seen())
    assert seen("hung").lost(seen())
    assert seen(restarts=1).lost(seen())
    assert seen(worker_restarts=1).lost(seen())
