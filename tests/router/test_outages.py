"""Each outage of a node is logged once, and its end with how long it took."""

from __future__ import annotations

import logging

import msgspec
import pytest

from mlxfleet.router.health import NodeHealth, State
from mlxfleet.router.outages import Outages
from tests.router.reports import node_status


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_node_that_stands_still_is_hung_once_until_it_computes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status = node_status(steps=5, running=1)
    health, outages = NodeHealth(status, 0.0), Outages()
    for second in range(7):
        # Its requests are moved away, it looks well, gets the next one, and stands still again.
        outages.began("n", State.HUNG, health, float(second))
        outages.ended("n", health, second + 0.5)
    assert caplog.messages == ["n is hung"]
    health.report(msgspec.structs.replace(status, steps=6), 8.0)
    outages.ended("n", health, 8.0)
    outages.ended("n", health, 9.0)
    assert caplog.messages == ["n is hung", "n is well again; it was hung for 8.0 s"]
    outages.began("n", State.HUNG, health, 10.0)
    assert caplog.messages[2:] == ["n is hung"]


@pytest.mark.parametrize("state", [State.DEAD, State.HUNG])
def test_a_node_that_was_silent_is_back_when_it_reports(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    health, outages = NodeHealth(node_status(steps=5), 0.0), Outages()
    outages.began("n", state, health, 10.0)
    outages.ended("n", health, 12.5)
    assert caplog.messages == [f"n is {state}", f"n is well again; it was {state} for 2.5 s"]
