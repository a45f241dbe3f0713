"""One fleet under random faults, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mlxfleet.bench.chaos.burners import burning
from mlxfleet.bench.chaos.cases import make_cases
from mlxfleet.bench.chaos.client import Client
from mlxfleet.bench.chaos.compare import Finding
from mlxfleet.bench.chaos.faults import Faults, Journal
from mlxfleet.bench.chaos.fleet import API_KEYS, Fleet, SeenFleet, running
from mlxfleet.bench.chaos.load import Load
from mlxfleet.bench.chaos.options import LONGEST, STREAMS, Mode, Options
from mlxfleet.bench.chaos.plan import Fault, Step, steps
from mlxfleet.bench.error_groups import leaves
from mlxfleet.bench.servers import ServerError

EMPTY_TIMEOUT_S = 15.0
MOVES_TIMEOUT_S = 10.0
SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class Subject:
    """What is attacked: a model in a mode, with its share of faults and time."""

    name: str
    model: Path
    mode: Mode
    seed: str
    faults: int
    seconds: float | None
    logs: Path
    flags: Sequence[str]


@dataclass(frozen=True)
class Result:
    """How a campaign went."""

    subject: str
    load: Load
    journal: Journal
    findings: list[Finding]


async def attack(subject: Subject, options: Options, console: Console) -> Result:
    """Start a fleet, learn what it answers, and make faults under load. ServerError if it does not
    start, does not answer undisturbed, or is not to be handled any more."""
    rng = random.Random(subject.seed)
    cases = make_cases(rng, options.requests, options.longest or LONGEST)
    streams = options.streams or STREAMS
    async with (
        running(subject.mode, subject.model, options.nodes, subject.logs, subject.flags) as fleet,
        asking(fleet, options) as client,
        contextlib.AsyncExitStack() as closing,
    ):
        journal = Journal()
        load = Load(client, cases, journal)
        console.print(f"{subject.name}: {len(cases)} requests undisturbed ...", highlight=False)
        await load.learn(streams)
        await closing.enter_async_context(burning(options.burners))
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for stream in range(streams):
                asks = random.Random(f"{subject.seed} stream {stream}")
                tasks.create_task(load.run(asks, over))
            plan = steps(rng, subject.mode, list(fleet.processes), fleet.nodes, options.pairs)
            maker = Maker(subject, fleet, load, journal, streams, console)
            await maker.make_all(plan)
            over.set()
        findings = [*load.tally.findings, *maker.findings, *await leaks(fleet)]
        if options.noticing:
            findings += [Finding("late", what) for what in journal.late]
    return Result(subject.name, load, journal, findings)


class Maker:
    """Makes the faults of a plan as long as there is time, and says so."""

    def __init__(
        self,
        subject: Subject,
        fleet: Fleet,
        load: Load,
        journal: Journal,
        streams: int,
        console: Console,
    ) -> None:
        self.findings: list[Finding] = []
        self._shown = 0
        self._subject = subject
        self._load = load
        self._answers = max(1, streams // 4)
        self._console = console
        self._faults = Faults(fleet, journal)

    async def make_all(self, plan: Iterator[Step]) -> None:
        """Make faults until there are enough, or time is over."""
        began, made = time.monotonic(), 0
        while made < self._subject.faults and not self._time_is_over(began):
            step = next(plan)
            await self._load.moves(self._answers, MOVES_TIMEOUT_S)
            await asyncio.sleep(step.pause_s)
            problem = await self._make(step)
            made += len(step.faults)
            self._report(step, made)
            if problem:
                self.findings.append(Finding("hung", f"{problem} ({describe(step)})"))
                return

    async def _make(self, step: Step) -> str:
        """Make a step; why the fleet cannot be handled any more, "" if it can."""
        problem = ""
        try:
            if not await self._faults.make(step):
                problem = "not every node takes requests long after"
        except* ServerError as errors:
            problem = "; ".join(map(str, leaves(errors)))
        return problem

    def _time_is_over(self, began: float) -> bool:
        limit_s = self._subject.seconds
        return limit_s is not None and time.monotonic() - began > limit_s

    def _report(self, step: Step, made: int) -> None:
        tally = self._load.tally
        self._console.print(
            f"{self._subject.name}: {made}/{self._subject.faults} faults, {describe(step)};"
            f" {tally.requests} requests, {len(tally.findings)} findings",
            highlight=False,
            soft_wrap=True,
        )
        show_findings(tally.findings[self._shown :], self._console)
        self._shown = len(tally.findings)


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print what was found, cut to a length that can be read."""
    for finding in findings:
        what = f"{finding.kind}: {finding.what[:SHOWN_CHARACTERS]}"
        console.print(what, markup=False, highlight=False, soft_wrap=True)


def describe(step: Step) -> str:
    """A step in words."""
    parts = [f"{fault.action} {fault.target}" + lasting(fault) for fault in step.faults]
    return f" and {step.gap_s:.2f} s later ".join(parts)


def lasting(fault: Fault) -> str:
    """How long a fault lasts, if it does."""
    return f" for {fault.lasting_s:.1f} s" if fault.lasting_s else ""


async def leaks(fleet: Fleet) -> list[Finding]:
    """What is still held when nobody asks any more."""

    def empty(seen: SeenFleet) -> bool:
        held = [seen.router.sequences]
        held += [count for node in seen.nodes for count in (node.running, node.queued)]
        return not any(held)

    if await fleet.until(empty, EMPTY_TIMEOUT_S):
        return []
    return [Finding("leaked", f"sequences are left without a client: {await fleet.look()}")]


@contextlib.asynccontextmanager
async def asking(fleet: Fleet, options: Options) -> AsyncIterator[Client]:
    """A client of the fleet."""
    client = Client(fleet.url, API_KEYS, options.deadline_s)
    try:
        yield client
    finally:
        await client.close()
