"""What allowed pages of other origins are let do by their browsers (CORS, fetch.spec.whatwg.org).

No cookies and no other credentials of the browser's are involved: keys are sent by the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

METHODS = "GET, HEAD, POST, OPTIONS"
MAX_AGE_S = 7200
"""Chromium remembers a preflight for no longer."""

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
MAX_REQUEST_HEADERS = 64
VARIES_WITH = (
    "Origin",
    "Access-Control-Request-Method",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Private-Network",
)


def preflight_headers(asked: Mapping[str, str]) -> dict[str, str]:
    """The answer to what a browser wants to know. Clients send headers of their own (the OpenAI
    SDK has a dozen), so all well-formed ones are let through."""
    headers = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Max-Age": str(MAX_AGE_S),
        "Vary": ", ".join(VARIES_WITH),
    }
    if names := header_names(asked.get("Access-Control-Request-Headers", "")):
        headers["Access-Control-Allow-Headers"] = ", ".join(names)
    if asked.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers


def header_names(text: str) -> list[str]:
    """The header names in a list, without those that are none."""
    names = [name.strip() for name in text.split(",")]
    return [name for name in names if HEADER_NAME.fullmatch(name)][:MAX_REQUEST_HEADERS]


def exposed(names: Iterable[str]) -> str:
    """Of an answer's headers, those that a page may read beside the usual ones."""
    ours = {name for name in names if name.lower().startswith("x-")}
    return ", ".join(["Retry-After", *sorted(ours)])


def varying(present: str | None) -> str:
    """Vary, with Origin: caches keep an answer apart for each page that asks."""
    names = [name.strip() for name in (present or "").split(",") if name.strip()]
    if any(name.lower() in ("origin", "*") for name in names):
        return ", ".join(names)
    return ", ".join([*names, "Origin"])
