"""The campaign finds what a bad server does."""

from __future__ import annotations

import asyncio

from aiohttp import web
from rich.console import Console

from mlxfleet.bench.hostile.campaign import Barrage
from mlxfleet.bench.hostile.options import Options
from mlxfleet.bench.servers import HOST

SEED = 3
REQUESTS = 60


async def findings(status: int) -> list[str]:
    """What is found of a server that answers everything with this status."""

    async def answer(http: web.Request) -> web.Response:
        error = {"message": "no", "type": "x", "param": None, "code": None}
        return web.json_response({"error": error}, status=status)

    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    host, port = runner.addresses[0]
    try:
        barrage = Barrage(f"http://{host}:{port}", SEED, Options(requests=REQUESTS), None)
        await barrage.send_all(Console(quiet=True))
    finally:
        await runner.cleanup()
    return barrage.result.findings


def test_a_failing_server_is_found_with_the_request_that_shows_it() -> None:
    found = asyncio.run(findings(500))
    assert len(found) > REQUESTS / 2
    assert found[0].startswith("--only ")
    assert "sent: b'" in found[0]


def test_a_server_that_refuses_everything_is_right() -> None:
    found = asyncio.run(findings(400))
    # aiohttp answers an Expect header that is not UTF-8 with a 500 of its own.
    assert [finding for finding in found if "headers: Expect" not in finding] == []


def test_a_server_that_answers_what_is_wrong_is_found() -> None:
    assert any("answered although" in finding for finding in asyncio.run(findings(200)))
