"""Sends a request's bytes over a connection of its own, and reads what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import time
from typing import Literal

from msgspec import Struct

from mlxfleet.bench.hostile.shots import Shot

End = Literal["closed", "reset", "time over", "left"]

ANSWER_TIMEOUT_S = 60.0
# How long to wait for an answer to a request that the server may still wait for.
INCOMPLETE_TIMEOUT_S = 0.5
READ_BYTES = 65536
LARGEST_ANSWER = 50_000_000


class Response(Struct, frozen=True):
    """One HTTP response; `whole` is false if it ended before its end."""

    status: int
    content_type: str
    retry_after: str | None
    body: bytes
    whole: bool


class Outcome(Struct, frozen=True):
    """What a shot was answered, and how its connection ended."""

    responses: list[Response]
    end: End
    raw: bytes
    took_s: float


async def send(host: str, port: int, shot: Shot) -> Outcome:
    """Send a shot. OSError if the server takes no connection."""
    reader, writer = await asyncio.open_connection(host, port)
    began, raw = time.perf_counter(), bytearray()
    reading = asyncio.create_task(read_all(reader, raw))
    try:
        with contextlib.suppress(ConnectionError):
            for piece, pause_s in shot.pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)
        if shot.then == "leave":
            return Outcome([], "left", b"", time.perf_counter() - began)
        if shot.then == "half-close":
            with contextlib.suppress(OSError):
                writer.write_eof()
        end = await ending(reading, shot)
        return Outcome(parse(bytes(raw), shot), end, bytes(raw), time.perf_counter() - began)
    finally:
        reading.cancel()
        writer.transport.abort()
        await asyncio.gather(reading, return_exceptions=True)


async def ending(reading: asyncio.Task[End], shot: Shot) -> End:
    """Wait until the server closes, or until that takes too long."""
    timeout_s = ANSWER_TIMEOUT_S if shot.complete else INCOMPLETE_TIMEOUT_S
    try:
        return await asyncio.wait_for(reading, timeout_s)
    except TimeoutError:
        return "time over"


async def read_all(reader: asyncio.StreamReader, into: bytearray) -> End:
    """Read until the connection ends; how it does."""
    try:
        while (piece := await reader.read(READ_BYTES)) and len(into) < LARGEST_ANSWER:
            into += piece
    except ConnectionError:
        return "reset"
    return "closed"


class Received(io.BytesIO):
    """Bytes that http.client takes for a socket. Closing them does nothing, because the next
    response begins where the last one ended."""

    def makefile(self, mode: str) -> Received:
        """The bytes."""
        return self

    def close(self) -> None:
        """Nothing."""


def parse(raw: bytes, shot: Shot) -> list[Response]:
    """The responses in what came; nothing of what is none."""
    received = Received(raw)
    responses: list[Response] = []
    while received.tell() < len(raw):
        response = http.client.HTTPResponse(
            received,  # type: ignore[arg-type]
            method="HEAD" if shot.no_body else "POST",
        )
        try:
            response.begin()
        except (http.client.HTTPException, ValueError, OSError):
            break
        try:
            body, whole = response.read(), True
        except http.client.IncompleteRead as error:
            body, whole = error.partial, False
        except (http.client.HTTPException, ValueError):
            body, whole = b"", False
        header = response.headers.get
        kind, later = header("Content-Type", ""), header("Retry-After")
        responses.append(Response(response.status, kind, later, body, whole))
    return responses
