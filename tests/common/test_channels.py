"""Channels over real sockets: round trips, malformed frames, bursts, peers that are gone."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from mlxfleet.common import channels
from mlxfleet.common.channels import MESSAGES_PER_TURN, Channel

DEADLINE_S = 5.0


class Ping(Struct, tag="ping"):
    """A question."""

    number: int


class Pong(Struct, tag="pong"):
    """An answer."""

    words: list[str]


Either = Ping | Pong


class KeepingContext(zmq.Context[zmq.Socket[bytes]]):
    """Keeps its sockets from being collected, and warned about, before the end of a test."""

    kept: ClassVar[list[object]] = []

    def socket(self, *arguments: Any, **options: Any) -> zmq.Socket[bytes]:
        """A socket."""
        made = super().socket(*arguments, **options)
        self.kept.append(made)
        return made


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    """A context that closes what the test opens."""
    made = KeepingContext()
    yield made
    made.destroy(linger=0)
    made.kept.clear()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def address(folder: Path) -> str:
    """An endpoint of this test."""
    return f"ipc://{folder}/socket"


class Link:
    """A server's channel, and a bare socket with which a client can send it anything."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self.server: Channel[Either, Either] = channels.server(context, Either, address)
        self.raw = context.socket(zmq.DEALER)
        self.raw.setsockopt(zmq.IDENTITY, b"raw")
        self.raw.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1000))
        self.raw.connect(address)
        self._inbox: deque[Either] = deque()

    def send_good(self, number: int) -> None:
        """Send a message that is in order."""
        self.raw.send(msgspec.msgpack.encode(Ping(number)))

    def receive_one(self) -> Either:
        """The next message."""
        if not self._inbox:
            self._inbox.extend(message for _, message in take(self.server, 1))
        return self._inbox.popleft()


@pytest.fixture
def link(context: zmq.Context[Any], address: str) -> Link:
    """A server and a client that may misbehave."""
    return Link(context, address)


def take(channel: Channel[Any, Any], count: int) -> list[tuple[bytes, Any]]:
    """The next messages of a channel that is not attached, with their senders."""
    taken: list[tuple[bytes, Any]] = []
    end = time.monotonic() + DEADLINE_S
    while len(taken) < count:
        assert time.monotonic() < end, f"only {len(taken)} of {count} messages came"
        channel.wait(0.1)
        taken += channel.receive()
    return taken


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        await asyncio.sleep(0.002)


# --- round trips ----------------------------------------------------------------------------------


def test_a_message_gets_there_and_its_answer_back(context: zmq.Context[Any], address: str) -> None:
    server: Channel[Either, Either] = channels.server(context, Either, address)
    client: Channel[Either, Either] = channels.client(context, Either, address, "me")
    assert client.send(Ping(1))
    assert take(server, 1) == [(b"me", Ping(1))]
    assert server.send(Pong(["a", "ü"]), to=b"me")
    assert take(client, 1) == [(b"", Pong(["a", "ü"]))]


def test_a_server_tells_its_clients_apart(context: zmq.Context[Any], address: str) -> None:
    server: Channel[Either, Either] = channels.server(context, Either, address)
    clients = {
        name: channels.client(context, Either, address, name.decode()) for name in (b"a", b"b")
    }
    for number, client in enumerate(clients.values()):
        client.send(Ping(number))
    assert dict(take(server, 2)) == {b"a": Ping(0), b"b": Ping(1)}
    for name in clients:
        server.send(Pong([name.decode()]), to=name)
    for name, client in clients.items():
        assert take(client, 1) == [(b"", Pong([name.decode()]))]


def test_messages_of_one_sender_stay_in_order(context: zmq.Context[Any], address: str) -> None:
    server: Channel[Either, Either] = channels.server(context, Either, address)
    client: Channel[Either, Either] = channels.client(context, Either, address, "me")
    for number in range(500):
        client.send(Ping(number))
    assert [message.number for _, message in take(server, 500)] == list(range(500))


