"""The second half of `mlxfleet up`: carry out a plan, and take back what did not work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mlxfleet.common.cluster.agent import Apply, Await, Refresh, Revert, Stop
from mlxfleet.common.cluster.hosts import Hosts, all_of
from mlxfleet.common.cluster.plan import Action, Plan
from mlxfleet.common.cluster.router_client import Fleet, NoSuchNodeError, RouterClient
from mlxfleet.common.cluster.ssh import HostError
from mlxfleet.common.cluster.units import KeeperState
from mlxfleet.common.errors import NetworkError
from mlxfleet.common.load_progress import describe

POLL_S = 0.2
DRAINING = "draining"
OTHERS_S = 2.0
"""How long after the first failure others may still report theirs."""


class Rollout:
    """One way from what runs to what a plan says."""

    def __init__(self, hosts: Hosts, client: RouterClient, plan: Plan) -> None:
        self._hosts = hosts
        self._client = client
        self._plan = plan
        self._table = hosts.cluster.spec.cluster
        self._board = hosts.board
        self._started: list[Action] = []

    async def run(self) -> None:
        """Start what is missing, restart what has changed, wait until all nodes generate. If
        something fails, what was started here is stopped again; HostError says what."""
        try:
            await self._front()
            await self._stop_gone()
            await self._start_all([a for a in self._plan.nodes if a.verb == "start"])
            for action in self._plan.nodes:
                if action.verb == "restart":
                    await self._roll(action)
                elif action.verb == "keep":
                    self._board.set(action.unit.name, f"runs on {action.host}", "ok")
            await self._all_generate()
        except BaseException:
            await self._undo()
            raise

    async def _front(self) -> None:
        """Start or change the front end. Nodes join it by themselves, in any order."""
        front = self._plan.front
        if front.verb == "keep":
            await self._ask(front, Refresh(front.unit), None)
        elif front.verb == "restart":
            self._board.set(front.unit.name, f"restarting on {front.host}: requests end first")
            await self._change(front, self._answers)
            self._board.set(front.unit.name, f"restarted on {front.host}", "ok")
        else:
            await self._start(front)

    async def _answers(self, front: Action) -> None:
        """Wait until a front end that was restarted answers. It says that it is ready only when
        a node is, which may be one that is still to be started."""
        ended = asyncio.ensure_future(self._await_line(front))
        try:
            while not ended.done() and not await self._client.alive():
                await asyncio.wait({ended}, timeout=POLL_S)
            if ended.done():
                ended.result()
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _start(self, action: Action) -> None:
        self._board.set(action.unit.name, f"starting on {action.host}")
        self._started.append(action)
        await self._ask(action, Apply(action.unit), None)

    async def _start_all(self, nodes: Sequence[Action]) -> None:
        """Start nodes at once, and wait for them and for a front end that was started too."""
        await all_of({self._at(action): self._start(action) for action in nodes})
        waits = {self._at(a): asyncio.ensure_future(self._ready(a)) for a in self._started}
        if not waits:
            return
        _, pending = await asyncio.wait(waits.values(), return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=OTHERS_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await all_of({name: task for name, task in waits.items() if task not in pending})

    async def _ready(self, action: Action) -> None:
        name = action.unit.name
        try:
            await self._await_line(action)
        except HostError as error:
            self._board.set(name, f"{str(error).splitlines()[0]} on {action.host}", "failed")
            raise
        self._board.set(name, f"started on {action.host}", "ok")

    async def _roll(self, action: Action) -> None:
        """Restart one node while the others work: drain, restart, undrain."""
        name = action.unit.name
        by_operator = await self._is_draining(name)
        await self._drained(name)
        self._board.set(name, f"restarting on {action.host}")
        try:
            await self._change(action, self._await_line)
        finally:
            # Whichever settings it runs with now, it gets work again.
            if not by_operator:
                await self._undrain(name)
        await self._until_generating([name])
        self._board.set(name, f"restarted on {action.host}", "ok")

    async def _is_draining(self, name: str) -> bool:
        """Whether somebody has drained a node, who then is the one to undrain it."""
        node = (await self._client.fleet()).node(name)
        return node is not None and node.state == DRAINING

    async def _drained(self, name: str) -> None:
        """Let a node finish what it has, for as long as the file says."""
        self._board.set(name, "draining")
        try:
            await self._client.drain(name)
        except NoSuchNodeError:
            return
        end = time.monotonic() + self._table.drain_timeout_s
        while time.monotonic() < end:
            node = (await self._client.fleet()).node(name)
            if node is None or node.load == 0:
                return
            self._board.fine(name, f"draining: {node.load} sequences")
            await asyncio.sleep(POLL_S)
        self._board.set(name, "still has sequences: they move to another node")

    async def _undrain(self, name: str) -> None:
        end = time.monotonic() + self._table.start_timeout_s
        while time.monotonic() < end:
            try:
                await self._client.undrain(name)
                return
            except (NoSuchNodeError, NetworkError):
                await asyncio.sleep(POLL_S)

    async def _change(self, action: Action, until_up: Callable[[Action], Awaitable[None]]) -> None:
        """Run a unit in another way; the way before if it does not start so."""
        await self._ask(action, Apply(action.unit), None)
        try:
            await until_up(action)
        except HostError as error:
            again = await self._ask(action, Revert(action.unit.cluster, action.unit.name), bool)
            name = action.unit.name
            self._board.set(name, "does not start with the new settings", "failed")
            if again:
                await until_up(action)
            raise HostError(
                f"{self._at(action)} does not start with the new settings: {error}\n"
                f"{'It runs with the old ones again' if again else 'It is stopped'};"
                " what comes after it was not touched"
            ) from error

    async def _stop_gone(self) -> None:
        """Stop nodes that are in the file no more."""
        for name, host in self._plan.gone.items():
            await self._drained(name)
            stop = Stop(self._table.name, name)
            await self._hosts.shell.ask(host, stop, bool)
            self._board.set(name, f"stopped on {host}: it is not in the file any more", "ok")

    async def _all_generate(self) -> None:
        await self._until_generating([action.unit.name for action in self._plan.nodes])
        end = time.monotonic() + self._table.start_timeout_s
        while not await self._client.ready():
            if time.monotonic() > end:
                raise HostError(f"{self._client.url}/ready does not say that it can serve")
            await asyncio.sleep(POLL_S)

    async def _until_generating(self, names: Sequence[str]) -> None:
        """Poll the front end until nodes take requests; HostError with those that do not."""
        end = time.monotonic() + self._table.start_timeout_s
        missing: dict[str, str] = dict.fromkeys(names, "unknown")
        while missing:
            try:
                missing = not_generating(await self._client.fleet(), names)
            except NetworkError as error:
                missing = dict.fromkeys(names, str(error))
            for name, why in missing.items():
                self._board.fine(name, why)
            if missing and time.monotonic() > end:
                each = "\n".join(f"{name}: {why}" for name, why in missing.items())
                raise HostError(f"nodes do not take requests:\n{each}")
            if missing:
                await asyncio.sleep(POLL_S)

    async def _undo(self) -> None:
        """Stop what was started here; say what runs on if that fails too."""
        await asyncio.gather(*(self._stop_again(action) for action in self._started))

    async def _stop_again(self, action: Action) -> None:
        name = action.unit.name
        try:
            await self._hosts.shell.ask(action.host, Stop(self._table.name, name), bool)
            self._board.set(name, f"stopped again on {action.host}", "failed")
        except HostError as error:
            self._board.set(name, f"may still run on {action.host}: {error}", "failed")

    async def _await_line(self, action: Action) -> None:
        timeout_s = self._table.start_timeout_s
        order = Await(action.unit.cluster, action.unit.name, timeout_s)
        await self._ask(action, order, KeeperState)

    async def _ask(self, action: Action, order: Any, kind: Any) -> Any:
        shower = self._board.shower(action.unit.name)
        return await self._hosts.shell.ask(action.host, order, kind, shower)

    @staticmethod
    def _at(action: Action) -> str:
        return f"{action.unit.name} on {action.host}"


def not_generating(fleet: Fleet, names: Sequence[str]) -> dict[str, str]:
    """Those of the nodes that do not take requests, and what they do instead. One that is drained
    is as somebody wants it."""
    found: dict[str, str] = {}
    for name in names:
        node = fleet.node(name)
        if node is None:
            found[name] = "has not joined the front end"
        elif not node.generates and node.state != DRAINING:
            state = describe(node.loading) if node.loading is not None else node.state
            found[name] = f"is {state or 'in no known state'}"
    return found
