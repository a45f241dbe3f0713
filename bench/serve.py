"""The runs of `mlxfleet bench serve`: each prepared, warmed up, measured, written and shown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console

from mlxfleet.bench.arrivals import ClosedLoop
from mlxfleet.bench.client import Target, open_session
from mlxfleet.bench.conversations import Conversation
from mlxfleet.bench.git_state import git_state
from mlxfleet.bench.load import Load, LoadRun, run_load
from mlxfleet.bench.machine import describe_machine, own_versions
from mlxfleet.bench.observer import Observer
from mlxfleet.bench.plans import DEFAULT_CONCURRENCY, Plan, Source, plans, warm_up
from mlxfleet.bench.progress import shown
from mlxfleet.bench.prompt_tokens import WordBook, open_word_book
from mlxfleet.bench.recorder import Recorder
from mlxfleet.bench.records import Request, Run, Sample, Summary
from mlxfleet.bench.serve_options import Options
from mlxfleet.bench.server_words import IGNORE_EOS, model_of, probe, said
from mlxfleet.bench.summary_tables import figures_table, times_table, warnings
from mlxfleet.common.telemetry.source import AUTO, open_source

PACKAGES = ("mlxfleet", "aiohttp", "uvloop", "msgspec", "tokenizers")


class Bench:
    """Runs against one server."""

    def __init__(self, options: Options, recorder: Recorder, console: Console) -> None:
        self._options = options
        self._recorder = recorder
        self._console = console
        self._sensors = open_source(AUTO) if options.report.telemetry else None
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
        options = self._options.arrival
        wanted = self._source.wanted(plan, options.requests)
        self._console.print(f"making {wanted:,} prompts", highlight=False)
        conversations = await self._source.conversations(plan, options.requests)
        described = self._run_record(plan)
        title = title_of(described)
        load = Load(
            target=self._target,
            conversations=conversations,
            arrival=self._source.arrival(plan, options, len(conversations)),
            run=described.id,
            max_seconds=options.max_seconds or float("inf"),
            slos_ms=described.slos,
            count_tokens=self._book.count if self._book else None,
        )
        await self._warm_up(plan, conversations)
        self._recorder.write(described)
        run = LoadRun(load, self._recorder.write)
        try:
            async with self._observed(described.id), shown(run, title, self._console):
                await run.run()
        finally:
            summary = run.summary()
            self._recorder.write(summary)
            self._recorder.flush()
            self.summaries.append(summary)
            show(title, summary, run.records)

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
    async def _observed(self, run: str) -> AsyncIterator[None]:
        """Record sensors while the block runs."""
        if not self._options.report.telemetry:
            yield
            return

        def on_sample(sample: Sample) -> None:
            self._recorder.write(sample)
            self._recorder.flush()

        fleet_url = f"{self._target.url}/fleet" if "fleet" in self._words else None
        async with aiohttp.ClientSession(headers=dict(self._target.headers)) as session:
            observer = Observer(session, self._sensors, fleet_url, on_sample)
            watching = asyncio.create_task(observer.watch(run))
            try:
                yield
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching

    def _run_record(self, plan: Plan) -> Run:
        options = self._options
        data: dict[str, Any] = {
            **plain(asdict(options.data)),
            "ignore_eos": IGNORE_EOS in self._target.fields(),
            "extra_body": options.target.body(),
        }
        more = plain(asdict(options.arrival))
        swept = ("concurrency", "request_rate", "burstiness", "trace_speed")
        return Run(
            id=uuid.uuid4().hex[:12],
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            url=self._target.url,
            endpoint=self._target.endpoint,
            model=self._target.model,
            arrival={
                **plan.described(options.arrival),
                **{name: value for name, value in more.items() if name not in swept},
            },
            data=data,
            slos=options.report.slos_ms(),
            seed=plan.seed,
            command_line=sys.argv,
            machine=describe_machine(),
            versions=own_versions(PACKAGES),
            git=git_state(),
            server=self._words,
        )


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON has them."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}


def title_of(run: Run) -> str:
    """What is special about a run."""
    match run.arrival["kind"]:
        case "closed_loop":
            return f"{run.arrival['concurrency']} streams at once"
        case "open_loop":
            return f"{run.arrival['request_rate']} requests/s"
        case _:
            return f"trace, {run.arrival['trace_speed']:g} times as fast"


def show(title: str, summary: Summary, requests: Sequence[Request]) -> None:
    """Print the report."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for warning in [*warnings(summary), *length_warnings(requests)]:
        console.print(f"WARNING: {warning}", style="bold yellow", markup=False, highlight=False)
    console.print(figures_table(title, summary))
    console.print(times_table(summary))
    for message in sorted({r.error.message for r in requests if r.error is not None})[:5]:
        console.print(f"error: {message}", style="red", markup=False, highlight=False)


def length_warnings(requests: Sequence[Request]) -> list[str]:
    """Whether the server counts other prompt lengths than were made."""
    pairs = [(r.planned_input_tokens, r.input_tokens) for r in requests]
    known = [(planned, told) for planned, told in pairs if None not in (planned, told)]
    wrong = [(planned, told) for planned, told in known if planned != told]
    if not wrong:
        return []
    planned, told = wrong[0]
    return [
        f"The server counts other lengths of {len(wrong):,} of {len(known):,} prompts, the first"
        f" {told} tokens instead of {planned}: is --tokenizer that of its model?"
    ]


async def serve(options: Options, console: Console) -> list[Summary]:
    """All runs. Ctrl-C or SIGTERM ends the run under way, whose summary is written; raises
    CancelledError then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
    with Recorder(options.report.out) as recorder:
        bench = Bench(options, recorder, console)
        await bench.startup()
        await bench.all_runs()
    return bench.summaries
