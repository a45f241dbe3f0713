"""Streams under faults: processes of nodes are killed and stopped, links cut and nodes drained at
random, and every stream has to be the same as in an undisturbed run.

Usage: `python -m mlxfleet.bench.faults --model DIR [--faults 50] [NODE_FLAG ...]`

A router and its nodes run as on hosts of their own, with keys, over TCP. Streams run in a loop,
half of them greedy and half seeded. After each fault the node is seen to be lost in /fleet, which
is timed, and has to be ready again before the next. Linux only, for its loopback addresses.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aiohttp
import cyclopts
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.client import Answer, Target, ask, open_session
from mlxfleet.bench.far_fleet import FarNode, far_fleet
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import ServerError
from mlxfleet.common.admin_header import ADMIN_HEADERS

KINDS = ("kill scheduler", "kill worker", "stop scheduler", "stop worker", "cut link", "drain")
# What the router should have noticed by then. A link that is cut says nothing, like one that hangs.
NOTICED_WITHIN_S = {"kill": 1.0, "stop": 3.0, "cut": 3.0, "drain": 1.0}
LASTING_S = 4.0
TAKING = ("ready", "busy")
POLL_S = 0.01
READY_TIMEOUT_S = 60.0
LARGEST_PAUSE_S = 1.0


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run and what is done to it."""

    model: Path
    """MLX model folder."""

    nodes: int = 3
    """Compute nodes."""

    streams: int = 24
    """Streams at once."""

    max_tokens: int = 200
    """Tokens of each stream."""

    faults: int = 50
    """How many faults, one after the other."""

    seed: int = 0
    """Of the choice of faults."""


class Fault(Struct, frozen=True, kw_only=True):
    """One fault; `noticed_s` is how long the router took to take the node out."""

    kind: str
    node: str
    noticed_s: float


class Seen(Struct, frozen=True):
    """A node in /fleet."""

    name: str
    state: str
    restarts: int
    worker_restarts: int

    def lost(self, before: Seen) -> bool:
        """Whether it is known to be lost, or to have been and to be back already."""
        restarted = self.restarts + self.worker_restarts > before.restarts + before.worker_restarts
        return self.state not in TAKING or restarted


class Fleet(Struct, frozen=True):
    """What is read of /fleet."""

    nodes: list[Seen]


class Streams:
    """The streams' requests, their texts without faults, and how those under faults ended."""

    def __init__(self, options: Options, url: str) -> None:
        self._options = options
        self._url = url
        self.expected: list[Answer] = []
        self.finished = 0
        self.wrong: list[str] = []

    async def run_once(self, session: aiohttp.ClientSession, stream: int) -> Answer:
        """One stream from start to end."""
        temperature = 0.9 if stream % 2 else 0.0
        target = Target(
            url=self._url,
            body={"seed": stream, "ignore_eos": True, "temperature": temperature},
        )
        prompt = f"{stream} times upon a time, " * (1 + 5 * stream)
        body = target.encode({"prompt": prompt}, self._options.max_tokens)
        record = Request(run="", index=stream, due_s=0.0, sent_s=0.0)
        return await ask(session, target, body, record)

    async def learn(self, session: aiohttp.ClientSession) -> None:
        """What they say undisturbed."""
        runs = (self.run_once(session, stream) for stream in range(self._options.streams))
        self.expected = list(await asyncio.gather(*runs))
        if errors := [a.record.error.message for a in self.expected if a.record.error]:
            raise ServerError(f"a stream failed without a fault: {errors[0]}")

    async def run_on(
        self, session: aiohttp.ClientSession, stream: int, over: asyncio.Event
    ) -> None:
        """One stream again and again, compared each time."""
        while not over.is_set():
            answer, expected = await self.run_once(session, stream), self.expected[stream]
            self.finished += 1
            if (error := answer.record.error) is not None:
                self.wrong.append(f"stream {stream}: {error.message}")
            elif answer.text != expected.text or tokens(answer) != tokens(expected):
                self.wrong.append(f"stream {stream}: {first_difference(answer, expected)}")


def tokens(answer: Answer) -> int | None:
    """How many tokens the server counted."""
    return answer.record.output_tokens


def first_difference(answer: Answer, expected: Answer) -> str:
    """Where two texts part."""
    pairs = zip(answer.text, expected.text, strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), -1)
    return (
        f"{tokens(answer)} tokens instead of {tokens(expected)}, texts of"
        f" {len(answer.text)} and {len(expected.text)} characters that part at {at}"
    )


