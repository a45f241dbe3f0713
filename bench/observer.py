"""Watches sensors while a run goes on: this machine's, and those of an mlxfleet server's nodes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from msgspec import Struct

from mlxfleet.bench.records import Sample
from mlxfleet.common.messages import Telemetry
from mlxfleet.common.telemetry.source import AUTO, Source, open_source

PERIOD_S = 1.0
POLL_TIMEOUT = aiohttp.ClientTimeout(total=PERIOD_S)


class Node(Struct):
    """What is read of a node in /fleet."""

    name: str
    telemetry: Telemetry | None = None


class Fleet(Struct):
    """What is read of /fleet."""

    nodes: list[Node] = []


@functools.cache
def machine_sensors() -> Source | None:
    """This machine's, which are opened once."""
    return open_source(AUTO)


class Observer:
    """Takes a sample of each machine a second, until it is cancelled."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        sensors: Source | None,
        fleet_url: str | None,
        on_sample: Callable[[Sample], None],
    ) -> None:
        """`fleet_url` is where the server tells of its nodes, None if it does not."""
        self._session = session
        self._sensors = sensors
        self._fleet_url = fleet_url
        self._on_sample = on_sample

    async def watch(self, run: str) -> None:
        """Watch during a run, which begins now."""
        began = time.perf_counter()
        while True:
            at_s = time.perf_counter() - began
            for node, told in (await self.readings()).items():
                self._on_sample(Sample(run=run, at_s=at_s, node=node, telemetry=told))
            await asyncio.sleep(max(began + at_s + PERIOD_S - time.perf_counter(), 0.0))

    async def readings(self) -> dict[str, Telemetry]:
        """What sensors say now, by node; "" is this machine."""
        found = {} if self._sensors is None else {"": self._sensors.sample().machine}
        nodes = await self._nodes()
        return found | {node.name: node.telemetry for node in nodes if node.telemetry is not None}

    async def _nodes(self) -> list[Node]:
        """The fleet's; none if it does not answer in time."""
        if self._fleet_url is None:
            return []
        try:
            async with self._session.get(self._fleet_url, timeout=POLL_TIMEOUT) as response:
                return msgspec.json.decode(await response.read(), type=Fleet).nodes
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return []


@asynccontextmanager
async def watching(observer: Observer, run: str) -> AsyncIterator[None]:
    """Watch while the block runs, which is a run."""
    task = asyncio.create_task(observer.watch(run))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def watching_machine(on_sample: Callable[[Sample], None], run: str) -> AsyncIterator[None]:
    """Watch this machine alone while the block runs, which is a run."""
    async with aiohttp.ClientSession() as session:
        observer = Observer(session, machine_sensors(), None, on_sample)
        async with watching(observer, run):
            yield
