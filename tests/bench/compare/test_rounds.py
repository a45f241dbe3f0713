"""Rounds: warmed up, cooled down, thrown out and repeated, within their limits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mlxfleet.bench.compare.baseline import Readings
from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.compare.order import RoundPlan
from mlxfleet.bench.compare.rounds import Measured, MeasureError, Pace, Rounds
from mlxfleet.bench.records import Round, Summary
from mlxfleet.common.messages import Telemetry
from mlxfleet.common.slowdown import Slowdown
from tests.bench.compare.throttled import PACE, Noise, ThrottledWorld, summary

RATE = Figure("output_tokens_per_s")
PLAN = [RoundPlan(0, 0, ("A", "B")), RoundPlan(1, 0, ("B", "A"))]
SILENT = Noise(own=0.0, wandering=0.0, disturbed=0.0)
CALM, TIGHT = Telemetry(memory_pressure=0), Telemetry(memory_pressure=1)


class ScriptedWorld(ThrottledWorld):
    """Without noise; what happens in turns and windows is told beforehand."""

    def __init__(self, slowdown: Slowdown | None = None) -> None:
        level = slowdown or Slowdown(((0.0, 1.0),))
        super().__init__({"A": 1.0, "B": 1.0}, level, random.Random(0), SILENT)
        self.pressed: list[str] = []
        """Sides in the next turns of which memory pressure rises."""
        self.failing: list[str] = []
        """The same, for turns in which all requests fail."""
        self.cold_windows = 0
        """Windows from the start on that get faster."""
        self.windows: list[str] = []
        self.measured: list[tuple[str, int]] = []
        self.serves = 0

    @asynccontextmanager
    async def serving(self, side: str) -> AsyncIterator[None]:
        self.serves += 1
        yield
        self.serves -= 1

    async def window(self, side: str, seed: int) -> Summary:
        self.windows.append(side)
        cold = max(self.cold_windows - len(self.windows), 0)
        self.clock_s += 1.0
        return summary(1000, 1.0 + 0.2 * cold)

    async def measure(self, side: str, plan: RoundPlan, seed: int) -> Measured:
        assert self.serves == 1
        self.measured.append((side, seed))
        found = await super().measure(side, plan, seed)
        if self.pressed and self.pressed[0] == side:
            self.pressed.pop(0)
            return replace(found, readings=[{"": CALM}, {"": TIGHT}])
        if self.failing and self.failing[0] == side:
            self.failing.pop(0)
            return replace(found, summary=summary(0, 1.0, {"http_500": 8}))
        return found


class HotWorld(ScriptedWorld):
    """A turn heats the machine by `heat_c`; at rest it loses a degree a second."""

    def __init__(self, heat_c: float) -> None:
        super().__init__()
        self.heat_c = heat_c
        self.above_c = 0.0

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        self.above_c = max(self.above_c - seconds, 0.0)

    async def sense(self) -> Readings:
        return {"": Telemetry(gpu_temperature_c=40.0 + self.above_c)}

    async def measure(self, side: str, plan: RoundPlan, seed: int) -> Measured:
        self.above_c += self.heat_c
        return await super().measure(side, plan, seed)


def run(world: ThrottledWorld, pace: Pace = PACE) -> tuple[Rounds, list[Round]]:
    told: list[Round] = []
    seeds: dict[str, int] = {}
    rounds = Rounds(
        world, PLAN, RATE, pace, lambda name, side: seeds.setdefault(name, len(seeds)), told.append
    )
    asyncio.run(rounds.run())
    return rounds, told


def test_sides_of_a_round_get_the_same_seed_and_no_other_load_does() -> None:
    world = ScriptedWorld()
    run(world)
    [(_, first), (_, second), (_, third), (_, fourth)] = world.measured
    assert first == second
    assert third == fourth
    assert first != third


def test_warm_up_goes_on_until_windows_agree() -> None:
    world = ScriptedWorld()
    world.cold_windows = 6
    _, told = run(world)
    # Windows get faster up to the sixth; that and the two after it agree.
    assert world.windows[:9] == ["A"] * 8 + ["B"]
    assert [record.remarks for record in told] == [[]] * 4


def test_a_warm_up_that_never_gets_steady_ends_and_is_told() -> None:
    world = ScriptedWorld()
    world.cold_windows = 1000
    _, told = run(world, replace(PACE, warmup_tolerance=0.0))
    assert len(world.windows) == 4 * PACE.warmup_limit
    assert told[0].remarks == ["not steady after 10 windows of warm-up"]


def test_without_a_sensor_of_temperature_there_is_a_pause() -> None:
    _, told = run(ScriptedWorld())
    assert [record.cooled_s for record in told] == [PACE.cooldown_s] * 4


def test_cool_down_lasts_until_the_machine_is_as_at_rest() -> None:
    _, told = run(HotWorld(heat_c=30.0))
    assert [record.cooled_s for record in told] == [0.0, 28.0, 30.0, 30.0]
    assert [record.remarks for record in told] == [[]] * 4


def test_cool_down_has_a_limit_and_says_what_is_left() -> None:
    _, told = run(HotWorld(heat_c=500.0))
    assert told[1].cooled_s == PACE.cooldown_limit_s
    assert told[1].remarks == ["not cooled down: 420 °C instead of 40"]


def test_a_spoiled_round_is_thrown_out_and_repeated_with_another_load() -> None:
    world = ScriptedWorld()
    world.pressed = ["B"]
    rounds, told = run(world)
    why = "memory pressure rose to warning while B was measured"
    assert [(record.side, record.thrown_out) for record in told] == [
        ("A", why),
        ("B", why),
        ("A", ""),
        ("B", ""),
        ("B", ""),
        ("A", ""),
    ]
    assert [turn.side for turn in rounds.turns] == ["A", "B", "B", "A"]
    assert world.measured[0][1] != world.measured[2][1]


def test_a_spoiled_round_ends_early() -> None:
    world = ScriptedWorld()
    world.pressed = ["A"]
    run(world)
    assert [side for side, _ in world.measured] == ["A", "A", "B", "B", "A"]


def test_what_rises_each_time_counts_in_the_end_and_is_told() -> None:
    world = ScriptedWorld()
    world.pressed = ["B"] * (PACE.repeats + 1)
    rounds, told = run(world)
    assert len(rounds.turns) == 4
    counted = [record for record in told if not record.thrown_out]
    assert counted[1].remarks == [
        "counts although memory pressure rose to warning while B was measured"
    ]


def test_requests_that_fail_once_are_a_spoiled_round() -> None:
    world = ScriptedWorld()
    world.failing = ["B"]
    rounds, told = run(world)
    assert len(rounds.turns) == 4
    assert told[1].value is None
    assert told[1].thrown_out == "B has no such figure (errors: http_500 x8)"


def test_a_side_that_always_fails_ends_the_comparison() -> None:
    world = ScriptedWorld()
    world.failing = ["B"] * 100
    with pytest.raises(MeasureError, match=r"http_500 x8\), 3 times in a row"):
        run(world)
    assert world.serves == 0
