"""Clients that take memory or time before a request is admitted, for `body_bounds`.

Usage: `python -m mlxfleet.bench.body_attacks URL CASE`; prints how often each answer came.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import sys
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import uvloop

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BODY_BYTES = 15_000_000
UNFINISHED = 100
GZIP_BODIES = 20
GZIP_BYTES = 400_000_000
SLOW_CLIENTS = 400
DEAF_CLIENTS = 12
LEAVERS = 30
HELD_ANSWERS = 2
DEAF_BUFFER_BYTES = 4096
HOLD_S = 4.0
PIECE_BYTES = 256 * 1024
ANSWER_S = 90.0

Answers = Counter[str]


class Target:
    """A server, by its address."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80

    async def connect(
        self, buffer_bytes: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection, of which the system keeps at most so much that is not read."""
        sock = socket.socket()
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self._host, self._port))
        return await asyncio.open_connection(sock=sock)

    async def send(
        self, body: bytes, path: str = COMPLETIONS, *, headers: str = "", missing: int = 0
    ) -> str:
        """The status of a request's answer. With `missing` bytes of its body it is never whole, and
        is given up after HOLD_S."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(head(path, len(body) + missing, headers))
                for start in range(0, len(body), PIECE_BYTES):
                    writer.write(body[start : start + PIECE_BYTES])
                    await writer.drain()
            return await answer(reader, HOLD_S if missing else ANSWER_S)
        except TimeoutError:
            return "not read"
        except ConnectionError:
            return "reset"
        finally:
            writer.close()


async def answer(reader: asyncio.StreamReader, within_s: float) -> str:
    """The status of an answer, or what came instead."""
    try:
        async with asyncio.timeout(within_s):
            line = await reader.readline()
    except TimeoutError:
        return "no answer"
    except ConnectionError:
        return "reset"
    return line.split()[1].decode() if line else "closed"


def head(path: str, size: int, headers: str = "") -> bytes:
    """A request's line and headers."""
    lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{lines}{headers}Content-Length: {size}\r\n\r\n".encode()


async def unfinished(target: Target) -> Answers:
    """Many large bodies that lack their last byte."""
    body = b'{"prompt":"' + b"a" * BODY_BYTES
    return Counter(await asyncio.gather(*(target.send(body, missing=1) for _ in range(UNFINISHED))))


async def compressed(target: Target) -> Answers:
    """Some kilobytes each that would be gigabytes."""
    body = gzip.compress(bytes(GZIP_BYTES), compresslevel=9)
    sent = (target.send(body, headers="Content-Encoding: gzip\r\n") for _ in range(GZIP_BODIES))
    return Counter(await asyncio.gather(*sent))


async def token_list(target: Target) -> Answers:
    """One prompt of millions of token ids."""
    return Counter([await target.send(b'{"prompt":[' + filled(b"1234,") + b"1]}")])


async def shapes(target: Target) -> Answers:
    """Bodies that are slow to decode, or large when they are, one after the other."""
    message = b'{"role":"user","content":"a"}'
    bodies = [
        (COMPLETIONS, b'{"prompt":[' + filled(b'"a",') + b'"a"]}'),
        (COMPLETIONS, b'{"prompt":[' + filled(b"[1],") + b"[1]]}"),
        (COMPLETIONS, b'{"prompt":[' + filled(b"[],") + b"[]]}"),
        (COMPLETIONS, b'{"prompt":' + filled(b"[") + b"}"),
        (COMPLETIONS, b'{"prompt":"' + filled(b"a") + b'"}'),
        (COMPLETIONS, b'{"prompt":"' + filled("\N{GRINNING FACE}".encode()) + b'"}'),
        (COMPLETIONS, b'{"prompt":"a","logit_bias":{' + filled(b'"1":1,') + b'"1":1}}'),
        (COMPLETIONS, b'{"prompt":"a","unknown":{' + filled(b'"1":1,') + b'"1":1}}'),
        (COMPLETIONS, b'{"prompt":"a",' + filled(b'"n":1,') + b'"n":1}'),
        (CHAT, b'{"messages":[' + filled(message + b",") + message + b"]}"),
    ]
    return Counter([await target.send(body, path) for path, body in bodies])


async def large_texts(target: Target) -> Answers:
    """Large texts at once, of which each takes four bytes a character when it is decoded."""
    body = b'{"prompt":"' + filled(b"a") + "\N{GRINNING FACE}".encode() + b'"}'
    return Counter(await asyncio.gather(*(target.send(body) for _ in range(10))))


async def leavers(target: Target) -> Answers:
    """Clients that leave as soon as they have sent a large body, one after the other."""
    bodies = [b'{"prompt":"' + filled(b"a ") + b'"}', b'{"prompt":[' + filled(b"1234,") + b"1]}"]
    for number in range(LEAVERS):
        body = bodies[number % 2]
        _, writer = await target.connect()
        writer.write(head(COMPLETIONS, len(body)) + body)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(HOLD_S):
                await writer.drain()
        writer.close()
    return Counter({"left": LEAVERS})


async def wide(target: Target) -> Answers:
    """Answers with as many log-probabilities as a request may ask for: refused if they would have
    to be held until the end, otherwise the client does not read them."""
    asked = b'"prompt":"a","n":64,"max_tokens":2500,"logprobs":20,"ignore_eos":true'
    held = b'"prompt":"a","n":59,"max_tokens":400,"logprobs":20,"ignore_eos":true'
    bodies = [b"{" + asked + b"}", *[b"{" + held + b"}"] * HELD_ANSWERS]
    answers = [target.send(body) for body in bodies]
    streaming = target.send(b"{" + asked + b',"stream":true}')
    return Counter(await asyncio.gather(*answers, streaming))


async def slow(target: Target) -> Answers:
    """Clients that do not finish their request's head, or do not begin one; the answers say what
    became of them."""

    async def wait(sent: bytes) -> str:
        reader, writer = await target.connect()
        writer.write(sent)
        try:
            return await answer(reader, ANSWER_S)
        finally:
            writer.close()

    heads = (b"", b"POST /v1/comp", head(COMPLETIONS, 100) + b'{"prompt')
    return Counter(await asyncio.gather(*(wait(heads[i % 3]) for i in range(SLOW_CLIENTS))))


async def deaf(target: Target) -> Answers:
    """Clients that ask for long streams and never read them, with small buffers of their own."""
    body = (
        b'{"prompt":"a","stream":true,"max_tokens":3000,"logprobs":20,"temperature":0,'
        b'"ignore_eos":true}'
    )
    writers = []
    for _ in range(DEAF_CLIENTS):
        _, writer = await target.connect(DEAF_BUFFER_BYTES)
        writer.write(head(COMPLETIONS, len(body)) + body)
        writers.append(writer)
    await asyncio.sleep(3 * HOLD_S)
    for writer in writers:
        writer.transport.abort()
    return Counter({"unread": len(writers)})


CASES: dict[str, Callable[[Target], Coroutine[Any, Any, Answers]]] = {
    "unfinished": unfinished,
    "compressed": compressed,
    "token_list": token_list,
    "shapes": shapes,
    "large_texts": large_texts,
    "leavers": leavers,
    "wide": wide,
    "slow": slow,
    "deaf": deaf,
}


def filled(piece: bytes) -> bytes:
    """A piece so often that it fills a large body."""
    return piece * (BODY_BYTES // len(piece))


def main() -> None:
    """Run a case."""
    url, case = sys.argv[1:]
    answers = uvloop.run(CASES[case](Target(url)))
    print(", ".join(f"{count} x {answer}" for answer, count in sorted(answers.items())))


if __name__ == "__main__":
    main()
