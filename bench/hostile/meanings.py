"""Good bodies under headers that are well formed and mean something odd."""

from __future__ import annotations

import gzip
import random
import zlib

from mlxfleet.bench.hostile.heads import BODY, Head, shot
from mlxfleet.bench.hostile.shots import CRLF, Shot, bearer, once, request

BOMB_BYTES = 64_000_000


def content_type(rng: random.Random) -> Shot:
    """Media types other than JSON's, and odd forms of it."""
    others = (
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"multipart/form-data",
        b"json",
        b"/",
        b"\xff",
    )
    forms = (
        b"application/json; charset=utf-16",
        b"application/json; charset=nonsense",
        b"application/json; charset=" + b"x" * 5_000,
        b"application/json;;;",
        b"APPLICATION/JSON",
    )
    if rng.random() < 0.1:
        return shot("no content type", without=[b"Content-Type"], refused=True)
    other = rng.random() < 0.5
    chosen = rng.choice(others if other else forms)
    # A page can send the first kind without asking; the body is JSON nevertheless.
    return shot("content type", {b"Content-Type": chosen}, refused=other)


def content_encoding(rng: random.Random) -> Shot:
    """Compressed bodies, good and bad."""
    packed = gzip.compress(BODY, mtime=0)
    cases: tuple[tuple[bytes, bytes, bool], ...] = (
        (b"gzip", packed, False),
        (b"gzip", packed[: len(packed) // 2], True),
        (b"gzip", BODY, True),
        (b"gzip", rng.randbytes(100), True),
        (b"gzip", b"", True),
        (b"gzip", b"\x1f\x8b", True),
        (b"deflate", zlib.compress(BODY), False),
        (b"deflate", b"\x78\x9c" + rng.randbytes(50), True),
        (b"br", b"\x0b\x02\x80nonsense", True),
        (b"zstd", b"\x28\xb5\x2f\xfd" + rng.randbytes(20), True),
        (b"gzip, gzip", gzip.compress(packed, mtime=0), False),
        (b"nonsense", BODY, False),
        (b"identity", BODY, False),
        (b"\xff", BODY, False),
    )
    encoding, body, refused = rng.choice(cases)
    if rng.random() < 0.02:
        encoding, body, refused = b"gzip", gzip.compress(b" " * BOMB_BYTES, mtime=0), True
    header = {b"Content-Encoding": encoding}
    # aiohttp answers broken streams itself where it unpacks while it parses.
    return shot("content encoding", header, body=body, refused=refused)


def meaning(rng: random.Random) -> Shot:
    """Headers that the server reads, with odd values; the first ones it has to refuse."""
    wrong: tuple[tuple[bytes, bytes], ...] = (
        (b"X-Request-Timeout", b"nan"),
        (b"X-Request-Timeout", b"inf"),
        (b"X-Request-Timeout", b"-1"),
        (b"X-Request-Timeout", b"0"),
        (b"X-Request-Timeout", b"1e400"),
        (b"X-Request-Timeout", b"soon"),
        (b"Origin", b"http://evil.example"),
        (b"Origin", b"null"),
    )
    odd: tuple[tuple[bytes, bytes], ...] = (
        (b"X-Request-Timeout", b"1e-9"),
        (b"X-Request-Timeout", b"9" * 5_000),
        (b"X-Request-Timeout", "\u0663".encode()),
        (b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),
        (b"traceparent", b"\xff" * 50),
        (b"X-Session-Id", b"\xff\xfe"),
        (b"Host", b"evil.example"),
        (b"Host", b""),
        (b"Host", b"[::1"),
        (b"Host", b"127.0.0.1:99999999"),
        (b"Host", b"a" * 5_000),
        (b"Range", b"bytes=0-"),
        (b"If-None-Match", b"*"),
        (b"Cookie", b"=;=;=" * 100),
        (b"X-Forwarded-For", b"127.0.0.1"),
        (b"X-HTTP-Method-Override", b"DELETE"),
        (b"Upgrade", b"h2c"),
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"Connection", b"\xff"),
    )
    refused = rng.random() < 0.4
    name, value = rng.choice(wrong if refused else odd)
    # Without Connection: close the server may keep the connection open.
    parses = name != b"Connection"
    kind = f"meaning of {name.decode()}"
    return shot(kind, {name: value}, parses=parses, complete=parses, refused=refused)


def expectation(rng: random.Random) -> Shot:
    """A body that is sent after the server has agreed, or without waiting for that."""
    value = rng.choice((b"100-continue", b"100-Continue", b"200-ok", b"\xff"))
    data = request(BODY, headers={b"Expect": value})
    head, _, body = data.partition(CRLF + CRLF)
    pieces = [(head + CRLF + CRLF, rng.choice((0.0, 0.2))), (body, 0.0)]
    return Shot(kind="headers: Expect", pieces=pieces, parses=False)


def websocket(rng: random.Random) -> Shot:
    """Another protocol is asked for."""
    more = [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA==")]
    headers = {b"Connection": b"Upgrade"}
    data = request(
        method=b"GET", target=b"/v1/models", headers=headers, more=[*more, bearer("wrong")]
    )
    return Shot(
        kind="headers: websocket",
        pieces=once(data),
        path="/v1/models",
        parses=False,
        complete=False,
    )


MEANINGS: tuple[Head, ...] = (content_type, content_encoding, meaning, expectation, websocket)


def odd_meanings(rng: random.Random) -> Shot:
    """One of them."""
    return rng.choice(MEANINGS)(rng)
