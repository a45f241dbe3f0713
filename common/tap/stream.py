"""Recorded frames as a stream of MessagePack maps: what dumps hold, and what taps are sent.

A `process` map comes first, then a `frame` map for each frame. Any MessagePack library reads it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

import msgpack
import msgspec
from msgspec import Struct

from mlxfleet.common.errors import MlxfleetError
from mlxfleet.common.tap.recorder import Direction, Record

FORMAT = 1
# A frame of a link is at most 64 MB.
MAX_BUFFER_BYTES = 80 * 1024 * 1024


class StreamError(MlxfleetError):
    """What was read is not a stream of recorded frames."""


class Process(Struct, tag_field="record", tag="process", frozen=True, kw_only=True):
    """Whose frames follow. `recorded` counts all frames that it has recorded so far, `reason` says
    why they were written, `time` when, in seconds since 1970."""

    format: int = FORMAT
    process: str
    pid: int
    reason: str
    time: float
    recorded: int


class Frame(Struct, tag_field="record", tag="frame", frozen=True, kw_only=True):
    """A frame that crossed a border of `process`, its `number`th, at `time` in seconds since 1970.
    `peer` is the other end's identity, "" where the link has only one other end."""

    process: str
    number: int
    time: float
    direction: Direction
    link: str
    peer: str
    frame: bytes


Entry = Process | Frame


def describe(process: str, reason: str, recorded: int) -> Process:
    """This process, as it is now."""
    return Process(
        process=process, pid=os.getpid(), reason=reason, time=time.time(), recorded=recorded
    )


def pack(process: Process, records: Iterable[Record]) -> Iterator[bytes]:
    """The stream, one map at a time."""
    encoder = msgspec.msgpack.Encoder()
    yield encoder.encode(process)
    for number, at, direction, link, peer, frame in records:
        yield encoder.encode(
            Frame(
                process=process.process,
                number=number,
                time=at,
                direction=direction,
                link=link,
                peer=peer.decode(errors="backslashreplace"),
                frame=frame,
            )
        )


def unpack(file: IO[bytes]) -> Iterator[Entry]:
    """Read a stream; StreamError where it is none, or ends in the middle of a map."""
    unpacker: Any = msgpack.Unpacker(file, max_buffer_size=MAX_BUFFER_BYTES)
    end = 0
    try:
        for entry in unpacker:
            yield msgspec.convert(entry, Entry)
            end = unpacker.tell()
    except (ValueError, TypeError, msgpack.UnpackException, msgspec.ValidationError) as error:
        raise StreamError(f"not a recorded frame at byte {end}: {error}") from error
    if end != file.tell():
        raise StreamError(f"it ends in the middle of a frame, at byte {end}")
