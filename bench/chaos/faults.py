"""Making faults, and noticing when the router notices them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from mlxfleet.bench.chaos.fleet import POLL_S, Fleet, Seen
from mlxfleet.bench.chaos.plan import AFTER_KILL_S, Fault, Step
from mlxfleet.bench.servers import ServerError, kill
from mlxfleet.common.supervisor import CRASH_LOOP_DEATHS, series

# What the router has to have noticed by then. A link that is cut says nothing, as one that hangs.
NOTICED_WITHIN_S = {"kill": 1.0, "kill node": 1.0, "drain": 1.0, "stop": 3.0, "cut": 3.0}
SWING_S = 0.13
PROCESS_TIMEOUT_S = 30.0
EMPTY_TIMEOUT_S = 10.0
# Requests that a fault has sent back to the queue may be refused a little after it is over.
AFTERMATH_S = 5.0


@dataclass
class Made:
    """A step that was made or is being made; `ended` in time.monotonic(), with its aftermath."""

    kinds: str
    began: float
    ended: float = float("inf")
    router_killed: bool = False

    def overlaps(self, began: float, ended: float) -> bool:
        """Whether it was going on in that time."""
        return self.began <= ended and began <= self.ended


@dataclass
class Journal:
    """Everything that was done, and how fast the router noticed."""

    made: list[Made] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    noticed: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    late: list[str] = field(default_factory=list)

    def during(self, began: float, ended: float) -> list[Made]:
        """What was going on in that time."""
        return [made for made in self.made if made.overlaps(began, ended)]

    @contextmanager
    def step(self, step: Step) -> Iterator[Made]:
        """Write down that a step is made."""
        made = Made(" + ".join(fault.kind for fault in step.faults), time.monotonic())
        made.router_killed = any(fault.kind == "kill router" for fault in step.faults)
        self.made.append(made)
        self.counts.update(fault.kind for fault in step.faults)
        try:
            yield made
        finally:
            made.ended = time.monotonic() + AFTERMATH_S


class Faults:
    """Makes faults happen to a fleet."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet = fleet
        self._journal = journal
        self._deaths: defaultdict[str, list[float]] = defaultdict(list)

    async def make(self, step: Step) -> bool:
        """One step from its start until every node takes requests again; False if one does not."""
        step = Step(step.pause_s, tuple(map(self.bearable, step.faults)), step.gap_s)
        watch = len(step.faults) == 1
        with self._journal.step(step):
            async with asyncio.TaskGroup() as tasks:
                for index, fault in enumerate(step.faults):
                    tasks.create_task(self._make(fault, index * step.gap_s, watch))
            return await self._fleet.settle()

    def bearable(self, fault: Fault) -> Fault:
        """The fault, or, where one more death in a row would make a parent give up, as it should,
        a stop of the same process."""
        deaths = [*self._deaths[fault.target], time.monotonic()]
        if fault.action != "kill" or series(deaths) < CRASH_LOOP_DEATHS - 1:
            return fault
        return Fault("stop", fault.target, AFTER_KILL_S)

    def killed(self, target: str) -> None:
        """Remember a death, which counts for its parent."""
        self._deaths[target].append(time.monotonic())

    async def _make(self, fault: Fault, after_s: float, watch: bool) -> None:
        await asyncio.sleep(after_s)
        if not (watch and to_be_noticed(fault)):
            await self._do(fault, lambda: asyncio.sleep(fault.lasting_s))
            return
        before = await self._fleet.look_at(fault.node or "")
        await self._do(fault, lambda: self._notice(fault, before))

    async def _do(self, fault: Fault, hold: Callable[[], Awaitable[object]]) -> None:
        """Begin, hold and end a fault."""
        target = fault.target
        match fault.action:
            case "kill":
                self.killed(target)
                process = await self._process(target)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                await hold()
            case "stop":
                await self._stop(await self._process(target), hold)
            case "cut":
                link = self._fleet.far[target].link
                link.cut()
                try:
                    await hold()
                finally:
                    link.mend()
            case "drain":
                await self._fleet.admin("drain", target)
                await hold()
                await self._fleet.admin("undrain", target)
            case "swing":
                await self.swing(target, fault.lasting_s)
            case "kill node":
                node = self._fleet.far[target]
                kill(node.parent, [])
                await hold()
                await node.restart()
            case "restart":
                await self.restart(target)

    async def _process(self, name: str) -> psutil.Process:
        """A process, which may be about to be started again. ServerError if it is not."""
        deadline = time.monotonic() + PROCESS_TIMEOUT_S
        while True:
            try:
                return self._fleet.processes[name]()
            except ServerError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL_S)

    async def _stop(self, process: psutil.Process, hold: Callable[[], Awaitable[object]]) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
        try:
            await hold()
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    async def _notice(self, fault: Fault, before: Seen | None) -> None:
        """Hold a fault as long as it lasts, or at most until it should have been noticed."""
        began, limit_s = time.monotonic(), NOTICED_WITHIN_S[fault.action]
        noticed_s = None
        until_s = fault.lasting_s or 2 * limit_s
        while (elapsed_s := time.monotonic() - began) < until_s:
            seen = await self._fleet.look_at(fault.node or "")
            if noticed_s is None and before is not None and seen is not None and seen.lost(before):
                noticed_s = time.monotonic() - began
                self._journal.noticed[fault.kind].append(noticed_s)
                if not fault.lasting_s:
                    break
            await asyncio.sleep(POLL_S)
        should = before is not None and elapsed_s > limit_s
        if should and (noticed_s is None or noticed_s > limit_s):
            when = "not" if noticed_s is None else f"after {noticed_s:.2f} s"
            self._journal.late.append(f"{fault.kind} of {fault.node} noticed {when}")

    async def swing(self, node: str, lasting_s: float) -> None:
        """Drain a node and another in turns, so that streams move to and fro."""
        nodes = self._fleet.nodes
        pair = (node, nodes[(nodes.index(node) + 1) % len(nodes)])
        deadline, turn = time.monotonic() + lasting_s, 0
        while time.monotonic() < deadline:
            await self._fleet.admin("drain", pair[turn % 2])
            await self._fleet.admin("undrain", pair[(turn + 1) % 2])
            turn += 1
            await asyncio.sleep(SWING_S)
        for name in pair:
            await self._fleet.admin("undrain", name)

    async def restart(self, node: str) -> None:
        """Restart a node as `mlxfleet up` does: drained first, so that nothing is cut off."""
        await self._fleet.admin("drain", node)
        await self._fleet.until(
            lambda seen: all(n.sequences == 0 for n in seen.nodes if n.name == node),
            EMPTY_TIMEOUT_S,
        )
        await self._fleet.far[node].restart()
        await self._fleet.admin("undrain", node)


def to_be_noticed(fault: Fault) -> bool:
    """Whether the router has to see it: what a node cannot do without, or all of it."""
    if fault.action in ("kill", "stop"):
        return fault.target.split()[0] in ("scheduler", "worker")
    return fault.action in NOTICED_WITHIN_S
