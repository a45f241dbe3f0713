"""What a node that gets hot reports of its speed: the real scheduler on the simulated engine."""

from __future__ import annotations

import dataclasses

import pytest

from tests.workers.sim_driver import OPTIONS, Node

HOT_S = 10.0
# Twice as slow from there on.
GETS_HOT = dataclasses.replace(OPTIONS, sim_slowdown=f"0:1,{HOT_S}:1,{HOT_S + 0.1}:2")
REST_S = 5.1


def run_until(node: Node, seconds: float) -> None:
    """Some conversations after each other, of two sequences at a time."""
    number = 0
    while node.clock.now < seconds:
        rids = f"{number}a", f"{number}b"
        for rid in rids:
            node.submit(rid, [number + 3, *range(100, 140)], max_tokens=60)
        node.run(*rids)
        number += 1


def test_a_node_knows_how_much_slower_it_is() -> None:
    node = Node(GETS_HOT)
    run_until(node, HOT_S - 2)
    assert node.scheduler.slowdown < 1.1
    cool_s = node.scheduler.decode_step_s
    run_until(node, HOT_S + 5)
    assert node.scheduler.slowdown == pytest.approx(2.0, rel=0.1)
    assert node.scheduler.decode_step_s == pytest.approx(2 * cool_s, rel=0.15)


def test_a_node_that_rests_does_not_look_slow_for_ever() -> None:
    node = Node(GETS_HOT)
    cool_rate = node.scheduler.prefill_tokens_per_s
    run_until(node, HOT_S + 5)
    hot_rate = node.scheduler.prefill_tokens_per_s
    assert hot_rate < 0.7 * cool_rate
    node.clock.now += REST_S
    node.scheduler.rest()
    assert node.scheduler.prefill_tokens_per_s < 0.7 * cool_rate
    node.clock.now += 300
    assert node.scheduler.prefill_tokens_per_s == pytest.approx(cool_rate, rel=0.05)


def test_a_node_that_works_does_not_forget() -> None:
    node = Node(GETS_HOT)
    run_until(node, HOT_S + 5)
    before = node.scheduler.decode_step_s
    node.scheduler.rest()
    assert node.scheduler.decode_step_s == before
