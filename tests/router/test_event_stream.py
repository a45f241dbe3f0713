"""Streams of server-sent events over a real connection: when their status is sent, and pings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from mlxfleet.common.errors import UnavailableError
from mlxfleet.router.event_stream import PING, EventStream
from mlxfleet.router.http import errors_as_events
from mlxfleet.router.metrics import RequestRecord

PING_S = 0.05
Body = Callable[[EventStream], Awaitable[None]]
Client = TestClient[web.Request, web.Application]


def run(body: Body, look: Callable[[Client, list[int]], Awaitable[None]], ping_s: float) -> None:
    """Serve a stream that `body` fills; `look` asks for it and gets the pings that were sent."""

    async def test() -> None:
        pings: list[int] = []

        async def handler(http: web.Request) -> web.StreamResponse:
            stream = EventStream(http, ping_s, lambda: pings.append(1))
            try:
                async with errors_as_events(stream, RequestRecord()), stream:
                    await body(stream)
                    await stream.end(b"data: end\n\n")
            except UnavailableError as error:
                return web.Response(status=error.status)
            return stream.response

        app = web.Application()
        app.router.add_get("/", handler)
        async with TestClient(TestServer(app, handler_cancellation=True)) as client:
            await asyncio.wait_for(look(client, pings), 20)

    asyncio.run(test())


def test_a_stream_that_is_silent_opens_with_pings() -> None:
    go_on = asyncio.Event()

    async def body(stream: EventStream) -> None:
        await go_on.wait()

    async def look(client: Client, pings: list[int]) -> None:
        async with client.get("/") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert await response.content.readexactly(3 * len(PING)) == 3 * PING
            go_on.set()
            rest = await response.content.read()
        assert rest.replace(PING, b"") == b"data: end\n\n"
        assert len(pings) >= 3

    run(body, look, PING_S)


def test_pings_come_also_between_events() -> None:
    pinged = asyncio.Event()

    async def body(stream: EventStream) -> None:
        await stream.send(b"data: 1\n\n")
        await pinged.wait()

    async def look(client: Client, pings: list[int]) -> None:
        async with client.get("/") as response:
            assert await response.content.readexactly(9) == b"data: 1\n\n"
            assert await response.content.readexactly(len(PING)) == PING
            pinged.set()
            assert (await response.content.read()).endswith(b"data: end\n\n")

    run(body, look, PING_S)


def test_a_refusal_before_the_first_ping_has_its_own_status() -> None:
    async def body(stream: EventStream) -> None:
        raise UnavailableError("no dragon")

    async def look(client: Client, pings: list[int]) -> None:
        async with client.get("/") as response:
            assert response.status == 503
        assert not pings

    run(body, look, 30.0)


def test_a_refusal_after_the_first_ping_is_an_event() -> None:
    go_on = asyncio.Event()

    async def body(stream: EventStream) -> None:
        await go_on.wait()
        raise UnavailableError("no dragon")

    async def look(client: Client, pings: list[int]) -> None:
        async with client.get("/") as response:
            assert response.status == 200
            assert await response.content.readexactly(len(PING)) == PING
            go_on.set()
            rest = (await response.content.read()).replace(PING, b"")
        assert rest.startswith(b'data: {"error":{"message":"no dragon"')

    run(body, look, PING_S)


def test_without_pings_the_status_waits_for_the_first_event() -> None:
    async def body(stream: EventStream) -> None:
        await asyncio.sleep(4 * PING_S)
        assert not stream.opened

    async def look(client: Client, pings: list[int]) -> None:
        async with client.get("/") as response:
            assert await response.content.read() == b"data: end\n\n"
        assert not pings

    run(body, look, 0)


def test_a_client_that_leaves_ends_the_pings() -> None:
    left = asyncio.Event()

    async def body(stream: EventStream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    async def look(client: Client, pings: list[int]) -> None:
        async with client.get("/") as response:
            await response.content.readexactly(len(PING))
            response.close()
        await left.wait()
        # The one that may be on its way.
        await asyncio.sleep(0)
        sent = len(pings)
        await asyncio.sleep(3 * PING_S)
        assert len(pings) == sent

    run(body, look, PING_S)


def test_a_ping_under_way_comes_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    write, write_eof = web.StreamResponse.write, web.StreamResponse.write_eof

    async def slow(response: web.StreamResponse, data: bytes) -> None:
        if data == PING:
            await asyncio.sleep(2 * PING_S)
        sent.append(data)
        await write(response, data)

    async def end(response: web.StreamResponse, data: bytes = b"") -> None:
        sent.append(b"eof")
        await asyncio.sleep(3 * PING_S)
        await write_eof(response, data)

    async def body(stream: EventStream) -> None:
        await asyncio.sleep(1.5 * PING_S)

    async def look(client: Client, pings: list[int]) -> None:
        monkeypatch.setattr(web.StreamResponse, "write", slow)
        monkeypatch.setattr(web.StreamResponse, "write_eof", end)
        async with client.get("/") as response:
            await response.content.read()
        assert sent[-1] == b"eof"
        assert PING in sent

    run(body, look, PING_S)
