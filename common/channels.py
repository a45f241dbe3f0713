"""Sockets that carry one tagged union in each direction.

A channel encodes and decodes, counts what is malformed and drops it, and never blocks. Servers
bind a ROUTER socket and address peers by identity; clients connect a DEALER socket. The same
channel works under asyncio (`attach`) and in a plain loop (`wait` and `receive`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from mlxfleet.common.curve import Security
from mlxfleet.common.tap import recorder

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 64 * 1024 * 1024
# From there on a frame is not even read: libzmq closes the connection.
CUT_OFF = 4
HIGH_WATER_MARK = 20_000
MESSAGES_PER_TURN = 256
RECONNECT_MS = 50
RECONNECT_MAX_MS = 5_000
# A cut link is a lost connection after this much silence, in ms.
TCP_HEARTBEAT_MS = 500
TCP_SILENCE_MS = 2_000
# Where packets are dropped, the system itself would try a connection for minutes.
TCP_CONNECT_MS = 2_000
TCP_HANDSHAKE_MS = 5_000

# How long a last message may take to leave.
GOODBYE_S = 0.25

# As plain numbers, which pyzmq takes twice as fast as its own.
EVENTS, READABLE, MORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVMORE)
NOBLOCK = int(zmq.NOBLOCK)
NOBLOCK_MORE = NOBLOCK | int(zmq.SNDMORE)

# What is subscribed to begins with this.
EVERYTHING = b""

In = TypeVar("In")
Out = TypeVar("Out")


OnMalformed = Callable[[bytes, str, bytes], None]
"""Takes the sender's identity, what is wrong, and the frame."""


@dataclass(frozen=True)
class Limits:
    """How much a channel takes in: frames of so many bytes, so many messages of one peer that wait
    to be read, further ones staying with the peer. With `origins` it notes where each message came
    from."""

    frame_bytes: int = MAX_FRAME_BYTES
    messages: int = HIGH_WATER_MARK
    origins: bool = False

    @property
    def cut_off_bytes(self) -> int:
        """The size at which a connection is closed."""
        return CUT_OFF * self.frame_bytes


class Origin(NamedTuple):
    """Where a message came from: the peer's IP address, and the name of the key it has proved to
    hold; "" for what is not known, as over ipc."""

    address: str = ""
    key: str = ""


