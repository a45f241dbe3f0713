"""What the client takes itself, and whether that spoils what it measures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from mlxfleet.bench.figures import MS, percentile
from mlxfleet.bench.records import ClientCost, Distribution

LAG_PERIOD_S = 0.02
# The last half hour.
MOST_LAGS = 90_000
MOST_CPU_SHARE = 0.8
# Lateness that is a tenth of what is measured changes the second digit.
MOST_LATENESS_SHARE = 0.1
LEAST_LATENESS_MS = 5.0


class CostMeter:
    """Measures from its entering to its leaving."""

    def __init__(self) -> None:
        self.cpu_share = 0.0
        self.lags_s: deque[float] = deque(maxlen=MOST_LAGS)

    @asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        """Measure while the block runs."""
        began, cpu_began = time.perf_counter(), time.process_time()
        sampler = asyncio.create_task(self._sample_lag())
        try:
            yield
        finally:
            sampler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampler
            spent = time.perf_counter() - began
            self.cpu_share = (time.process_time() - cpu_began) / spent if spent else 0.0

    async def _sample_lag(self) -> None:
        """How much later than asked for the loop comes back, again and again."""
        while True:
            due = time.perf_counter() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self.lags_s.append(max(time.perf_counter() - due, 0.0))

    def cost(
        self, late_sends_s: Sequence[float], measured: Sequence[Distribution | None]
    ) -> ClientCost:
        """The cost; `measured` are the times that lateness would spoil."""
        lag_ms, late_ms = p99_ms(self.lags_s), p99_ms(late_sends_s)
        why = complaints(self.cpu_share, lag_ms, late_ms, lateness_limit_ms(measured))
        return ClientCost(
            cpu_share=self.cpu_share,
            event_lag_p99_ms=lag_ms,
            late_sends_p99_ms=late_ms,
            saturated=bool(why),
            why="; ".join(why),
        )


def p99_ms(times_s: Sequence[float]) -> float:
    """99 of 100 times in s are shorter, in ms; 0 if there are none."""
    return percentile(sorted(times_s), 0.99) * MS if times_s else 0.0


def lateness_limit_ms(measured: Sequence[Distribution | None]) -> float:
    """From where on lateness counts beside the shortest of what is measured, by its median."""
    medians = [one.p50 for one in measured if one is not None]
    return max(LEAST_LATENESS_MS, MOST_LATENESS_SHARE * min(medians, default=0.0))


def complaints(cpu_share: float, lag_ms: float, late_ms: float, limit_ms: float) -> list[str]:
    """What speaks against the figures."""
    found = []
    if cpu_share > MOST_CPU_SHARE:
        found.append(f"this client took {cpu_share:.0%} of a core")
    if lag_ms > limit_ms:
        found.append(
            f"its event loop was late by {lag_ms:.1f} ms (p99), which is more than"
            f" {limit_ms:.1f} ms"
        )
    if late_ms > limit_ms:
        found.append(
            f"requests were sent {late_ms:.1f} ms late (p99), which is more than {limit_ms:.1f} ms"
        )
    return found
