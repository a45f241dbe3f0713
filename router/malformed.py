"""What is not proper HTTP: an answer that never fails, and a count instead of a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def expect(http: web.Request) -> web.StreamResponse | None:
    """Answer the header Expect. aiohttp's own answer quotes the header, and so fails if that is not
    text."""
    if http.headers.get("Expect", "").lower() != "100-continue":
        return web.Response(status=417, text="only 'Expect: 100-continue' is understood\n")
    if http.transport is not None:
        http.transport.write(CONTINUE)
    return None


def with_expect(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The same routes, with `expect`."""
    return [
        web.RouteDef(r.method, r.path, r.handler, {**r.kwargs, "expect_handler": expect})
        for r in routes
    ]


class MalformedRequests(logging.Filter):
    """Takes requests that cannot be parsed out of aiohttp's log, where each has a traceback, and
    anybody could fill it; `on_malformed` counts them."""

    def __init__(self, on_malformed: Callable[[], None]) -> None:
        super().__init__()
        self._on_malformed = on_malformed

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            self._on_malformed()
            return False
        return True


def server_log(on_malformed: Callable[[], None]) -> logging.Logger:
    """A logger for an HTTP server."""
    log = logging.getLogger(__name__)
    log.addFilter(MalformedRequests(on_malformed))
    return log
