"""The guard and CORS at work in the HTTP server."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import Counter
from yarl import URL

from mlxfleet.common.admin_header import ADMIN_HEADER
from mlxfleet.common.authority import parse_origin
from mlxfleet.common.errors import RequestError
from mlxfleet.router import cors
from mlxfleet.router.malformed import has_route
from mlxfleet.router.web_guard import HOST_CODE, ORIGIN_CODE, Incoming, WebGuard

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_LOGGED = 32


class WebGate:
    """Refuses what the guard refuses, counted by code in `refused`, and answers browsers that ask
    what allowed pages may send. Errors leave it as RequestError."""

    def __init__(self, guard: WebGuard, refused: Counter) -> None:
        self._guard = guard
        self._refused = refused
        self._logged: set[str] = set()
        if guard.origins.any:
            log.warning(
                "--allowed-origins *: every web page that is opened on a machine that reaches this"
                " server may use it"
            )

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware. Preflights end here: they carry no key."""
        asked = incoming(request)
        if (error := self._guard.refusal(asked)) is not None:
            self._refused.labels(error.code).inc()
            self._tell(error)
            raise error
        if asked.preflight:
            return web.Response(status=204, headers=cors.preflight_headers(request.headers))
        return await handler(request)

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let allowed pages read an answer, whatever it is: errors and streams too. A signal of
        the application, called before the first byte is sent."""
        if not self._guard.origins:
            return
        response.headers["Vary"] = cors.varying(response.headers.get("Vary"))
        sent = request.headers.getall("Origin", [])
        if len(sent) == 1 and parse_origin(sent[0]) in self._guard.origins:
            response.headers["Access-Control-Allow-Origin"] = sent[0]
            response.headers["Access-Control-Expose-Headers"] = cors.exposed(response.headers)

    def _tell(self, error: RequestError) -> None:
        """Log a refusal once: a browser shows its user nothing of the answer."""
        if error.code not in (HOST_CODE, ORIGIN_CODE) or error.message in self._logged:
            return
        if len(self._logged) < MAX_LOGGED:
            self._logged.add(error.message)
            log.warning("refused a request: %s", error.message)


def incoming(request: web.Request) -> Incoming:
    """What the guard wants to know of a request."""
    headers = request.headers
    origins = tuple(headers.getall("Origin", ()))
    asks_first = request.method == "OPTIONS" and "Access-Control-Request-Method" in headers
    return Incoming(
        method=request.method,
        path=request.path,
        hosts=(*headers.getall("Host", ()), *target_host(request.raw_path)),
        origins=origins,
        content_type=headers.get("Content-Type", ""),
        admin=headers.get(ADMIN_HEADER, ""),
        fetch_site=headers.get("Sec-Fetch-Site", ""),
        fetch_mode=headers.get("Sec-Fetch-Mode", ""),
        scheme=request.scheme,
        known=has_route(request),
        preflight=asks_first and bool(origins),
    )


def target_host(target: str) -> tuple[str, ...]:
    """The host of a request target that is a whole URL, as for proxies; it goes before Host."""
    if target.startswith("/") or "://" not in target:
        return ()
    return (URL(target).raw_authority,)
