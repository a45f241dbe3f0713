"""What is not proper HTTP or has no route: an answer that never fails, and a count instead of a
traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from aiohttp import hdrs, web
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


async def no_route(http: web.Request) -> web.StreamResponse:
    """Answer what no other route takes: 405 if the path takes other methods, else 404."""
    allowed: set[str] = set()
    for resource in http.app.router.resources():
        _, methods = await resource.resolve(http)
        allowed |= methods
    allowed.discard(hdrs.METH_ANY)
    if allowed:
        raise web.HTTPMethodNotAllowed(http.method, allowed)
    raise web.HTTPNotFound


def has_route(http: web.Request) -> bool:
    """Whether there is something at a request's path for its method."""
    match = http.match_info
    return match.http_exception is None and match.handler is not no_route


def with_expect(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The same routes, and one for all that they do not take, with `expect`."""
    return [
        web.RouteDef(r.method, r.path, r.handler, {**r.kwargs, "expect_handler": expect})
        for r in (*routes, web.route(hdrs.METH_ANY, "/{path:.*}", no_route))
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