def test_one_way_links_need_no_identity(context: zmq.Context[Any], address: str) -> None:
    pull = Channel[Either, None](context, zmq.PULL, Either, bind=address)
    push = Channel[None, Either](context, zmq.PUSH, None, connect=address)
    assert push.send(Ping(1))
    assert take(pull, 1) == [(b"", Ping(1))]


def test_receive_takes_no_more_than_its_limit(link: Link) -> None:
    for number in range(5):
        link.send_good(number)
    received: list[Either] = []
    end = time.monotonic() + DEADLINE_S
    while len(received) < 3 and time.monotonic() < end:
        link.server.wait(0.1)
        received += [message for _, message in link.server.receive(3 - len(received))]
    assert received == [Ping(0), Ping(1), Ping(2)]


def test_wait_gives_up_after_its_timeout(link: Link) -> None:
    assert link.server.wait(0.0) is False
    assert list(link.server.receive()) == []


# --- malformed frames -----------------------------------------------------------------------------

GOOD = msgspec.msgpack.encode(Ping(1))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[:-1], id="truncated"),
        pytest.param(GOOD + b"\x00", id="longer than its message"),
        pytest.param(msgpack.packb([1, 2]), id="not a map"),
        pytest.param(msgpack.packb({"number": 1}), id="no tag"),
        pytest.param(msgpack.packb({"type": "pang", "number": 1}), id="unknown tag"),
        pytest.param(msgpack.packb({"type": 1, "number": 1}), id="tag of a wrong type"),
        pytest.param(msgpack.packb({"type": "ping"}), id="missing field"),
        pytest.param(msgpack.packb({"type": "ping", "number": "1"}), id="wrong type"),
        pytest.param(msgpack.packb({"type": "pong", "words": [b"\xff"]}), id="bytes for a string"),
        pytest.param(b"\x82\xa4type\xa4pong\xa5words\x91\xa1\xff", id="not UTF-8"),
        pytest.param(b"\x82\xa4type\xa4pong\xa1x" + b"\x91" * 100_000, id="nested too deep"),
        pytest.param(b"\x82\xa4type\xa4pong\xa5words\xdd\xff\xff\xff\xff", id="a huge length"),
        pytest.param(b"\xc1", id="a byte that MessagePack never uses"),
    ],
)
def test_a_malformed_frame_is_counted_and_dropped(link: Link, frame: bytes) -> None:
    link.raw.send(frame)
    link.send_good(7)
    assert link.receive_one() == Ping(7)
    assert link.server.dropped_frames == 1


@pytest.mark.parametrize("parts", [[GOOD, GOOD], [b"", GOOD], [GOOD, b"", b""]])
def test_a_wrong_number_of_parts_is_counted_and_dropped(link: Link, parts: list[bytes]) -> None:
    link.raw.send_multipart(parts)
    link.send_good(7)
    assert link.receive_one() == Ping(7)
    assert link.server.dropped_frames == 1


def test_an_oversized_frame_is_counted_and_dropped(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.server, "_max_bytes", 100)
    link.raw.send(msgspec.msgpack.encode(Pong(["x" * 100])))
    link.raw.send(msgspec.msgpack.encode(Pong(["x" * 60])))
    assert link.receive_one() == Pong(["x" * 60])
    assert link.server.dropped_frames == 1


def test_unknown_fields_are_passed_over(link: Link) -> None:
    link.raw.send(msgpack.packb({"type": "ping", "number": 7, "from_the_future": [1]}))
    assert link.receive_one() == Ping(7)
    assert link.server.dropped_frames == 0


def test_whatever_bytes_come_the_next_good_message_arrives(link: Link) -> None:
    @settings(max_examples=200, deadline=None)
    @given(
        frames=st.lists(
            st.one_of(
                st.binary(max_size=64),
                st.binary(max_size=8).map(lambda tail: GOOD[:6] + tail),
                st.integers(0, len(GOOD) * 8 - 1).map(flipped),
            ),
            max_size=5,
        )
    )
    def check(frames: list[bytes]) -> None:
        before = link.server.dropped_frames
        for frame in frames:
            link.raw.send(frame)
        link.raw.send(msgspec.msgpack.encode(Pong(["the end"])))
        passed = 0
        while link.receive_one() != Pong(["the end"]):
            passed += 1
        assert link.server.dropped_frames - before + passed == len(frames)

    check()


