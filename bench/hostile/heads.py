"""Good bodies under headers that are wrong."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Sequence

from mlxfleet.bench.hostile.shots import API_KEYS, CRLF, Headers, Shot, bearer, once, request

BODY = b'{"prompt": "hello", "max_tokens": 2, "temperature": 0}'
BOMB_BYTES = 64_000_000

Head = Callable[[random.Random], Shot]


def shot(
    kind: str,
    headers: dict[bytes, bytes] | None = None,
    *,
    body: bytes = BODY,
    more: Headers = (),
    without: Sequence[bytes] = (),
    **expected: object,
) -> Shot:
    """The good request with other headers."""
    data = request(body, headers=headers, more=more, without=without)
    fields = {"kind": f"headers: {kind}", "pieces": once(data), **expected}
    return Shot(**fields)  # type: ignore[arg-type]


def length(rng: random.Random) -> Shot:
    """A Content-Length that is none, or is not the body's."""
    size = len(BODY)
    wrong: tuple[bytes, ...] = (b"-1", b"abc", b"1e3", b"+5", b"0x10", b"5, 5", b"", b" ", b"\xb2")
    if rng.random() < 0.6:
        return shot("length", {b"Content-Length": rng.choice(wrong)}, parses=False, complete=False)
    match rng.randrange(4):
        case 0:
            longer = rng.choice((size + 1, size * 10, 10**6, 10**9, 10**30))
            other = {b"Content-Length": b"%d" % longer}
            return shot("length too large", other, parses=False, complete=False, refused=True)
        case 1:
            other = {b"Content-Length": b"%d" % rng.randrange(size)}
            return shot("length too small", other, parses=False, refused=True)
        case 2:
            twice = [(b"Content-Length", b"%d" % (size + 1))]
            return shot("two lengths", more=twice, parses=False, complete=False)
        case _:
            return shot("no length", without=[b"Content-Length"], parses=False, refused=True)


def transfer_encoding(rng: random.Random) -> Shot:
    """Transfer-Encoding that is unknown, or beside a length."""
    values = (
        b"identity",
        b"gzip",
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"xchunked",
        b"chunked\x0b",
        b"Chunked",
        b"chunked;q=1",
        b"",
    )
    header = {b"Transfer-Encoding": rng.choice(values)}
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    body = rng.choice((BODY, chunked))
    without = rng.choice(([], [b"Content-Length"]))
    return shot(
        "transfer encoding", header, body=body, without=without, parses=False, complete=False
    )


def key(rng: random.Random) -> Shot:
    """Keys that are wrong, missing, or in another form."""
    good = API_KEYS[0].encode()
    wrong = (
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer " + good[:-1],
        b"Bearer " + good + b"x",
        b"Bearer " + good.upper(),
        b"Basic " + good,
        b"Basic Og==",
        good,
        b"Bearer \xff\xfe",
        b"Bearer " + "schlüssel".encode(),
        b"Bearer " + b"k" * 7_000,
        b"Bearer null",
        b"Bearer *",
        b"Bearer " + good + b" " + good,
    )
    if rng.random() < 0.8:
        return shot("key", {b"Authorization": rng.choice(wrong)}, access="none")
    if rng.random() < 0.5:
        return shot("no key", without=[b"Authorization"], access="none")
    return shot("two keys", more=[(b"Authorization", b"Bearer wrong")], parses=False)


def size(rng: random.Random) -> Shot:
    """Many headers, and long ones."""
    match rng.randrange(4):
        case 0:
            more = [(b"X-Many-%d" % i, b"x") for i in range(rng.choice((50, 200, 2_000)))]
        case 1:
            more = [(b"X-Long", b"x" * rng.choice((4_000, 8_000, 9_000, 100_000, 1_000_000)))]
        case 2:
            more = [(b"X" * rng.choice((1_000, 9_000, 100_000)), b"x")]
        case _:
            more = [(b"X-Session-Id", b"s" * rng.choice((500, 8_000)))]
    return shot("size", more=more, parses=False)


def spelling(rng: random.Random) -> Shot:
    """Header lines that are not lines of headers."""
    lines = (
        b"no colon here",
        b": no name",
        b"Space : x",
        b" X-Folded: x",
        b"X-Null: a\x00b",
        b"X-Bare: a\rb",
        b"X-Bare: a\nContent-Length: 3",
        b"X-Byte: \xff\xfe\x80",
        b"X-\xc3\xa9: x",
        b"X(Y): x",
        b"Content-Length : 3",
        b"\x01: x",
        b"X-Fold: a\r\n b",
    )
    data = request(BODY)
    at = data.index(CRLF) + len(CRLF)
    broken = data[:at] + rng.choice(lines) + CRLF + data[at:]
    return Shot(kind="headers: spelling", pieces=once(broken), parses=False, complete=False)


def content_type(rng: random.Random) -> Shot:
    """Media types other than JSON's, and odd forms of it."""
    types = (
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"multipart/form-data",
        b"application/json; charset=utf-16",
        b"application/json; charset=nonsense",
        b"application/json; charset=" + b"x" * 5_000,
        b"application/json;;;",
        b"APPLICATION/JSON",
        b"json",
        b"/",
        b"",
        b"\xff",
    )
    if rng.random() < 0.1:
        return shot("no content type", without=[b"Content-Type"])
    return shot("content type", {b"Content-Type": rng.choice(types)})


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
    """Headers that the server reads, with odd values."""
    cases: tuple[tuple[bytes, bytes], ...] = (
        (b"X-Request-Timeout", b"nan"),
        (b"X-Request-Timeout", b"inf"),
        (b"X-Request-Timeout", b"-1"),
        (b"X-Request-Timeout", b"0"),
        (b"X-Request-Timeout", b"1e400"),
        (b"X-Request-Timeout", b"1e-9"),
        (b"X-Request-Timeout", b"1_0"),
        (b"X-Request-Timeout", b"9" * 5_000),
        (b"X-Request-Timeout", "\u0663".encode()),
        (b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),
        (b"traceparent", b"\xff" * 50),
        (b"X-Session-Id", b"\xff\xfe"),
        (b"Origin", b"http://evil.example"),
        (b"Origin", b"null"),
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
    name, value = rng.choice(cases)
    # Without Connection: close the answer ends where its length says.
    return shot(f"meaning of {name.decode()}", {name: value}, parses=name != b"Connection")


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


HEADS: tuple[Head, ...] = (
    length,
    transfer_encoding,
    key,
    size,
    spelling,
    content_type,
    content_encoding,
    meaning,
    expectation,
    websocket,
)


def wrong_headers(rng: random.Random) -> Shot:
    """One of them."""
    return rng.choice(HEADS)(rng)
