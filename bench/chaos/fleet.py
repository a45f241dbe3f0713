"""The fleet that is attacked, in either mode, with the same handles on its processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import psutil
from msgspec import Struct

from mlxfleet.bench.chaos.options import Mode
from mlxfleet.bench.far_fleet import FarNode, far_fleet, named_child
from mlxfleet.bench.servers import ServerError, mlxfleet_spec, serving

API_KEYS = ("chaos-key-one", "chaos-key-two")
ADMIN_KEY = "chaos-admin-key"
# A request that was running on its worker so often when it died is given up as what kills it; here
# the killer is this program.
NODE_FLAGS = ("--memory-gb", "1", "--blas-threads", "1", "--max-attempts", "16")
# What a node on a host of its own calls the processes that it cannot do without.
CHILDREN = (("scheduler", "scheduler-0"), ("worker", "worker-0"))
TAKING = ("ready", "busy")
POLL_S = 0.02
SETTLE_TIMEOUT_S = 90.0
ADMIN_TIMEOUT_S = 30.0
LOOK_TIMEOUT_S = 10.0


class Seen(Struct, frozen=True):
    """A node in /fleet."""

    name: str
    state: str
    breaker: str
    restarts: int
    worker_restarts: int
    sequences: int
    running: int
    queued: int

    def lost(self, before: Seen) -> bool:
        """Whether it is known to be lost, or to have been and to be back already."""
        restarted = self.restarts + self.worker_restarts > before.restarts + before.worker_restarts
        return self.state not in TAKING or restarted


class SeenRouter(Struct, frozen=True):
    """The router in /fleet."""

    sequences: int


class SeenFleet(Struct, frozen=True):
    """What is read of /fleet."""

    router: SeenRouter
    nodes: list[Seen]


class Fleet:
    """A running fleet. `processes` finds each by a name such as "router" or "worker node-1"."""

    def __init__(
        self,
        mode: Mode,
        url: str,
        session: aiohttp.ClientSession,
        processes: dict[str, Callable[[], psutil.Process]],
        nodes: Sequence[str],
        far_nodes: Sequence[FarNode] = (),
    ) -> None:
        self.mode = mode
        self.url = url
        self.processes = processes
        self.nodes = list(nodes)
        self.far = {node.name: node for node in far_nodes}
        self._session = session

    async def look(self) -> SeenFleet:
        """What /fleet says. aiohttp.ClientError or TimeoutError while it says nothing."""
        async with (
            asyncio.timeout(LOOK_TIMEOUT_S),
            self._session.get(f"{self.url}/fleet", headers=admin_headers()) as response,
        ):
            response.raise_for_status()
            return msgspec.json.decode(await response.read(), type=SeenFleet)

    async def look_at(self, node: str) -> Seen | None:
        """A node in /fleet, None if it is not there or nobody answers."""
        try:
            return next((seen for seen in (await self.look()).nodes if seen.name == node), None)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def admin(self, action: str, node: str) -> None:
        """Drain or undrain a node; again as long as the router is not there, or does not know the
        node after a restart of its own. ServerError in the end."""
        url, deadline = f"{self.url}/admin/{action}/{node}", time.monotonic() + ADMIN_TIMEOUT_S
        why: object = ""
        while time.monotonic() < deadline:
            try:
                async with (
                    asyncio.timeout(LOOK_TIMEOUT_S),
                    self._session.post(url, json={}, headers=admin_headers()) as response,
                ):
                    if response.status == 200:
                        return
                    why = f"{response.status} {(await response.text())[:200]}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                why = repr(error)
            await asyncio.sleep(POLL_S)
        raise ServerError(f"cannot {action} {node}: {why}")

    async def until(self, condition: Callable[[SeenFleet], bool], timeout_s: float) -> bool:
        """Wait until /fleet shows something; False if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if condition(await self.look()):
                    return True
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            await asyncio.sleep(POLL_S)
        return False

    async def settle(self) -> bool:
        """Wait until every node takes requests, but for those that a circuit breaker rests."""

        def all_back(seen: SeenFleet) -> bool:
            states = {node.name: node.state for node in seen.nodes}
            return all(states.get(name) in TAKING for name in self.nodes)

        return await self.until(all_back, SETTLE_TIMEOUT_S)


