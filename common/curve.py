"""CURVE on TCP links: who may connect is decided by keys, and what crosses is encrypted.

Servers (the router, detokenizers) hold the router's secret key and the public keys of nodes that
may join; a node holds the router's public key and a secret of its own. `Gatekeeper` answers
libzmq's questions about unknown clients (ZAP, https://rfc.zeromq.org/spec/27/).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from mlxfleet.common.errors import ConfigError
from mlxfleet.common.key_files import accepted_keys

log = logging.getLogger(__name__)

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = b"mlxfleet"
ZAP_VERSION = b"1.0"
# Keys are read again for an unknown one, so that a node can be added to a running router.
RELOAD_S = 1.0


@dataclass(frozen=True, kw_only=True)
class CurveServer:
    """A server's secret key (Z85) and the folder with the public keys that it accepts."""

    secret: str = field(repr=False)
    accepted: Path

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket accept authenticated clients only."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        # Nobody gets in while there is no gatekeeper.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


@dataclass(frozen=True, kw_only=True)
class CurveClient:
    """The server's public key and a client's own secret key (Z85)."""

    server: str
    secret: str = field(repr=False)

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket prove who it is, and connect to this server only."""
        secret = self.secret.encode()
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))


Security = CurveServer | CurveClient | None


class Gatekeeper:
    """Lets in clients whose public key is known: one for all sockets of a context."""

    def __init__(
        self,
        context: zmq.Context[Any],
        security: CurveServer,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = security.accepted
        self._on_refused = on_refused
        self._keys = accepted_keys(self._folder)
        self._read_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ENDPOINT)
        self._loop.add_reader(self._socket.fileno(), self._answer)

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _answer(self) -> None:
        while not self._socket.closed:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(self._reply(frames))

    def _reply(self, frames: list[bytes]) -> list[bytes]:
        """version, request id, domain, address, identity, mechanism, client key to a verdict."""
        request = frames[1] if len(frames) > 1 else b""
        name = self._name_of(frames[6]) if len(frames) == 7 and frames[5] == b"CURVE" else None
        if name is not None:
            return [ZAP_VERSION, request, b"200", b"OK", name.encode(), b""]
        address = frames[3].decode(errors="replace") if len(frames) > 3 else "?"
        log.warning("refused a connection from %s: its key is not among the accepted ones", address)
        self._on_refused()
        return [ZAP_VERSION, request, b"400", b"unknown key", b"", b""]

    def _name_of(self, key: bytes) -> str | None:
        """Whose public key (32 bytes) this is."""
        text = z85.encode(key).decode()
        if text not in self._keys and time.monotonic() - self._read_at > RELOAD_S:
            self._read_at = time.monotonic()
            try:
                self._keys = accepted_keys(self._folder)
            except ConfigError as error:
                log.warning("%s; going on with the keys of before", error)
        return self._keys.get(text)
