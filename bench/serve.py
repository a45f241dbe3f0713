"""The runs of `mlxfleet bench serve`: each prepared, warmed up, measured, written and shown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console

from mlxfleet.bench.arrivals import ClosedLoop
from mlxfleet.bench.client import Target, open_session
from mlxfleet.bench.conversations import Conversation
from mlxfleet.bench.interrupts import cancel_on_signals
from mlxfleet.bench.load import Load, LoadRun, run_load
from mlxfleet.bench.observer import Observer, machine_sensors, watching
from mlxfleet.bench.plans import DEFAULT_CONCURRENCY, Plan, Source, plans, warm_up
from mlxfleet.bench.progress import shown
from mlxfleet.bench.prompt_tokens import WordBook, open_word_book
from mlxfleet.bench.recorder import Recorder
from mlxfleet.bench.records import Run, Sample, Summary
from mlxfleet.bench.run_record import run_record, title_of
from mlxfleet.bench.serve_options import Options
from mlxfleet.bench.server_words import IGNORE_EOS, model_of, probe, said
from mlxfleet.bench.summary_tables import print_report


class Bench:
    """Runs against one server."""

    def __init__(self, options: Options, recorder: Recorder, console: Console) -> None:
        self._options = options
        self._recorder = recorder
        self._console = console
        self.summaries: list[Summary] = []

    async def startup(self) -> None:
        """Get to know the server. ServerError or ConfigError if it cannot be measured."""
        options = self._options.target
        body = options.body()
        if options.ignore_eos:
            body.setdefault(IGNORE_EOS, True)
        target = Target(
            url=self._options.url.rstrip("/").removesuffix("/v1"),
            endpoint=options.endpoint,
            model=options.model,
            headers=options.headers(),
            body=body,
            timeout_s=options.request_timeout_s,
        )
        async with open_session(target) as session:
            self._words = await said(session, target)
            if target.model is None:
                target = msgspec.structs.replace(target, model=model_of(self._words))
            self._target = await probe(session, target)
        if self._target.without:
            names = ", ".join(self._target.without)
            self._console.print(f"the server does not take {names}: left out", highlight=False)
        self._book = self._open_book()
        self._source = Source(self._options.data, self._book)

    def _open_book(self) -> WordBook | None:
        """The tokenizer, if one is given or the server's model is a folder here."""
        data = self._options.data
        folder = data.tokenizer
        if folder is None and self._target.model is not None:
            folder = Path(self._target.model)
            if not (folder.is_absolute() and folder.is_dir()):
                return None
        if folder is None:
            return None
        return open_word_book(
            folder, self._target.endpoint, trust_remote_code=data.trust_remote_code
        )

    async def all_runs(self) -> None:
        """The sweep."""
        for plan in plans(self._options.arrival, self._options.data):
            await self._one_run(plan)

    async def _one_run(self, plan: Plan) -> None:
        """Cancelled, it still leaves a summary of what has ended."""
        requests = self._options.arrival.requests
        wanted = self._source.wanted(plan, requests)
        self._console.print(f"making {wanted:,} prompts", highlight=False)
        described, load = await self.prepared(plan, requests)
        title = title_of(described)
        await self._warm_up(plan, load.conversations)
        async with self.recorded(described, load) as run:
            try:
                async with shown(run, title, self._console):
                    await run.run()
            finally:
                print_report(title, run.summary(), run.records)

    async def prepared(self, plan: Plan, requests: int | None) -> tuple[Run, Load]:
        """A run of so many requests, as it is written down and as it is done."""
        options = self._options.arrival
        conversations = await self._source.conversations(plan, requests)
        described = run_record(self._options, self._target, plan, self._words)
        load = Load(
            target=self._target,
            conversations=conversations,
            arrival=self._source.arrival(plan, options, len(conversations)),
            run=described.id,
            max_seconds=options.max_seconds or float("inf"),
            slos_ms=described.slos,
            count_tokens=self._book.count if self._book else None,
        )
        return described, load

    @asynccontextmanager
    async def recorded(
        self, described: Run, load: Load, on_sample: Callable[[Sample], None] = lambda sample: None
    ) -> AsyncIterator[LoadRun]:
        """A run that is done in the block, written down with what sensors say meanwhile."""
        self._recorder.write(described)
        run = LoadRun(load, self._recorder.write)
        try:
            async with self._observed(described.id, on_sample):
                yield run
        finally:
            summary = run.summary()
            self._recorder.write(summary)
            self._recorder.flush()
            self.summaries.append(summary)

    async def _warm_up(self, plan: Plan, conversations: Sequence[Conversation]) -> None:
        count = self._options.arrival.warmup
        if not count:
            return
        self._console.print(f"warming up with {count} requests", highlight=False)
        found = warm_up(conversations, count, f"{plan.seed}")
        concurrency = min(plan.concurrency or DEFAULT_CONCURRENCY, count)
        await run_load(
            Load(target=self._target, conversations=found, arrival=ClosedLoop(concurrency))
        )

    @asynccontextmanager
    async def _observed(self, run: str, on_sample: Callable[[Sample], None]) -> AsyncIterator[None]:
        """Record sensors while the block runs."""
        if not self._options.report.telemetry:
            yield
            return

        def record(sample: Sample) -> None:
            self._recorder.write(sample)
            self._recorder.flush()
            on_sample(sample)

        async with self.observer(record) as observer, watching(observer, run):
            yield

    @asynccontextmanager
    async def observer(self, on_sample: Callable[[Sample], None]) -> AsyncIterator[Observer]:
        """Of this machine's sensors, and of the server's nodes if it has any."""
        fleet_url = f"{self._target.url}/fleet" if "fleet" in self._words else None
        async with aiohttp.ClientSession(headers=dict(self._target.headers)) as session:
            yield Observer(session, machine_sensors(), fleet_url, on_sample)


async def serve(options: Options, console: Console) -> list[Summary]:
    """All runs. Ctrl-C or SIGTERM ends the run under way, whose summary is written; raises
    CancelledError then."""
    cancel_on_signals()
    with Recorder(options.report.out) as recorder:
        bench = Bench(options, recorder, console)
        await bench.startup()
        await bench.all_runs()
    return bench.summaries