def flipped(bit: int) -> bytes:
    """A good frame with one bit turned."""
    frame = bytearray(GOOD)
    frame[bit // 8] ^= 1 << bit % 8
    return bytes(frame)


# --- peers that are gone --------------------------------------------------------------------------


def test_a_send_to_an_unknown_peer_says_so(link: Link) -> None:
    assert link.server.send(Ping(1), to=b"nobody") is False
    assert link.server.unsent == 1


def test_a_send_to_a_peer_that_left_says_so(link: Link) -> None:
    link.send_good(1)
    link.receive_one()
    assert link.server.send(Ping(1), to=b"raw")
    link.raw.close()
    end = time.monotonic() + DEADLINE_S
    while link.server.send(Ping(1), to=b"raw"):
        assert time.monotonic() < end, "sends to nobody still succeed"
    assert link.server.unsent == 1


def test_a_send_into_a_full_buffer_says_so(
    context: zmq.Context[Any], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "HIGH_WATER_MARK", 3)
    client: Channel[Either, Either] = channels.client(context, Either, address, "me")
    assert [client.send(Ping(number)) for number in range(4)] == [True] * 3 + [False]
    assert client.unsent == 1


def test_a_client_may_come_before_its_server(context: zmq.Context[Any], address: str) -> None:
    client: Channel[Either, Either] = channels.client(context, Either, address, "me")
    assert client.send(Ping(1))
    server: Channel[Either, Either] = channels.server(context, Either, address)
    assert take(server, 1) == [(b"me", Ping(1))]


def test_a_client_finds_a_server_that_restarted(context: zmq.Context[Any], address: str) -> None:
    server: Channel[Either, Either] = channels.server(context, Either, address)
    client: Channel[Either, Either] = channels.client(context, Either, address, "me")
    client.send(Ping(1))
    take(server, 1)
    server.close()
    server = channels.server(context, Either, address)
    end = time.monotonic() + DEADLINE_S
    # What is sent while nobody listens may be lost, as with a process that died.
    while not (received := list(server.receive())):
        assert time.monotonic() < end, "the client has not come back"
        client.send(Ping(2))
        server.wait(0.02)
    assert received[0] == (b"me", Ping(2))


# --- stale sockets --------------------------------------------------------------------------------


def test_the_file_of_a_killed_server_is_replaced(
    context: zmq.Context[Any], folder: Path, address: str
) -> None:
    # A process that was killed leaves its socket's file behind, and nobody listens on it.
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(folder / "socket"))
    server: Channel[Either, Either] = channels.server(context, Either, address)
    client: Channel[Either, Either] = channels.client(context, Either, address, "me")
    client.send(Ping(1))
    assert take(server, 1) == [(b"me", Ping(1))]


def test_tcp_addresses_have_no_file_to_remove(context: zmq.Context[Any]) -> None:
    before = sorted(os.listdir("."))
    server: Channel[Either, Either] = channels.server(context, Either, "tcp://127.0.0.1:*")
    assert server.socket.getsockopt(zmq.LAST_ENDPOINT).startswith(b"tcp://127.0.0.1:")
    assert sorted(os.listdir(".")) == before


# --- under asyncio --------------------------------------------------------------------------------


class Attached:
    """What an attached channel was given."""

    def __init__(self, channel: Channel[Any, Any]) -> None:
        self.channel = channel
        self.received: list[Any] = []
        channel.attach(lambda _, message: self.received.append(message))


def test_an_attached_channel_gets_messages_and_answers(
    context: zmq.Context[Any], address: str
) -> None:
    async def test() -> None:
        server: Channel[Either, Either] = channels.server(context, Either, address)
        server.attach(lambda sender, message: answer(server, sender, message))
        client = Attached(channels.client(context, Either, address, "me"))
        for number in range(100):
            client.channel.send(Ping(number))
        await until(lambda: len(client.received) == 100, "all answers")
        assert client.received == [Pong([str(number)]) for number in range(100)]
        server.close()
        client.channel.close()

    def answer(server: Channel[Either, Either], sender: bytes, message: Either) -> None:
        assert isinstance(message, Ping)
        server.send(Pong([str(message.number)]), to=sender)

    asyncio.run(test())


