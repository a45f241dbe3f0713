"""The real world of a comparison: servers, loads, sensors and the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from mlxfleet.bench.compare.baseline import Readings
from mlxfleet.bench.compare.options import CompareOptions
from mlxfleet.bench.compare.order import RoundPlan
from mlxfleet.bench.compare.rounds import Measured
from mlxfleet.bench.compare.sides import Side
from mlxfleet.bench.load import run_load
from mlxfleet.bench.observer import machine_sensors
from mlxfleet.bench.plans import DEFAULT_CONCURRENCY, Plan, plans
from mlxfleet.bench.records import Sample, Summary
from mlxfleet.bench.serve import Bench
from mlxfleet.bench.serve_options import Options
from mlxfleet.bench.servers import ServerError, serving
from mlxfleet.common.errors import ConfigError
from mlxfleet.common.messages import Telemetry


class Arena:
    """Use it as a context: servers that are alive all the time run while it is entered."""

    def __init__(
        self,
        sides: Sequence[Side],
        benches: dict[str, Bench],
        load: Options,
        options: CompareOptions,
        logs: Path,
    ) -> None:
        """`benches` put the load on the sides, by their names."""
        self._sides = {side.name: side for side in sides}
        self._benches = benches
        self._load = load
        self._options = options
        self._logs = logs
        self._lasting = AsyncExitStack()

    async def __aenter__(self) -> Arena:
        async with AsyncExitStack() as stack:
            for side in self._sides.values():
                if side.spec is None:
                    await self._benches[side.name].startup()
                elif self._options.alive == "all":
                    await stack.enter_async_context(self._started(side))
            self._lasting = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lasting.aclose()

    @asynccontextmanager
    async def _started(self, side: Side) -> AsyncIterator[None]:
        """A side's command runs, and answers, while the block runs."""
        if side.spec is None:
            raise ConfigError(f"side {side.name} is not a command")
        bench, log = self._benches[side.name], self._logs / f"{side.name}.log"

        async def ask() -> str:
            try:
                await bench.startup()
            except ServerError as error:
                return str(error)
            return ""

        timeout_s = self._options.ready_timeout_s
        async with serving(side.spec, log, ready_timeout_s=timeout_s, ask=ask):
            yield

    @asynccontextmanager
    async def serving(self, side: str) -> AsyncIterator[None]:
        """The side answers while the block runs."""
        if self._sides[side].spec is None or self._options.alive == "all":
            yield
            return
        async with self._started(self._sides[side]):
            yield

    def now(self) -> float:
        """Seconds on a clock."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let time go by."""
        await asyncio.sleep(seconds)

    async def sense(self) -> Readings:
        """Sensors of this machine, and of the nodes of fleets that are alive all the time."""
        if not self._load.report.telemetry:
            return {}
        sensors = machine_sensors()
        found: dict[str, Telemetry] = {} if sensors is None else {"": sensors.sample().machine}
        fleets = {side.url: side.name for side in self._sides.values() if side.spec is None}
        for name in fleets.values():
            async with self._benches[name].observer(lambda sample: None) as observer:
                nodes = await observer.readings()
            found |= {f"{name} {node}": said for node, said in nodes.items() if node}
        return found

    async def window(self, side: str, seed: int) -> Summary:
        """A short load, to see whether the side is warm."""
        plan = self._plan(seed)
        streams = plan.concurrency or DEFAULT_CONCURRENCY
        requests = self._options.warmup_requests or max(streams, DEFAULT_CONCURRENCY)
        _, load = await self._benches[side].prepared(plan, requests)
        return (await run_load(load)).summary

    async def measure(self, side: str, plan: RoundPlan, seed: int) -> Measured:
        """The load, recorded."""
        bench = self._benches[side]
        described, load = await bench.prepared(self._plan(seed), self._load.arrival.requests)
        described.side, described.round = side, plan.number
        samples: list[Sample] = []
        async with bench.recorded(described, load, samples.append) as run:
            await run.run()
        readings = [{sample.node: sample.telemetry} for sample in samples]
        return Measured(described.id, bench.summaries[-1], readings)

    def _plan(self, seed: int) -> Plan:
        """The load with this seed."""
        [plan] = plans(self._load.arrival, self._load.data)
        return replace(plan, seed=seed)
