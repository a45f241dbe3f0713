"""When a client spoils what it measures."""

from __future__ import annotations

import asyncio
import time

from mlxfleet.bench.client_cost import CostMeter, complaints, lateness_limit_ms
from mlxfleet.bench.figures import distribution


def test_lateness_counts_beside_what_is_measured() -> None:
    long, short = distribution([0.4]), distribution([0.02])
    assert lateness_limit_ms([long, None]) == 40
    assert lateness_limit_ms([long, short]) == 5
    assert lateness_limit_ms([]) == 5


def test_each_way_of_being_the_bottleneck_is_named() -> None:
    assert complaints(0.5, 1.0, 1.0, 5.0) == []
    for_cpu, for_lag, for_sends = complaints(0.95, 9.0, 8.0, 5.0)
    assert "95% of a core" in for_cpu
    assert "late by 9.0 ms" in for_lag
    assert "sent 8.0 ms late" in for_sends


def test_a_busy_loop_shows_in_cpu_and_lag() -> None:
    async def main() -> CostMeter:
        meter = CostMeter()
        async with meter.measuring():
            for _ in range(5):
                until = time.thread_time() + 0.05
                while time.thread_time() < until:
                    pass
                await asyncio.sleep(0)
        return meter

    cost = asyncio.run(main()).cost([], [])
    assert cost.event_lag_p99_ms > 5
    assert cost.saturated
    assert cost.cpu_share > 0