@pytest.fixture
def direct(context: zmq.Context[Any]) -> Link:
    """A link on which a frame that was sent is there at once, without a thread in between."""
    return Link(context, "inproc://direct")


def burst(link: Link, frames: list[bytes], expected: int) -> list[Any]:
    """What a channel is given that is attached when all frames are there."""

    async def test() -> list[Any]:
        for frame in frames:
            link.raw.send(frame)
        attached = Attached(link.server)
        try:
            await until(lambda: len(attached.received) >= expected, f"{expected} messages")
        finally:
            link.server.close()
        return attached.received

    return asyncio.run(test())


def test_a_burst_arrives_whole(direct: Link) -> None:
    count = 3 * MESSAGES_PER_TURN + 1
    frames = [msgspec.msgpack.encode(Ping(number)) for number in range(count)]
    assert [m.number for m in burst(direct, frames, count)] == list(range(count))


def test_a_burst_with_malformed_frames_arrives_whole(direct: Link) -> None:
    count = 5 * MESSAGES_PER_TURN
    frames = [msgspec.msgpack.encode(Ping(number)) for number in range(count)]
    for position in range(0, count, MESSAGES_PER_TURN // 2):
        frames.insert(position, b"\xc1")
    assert [m.number for m in burst(direct, frames, count)] == list(range(count))


def test_a_burst_leaves_the_loop_room_for_others(direct: Link) -> None:
    async def test() -> int:
        for number in range(8 * MESSAGES_PER_TURN):
            direct.send_good(number)
        attached = Attached(direct.server)
        others = 0
        while len(attached.received) < 8 * MESSAGES_PER_TURN:
            others += 1
            await asyncio.sleep(0)
        direct.server.close()
        return others

    assert asyncio.run(asyncio.wait_for(test(), DEADLINE_S)) >= 4


def test_a_closed_channel_gives_nothing_more(direct: Link) -> None:
    async def test() -> None:
        direct.send_good(1)
        attached = Attached(direct.server)
        direct.server.close()
        await asyncio.sleep(0)
        assert attached.received == []

    asyncio.run(test())


def immediate(
    context: zmq.Context[Any], address: str, events: list[object]
) -> Channel[Either, Either]:
    """A watched client that keeps nothing for a server that is not there; its messages go among
    the `events` of its connection."""
    client: Channel[Either, Either] = Channel(
        context, zmq.DEALER, Either, connect=address, identity="me", immediate=True
    )
    client.attach(lambda _, message: events.append(message))
    client.watch(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED, events.append)
    return client


def test_what_came_by_a_connection_is_handed_over_before_its_end_is_told(
    context: zmq.Context[Any], address: str
) -> None:
    async def test() -> None:
        server: Channel[Either, Either] = channels.server(context, Either, address)
        events: list[object] = []
        client = immediate(context, address, events)
        await until(lambda: events, "the connection")
        client.send(Ping(1))
        [(sender, _)] = take(server, 1)
        server.send(Pong(["goodbye"]), to=sender)
        server.close(linger_s=DEADLINE_S)
        # Both are there when the loop gets to look.
        time.sleep(0.2)  # noqa: ASYNC251
        await until(lambda: zmq.Event.DISCONNECTED in events, "its end")
        assert events[1:] == [Pong(["goodbye"]), zmq.Event.DISCONNECTED]
        client.close()

    asyncio.run(test())


def test_an_immediate_client_keeps_nothing_for_a_server_that_is_not_there(
    context: zmq.Context[Any], address: str
) -> None:
    async def test() -> None:
        events: list[object] = []
        client = immediate(context, address, events)
        assert not client.send(Ping(1))
        server: Channel[Either, Either] = channels.server(context, Either, address)
        await until(lambda: events, "the connection")
        assert client.send(Ping(2))
        assert [message for _, message in take(server, 1)] == [Ping(2)]
        server.close()
        client.close()

    asyncio.run(test())
