"""All hostile requests against one server, beside good ones."""

from __future__ import annotations

import asyncio
import contextlib
import random
import urllib.parse
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from rich.console import Console

from mlxfleet.bench.chaos.cases import make_cases
from mlxfleet.bench.chaos.client import Client
from mlxfleet.bench.chaos.faults import Journal
from mlxfleet.bench.chaos.load import Load, staying
from mlxfleet.bench.hostile.bodies import mutated_body
from mlxfleet.bench.hostile.frames import odd_frames
from mlxfleet.bench.hostile.heads import malformed_headers
from mlxfleet.bench.hostile.judge import judge
from mlxfleet.bench.hostile.meanings import odd_meanings
from mlxfleet.bench.hostile.options import Options
from mlxfleet.bench.hostile.paths import odd_path
from mlxfleet.bench.hostile.send import Outcome, send
from mlxfleet.bench.hostile.shots import API_KEYS, GOOD_KEY, Shot
from mlxfleet.bench.hostile.watch import Watch

FAMILIES = {mutated_body: 11, malformed_headers: 2, odd_meanings: 2, odd_frames: 3, odd_path: 3}
SHOWN_BYTES = 1_500
GOOD_REQUESTS = 12
GOOD_TOKENS = 24
GOOD_DEADLINE_S = 60.0
WARM_SHARE = 0.1
PROGRESS_EVERY = 500
RECENT = 32


@dataclass
class Result:
    """How it went."""

    statuses: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    good: int = 0


def make_shot(seed: int, index: int) -> Shot:
    """The request of this index, whatever came before."""
    rng = random.Random(f"{seed} {index}")
    family = rng.choices(tuple(FAMILIES), weights=tuple(FAMILIES.values()))[0]
    return family(rng)


class Barrage:
    """Sends the requests of a seed to a server."""

    def __init__(self, url: str, seed: int, options: Options, watch: Watch | None) -> None:
        address = urllib.parse.urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._seed = seed
        self._options = options
        self._watch = watch
        self._recent: deque[int] = deque(maxlen=RECENT)
        self.result = Result()

    async def send_all(self, console: Console) -> None:
        """Send all, so many at once."""
        indexes = iter(range(self._options.requests))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._options.at_once):
                tasks.create_task(self._send_some(indexes, console))

    async def _send_some(self, indexes: Iterator[int], console: Console) -> None:
        for index in indexes:
            if self._watch is not None and index == int(WARM_SHARE * self._options.requests):
                self._watch.warm()
            await self._send(index)
            if index and index % PROGRESS_EVERY == 0:
                found = len(self.result.findings)
                console.print(f"{index} requests, {found} findings", highlight=False)

    async def _send(self, index: int) -> None:
        shot = make_shot(self._seed, index)
        self._recent.append(index)
        try:
            outcome = await send(self._host, self._port, shot)
        except OSError as error:
            self._found(index, shot, f"no connection: {error!r}")
            return
        statuses = [f"{response.status}" for response in outcome.responses] or [outcome.end]
        self.result.statuses.update(statuses)
        if wrong := judge(shot, outcome):
            self._found(index, shot, wrong)
        self._deaths()

    def _found(self, index: int, shot: Shot, wrong: str) -> None:
        self.result.findings.append(describe(index, shot, wrong))

    def _deaths(self) -> None:
        """Name the requests that may have ended a process."""
        while self._watch is not None and self._watch.died:
            died = self._watch.died.popitem()[0]
            self.result.findings.append(f"{died}; last requests: {list(self._recent)}")


def describe(index: int, shot: Shot, wrong: str) -> str:
    """A finding with all that is needed to look at it."""
    sent = shot.sent
    more = f" and {len(sent) - SHOWN_BYTES} bytes more" if len(sent) > SHOWN_BYTES else ""
    return f"--only {index}, {shot.kind}: {wrong}\n    sent: {sent[:SHOWN_BYTES]!r}{more}"


async def barrage(
    url: str, seed: int, options: Options, watch: Watch | None, console: Console
) -> Result:
    """Learn what good requests are answered, and ask them again beside hostile ones. ServerError if
    they are not answered undisturbed."""
    async with good_load(url, seed) as load:
        await load.learn(GOOD_REQUESTS)
        shots = Barrage(url, seed, options, watch)
        over = asyncio.Event()
        async with watching(watch), asyncio.TaskGroup() as tasks:
            for number in range(options.good):
                tasks.create_task(load.run(random.Random(f"{seed} good {number}"), over))
            await shots.send_all(console)
            over.set()
    result = shots.result
    result.good = load.tally.requests
    result.findings += [f"good request: {f.kind}: {f.what}" for f in load.tally.findings]
    if watch is not None:
        result.findings += [*watch.died, *watch.grown(options.growth_mb, options.largest_mb)]
    return result


@contextlib.asynccontextmanager
async def good_load(url: str, seed: int) -> AsyncIterator[Load]:
    """Requests that are right, of a client with a key of its own."""
    client = Client(url, (API_KEYS[GOOD_KEY],) * 2, GOOD_DEADLINE_S)
    cases = make_cases(random.Random(f"{seed} good"), GOOD_REQUESTS, GOOD_TOKENS)
    try:
        yield Load(client, list(map(staying, cases)), Journal())
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def watching(watch: Watch | None) -> AsyncIterator[None]:
    """Look at the processes meanwhile, and once more in the end."""
    if watch is None:
        yield
        return
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        watch.look()


async def send_only(url: str, seed: int, index: int, console: Console) -> Result:
    """Send one request again, and show everything."""
    address, shot = urllib.parse.urlsplit(url), make_shot(seed, index)
    outcome: Outcome = await send(address.hostname or "", address.port or 80, shot)
    console.print(describe(index, shot, outcome.end), markup=False, highlight=False)
    console.print(f"{outcome.raw[:SHOWN_BYTES]!r}", markup=False, highlight=False)
    wrong = judge(shot, outcome)
    statuses = Counter(f"{response.status}" for response in outcome.responses)
    return Result(statuses, [describe(index, shot, wrong)] if wrong else [])