def admin_headers() -> dict[str, str]:
    """What opens /fleet and /admin."""
    return {"Authorization": f"Bearer {ADMIN_KEY}"}


@asynccontextmanager
async def running(
    mode: Mode, model: Path, nodes: int, folder: Path, flags: Sequence[str] = ()
) -> AsyncIterator[Fleet]:
    """Start a fleet, wait until all its nodes take requests, and stop it in the end. `flags` are of
    nodes; keys and output go to `folder`. ServerError if it does not come up."""
    keys = [*key_flag(folder, "api", API_KEYS), *key_flag(folder, "admin", [ADMIN_KEY])]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True)
    ) as session:
        start = launched if mode == "launch" else joined
        async with start(model, nodes, folder, keys, [*NODE_FLAGS, *flags], session) as fleet:
            if not await fleet.settle():
                raise ServerError(f"not all of {nodes} nodes took requests; see {folder}")
            yield fleet


@asynccontextmanager
async def launched(
    model: Path,
    nodes: int,
    folder: Path,
    keys: list[str],
    flags: list[str],
    session: aiohttp.ClientSession,
) -> AsyncIterator[Fleet]:
    """`mlxfleet launch`."""
    spec = mlxfleet_spec(model, ["--nodes", str(nodes), "--detokenizers", "2", *keys, *flags])
    asked = readiness(session)
    log = folder / "launch.log"
    async with serving(spec, log, ask=lambda: asked(spec.url)) as server:
        front = ("router", "tokenizer-0", "detokenizer-0", "detokenizer-1", "telemetry")
        processes = {name: finder(server.pid, name) for name in front}
        for index in range(nodes):
            for role, _ in CHILDREN:
                processes[f"{role} node-{index}"] = finder(server.pid, f"{role}-{index}")
        names = [f"node-{index}" for index in range(nodes)]
        yield Fleet("launch", spec.url, session, processes, names)


@asynccontextmanager
async def joined(
    model: Path,
    nodes: int,
    folder: Path,
    keys: list[str],
    flags: list[str],
    session: aiohttp.ClientSession,
) -> AsyncIterator[Fleet]:
    """`mlxfleet router` and `mlxfleet node`s."""
    ask = readiness(session)
    async with far_fleet(model, nodes, folder, node_flags=flags, router_flags=keys, ask=ask) as far:
        front = ("router", "tokenizer-0", "detokenizer-0")
        processes = {name: finder(far.router_pid, name) for name in front}
        for node in far.nodes:
            for role, child in (*CHILDREN, ("telemetry", "telemetry")):
                processes[f"{role} {node.name}"] = child_finder(node, child)
        names = [node.name for node in far.nodes]
        yield Fleet("tcp", far.url, session, processes, names, far.nodes)


def finder(pid: int, name: str) -> Callable[[], psutil.Process]:
    """Finds a child by its name, whichever process that is by then."""
    return lambda: named_child(pid, name)


def child_finder(node: FarNode, name: str) -> Callable[[], psutil.Process]:
    """The same for a node on a host of its own, whose parent may be another one by then."""
    return lambda: named_child(node.parent.pid, name)


def readiness(session: aiohttp.ClientSession) -> Callable[[str], Awaitable[str]]:
    """Asks a server whether it can generate; "" if it can."""

    async def ask(url: str) -> str:
        try:
            async with session.get(f"{url}/ready") as response:
                return "" if response.status == 200 else f"/ready is {response.status}"
        except (aiohttp.ClientError, OSError) as error:
            return repr(error)

    return ask


def key_flag(folder: Path, name: str, keys: Sequence[str]) -> list[str]:
    """A file with keys, which only its owner can read, and the flag for it."""
    path = folder / f"{name}.keys"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("".join(f"{key}\n" for key in keys))
    return [f"--{name}-key-file", str(path)]
