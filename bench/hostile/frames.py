"""Requests that are framed in odd ways: chunks, versions, halves, and bytes that are no HTTP."""

from __future__ import annotations

import random
from collections.abc import Callable

from mlxfleet.bench.hostile.heads import BODY
from mlxfleet.bench.hostile.shots import CRLF, Shot, once, request

CHUNKED = {b"Transfer-Encoding": b"chunked"}
SLOW_S = 0.15
TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(154)
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)


def chunked_request(chunks: bytes) -> bytes:
    """The good request's headers before these chunks."""
    return request(headers=CHUNKED, without=[b"Content-Length"]) + chunks


def good_chunks(rng: random.Random) -> Shot:
    """The body in chunks, with extensions and a trailer as they are allowed."""
    at = rng.randrange(1, len(BODY))
    extension = rng.choice((b"", b";name=value", b";" + b"x" * 500))
    trailer = rng.choice((b"", b"X-Trailer: yes\r\n"))
    chunks = b"".join(
        b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in (BODY[:at], BODY[at:])
    )
    data = chunked_request(chunks + b"0\r\n" + trailer + CRLF)
    return Shot(kind="frames: chunks", pieces=once(data), parses=not extension and not trailer)


def bad_chunks(rng: random.Random) -> Shot:
    """Chunks whose sizes are wrong, or none."""
    size = len(BODY)
    wrong = (
        b"zz\r\n" + BODY,
        b"-1\r\n" + BODY,
        b"+%x\r\n%s\r\n0\r\n\r\n" % (size, BODY),
        b"0x%x\r\n%s\r\n0\r\n\r\n" % (size, BODY),
        b"f" * 16 + CRLF + BODY,
        b"f" * 5_000 + CRLF + BODY,
        b"%x\r\n%s0\r\n\r\n" % (size, BODY),
        b"%x\n%s\n0\n\n" % (size, BODY),
        b"%x\r\n%s\r\n" % (size, BODY),
        b"%x;%s\r\n%s\r\n0\r\n\r\n" % (size, b"e" * 100_000, BODY),
        b"%x\r\n%s\r\n0\r\n%s\r\n" % (size, BODY, b"T: x\r\n" * 20_000),
        b"\r\n\r\n",
        rng.randbytes(200),
    )
    data = chunked_request(rng.choice(wrong))
    return Shot(kind="frames: bad chunks", pieces=once(data), parses=False, complete=False)


def many_chunks(rng: random.Random) -> Shot:
    """A body byte by byte."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    return Shot(kind="frames: many chunks", pieces=once(chunked_request(chunks)))


def version(rng: random.Random) -> Shot:
    """Other versions of HTTP, and what is none."""
    if rng.random() < 0.4:
        data = request(BODY, version=b"HTTP/1.0")
        return Shot(kind="frames: HTTP/1.0", pieces=once(data))
    wrong = (
        b"GET /health\r\n",
        HTTP_2,
        TLS_HELLO,
        request(BODY, version=b"HTTP/1.2"),
        request(BODY, version=b"HTTP/2"),
        request(BODY, version=b"HTTP/11"),
        request(BODY, version=b"http/1.1"),
        request(BODY, version=b"HTTP/1.1 extra"),
        b"\r\n" * 50 + request(BODY),
        rng.randbytes(500),
        bytes(1_000),
        b"A" * 100_000,
        b"SSH-2.0-client\r\n",
    )
    data = rng.choice(wrong)
    return Shot(kind="frames: version", pieces=once(data), parses=False, complete=False)


def pipelined(rng: random.Random) -> Shot:
    """Several requests at once; the last ends the connection."""
    count = rng.randrange(2, 6)
    alive = {b"Connection": b"keep-alive"}
    first = request(method=b"GET", target=b"/v1/models", headers=alive) * (count - 1)
    return Shot(kind="frames: pipelined", pieces=once(first + request(BODY)), answers=count)


def half_closed(rng: random.Random) -> Shot:
    """A client that has nothing more to say and waits."""
    return Shot(kind="frames: half closed", pieces=once(request(BODY)), then="half-close")


def cut_short(rng: random.Random) -> Shot:
    """A client that goes away somewhere in its request, or right after it."""
    data = request(BODY)
    sent = data[: rng.randrange(1, len(data) + 1)]
    return Shot(
        kind="frames: cut short", pieces=once(sent), then="leave", parses=False, complete=False
    )


def left_in_stream(rng: random.Random) -> Shot:
    """A client that goes away while a long answer comes."""
    body = b'{"prompt": "hello", "max_tokens": 300, "ignore_eos": true, "stream": true, "n": 2}'
    return Shot(
        kind="frames: left in stream", pieces=[(request(body), rng.uniform(0, 0.3))], then="leave"
    )


def slow(rng: random.Random) -> Shot:
    """A request in pieces, with pauses."""
    data, pieces = request(BODY), []
    for _ in range(rng.randrange(2, 6)):
        at = rng.randrange(1, max(2, len(data)))
        pieces.append((data[:at], rng.uniform(0, SLOW_S)))
        data = data[at:]
    return Shot(kind="frames: slow", pieces=[*pieces, (data, 0.0)])


FRAMES: tuple[Callable[[random.Random], Shot], ...] = (
    good_chunks,
    bad_chunks,
    many_chunks,
    version,
    pipelined,
    half_closed,
    cut_short,
    left_in_stream,
    slow,
)


def odd_frames(rng: random.Random) -> Shot:
    """One of them."""
    return rng.choice(FRAMES)(rng)
