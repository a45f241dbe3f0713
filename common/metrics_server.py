"""Shows metrics over HTTP, for processes that have no other use for HTTP."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from mlxfleet.common.addresses import WILDCARDS
from mlxfleet.common.errors import listen_error

TEXT = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
CUT_OFF_S = 0.1


class MetricsServer:
    """GET /metrics on a port of its own; `render` makes the exposition format."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        self._render = render
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=CUT_OFF_S)

    async def listen(self, host: str, port: int) -> int:
        """Listen; the port, of which 0 takes a free one. ConfigError if it is not to be had."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, None if host in WILDCARDS else host, port)
        try:
            await site.start()
        except OSError as error:
            raise listen_error(host, port, error, "--metrics-port") from error
        address = self._runner.addresses[0]
        return int(address[1])

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers=TEXT)
