"""An answer of server-sent events, and pings in it while there is nothing to send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from aiohttp import web

# A comment, which clients skip: https://html.spec.whatwg.org/multipage/server-sent-events.html
PING = b": ping\n\n"


class Response(web.StreamResponse):
    """An answer whose head goes with what is written first. aiohttp sends it by itself otherwise,
    which takes a system call more before the first token."""

    _send_headers_immediately = False


class EventStream:
    """The status is sent with the first event, so that a refusal can still have its own, or with
    the first ping, after `ping_s` in which nothing was sent; 0 sends no pings. Use as a context
    manager; `on_ping` is called for each ping."""

    def __init__(self, http: web.Request, ping_s: float, on_ping: Callable[[], None]) -> None:
        self._http = http
        self._ping_s = ping_s
        self._on_ping = on_ping
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._sending = False
        self._opening = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None
        self.response = Response(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )

    async def __aenter__(self) -> Self:
        if self._ping_s:
            self._look_after(self._ping_s)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if (pinging := self._pinging) is not None:
            pinging.cancel()
            await asyncio.wait({pinging})
            if not pinging.cancelled():
                pinging.result()

    @property
    def opened(self) -> bool:
        """Whether the status is sent, or is about to be."""
        return self.response.prepared or self._opening.locked()

    async def send(self, events: bytes) -> None:
        """Send one event or several."""
        self._last_s = self._loop.time()
        if not self.response.prepared:
            await self._open()
        self._sending = True
        try:
            await self.response.write(events)
        finally:
            self._sending = False

    async def end(self, events: bytes) -> web.StreamResponse:
        """Send the last events, and that nothing comes after them, at once."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pinging is not None:
            # What it writes would otherwise come after the end.
            await asyncio.wait({self._pinging})
        if not self.response.prepared:
            await self._open()
        await self.response.write_eof(events)
        return self.response

    async def _open(self) -> None:
        async with self._opening:
            if not self.response.prepared:
                await self.response.prepare(self._http)

    def _look_after(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Ping if nothing was sent for long enough, and look again in time."""
        left_s = self._last_s + self._ping_s - self._loop.time()
        if left_s > 0:
            self._look_after(left_s)
            return
        self._last_s = self._loop.time()
        self._look_after(self._ping_s)
        # A client that does not read what there is needs no pings.
        if not self._sending and (self._pinging is None or self._pinging.done()):
            self._pinging = self._loop.create_task(self._ping())

    async def _ping(self) -> None:
        try:
            await self._open()
            await self.response.write(PING)
        except ConnectionResetError:
            return
        self._on_ping()
