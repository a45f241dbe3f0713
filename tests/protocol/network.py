"""ZeroMQ's links without sockets or time: who runs a test decides what arrives when, and what is
lost. A connection keeps the order of its messages in each direction and loses only its newest ones;
messages of different connections may overtake each other.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from mlxfleet.common.channels import Origin

In = TypeVar("In")
Out = TypeVar("Out")

# The network that new channels join: the code under test makes channels itself.
current: list[Network] = []


@dataclass(eq=False)
class Connection:
    """One end bound, one end connected. A connection that is `cut` takes no more messages; those
    that had left the client before may still arrive."""

    client: FakeChannel[Any, Any]
    server: FakeChannel[Any, Any]
    identity: bytes
    up: deque[bytes] = field(default_factory=deque)
    down: deque[bytes] = field(default_factory=deque)
    cut: bool = False

    def deliver_up(self) -> None:
        """The oldest message of the client reaches the server."""
        self.server.take(self.identity, self.up.popleft())

    def deliver_down(self) -> None:
        """The oldest message of the server reaches the client."""
        self.client.take(b"", self.down.popleft())


class Network:
    """All channels of a test. Addresses are whatever the code under test binds."""

    def __init__(self) -> None:
        self.servers: dict[str, FakeChannel[Any, Any]] = {}
        self.clients: list[FakeChannel[Any, Any]] = []
        self.connections: list[Connection] = []

    def directions(self) -> list[Callable[[], None]]:
        """What makes the next message of each connection and direction arrive."""
        ways: list[Callable[[], None]] = []
        for connection in self.connections:
            if connection.up and not connection.server.closed:
                ways.append(connection.deliver_up)
            if connection.down and not connection.client.closed:
                ways.append(connection.deliver_down)
        return ways

    def reconnect(self) -> None:
        """Connect clients whose server is there, as ZeroMQ does by itself after a while."""
        for client in self.clients:
            server = self.servers.get(client.address)
            if client.connection is None and server is not None:
                client.connection = Connection(client, server, client.identity)
                client.connection.up.extend(client.unsent_frames)
                client.unsent_frames.clear()
                self.connections.append(client.connection)
                client.tell(zmq.Event.HANDSHAKE_SUCCEEDED)

    def cut(self, connection: Connection, arriving: int) -> None:
        """Lose a connection; `arriving` messages of the client still reach the server."""
        connection.cut = True
        while len(connection.up) > arriving:
            connection.up.pop()
        connection.down.clear()
        client = connection.client
        if client.connection is connection:
            client.connection = None
            client.tell(zmq.Event.DISCONNECTED)

    def forget_dead(self) -> None:
        """Forget what can bring nothing any more."""
        self.clients = [client for client in self.clients if not client.closed]
        self.connections = [
            c for c in self.connections if not c.server.closed and (c.up or not c.cut)
        ]


class FakeChannel(Generic[In, Out]):
    """Stands in the place of `channels.Channel`."""

    def __init__(
        self,
        context: Any,
        kind: int,
        receives: Any,
        *,
        bind: str | None = None,
        connect: str | None = None,
        identity: str | None = None,
        immediate: bool = False,
        **_: Any,
    ) -> None:
        self.kind = kind
        self.address = bind or connect or ""
        self.identity = (identity or f"anonymous-{id(self)}").encode()
        self.connection: Connection | None = None
        self.unsent_frames: list[bytes] = []
        self.origin = Origin()
        self.closed = False
        self.dropped_frames = 0
        self.unsent = 0
        self._immediate = immediate
        self._decoder = msgspec.msgpack.Decoder(receives)
        self._on_message: Callable[[bytes, Any], None] | None = None
        self._on_event: Callable[[zmq.Event], None] | None = None
        self._events = 0
        self._network: Network = current[0]
        if bind is not None:
            self._network.servers[bind] = self
        else:
            self._network.clients.append(self)

    def watch(self, events: int, on_event: Callable[[zmq.Event], None]) -> None:
        """As the real one."""
        self._events, self._on_event = events, on_event

    def tell(self, event: zmq.Event) -> None:
        """Something has happened to the connection."""
        if self._on_event is not None and not self.closed and event & self._events:
            asyncio.get_running_loop().call_soon(self._on_event, event)

    def send(self, message: Any, to: bytes | None = None) -> bool:
        """As the real one: a client's messages wait for its server, unless they are immediate."""
        frame = msgspec.msgpack.encode(message)
        if self.kind == zmq.ROUTER:
            return self._send_down(frame, to)
        if self.connection is not None:
            self.connection.up.append(frame)
        elif not self._immediate:
            self.unsent_frames.append(frame)
        return self.connection is not None or not self._immediate

    def _send_down(self, frame: bytes, to: bytes | None) -> bool:
        for connection in self._network.connections:
            if (connection.server, connection.identity) == (self, to) and not connection.cut:
                connection.down.append(frame)
                return True
        self.unsent += 1
        return False

    def attach(self, on_message: Callable[[bytes, Any], None]) -> None:
        """As the real one."""
        self._on_message = on_message

    def take(self, sender: bytes, frame: bytes) -> None:
        """A message arrives."""
        assert self._on_message is not None, errno.ENOTCONN
        self._on_message(sender, self._decoder.decode(frame))

    def receive(self, limit: int = 0) -> Iterator[tuple[bytes, Any]]:
        """Everything is given to `attach`."""
        return iter(())

    def close(self, linger_s: float = 0.0) -> None:
        """What was on its way down is lost; what a client had sent may still arrive."""
        self.closed = True
        if self._network.servers.get(self.address) is self:
            del self._network.servers[self.address]
        for connection in list(self._network.connections):
            if connection.server is self:
                self._network.cut(connection, 0)
            elif connection.client is self:
                connection.cut = True
                connection.down.clear()
