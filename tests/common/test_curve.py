"""Only known keys get through, and new ones without a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from mlxfleet.common import channels, curve
from mlxfleet.common.curve import CurveClient, CurveServer, Gatekeeper
from mlxfleet.common.key_files import read_key, write_key, write_keys
from mlxfleet.common.messages import Refused, Release, Welcome

DEADLINE_S = 5.0
REFUSED = (
    zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.DISCONNECTED
)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        await asyncio.sleep(0.005)


class Server:
    """A protected server on a free port that says Welcome to everybody."""

    def __init__(self, context: zmq.Context[Any], keys: Path) -> None:
        self.context, self.refusals = context, 0
        security = CurveServer(secret=read_key(keys / "router.secret"), accepted=keys)
        self.gatekeeper = Gatekeeper(context, security, self._count)
        self.channel = channels.server(context, Release, "tcp://127.0.0.1:*", security)
        self.address = self.channel.socket.get_string(zmq.LAST_ENDPOINT)
        self.heard: list[str] = []
        self.channel.attach(self._hear)
        self.clients: list[channels.Channel[Any, Any]] = []

    def _count(self) -> None:
        self.refusals += 1

    def _hear(self, sender: bytes, message: Release) -> None:
        self.heard.append(message.rid)
        self.channel.send(Welcome("s"), to=sender)

    def client(
        self, rid: str, security: CurveClient | None, events: list[zmq.Event]
    ) -> channels.Channel[Any, Any]:
        """A client that has said something, and what its connection met."""
        channel = channels.client(self.context, Welcome | Refused, self.address, rid, security)
        channel.watch(REFUSED, events.append)
        channel.attach(lambda _, message: None)
        channel.send(Release(rid, "1"))
        self.clients.append(channel)
        return channel

    def close(self) -> None:
        """Close every socket."""
        for channel in (*self.clients, self.channel):
            channel.close()
        self.gatekeeper.close()


def run(keys: Path, test: Callable[[Server], Awaitable[None]]) -> None:
    """Run a test against a server."""

    async def main(context: zmq.Context[Any]) -> None:
        server = Server(context, keys)
        try:
            await test(server)
        finally:
            server.close()

    context: zmq.Context[Any] = zmq.Context()
    try:
        asyncio.run(main(context))
    finally:
        context.destroy(linger=0)


def client_keys(keys: Path, name: str, router: Path | None = None) -> CurveClient:
    """A node's side."""
    return CurveClient(
        server=read_key((router or keys) / "router.public"),
        secret=read_key(keys / f"{name}.secret"),
    )


def test_a_known_key_gets_through_and_others_do_not(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_keys(ours, ["a"])
    write_keys(theirs, ["a"])

    async def test(server: Server) -> None:
        met: list[list[zmq.Event]] = [[], [], []]
        server.client("stranger", client_keys(theirs, "a", router=ours), met[0])
        server.client("plain", None, met[1])
        server.client("lost", client_keys(theirs, "a"), met[2])
        await until(lambda: all(met), "every refusal")
        server.client("known", client_keys(ours, "a"), [])
        await until(lambda: server.heard, "the known one")
        assert server.heard == ["known"]
        assert server.refusals == 1
        assert met[0][0] is zmq.Event.HANDSHAKE_FAILED_AUTH

    run(ours, test)


def test_a_new_key_is_taken_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve, "RELOAD_S", 0.0)
    ours, more = tmp_path / "ours", tmp_path / "more"
    write_keys(ours, ["a"])
    write_keys(more, ["b"])

    async def test(server: Server) -> None:
        write_key(ours / "b.public", read_key(more / "b.public").encode())
        write_key(ours / "c.public", b"rubbish")
        met: list[zmq.Event] = []
        server.client("early", client_keys(more, "b", router=ours), met)
        await until(lambda: met, "a refusal, because a file is not readable")
        (ours / "c.public").unlink()
        server.client("late", client_keys(more, "b", router=ours), [])
        await until(lambda: server.heard, "the new one")
        assert server.heard == ["late"]

    run(ours, test)
