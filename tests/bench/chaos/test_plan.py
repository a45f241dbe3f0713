"""Faults are a function of the seed, and fit the fleet that they are made in."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfleet.bench.chaos.cases import make_cases
from mlxfleet.bench.chaos.faults import Journal
from mlxfleet.bench.chaos.options import MODES, Mode
from mlxfleet.bench.chaos.plan import Fault, Step, steps

NODES = ["node-0", "node-1"]
PROCESSES = ["router", "tokenizer-0", "scheduler node-0", "worker node-0", "worker node-1"]
DRAINS = ("drain", "swing", "restart")


def plan(seed: int, mode: Mode, count: int, pairs: float = 0.5) -> list[Step]:
    """The first steps of a seed."""
    made = steps(random.Random(seed), mode, PROCESSES, NODES, pairs)
    return list(itertools.islice(made, count))


@settings(deadline=None, max_examples=30)
@given(st.integers(), st.sampled_from(MODES))
def test_the_same_seed_makes_the_same_faults(seed: int, mode: Mode) -> None:
    assert plan(seed, mode, 10) == plan(seed, mode, 10)


@settings(deadline=None, max_examples=30)
@given(st.integers(), st.sampled_from(MODES))
def test_a_second_fault_goes_with_the_first_and_begins_while_it_lasts(
    seed: int, mode: Mode
) -> None:
    for step in plan(seed, mode, 10, pairs=1.0):
        first, second = step.faults
        assert (first.action, first.target) != (second.action, second.target)
        assert not (first.action in DRAINS and second.action in DRAINS)
        assert step.gap_s <= max(first.lasting_s, 0.5)
        starts = {first.action, second.action} & {"kill node", "restart"}
        kills = "kill" in (first.action, second.action)
        assert not (starts and kills and first.node == second.node)


def test_everything_that_a_fleet_can_have_comes() -> None:
    kinds = {mode: {f.kind for s in plan(1, mode, 500) for f in s.faults} for mode in MODES}
    assert {"kill router", "stop worker", "drain", "swing"} < kinds["launch"]
    assert kinds["tcp"] - kinds["launch"] == {"cut", "kill node", "restart"}


@pytest.mark.parametrize(("pairs", "size"), [(0.0, 1), (1.0, 2)])
def test_pairs_are_as_frequent_as_asked_for(pairs: float, size: int) -> None:
    assert {len(step.faults) for step in plan(1, "tcp", 50, pairs)} == {size}


def test_a_journal_knows_what_went_on_at_a_time() -> None:
    journal = Journal()
    with journal.step(Step(0.0, (Fault("kill", "router"), Fault("drain", "node-0", 1.0)))) as made:
        assert journal.during(made.began, made.began) == [made]
        assert journal.during(made.began - 2, made.began - 1) == []
    assert made.router_killed
    assert made.kinds == "kill router + drain"
    assert journal.during(made.ended + 1, made.ended + 2) == []


def test_the_mix_has_every_kind_of_request() -> None:
    cases = make_cases(random.Random(1), 300, 100)
    assert cases == make_cases(random.Random(1), 300, 100)
    bodies = [case.body for case in cases]
    assert {case.endpoint for case in cases} == {"chat", "completions"}
    assert {case.key for case in cases} == {0, 1}
    for name in ("stream", "n", "logprobs", "seed", "priority", "top_p", "repetition_penalty"):
        assert 0 < sum(name in body for body in bodies) < len(bodies), name
    assert any(case.stop_at is not None for case in cases)
    assert any(case.leaves_after_events is not None for case in cases)
    assert any(case.leaves_after_s is not None for case in cases)
    assert any(not case.exact for case in cases)
    assert any(case.choices > case.body.get("n", 1) for case in cases)
