"""The rounds of a comparison, in whatever world they happen: a real one, or a simulated one with a
clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from mlxfleet.bench.compare.baseline import Baseline, Readings
from mlxfleet.bench.compare.disturbance import what_rose
from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.compare.order import RoundPlan
from mlxfleet.bench.compare.steady import is_steady
from mlxfleet.bench.compare.verdict import Turn
from mlxfleet.bench.records import Round, Summary
from mlxfleet.common.errors import MlxfleetError

POLL_S = 1.0


class MeasureError(MlxfleetError):
    """A side gives no figure."""


@dataclass(frozen=True)
class Pace:
    """How long things may take, and when they are good enough."""

    baseline_s: float
    """How long the machine at rest is looked at before anything runs."""
    cooldown_s: float
    """The pause before each turn where no temperature can be seen."""
    cooldown_limit_s: float
    cooldown_margin_c: float
    warmup_windows: int
    """So many windows have to agree."""
    warmup_tolerance: float
    warmup_limit: int
    """Most windows of a warm-up."""
    repeats: int
    """How often a round may be thrown out."""


@dataclass(frozen=True)
class Measured:
    """A run, and what sensors said from its begin to its end."""

    run: str
    summary: Summary
    readings: Sequence[Readings]


class World(Protocol):
    """Where rounds happen."""

    def now(self) -> float:
        """Seconds on a clock."""

    async def sleep(self, seconds: float) -> None:
        """Let time go by."""

    async def sense(self) -> Readings:
        """What sensors say now."""

    def serving(self, side: str) -> AbstractAsyncContextManager[None]:
        """The side answers while the block runs."""

    async def window(self, side: str, seed: int) -> Summary:
        """A short load on a side, to see whether it is warm."""

    async def measure(self, side: str, plan: RoundPlan, seed: int) -> Measured:
        """The load on a side, recorded."""


@dataclass
class Taken:
    """A turn that was taken."""

    side: str
    measured: Measured
    value: float | None
    cooled_s: float
    remarks: list[str] = field(default_factory=list)

    def wrong(self) -> str:
        """Why the round should be thrown out; "" if it should not."""
        if self.value is None:
            errors = ", ".join(f"{kind} x{n}" for kind, n in self.measured.summary.errors.items())
            return f"{self.side} has no such figure (errors: {errors or 'none'})"
        rose = what_rose(self.measured.readings)
        return f"{rose} while {self.side} was measured" if rose else ""


class Rounds:
    """Runs them, and keeps the turns that count. Each round is told to `on_round` when it is over,
    what goes on now to `on_step`."""

    def __init__(
        self,
        world: World,
        plan: Sequence[RoundPlan],
        figure: Figure,
        pace: Pace,
        seed_of: Callable[[str, str], int],
        on_round: Callable[[Round], None] = lambda record: None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._world = world
        self._plan = plan
        self._figure = figure
        self._pace = pace
        self._seed_of = seed_of
        self._on_round = on_round
        self._on_step = on_step
        self._baseline = Baseline([])
        self.turns: list[Turn] = []

    async def run(self) -> None:
        """All rounds. MeasureError if a side gives no figure, however often it is asked."""
        await self._look_at_rest()
        for plan in self._plan:
            await self._until_it_counts(plan)

    async def _look_at_rest(self) -> None:
        self._on_step("looking at the machine at rest")
        readings = [await self._world.sense()]
        until = self._world.now() + self._pace.baseline_s
        while self._world.now() < until:
            await self._world.sleep(POLL_S)
            readings.append(await self._world.sense())
        self._baseline = Baseline(readings)

    async def _until_it_counts(self, plan: RoundPlan) -> None:
        """A round, again if it is spoiled. One that is spoiled each time counts as it is: what
        always rises under this load is part of it."""
        for attempt in range(self._pace.repeats + 1):
            last = attempt == self._pace.repeats
            taken, wrong = await self._round(plan, attempt, to_its_end=last)
            if not wrong:
                break
            if last:
                if any(turn.value is None for turn in taken):
                    self._tell(plan, taken, thrown_out=wrong)
                    raise MeasureError(f"{wrong}, {attempt + 1} times in a row")
                taken[-1].remarks.append(f"counts although {wrong}")
                break
            self._on_step(f"round {plan.number + 1} is thrown out: {wrong}")
            self._tell(plan, taken, thrown_out=wrong)
        self._tell(plan, taken)
        self.turns += [Turn(plan.block, turn.side, turn.measured.summary) for turn in taken]

    async def _round(
        self, plan: RoundPlan, attempt: int, *, to_its_end: bool
    ) -> tuple[list[Taken], str]:
        """The turns, and what is wrong with the round, which ends there unless told not to."""
        taken: list[Taken] = []
        wrong = ""
        for side in plan.order:
            taken.append(await self._turn(side, plan, attempt))
            wrong = wrong or taken[-1].wrong()
            if wrong and not to_its_end:
                break
        return taken, wrong

    async def _turn(self, side: str, plan: RoundPlan, attempt: int) -> Taken:
        """Start, cool down, warm up, measure."""
        place = f"round {plan.number + 1} of {len(self._plan)}, {side}"
        self._on_step(f"{place}: waiting until it serves")
        async with self._world.serving(side):
            self._on_step(f"{place}: cooling down")
            cooled_s, hot = await self._cool_down()
            warmup = f"{plan.number}/{attempt}/{plan.order.index(side)}/warm-up"
            cold = await self._warm_up(side, warmup, place)
            self._on_step(f"{place}: measuring")
            seed = self._seed_of(f"{plan.number}/{attempt}", side)
            measured = await self._world.measure(side, plan, seed)
        value = self._figure.of(measured.summary)
        return Taken(side, measured, value, cooled_s, [why for why in (hot, cold) if why])

    async def _cool_down(self) -> tuple[float, str]:
        """Wait until the machines are as they were at rest; how long it took, and what is left."""
        pace, world = self._pace, self._world
        began = world.now()
        if not self._baseline.has_temperature:
            await world.sleep(pace.cooldown_s)
            return world.now() - began, ""
        while left := self._baseline.differences(await world.sense(), pace.cooldown_margin_c):
            if world.now() - began >= pace.cooldown_limit_s:
                return world.now() - began, f"not cooled down: {'; '.join(left)}"
            await world.sleep(POLL_S)
        return world.now() - began, ""

    async def _warm_up(self, side: str, name: str, place: str) -> str:
        """Short loads until the figure is steady; a remark if it does not become so."""
        pace = self._pace
        values: list[float] = []
        for window in range(pace.warmup_limit):
            if is_steady(values, pace.warmup_windows, pace.warmup_tolerance):
                return ""
            self._on_step(f"{place}: warming up, window {window + 1}")
            summary = await self._world.window(side, self._seed_of(f"{name}/{window}", side))
            if (value := self._figure.of(summary)) is not None:
                values.append(value)
        if is_steady(values, pace.warmup_windows, pace.warmup_tolerance):
            return ""
        return f"not steady after {pace.warmup_limit} windows of warm-up"

    def _tell(self, plan: RoundPlan, taken: Sequence[Taken], thrown_out: str = "") -> None:
        for turn in taken:
            self._on_round(
                Round(
                    number=plan.number,
                    block=plan.block,
                    side=turn.side,
                    run=turn.measured.run,
                    value=turn.value,
                    cooled_s=turn.cooled_s,
                    thrown_out=thrown_out,
                    remarks=turn.remarks,
                )
            )
