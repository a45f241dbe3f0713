"""Watches sensors while a run goes on: this machine's, and those of an mlxfleet server's nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
import msgspec
from msgspec import Struct

from mlxfleet.bench.records import Sample
from mlxfleet.common.messages import Telemetry
from mlxfleet.common.telemetry.source import Source

PERIOD_S = 1.0
POLL_TIMEOUT = aiohttp.ClientTimeout(total=PERIOD_S)


class Node(Struct):
    """What is read of a node in /fleet."""

    name: str
    telemetry: Telemetry | None = None


class Fleet(Struct):
    """What is read of /fleet."""

    nodes: list[Node] = []


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
            if self._sensors is not None:
                machine = self._sensors.sample().machine
                self._on_sample(Sample(run=run, at_s=at_s, telemetry=machine))
            for node in await self._nodes():
                if (told := node.telemetry) is not None:
                    self._on_sample(Sample(run=run, at_s=at_s, node=node.name, telemetry=told))
            await asyncio.sleep(max(began + at_s + PERIOD_S - time.perf_counter(), 0.0))

    async def _nodes(self) -> list[Node]:
        """The fleet's; none if it does not answer in time."""
        if self._fleet_url is None:
            return []
        try:
            async with self._session.get(self._fleet_url, timeout=POLL_TIMEOUT) as response:
                return msgspec.json.decode(await response.read(), type=Fleet).nodes
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return []
