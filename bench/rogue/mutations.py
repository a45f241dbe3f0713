"""Messages with something wrong in them: each field of each message that a node can send, with what
no node should say in its place."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

HUGE_TEXT = "x" * 5_000_000
MANY = 100_000

# Called for each use, so that nothing that is large lies about.
VALUES: dict[str, Any] = {
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: float("-inf"),
    "-1": lambda: -1,
    "2^63": lambda: 2**63,
    "2^64-1": lambda: 2**64 - 1,
    "-2^63": lambda: -(2**63),
    "1e308": lambda: 1e308,
    "nothing": lambda: None,
    "true": lambda: True,
    "a text": lambda: "text",
    "5 MB of text": lambda: HUGE_TEXT,
    "control characters": lambda: "\x1b[2J\x00\r\n" * 50,
    "bytes": lambda: b"\xff\xfe" * 8,
    "an empty list": list,
    "many numbers": lambda: list(range(MANY)),
    "many maps": lambda: [{"a": i} for i in range(1000)],
    "a map": lambda: {"type": "tokens"},
    "a deep list": lambda: deep(900),
}


@dataclass(frozen=True)
class Mutation:
    """What was done where."""

    path: str
    what: str


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def plain(message: Struct) -> Any:
    """A message as it is on the wire: maps and lists."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message))


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every field, entry and part of them."""
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value[:2])
    for key, inner in entries:
        yield (*at, key)
        yield from paths(inner, (*at, key))


def mutated(message: Struct, rng: random.Random) -> tuple[bytes, Mutation]:
    """A frame of a message with one thing changed, missing, or too much."""
    wire = plain(message)
    path = rng.choice(list(paths(wire)))
    where = wire
    for key in path[:-1]:
        where = where[key]
    match rng.randrange(10):
        case 0 if isinstance(where, dict):
            del where[path[-1]]
            what = "missing"
        case 1 if isinstance(where, dict):
            where["another"] = rng.choice(list(VALUES.values()))()
            what = "a field too much"
        case 2:
            return cut(wire, rng), Mutation("", "cut off")
        case _:
            what = rng.choice(list(VALUES))
            where[path[-1]] = VALUES[what]()
    return msgspec.msgpack.encode(wire), Mutation(".".join(map(str, path)), what)


def cut(wire: Any, rng: random.Random) -> bytes:
    """A frame that ends too soon."""
    frame = msgspec.msgpack.encode(wire)
    return frame[: rng.randrange(len(frame))]
