"""Servers measured in turns: one is alive at a time, and all get the same prompts."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from mlxfleet.bench.interrupts import cancel_on_signals
from mlxfleet.bench.load import Load, LoadRun, run_load
from mlxfleet.bench.machine import installed_versions, python_of
from mlxfleet.bench.observer import watching_machine
from mlxfleet.bench.peer_options import Options
from mlxfleet.bench.processes import busy_cpu_s, process_tree, tree_cpu_s
from mlxfleet.bench.progress import shown
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.recorder import Recorder
from mlxfleet.bench.records import Sample, Start, Use
from mlxfleet.bench.report.loaded import Loaded
from mlxfleet.bench.run_log import PACKAGES, RunLog, new_run
from mlxfleet.bench.servers import (
    MLXFLEET,
    Server,
    ServerError,
    ServerSpec,
    mlxfleet_spec,
    peer_spec,
    serving,
)

WARM_UP_TOKENS = 16


class SideBySide:
    """A comparison in progress."""

    def __init__(self, options: Options, log: RunLog, logs: Path, console: Console) -> None:
        self._options = options
        self._log = log
        self._logs = logs
        self._console = console

    async def all_rounds(self) -> None:
        """Every server in every round, in rotating order."""
        for number in range(self._options.rounds):
            for name in rotated([MLXFLEET, *self._options.peers], number):
                await self._one_life(name, number)

    async def _one_life(self, name: str, number: int) -> None:
        """Start a server, measure it, stop it. One that does not start is written down."""
        spec = self._spec(name)
        start = Start(side=name, round=number, command=spec.command)
        server = None
        try:
            async with serving(spec, self._logs / f"{number}-{name}.log") as server:
                start.ready_s = server.ready_s
                self._console.print(f"round {number}: {name} ready after {server.ready_s:.1f} s")
                if (python := python_of(server.pid)) is not None:
                    start.versions = await installed_versions(python, [name, *PACKAGES])
                await self._all_loads(server, number)
        except ServerError as error:
            start.error = str(error)
            self._console.print(f"round {number}: {error}", style="red", markup=False)
        finally:
            if server is not None:
                start.exit_status, start.was_killed = server.exit_status, server.was_killed
            self._log.write(start)

    def _spec(self, name: str) -> ServerSpec:
        options = self._options
        if name == MLXFLEET:
            return mlxfleet_spec(options.model, options.launch_flag)
        return peer_spec(options.peers_script, name, options.model)

    async def _all_loads(self, server: Server, number: int) -> None:
        for concurrency in self._options.concurrency:
            await run_load(self._load(server, number, concurrency, warm_up=True))
        for concurrency in self._options.concurrency:
            await self._measure(server, number, concurrency)

    def _load(
        self, server: Server, number: int, concurrency: int, *, warm_up: bool = False
    ) -> Load:
        options = self._options
        requests = concurrency * (1 if warm_up else options.requests_per_stream)
        seed = f"{options.seed}/{number}/{concurrency}/{'warm-up' if warm_up else 'load'}"
        return prompt_load(
            url=server.spec.url,
            prompts=random_prompts(
                requests, options.prompt_words, seed=seed, common_words=options.common_words
            ),
            concurrency=concurrency,
            max_tokens=min(options.max_tokens, WARM_UP_TOKENS) if warm_up else options.max_tokens,
            model=server.spec.model,
            extra={"temperature": options.temperature, "top_p": options.top_p},
        )

    async def _measure(self, server: Server, number: int, concurrency: int) -> None:
        """Run a load; write down who took the cores meanwhile. Cancelled, it still leaves what has
        ended."""
        described = new_run(
            side=server.spec.name,
            round_number=number,
            concurrency=concurrency,
            model=self._options.model.name,
            data=data_of(self._options),
            seed=self._options.seed,
            url=server.spec.url,
        )
        load = self._load(server, number, concurrency)
        run = LoadRun(msgspec.structs.replace(load, run=described.id))
        samples: list[Sample] = []
        served, busy = tree_cpu_s(process_tree(server.pid)), busy_cpu_s()
        title = f"{server.spec.name}, {concurrency} streams at once"
        try:
            async with (
                watching_machine(samples.append, described.id),
                shown(run, title, self._console),
            ):
                await run.run()
        finally:
            summary = run.summary()
            self._log.write_run(described, run.records, summary)
            for sample in samples:
                self._log.write(sample)
        processes = process_tree(server.pid)
        served, busy = tree_cpu_s(processes) - served, busy_cpu_s() - busy
        offered = max(summary.duration_s, 1e-9) * (os.cpu_count() or 1)
        share = min(max(busy - served, 0.0) / offered, 1.0)
        self._log.write(
            Use(run=described.id, processes=processes, served_cpu_s=served, other_cpu_share=share)
        )
        self._console.print(
            f"  {title}: {summary.output_tokens_per_s:,.0f} tokens/s, {summary.requests} requests"
            f" in {summary.duration_s:.1f} s, errors {summary.errors or 0}, other processes took"
            f" {share:.0%} of the cores",
            highlight=False,
            soft_wrap=True,
        )


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each begins with another one."""
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def data_of(options: Options) -> dict[str, Any]:
    """What the requests say, as it is written down."""
    return {
        "prompt_words": options.prompt_words,
        "common_words": options.common_words,
        "max_tokens": options.max_tokens,
        "requests_per_stream": options.requests_per_stream,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }


async def compare(options: Options, console: Console) -> tuple[Loaded, bool]:
    """Measure all servers; what was found, and whether it is all. Ctrl-C or SIGTERM stops the
    server that runs and ends the comparison early."""
    logs = options.logs or Path(tempfile.mkdtemp(prefix="mlxfleet-bench-"))
    logs.mkdir(parents=True, exist_ok=True)
    console.print(f"servers' output: {logs}", highlight=False)
    cancel_on_signals()
    with Recorder(options.out) as recorder:
        log = RunLog(recorder, options.out)
        try:
            await SideBySide(options, log, logs, console).all_rounds()
        except asyncio.CancelledError:
            return log.loaded, False
    return log.loaded, True