class Chaos:
    """Makes faults happen to nodes."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rng: random.Random) -> None:
        self._session = session
        self._url = url
        self._rng = rng

    async def fault(self, kind: str, node: FarNode) -> Fault:
        """One fault from its start until the node is ready again."""
        action, _, what = kind.partition(" ")
        before = await self._look(node.name)
        process = node.process(what) if action in ("kill", "stop") else None
        began = time.perf_counter()
        match action:
            case "kill" if process is not None:
                process.kill()
            case "stop" if process is not None:
                process.suspend()
            case "cut":
                node.link.cut()
            case _:
                await self._admin("drain", node.name)
        try:
            await self._until(lambda seen: seen.lost(before), node.name, f"{kind} {node.name}")
            noticed_s = time.perf_counter() - began
            if action != "kill":
                await asyncio.sleep(self._rng.random() * LASTING_S)
        finally:
            match action:
                case "stop" if process is not None:
                    process.resume()
                case "cut":
                    node.link.mend()
                case "drain":
                    await self._admin("undrain", node.name)
        await self._until(lambda seen: seen.state in TAKING, node.name, f"{node.name} to be back")
        return Fault(kind=kind, node=node.name, noticed_s=noticed_s)

    async def _admin(self, action: str, node: str) -> None:
        url = f"{self._url}/admin/{action}/{node}"
        async with self._session.post(url, headers=ADMIN_HEADERS) as response:
            response.raise_for_status()

    async def _until(self, condition: Callable[[Seen], bool], node: str, what: str) -> None:
        end = time.perf_counter() + READY_TIMEOUT_S
        while time.perf_counter() < end:
            if condition(await self._look(node)):
                return
            await asyncio.sleep(POLL_S)
        raise ServerError(f"still waiting for {what} after {READY_TIMEOUT_S:.0f} s")

    async def _look(self, node: str) -> Seen:
        async with self._session.get(f"{self._url}/fleet") as response:
            fleet = msgspec.json.decode(await response.read(), type=Fleet)
        return next(seen for seen in fleet.nodes if seen.name == node)


async def run(options: Options, flags: tuple[str, ...], console: Console) -> int:
    """Start a fleet, run the streams, make the faults; the number of things that went wrong."""
    rng = random.Random(options.seed)
    faults: list[Fault] = []
    async with (
        far_fleet(options.model, options.nodes, flags) as fleet,
        open_session(Target(url=fleet.url, timeout_s=300.0)) as session,
    ):
        streams = Streams(options, fleet.url)
        chaos = Chaos(session, fleet.url, rng)
        await streams.learn(session)
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for stream in range(options.streams):
                tasks.create_task(streams.run_on(session, stream, over))
            for number in range(options.faults):
                await asyncio.sleep(rng.random() * LARGEST_PAUSE_S)
                fault = await chaos.fault(rng.choice(KINDS), rng.choice(fleet.nodes))
                faults.append(fault)
                console.print(
                    f"{number + 1}/{options.faults}: {fault.kind} {fault.node}, noticed in"
                    f" {fault.noticed_s:.2f} s; {streams.finished} streams ended,"
                    f" {len(streams.wrong)} wrong"
                )
            over.set()
    Console().print(table(faults))
    late = [f for f in faults if f.noticed_s > NOTICED_WITHIN_S[f.kind.split()[0]]]
    print(f"{streams.finished} streams ended, {len(streams.wrong)} of them wrong")
    for what in streams.wrong:
        print(what)
    print(f"{len(late)} of {len(faults)} faults noticed too late")
    return len(streams.wrong) + len(late)


def table(faults: list[Fault]) -> Table:
    """How fast each kind was noticed."""
    shown = Table("fault", "how often", "noticed: median, s", "worst, s", title="Faults")
    for kind in KINDS:
        times = sorted(fault.noticed_s for fault in faults if fault.kind == kind)
        if times:
            middle = f"{times[len(times) // 2]:.2f}"
            shown.add_row(kind, str(len(times)), middle, f"{times[-1]:.2f}")
    return shown


def main(
    *flags: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)], options: Options
) -> None:
    """Run it; the exit status is 1 if anything went wrong."""
    console = Console(stderr=True)
    try:
        wrong = uvloop.run(run(options, flags, console))
    except* ServerError as errors:
        console.print(f"error: {errors.exceptions[0]}", style="bold red", markup=False)
        sys.exit(1)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    cyclopts.run(main)
