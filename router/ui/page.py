"""The live page: one document with its style and scripts inside, and what browsers may do with it.

The page itself is open and holds no secret: a browser cannot send a key with the load of a page.
Everything that it shows comes from paths that want their keys (/fleet, /v1). It asks for a key
when it is refused, keeps it in the tab's sessionStorage and sends it as every other client does,
as a bearer token. A cookie would be sent by itself, also when another site makes the browser POST
to /admin, and the router would have to keep sessions; this way there is nothing to forge, nothing
on the disk, and nothing left when the tab is closed. What a script could read, no foreign script
gets to: the policy below lets run only the script whose hash it names, which writes text and never
HTML (`trusted-types 'none'`), and lets nothing be sent anywhere but back here.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from aiohttp import web

PATH = "/ui"
# One script in the end: later ones use what earlier ones define.
SCRIPTS = (
    "format.js",
    "table.js",
    "keys.js",
    "totals.js",
    "nodes.js",
    "requests.js",
    "sse.js",
    "chat.js",
    "main.js",
)


class Page:
    """The page, put together once."""

    def __init__(self) -> None:
        style = part("style.css")
        script = "\n".join(part(name) for name in SCRIPTS)
        html = part("page.html").replace("/* style */", style).replace("/* script */", script)
        self.body = html.encode()
        self._etag = hashlib.sha256(self.body).hexdigest()[:32]
        self._headers = {
            "Content-Security-Policy": policy(style, script),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-cache",
        }

    def routes(self) -> list[web.RouteDef]:
        """Its route."""
        return [web.get(PATH, self._show)]

    async def _show(self, http: web.Request) -> web.Response:
        known = any(tag.value == self._etag for tag in http.if_none_match or ())
        response = (
            web.Response(status=304, headers=self._headers)
            if known
            else web.Response(
                body=self.body, content_type="text/html", charset="utf-8", headers=self._headers
            )
        )
        response.etag = self._etag
        return response


def part(name: str) -> str:
    """A file of this package."""
    return resources.files("mlxfleet.router.ui").joinpath(name).read_text(encoding="utf-8")


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page with this style and script inside."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{source_hash(script)}'",
            f"style-src '{source_hash(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def source_hash(text: str) -> str:
    """An inline element's content as a policy names it."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
