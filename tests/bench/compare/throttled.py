"""A simulated machine that gets hot while it is measured, with a clock of its own."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mlxfleet.bench.compare.baseline import Readings
from mlxfleet.bench.compare.order import RoundPlan
from mlxfleet.bench.compare.rounds import Measured, Pace
from mlxfleet.bench.records import ClientCost, Summary
from mlxfleet.common.slowdown import Slowdown

PACE = Pace(
    baseline_s=5.0,
    cooldown_s=10.0,
    cooldown_limit_s=120.0,
    cooldown_margin_c=2.0,
    warmup_windows=3,
    warmup_tolerance=0.05,
    warmup_limit=10,
    repeats=2,
)
TOKENS_PER_S = 1000.0
MEASURED_S, WINDOW_S = 20.0, 2.0


@dataclass(frozen=True)
class Noise:
    """What makes measurements of the same thing differ, in shares: each on its own, a wandering
    state of the machine, and now and then another program that takes some of it."""

    own: float = 0.02
    wandering: float = 0.015
    wandering_memory: float = 0.7
    disturbed: float = 0.03
    disturbance: float = 0.08


@dataclass
class ThrottledWorld:
    """Sides on one machine whose passes get slower as `slowdown` says, in s of its clock.
    `speeds` are the sides' true speeds."""

    speeds: dict[str, float]
    slowdown: Slowdown
    rng: random.Random
    noise: Noise = field(default_factory=Noise)
    clock_s: float = 0.0
    wandered: float = 0.0

    def now(self) -> float:
        return self.clock_s

    async def sleep(self, seconds: float) -> None:
        self.clock_s += seconds

    async def sense(self) -> Readings:
        return {}

    @asynccontextmanager
    async def serving(self, side: str) -> AsyncIterator[None]:
        yield

    async def window(self, side: str, seed: int) -> Summary:
        return self._load(side, WINDOW_S)

    async def measure(self, side: str, plan: RoundPlan, seed: int) -> Measured:
        self._wander()
        return Measured(f"{plan.number}-{side}", self._load(side, MEASURED_S), [])

    def _load(self, side: str, nominal_s: float) -> Summary:
        """A fixed amount of work, in ten pieces, each at the speed of its moment."""
        began, noise = self.clock_s, self.noise
        quiet = math.exp(self.rng.gauss(0.0, noise.own) + self.wandered)
        if self.rng.random() < noise.disturbed:
            quiet *= math.exp(-self.rng.expovariate(1 / noise.disturbance))
        for _ in range(10):
            factor = self.slowdown.factor(self.clock_s)
            self.clock_s += nominal_s / 10 * factor / (self.speeds[side] * quiet)
        tokens = round(TOKENS_PER_S * nominal_s)
        return summary(tokens, self.clock_s - began)

    def _wander(self) -> None:
        kept = self.noise.wandering_memory
        step = self.noise.wandering * math.sqrt(1 - kept * kept)
        self.wandered = kept * self.wandered + self.rng.gauss(0.0, step)


def summary(tokens: int, duration_s: float, errors: dict[str, int] | None = None) -> Summary:
    """A run of so many output tokens."""
    return Summary(
        run="",
        requests=tokens,
        completed=tokens,
        duration_s=duration_s,
        requests_per_s=tokens / duration_s,
        input_tokens=0,
        output_tokens=tokens,
        cached_tokens=None,
        input_tokens_per_s=0.0,
        output_tokens_per_s=tokens / duration_s,
        cached_tokens_per_s=None,
        tokens_counted_by="usage",
        ttft_ms=None,
        tpot_ms=None,
        itl_ms=None,
        e2e_ms=None,
        longest_gap_ms=None,
        finish_reasons={},
        errors=errors or {},
        client=ClientCost(
            cpu_share=0.0, event_lag_p99_ms=0.0, late_sends_p99_ms=0.0, saturated=False
        ),
    )
