"""Client connections: how many there may be, how long each may wait, and when a client is gone.

`Connection` stands between a transport and aiohttp's protocol for it, and uses only what asyncio
and aiohttp make public.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, cast, get_args

from aiohttp import HttpVersion11, StreamReader, web

from mlxfleet.router.canned_answers import BUSY, TOO_SLOW
from mlxfleet.router.timer import Timer

MAX_AHEAD_BYTES = 64 * 1024
"""Bytes that may come before the request that they belong to is handled: a head, or requests that
are sent ahead of the answer before them."""

LINGER_S = 1.0
"""How long a connection that was answered without being read stays open, so that the client reads
the answer before it learns that nobody reads its request."""

LINGERING_SHARE = 4
"""Of the limit, as a divisor, so many connections that are refused may linger."""

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Harmless before an answer (RFC 9110, 15.2), and answered with a reset by a host whose client has
closed its socket, but not by one that has only shut down the side that it sent its request on."""

CLIENT_CLOSED_REQUEST = 499

PROBE_FIRST_S = 0.005
PROBE_LAST_S = 5.0
HEAD_AFTER_EOF_S = 1.0

Closing = Literal["head", "idle", "evicted", "refused", "stalled", "ahead"]
CLOSINGS: tuple[Closing, ...] = get_args(Closing)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Connections:
    """All connections of the HTTP port; it makes the protocol of each new one.

    At `limit`, the connection that has been idle longest makes room for a new one; if none is
    idle, the new one is answered 503. A request's head must come within `head_s`, the next request
    within `idle_s`; a client that does not read its answer within `stall_s` is cut off. `serve`
    makes aiohttp's protocols, `on_closed` counts.
    """

    serve: Callable[[], web.RequestHandler]

    def __init__(
        self,
        *,
        limit: int,
        head_s: float,
        idle_s: float,
        stall_s: float,
        on_closed: Callable[[Closing], None],
    ) -> None:
        self.limit = limit
        self.head_s = head_s
        self.idle_s = idle_s
        self.stall_s = stall_s
        self.on_closed = on_closed
        self._open: dict[web.RequestHandler, Connection] = {}
        # In the order in which they have become idle.
        self._idle: dict[Connection, None] = {}
        self._lingering = 0

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return Connection(self, self.serve())

    @property
    def busy(self) -> int:
        """Connections that are open and have a request."""
        return len(self._open) - len(self._idle)

    @property
    def idle(self) -> int:
        """Connections that are open without a request."""
        return len(self._idle)

    @web.middleware
    async def watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A middleware around all others, by which connections know that they have a request."""
        connection = self._open.get(request.protocol)
        if connection is None:
            # It was closed while its request waited for its turn: nobody reads this.
            return web.Response(status=CLIENT_CLOSED_REQUEST)
        self._idle.pop(connection, None)
        connection.begin(request)
        try:
            return await handler(request)
        finally:
            if request.protocol in self._open:
                self._idle[connection] = None
                connection.end()

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """A signal handler: an answer begins."""
        if (connection := self._open.get(request.protocol)) is not None:
            connection.answering = True

    def admit(self, connection: Connection) -> bool:
        """Make room for a new connection. False if there is none."""
        if len(self._open) >= self.limit:
            if not self._idle:
                self.on_closed("refused")
                return False
            oldest = next(iter(self._idle))
            oldest.close("evicted")
            self.lost(oldest)
        self._open[connection.inner] = connection
        self._idle[connection] = None
        return True

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.pop(connection.inner, None)
        self._idle.pop(connection, None)

    def may_linger(self) -> bool:
        """Whether one more refused connection may stay open for a moment."""
        return self._lingering < max(1, self.limit // LINGERING_SHARE)

    def lingers(self, more: int) -> None:
        """`more` refused connections stay open for a moment."""
        self._lingering += more


class Connection(asyncio.Protocol):
    """One connection: asyncio's calls go to aiohttp's protocol `inner`, timed and counted."""

    transport: asyncio.Transport

    def __init__(self, connections: Connections, inner: web.RequestHandler) -> None:
        self._connections = connections
        self.inner = inner
        self.answering = False
        self._request: web.Request | None = None
        # Of the last request; what is not read of it when it has been answered still comes.
        self._body: StreamReader | None = None
        self._ahead = 0
        self._held_back = False
        self._half_closed = False
        self._request_timer = Timer()
        self._stall_timer = Timer()
        self._probe_timer = Timer()

    # --- asyncio's calls ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its first request has to come soon."""
        # Not a subclass in uvloop.
        self.transport = transport = cast(asyncio.Transport, transport)
        if not self._connections.admit(self):
            refused = Refused(self._connections)
            transport.set_protocol(refused)
            refused.connection_made(transport)
            return
        self._expect_request(self._connections.head_s, "head")
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, a body, or of a request that follows."""
        if self._body is None or self._body.is_eof():
            first = not self._ahead
            self._ahead += len(data)
            if self._ahead > MAX_AHEAD_BYTES and not self._hold_back():
                return
            if first and self._request is None:
                self._expect_request(self._connections.head_s, "head")
        self.inner.data_received(data)

    def eof_received(self) -> bool:
        """The client sends no more; it may still read. True keeps the connection open."""
        self._half_closed = True
        self.inner.eof_received()
        if self._request is None:
            # Its last request may have come just now, and be about to be handled.
            self._expect_request(HEAD_AFTER_EOF_S, "head")
            return self._ahead > 0
        if not self._request.content.is_eof():
            return False
        self._probe(PROBE_FIRST_S)
        return True

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        stall_s = self._connections.stall_s
        self._stall_timer.start(stall_s, self.close, "stalled", True)
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """It has read."""
        self._stall_timer.stop()
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._request_timer.stop()
        self._stall_timer.stop()
        self._probe_timer.stop()
        self._connections.lost(self)
        self.inner.connection_lost(exc)

    # --- requests -----------------------------------------------------------------------------

    def begin(self, request: web.Request) -> None:
        """A request is handled from now on."""
        self._request, self._body = request, request.content
        self._ahead = 0
        self.answering = False
        self._request_timer.stop()
        if self._held_back and not self.transport.is_closing():
            self._held_back = False
            self.transport.resume_reading()
        if self._half_closed:
            if request.content.is_eof():
                self._probe(PROBE_FIRST_S)
            else:
                self.transport.abort()

    def end(self) -> None:
        """The request has been handled, its answer may still have to be written."""
        self._request = None
        self._probe_timer.stop()
        if self._half_closed:
            # Of those that it sent in one go, the next is about to be handled.
            self._expect_request(HEAD_AFTER_EOF_S, "idle")
        elif self._ahead:
            self._expect_request(self._connections.head_s, "head")
        else:
            self._expect_request(self._connections.idle_s, "idle")

    def close(self, why: Closing, at_once: bool = False) -> None:
        """Close it; unless `at_once`, what is still to be written gets a moment."""
        self._connections.on_closed(why)
        if at_once:
            self.transport.abort()
        else:
            self.transport.close()
            asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def _hold_back(self) -> bool:
        """Do not read on until the request whose head this may be is handled. False if there is one
        that is handled already: then reading has to go on, to see its client leave, so a client
        that sends more is cut off."""
        if self._request is not None:
            self.close("ahead", at_once=True)
            return False
        if not self._held_back:
            self._held_back = True
            self.transport.pause_reading()
        return True

    def _expect_request(self, within_s: float, otherwise: Closing) -> None:
        self._request_timer.start(within_s, self._no_request, otherwise)

    def _no_request(self, why: Closing) -> None:
        if self._ahead and not self.transport.is_closing():
            self.transport.write(TOO_SLOW)
        self.close(why)

    def _probe(self, again_s: float) -> None:
        """Find out whether the client is only half gone: writing fails if it is gone."""
        request = self._request
        # Whoever speaks HTTP/1.0 does not know PROBE.
        if request is None or self.answering or request.version < HttpVersion11:
            return
        if not self.transport.is_closing():
            self.transport.write(PROBE)
            following_s = min(2 * again_s, PROBE_LAST_S)
            self._probe_timer.start(again_s, self._probe, following_s)


class Refused(asyncio.Protocol):
    """A connection for which there is no room."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lingers = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so and close."""
        transport = cast(asyncio.Transport, transport)
        transport.write(BUSY)
        if self._connections.may_linger():
            self._lingers = True
            self._connections.lingers(1)
            transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, transport.abort)
        else:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        if self._lingers:
            self._connections.lingers(-1)
