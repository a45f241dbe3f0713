"""Good bodies under headers that are not as HTTP has them, or with a wrong key."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from mlxfleet.bench.hostile.shots import API_KEYS, CRLF, Headers, Shot, once, request

BODY = b'{"prompt": "hello", "max_tokens": 2, "temperature": 0}'

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


HEADS: tuple[Head, ...] = (length, transfer_encoding, key, size, spelling)


def malformed_headers(rng: random.Random) -> Shot:
    """One of them."""
    return rng.choice(HEADS)(rng)
