"""One hostile request: the bytes, how they are sent, and what may be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

API_KEYS = ("hostile-key-one", "hostile-key-two")
GOOD_KEY = 1
"""Good requests have the second key, hostile ones the first."""
ADMIN_KEY = "hostile-admin-key"
CRLF = b"\r\n"

Access = Literal["none", "api", "admin"]
Then = Literal["read", "half-close", "leave"]
Headers = Sequence[tuple[bytes, bytes]]


class Shot(Struct, frozen=True, kw_only=True):
    """What is sent: pieces, each with the pause after it in seconds, and then what the client does.

    `parses` is false where the bytes are no HTTP that an application gets to see; then the HTTP
    library answers, or hangs up. `complete` is false where the server waits for more. `refused`
    says that success would be wrong, `access` what the request's key opens.
    """

    kind: str
    pieces: Sequence[tuple[bytes, float]]
    then: Then = "read"
    path: str = "/v1/completions"
    access: Access = "api"
    parses: bool = True
    complete: bool = True
    refused: bool = False
    answers: int = 1
    no_body: bool = False
    """The answers have headers only, as to HEAD."""

    @property
    def sent(self) -> bytes:
        """All bytes."""
        return b"".join(piece for piece, _ in self.pieces)


def bearer(key: str = API_KEYS[0]) -> tuple[bytes, bytes]:
    """The header with a key."""
    return b"Authorization", f"Bearer {key}".encode()


def default_headers(length: int | None = None) -> dict[bytes, bytes]:
    """What a client sends that ends the connection after the answer."""
    name, value = bearer()
    headers = {b"Host": b"127.0.0.1", name: value, b"Content-Type": b"application/json"}
    if length is not None:
        headers[b"Content-Length"] = b"%d" % length
    return headers | {b"Connection": b"close"}


def request(
    body: bytes = b"",
    *,
    method: bytes = b"POST",
    target: bytes = b"/v1/completions",
    version: bytes = b"HTTP/1.1",
    headers: Mapping[bytes, bytes] | None = None,
    more: Headers = (),
    without: Sequence[bytes] = (),
) -> bytes:
    """A request's bytes. `headers` replace the usual ones of that name, `more` are added as they
    are, `without` are left out."""
    usual = default_headers(len(body) if method == b"POST" else None) | dict(headers or {})
    lines = [(name, value) for name, value in usual.items() if name not in without]
    head = b"%s %s %s" % (method, target, version)
    for name, value in (*lines, *more):
        head += CRLF + name + b": " + value
    return head + CRLF + CRLF + body


def once(data: bytes) -> list[tuple[bytes, float]]:
    """Everything in one piece."""
    return [(data, 0.0)]
