"""Servers measured in turns: one is alive at a time, and all get the same prompts."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from mlxfleet.bench.comparison import Comparison, Measurement, Start, medians, ratios
from mlxfleet.bench.load import Load, run_load
from mlxfleet.bench.machine import describe_machine, installed_versions, python_of
from mlxfleet.bench.peer_options import Options
from mlxfleet.bench.processes import busy_cpu_s, process_tree, tree_cpu_s
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
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
PACKAGES = ["mlxfleet", "mlx", "mlx-lm", "tokenizers", "aiohttp", "uvloop"]


class Run:
    """A comparison in progress."""

    def __init__(self, options: Options, logs: Path, console: Console) -> None:
        self._options = options
        self._logs = logs
        self._console = console
        self.starts: list[Start] = []
        self.measurements: list[Measurement] = []

    async def all_rounds(self) -> None:
        """Every server in every round, in rotating order."""
        names = [MLXFLEET, *self._options.peers]
        for number in range(self._options.rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                await self._one_life(name, number)

    async def _one_life(self, name: str, number: int) -> None:
        """Start a server, measure it, stop it. One that does not start is written down."""
        spec = self._spec(name)
        log = self._logs / f"{number}-{name}.log"
        start = Start(server=name, round=number, command=spec.command, log=str(log))
        self.starts.append(start)
        server = None
        try:
            async with serving(spec, log) as server:
                start.ready_s = server.ready_s
                self._console.print(f"round {number}: {name} ready after {server.ready_s:.1f} s")
                await self._all_loads(server, number)
                if (python := python_of(server.pid)) is not None:
                    start.versions = await installed_versions(python, [name, *PACKAGES])
        except ServerError as error:
            start.error = str(error)
            self._console.print(f"round {number}: {error}", style="red", markup=False)
        if server is not None:
            start.exit_status, start.was_killed = server.exit_status, server.was_killed

    def _spec(self, name: str) -> ServerSpec:
        options = self._options
        if name == MLXFLEET:
            return mlxfleet_spec(options.model, options.launch_flag)
        return peer_spec(options.peers_script, name, options.model)

    async def _all_loads(self, server: Server, number: int) -> None:
        for concurrency in self._options.concurrency:
            warm_up = self._load(server, number, concurrency, warm_up=True)
            await run_load(warm_up)
        for concurrency in self._options.concurrency:
            load = self._load(server, number, concurrency)
            measurement = await self._measure(server, number, concurrency, load)
            self.measurements.append(measurement)
            summary = measurement.summary
            self._console.print(
                f"  c={concurrency}: {summary.output_tokens_per_s:,.0f} tokens/s,"
                f" {summary.requests} requests in {summary.duration_s:.1f} s,"
                f" errors {summary.errors or 0}, other processes took"
                f" {measurement.other_cpu_share:.0%} of the cores",
                highlight=False,
                soft_wrap=True,
            )

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

    async def _measure(
        self, server: Server, number: int, concurrency: int, load: Load
    ) -> Measurement:
        """Run a load; write down who took the cores meanwhile."""
        served, busy = tree_cpu_s(process_tree(server.pid)), busy_cpu_s()
        result = await run_load(load)
        processes = process_tree(server.pid)
        served, busy = tree_cpu_s(processes) - served, busy_cpu_s() - busy
        other = max(busy - served, 0.0)
        offered = max(result.summary.duration_s, 1e-9) * (os.cpu_count() or 1)
        return Measurement(
            server=server.spec.name,
            round=number,
            concurrency=concurrency,
            summary=result.summary,
            processes=processes,
            served_cpu_s=served,
            other_cpu_s=other,
            other_cpu_share=min(other / offered, 1.0),
            failures=sorted({r.error.message for r in result.requests if r.error is not None}),
            requests=result.requests if self._options.detail else None,
        )


async def compare(options: Options, console: Console) -> Comparison:
    """Measure all servers; cancelling stops the one that runs."""
    logs = options.logs or Path(tempfile.mkdtemp(prefix="mlxfleet-bench-"))
    logs.mkdir(parents=True, exist_ok=True)
    console.print(f"servers' output: {logs}", highlight=False)
    began, machine = datetime.now(UTC), describe_machine()
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    run = Run(options, logs, console)
    await run.all_rounds()
    rows = medians(run.measurements)
    return Comparison(
        began=began.isoformat(timespec="seconds"),
        command_line=[sys.executable, *sys.argv],
        options=asdict(options),
        machine=machine,
        versions=await installed_versions(sys.executable, PACKAGES),
        peers_script_sha256=hashlib.sha256(options.peers_script.read_bytes()).hexdigest(),
        shares_the_cores=["one server at a time, all its processes", "this client, one process"],
        starts=run.starts,
        measurements=run.measurements,
        medians=rows,
        ratios=ratios(rows, MLXFLEET),
    )
