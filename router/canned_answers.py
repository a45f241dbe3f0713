"""Whole HTTP answers for connections that never get as far as a request."""

from __future__ import annotations

import msgspec

from mlxfleet.common.errors import HeadTimeoutError, RequestError, UnavailableError

RETRY_AFTER_S = 1


def canned(error: RequestError, reason: str) -> bytes:
    """An error as the bytes of an answer after which the connection is closed."""
    body = msgspec.json.encode(error.body())
    lines = [
        f"HTTP/1.1 {error.status} {reason}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if error.retry_after_s is not None:
        lines.append(f"Retry-After: {error.retry_after_s}")
    return "\r\n".join([*lines, "", ""]).encode() + body


BUSY = canned(
    UnavailableError(
        "too many connections are open", code="too_many_connections", retry_after_s=RETRY_AFTER_S
    ),
    "Service Unavailable",
)
TOO_SLOW = canned(HeadTimeoutError("the request's head did not come in time"), "Request Timeout")
