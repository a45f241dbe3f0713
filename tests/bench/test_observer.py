"""What sensors say is written down through a run."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
from aiohttp import web

from mlxfleet.bench.observer import Observer
from mlxfleet.bench.records import Sample
from mlxfleet.common.messages import MachineSample, Telemetry

DEADLINE_S = 20.0


class Sensors:
    def sample(self) -> MachineSample:
        return MachineSample(machine=Telemetry(cpu_temperature_c=50.0))


async def observe(fleet: web.Response, wanted: int) -> list[Sample]:
    """The first samples of a run beside a server that answers so at /fleet."""

    async def handler(_: web.Request) -> web.Response:
        return fleet

    app = web.Application()
    app.router.add_get("/fleet", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    found: list[Sample] = []
    enough = asyncio.Event()

    def on_sample(sample: Sample) -> None:
        found.append(sample)
        if len(found) == wanted:
            enough.set()

    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/fleet"
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
            watching = asyncio.create_task(Observer(session, Sensors(), url, on_sample).watch("r"))
            await enough.wait()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
    finally:
        await runner.cleanup()
    return found


def test_samples_are_of_this_machine_and_of_each_node_that_tells() -> None:
    nodes = [{"name": "a", "telemetry": {"total_power_w": 9.0}}, {"name": "b", "telemetry": None}]
    samples = asyncio.run(observe(web.json_response({"nodes": nodes}), 2))
    assert [(s.run, s.node) for s in samples] == [("r", ""), ("r", "a")]
    assert samples[0].telemetry.cpu_temperature_c == 50.0
    assert samples[1].telemetry.total_power_w == 9.0


def test_a_server_that_refuses_does_not_end_it() -> None:
    samples = asyncio.run(observe(web.Response(status=403, text="no"), 1))
    assert [s.node for s in samples] == [""]
