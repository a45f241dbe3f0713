"""Load on a server: conversations that begin as their arrival says, in one process."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import aiohttp
from msgspec import Struct

from mlxfleet.bench.arrivals import Arrival, ClosedLoop, OpenLoop
from mlxfleet.bench.client import Answer, Target, ask, open_session
from mlxfleet.bench.client_cost import CostMeter
from mlxfleet.bench.conversations import Conversation, History, Turn
from mlxfleet.bench.figures import distribution, gaps_s, summarize, ttft_s
from mlxfleet.bench.open_files import allow_connections
from mlxfleet.bench.records import Request, Summary

# A connection's file, and what the process has open besides.
SPARE_FILES = 64


class Load(Struct, frozen=True, kw_only=True):
    """What is asked of a server, and when."""

    target: Target
    conversations: Sequence[Conversation]
    arrival: Arrival
    run: str = ""
    """The run's id in records."""
    max_seconds: float = math.inf
    """No request is sent later than this after the start; what was sent goes on."""
    slos_ms: Mapping[str, float] = {}
    count_tokens: Callable[[str], int] | None = None
    """Counts the tokens of answers of a server that does not."""


class Numbered(Struct, frozen=True):
    """A conversation, its number in the plan, and the number of its first request."""

    number: int
    first_request: int
    conversation: Conversation


class LoadResult(Struct, frozen=True):
    """A whole run."""

    summary: Summary
    requests: list[Request]


class LoadRun:
    """A load in progress: `records` are the requests that have ended, `running` how many have not.

    Cancelling `run` closes all connections; requests under way leave no record then.
    """

    def __init__(self, load: Load, on_record: Callable[[Request], None] | None = None) -> None:
        """ConfigError if the system does not allow so many connections."""
        allow_connections(most_at_once(load) + SPARE_FILES)
        self._load = load
        self._on_record = on_record
        self._meter = CostMeter()
        self._began = time.perf_counter()
        self.records: list[Request] = []
        self.running = 0
        self.failed = 0
        self.output_tokens = 0
        self.planned = sum(len(conversation.turns) for conversation in load.conversations)

    @property
    def elapsed_s(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._began

    async def run(self) -> None:
        """Run it to its end."""
        load = self._load
        async with (
            open_session(load.target) as session,
            self._meter.measuring(),
            asyncio.TaskGroup() as tasks,
        ):
            self._began = time.perf_counter()
            queue = numbered(load.conversations)
            match load.arrival:
                case ClosedLoop(concurrency):
                    for _ in range(min(concurrency, len(load.conversations))):
                        tasks.create_task(self._user(session, queue))
                case OpenLoop(due_s):
                    for due, one in zip(due_s, queue, strict=False):
                        if due > load.max_seconds:
                            break
                        await sleep_until(self._began + due)
                        tasks.create_task(self._converse(session, one, due))

    async def _user(self, session: aiohttp.ClientSession, queue: Iterator[Numbered]) -> None:
        """Takes conversations off the common queue until there are none left."""
        for one in queue:
            await self._converse(session, one, self.elapsed_s)

    async def _converse(self, session: aiohttp.ClientSession, one: Numbered, due_s: float) -> None:
        """One conversation, which ends early if a request fails or time is over."""
        target = self._load.target
        history = History(one.conversation, target.endpoint)
        for position, turn in enumerate(one.conversation.turns):
            if turn.think_s:
                due_s += turn.think_s
                await sleep_until(self._began + due_s)
            if self.elapsed_s > self._load.max_seconds:
                return
            body = target.encode(history.ask(turn.text), turn.max_tokens)
            record = Request(
                run=self._load.run,
                index=one.first_request + position,
                conversation=one.number,
                turn=position,
                due_s=due_s,
                sent_s=self.elapsed_s,
            )
            self.running += 1
            try:
                answer = await ask(session, target, body, record)
            finally:
                self.running -= 1
            self._ended(answer, turn)
            if record.error is not None:
                return
            history.answered(answer.text)
            due_s = self.elapsed_s

    def _ended(self, answer: Answer, turn: Turn) -> None:
        """Keep a request's record."""
        record = answer.record
        if record.turn == 0:
            record.planned_input_tokens = turn.input_tokens
        count_tokens(answer, self._load.count_tokens)
        self.records.append(record)
        if record.error is None:
            self.output_tokens += record.output_tokens or 0
        else:
            self.failed += 1
        if self._on_record is not None:
            self._on_record(record)

    def summary(self) -> Summary:
        """The figures of what has ended so far."""
        records = self.records
        good = [record for record in records if record.error is None]
        firsts = [time for record in good if (time := ttft_s(record)) is not None]
        measured = [
            distribution(firsts),
            distribution([gap for record in good for gap in gaps_s(record)]),
        ]
        late_sends_s = [record.sent_s - record.due_s for record in records]
        cost = self._meter.cost(late_sends_s, measured)
        return summarize(self._load.run, records, self._load.slos_ms, cost)


def numbered(conversations: Sequence[Conversation]) -> Iterator[Numbered]:
    """In order."""
    first_request = 0
    for number, conversation in enumerate(conversations):
        yield Numbered(number, first_request, conversation)
        first_request += len(conversation.turns)


async def run_load(load: Load) -> LoadResult:
    """Run a load to its end. Requests that fail are part of the result."""
    run = LoadRun(load)
    await run.run()
    run.records.sort(key=lambda record: record.index)
    return LoadResult(run.summary(), run.records)


async def sleep_until(time_s: float) -> None:
    """Until this time of `perf_counter`; at once if it is over."""
    if (left_s := time_s - time.perf_counter()) > 0:
        await asyncio.sleep(left_s)


def most_at_once(load: Load) -> int:
    """Connections that may be open together."""
    many = len(load.conversations)
    match load.arrival:
        case ClosedLoop(concurrency):
            return min(concurrency, many)
        case OpenLoop():
            return many


def count_tokens(answer: Answer, count: Callable[[str], int] | None) -> None:
    """Fill in the number of output tokens if the server did not tell it."""
    record = answer.record
    if record.output_tokens is not None:
        return
    if count is None:
        record.output_tokens, record.tokens_counted_by = len(record.token_times_s), "chunks"
    else:
        record.output_tokens, record.tokens_counted_by = count(answer.all_text), "tokenizer"
