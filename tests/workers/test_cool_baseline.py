"""How slow a machine is found to be, from passes on a clock that stands still."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.workers.cool_baseline import (
    COOLING_S,
    GROUP,
    LEAST_CONTEXT,
    MAX_KINDS,
    PAUSE_S,
    RECENT,
    CoolBaseline,
    Kind,
)


class Machine:
    """Runs passes of 10 ms, 1 ms a row and 1 us for each token of context, `heat` times as long,
    and 3% more or less."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heat = 1.0
        self.baseline = CoolBaseline(lambda: self.now)
        self._rng = random.Random(1)

    def run(self, passes: int, rows: int = 4, tokens: int = 0, context: int = 500) -> float:
        for _ in range(passes):
            cool_s = 0.010 + 0.001 * rows + 1e-6 * context + 0.0005 * tokens
            self.run_pass(self.heat * cool_s * self._rng.uniform(0.97, 1.03), rows, tokens, context)
        return self.baseline.slowdown

    def run_pass(self, seconds: float, rows: int = 4, tokens: int = 0, context: int = 500) -> None:
        self.now += seconds
        self.baseline.observe(
            rows=rows, tokens=tokens, context=context, pairs=tokens**2 / 2, seconds=seconds
        )


def test_nothing_is_known_of_a_machine_that_has_run_nothing() -> None:
    assert Machine().baseline.slowdown == 1.0


@pytest.mark.parametrize("heat", [1.2, 1.43, 4.0])
def test_a_machine_that_gets_hot_is_slower_by_as_much(heat: float) -> None:
    machine = Machine()
    assert machine.run(100) == pytest.approx(1.0, abs=0.05)
    machine.heat = heat
    assert machine.run(RECENT) == pytest.approx(heat, rel=0.05)
    machine.heat = 1.0
    assert machine.run(RECENT) == pytest.approx(1.0, abs=0.05)


def test_other_work_is_not_heat() -> None:
    """More rows, prompts and long contexts take longer on a cool machine too."""
    machine = Machine()
    for rows, tokens, context in ((1, 0, 10), (8, 0, 4000), (8, 64, 4000), (32, 0, 40_000)):
        assert machine.run(50, rows, tokens, context) == pytest.approx(1.0, abs=0.06)


def test_a_context_that_grows_is_not_heat() -> None:
    machine = Machine()
    for context in range(100, 60_000, 40):
        assert machine.run(1, context=context) < 1.1


def test_heat_is_not_forgotten_with_new_kinds_of_work() -> None:
    machine = Machine()
    machine.run(50)
    machine.heat = 1.4
    machine.run(50)
    for rows in range(5, 30):
        assert machine.run(20, rows=rows) == pytest.approx(1.4, abs=0.1)
    assert machine.run(50) == pytest.approx(1.4, abs=0.1)


def test_a_long_answer_on_a_hot_machine_makes_it_no_hotter() -> None:
    machine = Machine()
    machine.run(50)
    machine.heat = 1.4
    machine.run(50)
    for context in range(600, 60_000, 40):
        assert machine.run(1, context=context) < 1.6


def test_single_passes_say_nothing() -> None:
    machine = Machine()
    machine.run(50)
    for _ in range(20):
        machine.run_pass(1.0)
        assert machine.run(10) < 1.1
        machine.run_pass(0.0001)
        assert machine.run(10) < 1.1


def test_who_was_hot_from_the_start_learns_better_when_it_is_cool() -> None:
    machine = Machine()
    machine.heat = 1.5
    assert machine.run(50) < 1.1
    machine.heat = 1.0
    assert machine.run(50) < 1.1
    machine.heat = 1.5
    assert machine.run(RECENT) == pytest.approx(1.5, rel=0.07)


def test_a_machine_that_rests_cools() -> None:
    machine = Machine()
    machine.run(50)
    machine.heat = 2.0
    machine.run(100)
    assert machine.baseline.relief == pytest.approx(1.0, abs=0.05)
    machine.now += COOLING_S
    assert machine.baseline.slowdown == pytest.approx(1.5, rel=0.05)
    assert machine.baseline.relief == pytest.approx(0.75, rel=0.05)
    machine.heat = 1.0
    assert machine.run(RECENT) == pytest.approx(1.0, abs=0.05)


def test_costs_that_have_not_followed_yet_are_brought_up_to_date() -> None:
    machine = Machine()
    machine.run(100)
    machine.heat = 10.0
    machine.run(RECENT)
    assert machine.baseline.relief > 1.5
    machine.heat = 1.0
    machine.run(RECENT)
    assert machine.baseline.slowdown < 1.1
    assert machine.baseline.relief < 0.4


def test_what_was_seen_before_a_pause_does_not_count_after_it() -> None:
    machine = Machine()
    machine.run(50)
    machine.heat = 2.0
    machine.run(RECENT)
    machine.now += PAUSE_S + 1
    machine.heat = 1.0
    assert machine.run(GROUP) < 1.1


def test_passes_that_were_not_measured_are_left_out() -> None:
    machine = Machine()
    machine.baseline.observe(rows=0, tokens=0, context=0, pairs=0.0, seconds=1.0)
    machine.baseline.observe(rows=1, tokens=0, context=1, pairs=0.0, seconds=0.0)
    assert machine.run(50) < 1.1


@given(st.integers(0, 10**4), st.integers(0, 10**5), st.integers(0, 10**8))
def test_kinds_are_bounded(rows: int, tokens: int, context: int) -> None:
    kind = Kind.of(rows, tokens, context, tokens * context)
    assert all(0 <= part < 400 for part in kind)
    more = Kind.of(rows + 1, tokens + 8, context + LEAST_CONTEXT, tokens * context)
    assert more.rows >= kind.rows
    assert more.tiles >= kind.tiles
    assert more.context >= kind.context


def test_few_kinds_are_kept() -> None:
    machine = Machine()
    for number in range(MAX_KINDS + 100):
        machine.run_pass(0.01, rows=number % 16 + 1, tokens=8 * (number // 16))
    assert len(machine.baseline._kinds) <= MAX_KINDS