class Channel(Generic[In, Out]):
    """One socket. `In` is the union that it receives, `Out` the one that it sends.

    `dropped_frames` counts frames that were not a message of `In`, of which `on_malformed` hears,
    and `unsent` messages for peers that are gone or do not read. `origin` is that of the message or
    malformed frame that is being handled. With `immediate` nothing is kept for a peer that is not
    connected; such a client connects when `watch` is called, which tells it whether it is.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        kind: int,
        receives: Any,
        *,
        bind: str | None = None,
        connect: str | None = None,
        identity: str | None = None,
        security: Security = None,
        immediate: bool = False,
        limits: Limits = Limits(),
        on_malformed: OnMalformed | None = None,
    ) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self.socket.setsockopt(zmq.RCVHWM, limits.messages)
        self.socket.setsockopt(zmq.MAXMSGSIZE, limits.cut_off_bytes)
        self._max_bytes = limits.frame_bytes
        self._on_malformed = on_malformed
        self.socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        address = bind or connect or ""
        # Over ipc, libzmq gives the peer's process in the place of an address.
        self._knows_origins = limits.origins and address.startswith("tcp://")
        self.origin = Origin()
        if address.startswith("tcp://"):
            self._set_tcp_options(address)
        # Not by libzmq's option of that name, which with a connection's end also drops what has
        # come by it.
        self._may_send = not immediate
        if security is not None:
            security.apply(self.socket)
        if identity is not None:
            self.socket.setsockopt(zmq.IDENTITY, identity.encode())
        if kind == zmq.ROUTER:
            self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if kind == zmq.SUB:
            self.socket.setsockopt(zmq.SUBSCRIBE, EVERYTHING)
        self._parts = 2 if kind == zmq.ROUTER else 1
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(receives)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: Callable[[bytes, In], None] | None = None
        self._turn_scheduled = False
        self._left = False
        self._monitor: zmq.Socket[bytes] | None = None
        self._link = link_name(address)
        self._record = recorder.installed().add
        self.dropped_frames = 0
        self.unsent = 0
        if bind is not None:
            remove_stale_socket(bind)
            self.socket.bind(bind)
        self._immediate_to = connect if immediate else None
        if connect is not None and not immediate:
            self.socket.connect(connect)

    def _set_tcp_options(self, address: str) -> None:
        self.socket.setsockopt(zmq.IPV6, "[" in address)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self.socket.setsockopt(zmq.CONNECT_TIMEOUT, TCP_CONNECT_MS)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, TCP_HANDSHAKE_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, TCP_HEARTBEAT_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, TCP_SILENCE_MS)

    def watch(self, events: int, on_event: Callable[[zmq.Event], None]) -> None:
        """Call `on_event` from the running event loop for connections made, lost or refused:
        those of the socket monitor's `events`. An attached channel hands over what has come by a
        connection before it tells of the connection's end."""
        loop = asyncio.get_running_loop()
        monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(events)

        def read() -> None:
            while self._monitor is monitor:
                try:
                    frames = monitor.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    return
                self._turn()
                event = zmq.Event(parse_monitor_message(frames)["event"])
                if self._immediate_to is not None:
                    self._may_send = event is zmq.Event.HANDSHAKE_SUCCEEDED
                if self._monitor is monitor:
                    on_event(event)

        self._monitor = monitor
        if self._immediate_to is not None:
            self.socket.connect(self._immediate_to)
        loop.add_reader(monitor.fileno(), read)
        loop.call_soon(read)

    def send(self, message: Out, to: bytes | None = None) -> bool:
        """Send without blocking. False if the peer is gone or its buffer is full."""
        frame = self._encoder.encode(message)
        now = time.time()
        try:
            if not self._may_send:
                raise zmq.Again
            if to is not None:
                self.socket.send(to, NOBLOCK_MORE)
            self.socket.send(frame, NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, errno.EHOSTUNREACH):
                raise
            self.unsent += 1
            self._record(now, "unsent", self._link, to or b"", frame)
            return False
        finally:
            # A send may swallow the edge that announces readable messages.
            self._schedule_turn()
        self._record(now, "sent", self._link, to or b"", frame)
        return True

    def receive(self, limit: int = MESSAGES_PER_TURN) -> Iterator[tuple[bytes, In]]:
        """Messages that are there now, at most `limit`, as (sender identity, message)."""
        self._left = False
        for _ in range(limit):
            # Asked first, because an exception takes more than twice as long.
            events: Any = self.socket.get(EVENTS)
            if not events & READABLE:
                return
            try:
                parts = self._read()
            except zmq.Again:
                return
            message = self._decode(parts)
            if message is not None:
                yield (parts[0] if self._parts == 2 else b""), message
        self._left = True

    def wait(self, timeout_s: float) -> bool:
        """Block until a message is there; False after the timeout, to the next millisecond."""
        return bool(self.socket.poll(math.ceil(timeout_s * 1000)))

    def attach(self, on_message: Callable[[bytes, In], None]) -> None:
        """Call `on_message(sender identity, message)` from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._loop.add_reader(self.socket.fileno(), self._turn)
        self._schedule_turn()

    def close(self, *, linger_s: float = 0.0) -> None:
        """Detach from the loop and close the socket. What was sent last still goes out if that
        takes no longer than `linger_s`, for which the context's end then waits."""
        if self._loop is not None:
            self._loop.remove_reader(self.socket.fileno())
            self._loop = None
        if (monitor := self._monitor) is not None:
            asyncio.get_running_loop().remove_reader(monitor.fileno())
            self._monitor = None
            self.socket.disable_monitor()
            monitor.close()
        self.socket.close(linger=int(1000 * linger_s))

    def _read(self) -> list[bytes]:
        """One message's frames; zmq.Again if there is none."""
        if not self._knows_origins:
            parts = [self.socket.recv(NOBLOCK)]
            while self.socket.get(MORE):
                parts.append(self.socket.recv(NOBLOCK))
            return parts
        frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        self.origin = Origin(detail(frames[-1], "Peer-Address"), detail(frames[-1], "User-Id"))
        return [frame.bytes for frame in frames]

    def _decode(self, parts: list[bytes]) -> In | None:
        if len(parts) != self._parts or len(parts[-1]) > self._max_bytes:
            self._drop(f"{len(parts)} parts, {len(parts[-1])} bytes", parts)
            return None
        try:
            message: In = self._decoder.decode(parts[-1])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self._drop(str(error), parts)
            return None
        sender = parts[0] if self._parts == 2 else b""
        self._record(time.time(), "received", self._link, sender, parts[-1])
        return message

    def _drop(self, why: str, parts: list[bytes]) -> None:
        self.dropped_frames += 1
        sender = parts[0] if self._parts == 2 else b""
        self._record(time.time(), "malformed", self._link, sender, parts[-1])
        if self._on_malformed is not None:
            self._on_malformed(sender, why, parts[-1])
        else:
            log.warning("dropped a malformed frame: %s", why)

    def _schedule_turn(self) -> None:
        if self._loop is not None and not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._on_message is None or self.socket.closed:
            return
        for sender, message in self.receive():
            self._on_message(sender, message)
        # The descriptor only announces changes, so what is left must not wait for the next one.
        if self._left and not self.socket.closed:
            self._schedule_turn()


def detail(frame: zmq.Frame, name: str) -> str:
    """What libzmq knows of a frame's connection, "" if it does not know that."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def link_name(address: str) -> str:
    """What a link is called in records: its socket's name, or host and port."""
    scheme, _, place = address.partition("://")
    return Path(place).stem if scheme == "ipc" else place


def remove_stale_socket(address: str) -> None:
    """Remove the file of a unix socket whose process was killed; binding again needs it gone."""
    if address.startswith("ipc://"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address.removeprefix("ipc://"))


def server(
    context: zmq.Context[Any],
    receives: Any,
    bind: str,
    security: Security = None,
    *,
    limits: Limits = Limits(),
    on_malformed: OnMalformed | None = None,
) -> Channel[Any, Any]:
    """A channel that many clients connect to."""
    return Channel(
        context,
        zmq.ROUTER,
        receives,
        bind=bind,
        security=security,
        limits=limits,
        on_malformed=on_malformed,
    )


def client(
    context: zmq.Context[Any], receives: Any, connect: str, name: str, security: Security = None
) -> Channel[Any, Any]:
    """A channel to one server, under an identity that is new in every incarnation."""
    return Channel(context, zmq.DEALER, receives, connect=connect, identity=name, security=security)


def publisher(context: zmq.Context[Any], bind: str) -> Channel[Any, Any]:
    """A channel that tells everybody who listens, and nobody if there is none."""
    return Channel(context, zmq.PUB, None, bind=bind)


def subscriber(context: zmq.Context[Any], receives: Any, connect: str) -> Channel[Any, Any]:
    """A channel that listens to a publisher, whenever there is one."""
    return Channel(context, zmq.SUB, receives, connect=connect)
