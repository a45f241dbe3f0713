"""The format of dumps and of what taps are sent."""

from __future__ import annotations

import contextlib
import io
import itertools

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfleet.common.tap.recorder import Record
from mlxfleet.common.tap.stream import Frame, Process, StreamError, describe, pack, unpack

PROCESS = Process(process="router", pid=7, reason="asked", time=1.5, recorded=9)
RECORDS: list[Record] = [
    (8, 1.25, "sent", "nodes", b"scheduler-0:ab", b"\x81\xa4type\xa4ping"),
    (9, 1.5, "malformed", "tokens-0", b"", b"\xc1"),
]
DUMP = b"".join(pack(PROCESS, RECORDS))


def test_a_stream_comes_back() -> None:
    process, first, second = unpack(io.BytesIO(DUMP))
    assert process == PROCESS
    assert first == Frame(
        process="router",
        number=8,
        time=1.25,
        direction="sent",
        link="nodes",
        peer="scheduler-0:ab",
        frame=b"\x81\xa4type\xa4ping",
    )
    assert isinstance(second, Frame)
    assert (second.peer, second.frame) == ("", b"\xc1")


def test_any_messagepack_library_reads_it() -> None:
    process, first, _ = msgpack.Unpacker(io.BytesIO(DUMP))
    assert (process["record"], process["process"], process["pid"]) == ("process", "router", 7)
    assert (first["record"], first["time"], first["direction"]) == ("frame", 1.25, "sent")
    assert msgpack.unpackb(first["frame"]) == {"type": "ping"}


@given(size=st.integers(0, len(DUMP)))
def test_a_stream_that_is_cut_gives_what_is_whole(size: int) -> None:
    ends = list(itertools.accumulate(map(len, pack(PROCESS, RECORDS)), initial=0))
    got = []
    with contextlib.ExitStack() as expecting:
        if size not in ends:
            expecting.enter_context(pytest.raises(StreamError, match="middle of a frame"))
        got.extend(unpack(io.BytesIO(DUMP[:size])))
    assert got == list(unpack(io.BytesIO(DUMP)))[: len(got)]
    if size in ends:
        assert len(got) == ends.index(size)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",
        b"hello, this is a text file",
        msgpack.packb({"record": "frame"}),
        msgpack.packb([1]),
        b"\x81\xa1\xff\x01",
        b"\x81\x90\x01",
        b"\xc6\x7f\xff\xff\xff" + bytes(100),
    ],
)
def test_garbage_is_an_error(garbage: bytes) -> None:
    with pytest.raises(StreamError):
        list(unpack(io.BytesIO(DUMP + garbage)))


@given(peer=st.binary(max_size=20))
def test_a_peer_may_be_called_anything(peer: bytes) -> None:
    record: Record = (1, 0.0, "received", "nodes", peer, b"")
    packed = b"".join(pack(describe("p", "asked", 1), [record]))
    assert len(list(unpack(io.BytesIO(packed)))) == 2
