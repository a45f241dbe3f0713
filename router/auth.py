"""API keys: who may do what, and a name for each client that does not tell its key."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from aiohttp import web

from mlxfleet.common.config import Keys
from mlxfleet.common.errors import AuthenticationError

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/metrics/targets", "/ui"})
ADMIN_PREFIXES = ("/admin/", "/fleet")
NAME_BYTES = 8
# Names leave the router, and a short key must not be found by trying.
SALT = secrets.token_bytes(16)


class Authenticator:
    """Checks the key of every request, if there are keys. /admin and /fleet need the admin key if
    there is one."""

    def __init__(self, keys: Keys) -> None:
        self._api_keys = [key.encode() for key in keys.api]
        self._admin_key = keys.admin.encode() if keys.admin else None

    def check(self, request: web.Request) -> None:
        """AuthenticationError if the request may not be answered."""
        if request.path in OPEN_PATHS:
            return
        if request.path.startswith(ADMIN_PREFIXES) and self._admin_key is not None:
            if not hmac.compare_digest(bearer(request), self._admin_key):
                raise AuthenticationError(
                    "the admin key is needed, as 'Authorization: Bearer KEY'",
                    code="invalid_admin_key",
                )
        elif self._api_keys:
            given = bearer(request)
            # Compare with every key, so that the time tells nothing.
            matches = [hmac.compare_digest(given, known) for known in self._api_keys]
            if not any(matches):
                raise AuthenticationError(
                    "a valid API key is needed, as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                )


def bearer(request: web.Request) -> bytes:
    """The key that a request gives, empty without one."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip().encode(errors="surrogateescape") if scheme.lower() == "bearer" else b""


def client_name(request: web.Request) -> str:
    """The same for all requests with one key, as long as this process runs."""
    return hashlib.blake2b(bearer(request), digest_size=NAME_BYTES, key=SALT).hexdigest()
