"""A router and nodes as on hosts of their own: joined over TCP with keys, through links that can be
cut. Linux only, where all of 127.0.0.0/8 is this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlxfleet.bench.processes import process_name
from mlxfleet.bench.servers import (
    HOST,
    READY_TIMEOUT_S,
    ServerError,
    ServerSpec,
    console_script,
    free_port,
    serving,
    start,
    stop,
    wait_until_it_answers,
)
from mlxfleet.common.key_files import DEFAULT_NODE, write_keys

READ_BYTES = 65536
# The router's port for nodes, and that of its detokenizer.
PORTS = 2


class Link:
    """What a node's host has between itself and the router's: relays connections to the same ports
    of another address, or nothing at all while it is cut, as a cable that was pulled."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._whole = asyncio.Event()
        self._whole.set()
        self._servers: list[asyncio.Server] = []
        self._relays: set[asyncio.Task[None]] = set()

    async def open(self, ports: Sequence[int]) -> None:
        """Listen."""
        for port in ports:

            def on_connection(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port
            ) -> None:
                task = asyncio.create_task(self._relay(reader, writer, port))
                self._relays.add(task)
                task.add_done_callback(self._relays.discard)

            self._servers.append(await asyncio.start_server(on_connection, self.host, port))

    def cut(self) -> None:
        """Let nothing through, and tell nobody."""
        self._whole.clear()

    def mend(self) -> None:
        """Let everything through again, also what came meanwhile."""
        self._whole.set()

    async def close(self) -> None:
        """Close every connection."""
        for server in self._servers:
            server.close()
        for task in list(self._relays):
            task.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        """Carry one connection both ways until either end closes it."""
        async with AsyncExitStack() as closing:
            closing.callback(writer.close)
            await self._whole.wait()
            try:
                far_reader, far_writer = await asyncio.open_connection(HOST, port)
            except OSError:
                return
            closing.callback(far_writer.close)
            ways = [
                asyncio.create_task(self._carry(reader, far_writer)),
                asyncio.create_task(self._carry(far_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()


@dataclass
class FarNode:
    """A node and the link to its router. `parent` is another process after a restart."""

    name: str
    link: Link
    spec: ServerSpec
    log: Path
    parent: Process

    async def restart(self) -> None:
        """Start it again, after a SIGTERM if it still runs, and wait until it says that it is
        ready. ServerError if it ends before, or takes too long."""
        await stop(self.parent)
        said = self.log.stat().st_size
        self.parent = await start(self.spec, self.log)
        await wait_until_it_answers(
            self.spec, self.parent, self.log, READY_TIMEOUT_S, lambda: self._ready_after(said)
        )

    async def _ready_after(self, position: int) -> str:
        """What is missing until it has said behind a position of its log that it is ready."""
        said = self.log.read_bytes()[position:]
        return "" if f"\nready node {self.name}\n".encode() in said else "it is not ready"

    async def stop(self) -> None:
        """Stop whatever runs of it."""
        await stop(self.parent)


@dataclass(frozen=True)
class FarFleet:
    """A running fleet; `router_pid` is the parent of the front end's processes."""

    url: str
    nodes: list[FarNode]
    router_pid: int
    node_address: str
    """Where nodes join."""
    keys: Path
    """Folder of the keys that let them in."""


def named_child(parent_pid: int, name: str) -> psutil.Process:
    """The descendant of mlxfleet's that has this name. ServerError if there is none now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent_pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process_name(child) == name:
                    return child
    raise ServerError(f"there is no {name} now")


@asynccontextmanager
async def far_fleet(
    model: Path,
    nodes: int,
    folder: Path,
    *,
    node_flags: Sequence[str],
    router_flags: Sequence[str] = (),
    ask: Callable[[str], Awaitable[str]],
) -> AsyncIterator[FarFleet]:
    """Start a router and nodes with these flags and stop all in the end. Keys and output go to
    `folder`. It is ready when `ask`, which gets its address, has nothing to object ("").
    ServerError if that takes too long."""
    http_port, node_port = free_port(), free_port_pair()
    url = f"http://{HOST}:{http_port}"
    script = console_script()
    async with AsyncExitStack() as closing:
        keys = folder / "keys"
        write_keys(keys, [DEFAULT_NODE])
        common = ["--model", str(model), "--keys", str(keys)]
        started = []
        for index in range(nodes):
            name, link = f"node-{index}", Link(f"127.0.0.{2 + index}")
            await link.open(range(node_port, node_port + PORTS))
            closing.push_async_callback(link.close)
            join = ["--router", f"tcp://{link.host}:{node_port}", "--name", name]
            spec = ServerSpec(name, [script, "node", *join, *common, *node_flags], url)
            log = folder / f"{name}.log"
            node = FarNode(name, link, spec, log, await start(spec, log))
            closing.push_async_callback(node.stop)
            started.append(node)
        listen = ["--host", HOST, "--port", str(http_port), "--node-host", HOST]
        far = ["--node-port", str(node_port), "--advertise-host", "*"]
        spec = ServerSpec("router", [script, "router", *listen, *far, *common, *router_flags], url)
        log = folder / "router.log"
        server = await closing.enter_async_context(serving(spec, log, ask=lambda: ask(url)))
        yield FarFleet(url, started, server.pid, f"tcp://{HOST}:{node_port}", keys)


def free_port_pair() -> int:
    """A port that is free now, and the next one too."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError):
            for number in range(port, port + PORTS):
                probe(number)
            return port


def probe(port: int) -> None:
    """OSError if a port is taken."""
    with socket.socket() as listening:
        listening.bind((HOST, port))
