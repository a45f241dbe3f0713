"""Reading what a server sends back, whatever it is."""

from __future__ import annotations

import asyncio

import pytest

from mlxfleet.bench.hostile.send import Outcome, parse, send
from mlxfleet.bench.hostile.shots import Shot, once, request

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def shot(**fields: object) -> Shot:
    """A request."""
    return Shot(**{"kind": "test", "pieces": once(request(b"{}")), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "bodies"),
    [
        (ANSWER, [b"{}"]),
        (ANSWER * 3, [b"{}"] * 3),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER, [b"{}"]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", [b"{}"]),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", [b"until the end"]),
        (b"", []),
        (b"SSH-2.0\r\n", []),
    ],
)
def test_responses_are_read_one_after_the_other(raw: bytes, bodies: list[bytes]) -> None:
    responses = parse(raw, shot())
    assert [response.body for response in responses] == bodies
    assert all(response.whole for response in responses)


def test_a_response_that_ends_early_is_not_whole() -> None:
    assert [response.whole for response in parse(ANSWER[:-1], shot())] == [False]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}"
    assert [response.whole for response in parse(chunked, shot())] == [False]


async def answered_by(said: bytes, of: Shot) -> Outcome:
    """A server that says this to everybody and keeps the connection open."""
    over = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await over.wait()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        return await send("127.0.0.1", port, of)
    finally:
        over.set()
        server.close()


def test_what_came_before_the_time_was_over_counts() -> None:
    outcome = asyncio.run(answered_by(ANSWER, shot(complete=False)))
    assert outcome.end == "time over"
    assert [response.status for response in outcome.responses] == [200]
