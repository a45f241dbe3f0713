"""Reads request bodies: not more at once than there is memory for, not slower than they may come,
and nothing compressed, of which a few bytes can become gigabytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from aiohttp import web

from mlxfleet.common.errors import (
    BodyTimeoutError,
    ContentEncodingError,
    InvalidRequestError,
    OverloadedError,
)
from mlxfleet.router.auth import client_name
from mlxfleet.router.body_budget import BodyBudget, Lease

RETRY_AFTER_S = 1
LEAST_BYTES_PER_S = 64 * 1024

BodyRefusal = Literal["memory", "size", "slow", "encoding"]
BODY_REFUSALS: tuple[BodyRefusal, ...] = get_args(BodyRefusal)


class Body:
    """One request's body. `release` gives its memory back, `Bodies.of` does so in any case."""

    def __init__(self, bodies: Bodies, http: web.Request, lease: Lease) -> None:
        self._bodies = bodies
        self._http = http
        self._lease = lease
        self.release = lease.release

    async def read(self) -> bytes:
        """All of it. A RequestError, or HTTPRequestEntityTooLarge, if it is not to be read to its
        end; then the rest is not kept."""
        self._bodies.check_head(self._http)
        if self._http.content.is_eof():
            # The usual case: it has come with its head, and there is nothing to wait for.
            whole = self._bodies.what_has_come(self._http)
            if not self._lease.grow(len(whole)):
                raise self._bodies.no_memory()
            return whole
        pieces = []
        async for piece in self._bodies.pieces(self._http):
            if not self._lease.grow(len(piece)):
                raise self._bodies.no_memory()
            pieces.append(piece)
        return b"".join(pieces)


class Bodies:
    """Reads the bodies of all connections.

    `max_bytes` is the most that one may have, `grace_s` how long one may take beside the time at
    LEAST_BYTES_PER_S, `on_refused` counts. `by_key` says that clients have keys that were checked;
    otherwise they are told apart by address.
    """

    def __init__(
        self,
        budget: BodyBudget,
        *,
        max_bytes: int,
        grace_s: float,
        by_key: bool,
        on_refused: Callable[[BodyRefusal], None],
    ) -> None:
        self.budget = budget
        self._max_bytes = max_bytes
        self._grace_s = grace_s
        self._by_key = by_key
        self._on_refused = on_refused

    @contextmanager
    def of(self, http: web.Request) -> Iterator[Body]:
        """A request's body, to be read or not."""
        lease = Lease(self.budget, self._client(http))
        try:
            yield Body(self, http, lease)
        finally:
            lease.release()

    def check_head(self, http: web.Request) -> None:
        """Refuse by its headers what would be refused later."""
        encoding = http.headers.get("Content-Encoding")
        if encoding is not None and encoding.strip().lower() not in ("", "identity"):
            self._on_refused("encoding")
            raise ContentEncodingError(
                "compressed request bodies are not accepted; send it without Content-Encoding"
            )
        declared = http.content_length or 0
        if declared > self._max_bytes:
            raise self._too_large(declared)
        if not http.content.is_eof() and self.budget.pool_for(self._client(http), declared) is None:
            raise self.no_memory()

    def what_has_come(self, http: web.Request) -> bytes:
        """What is here of the body."""
        try:
            piece = http.content.read_nowait()
        except web.RequestPayloadError as error:
            raise unreadable(error) from error
        if len(piece) > self._max_bytes:
            raise self._too_large(len(piece))
        return piece

    async def pieces(self, http: web.Request) -> AsyncIterator[bytes]:
        """The body as it comes."""
        loop = asyncio.get_running_loop()
        began, size = loop.time(), 0
        while not http.content.at_eof():
            try:
                async with asyncio.timeout_at(began + self._grace_s + size / LEAST_BYTES_PER_S):
                    piece = await http.content.readany()
            except TimeoutError as error:
                self._on_refused("slow")
                why = (
                    f"the request body came too slowly: {size} bytes in {loop.time() - began:.0f} s"
                )
                raise BodyTimeoutError(why) from error
            except web.RequestPayloadError as error:
                raise unreadable(error) from error
            if not piece:
                return
            size += len(piece)
            if size > self._max_bytes:
                raise self._too_large(size)
            yield piece

    def no_memory(self) -> OverloadedError:
        """The error of a body for which there is no memory."""
        self._on_refused("memory")
        return OverloadedError(
            "too many bytes of request bodies are in flight",
            code="bodies_in_flight",
            retry_after_s=RETRY_AFTER_S,
        )

    def _too_large(self, size: int) -> web.HTTPRequestEntityTooLarge:
        self._on_refused("size")
        return web.HTTPRequestEntityTooLarge(self._max_bytes, size)

    def _client(self, http: web.Request) -> str:
        return client_name(http) if self._by_key else http.remote or ""


def unreadable(error: web.RequestPayloadError) -> InvalidRequestError:
    """The error of a body whose encoding is broken."""
    return InvalidRequestError(f"the request body cannot be read: {error}", code="malformed_body")
