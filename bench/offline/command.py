"""`mlxfleet bench offline`: what is kept of the bare limit at each of the engine's borders."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import uvloop
from cyclopts import Parameter
from rich.console import Console

from mlxfleet.bench.figures import summarize
from mlxfleet.bench.interrupts import cancel_on_signals
from mlxfleet.bench.observer import watching_machine
from mlxfleet.bench.offline.bare import bare
from mlxfleet.bench.offline.engine import Engine
from mlxfleet.bench.offline.full_path import full_path
from mlxfleet.bench.offline.node import node
from mlxfleet.bench.offline.sensed import Sensed
from mlxfleet.bench.offline.work import Ended, Outcome, Pair, Part, Workload
from mlxfleet.bench.out_file import check_out
from mlxfleet.bench.peer_options import Commas
from mlxfleet.bench.recorder import Recorder
from mlxfleet.bench.report.groups import groups_of
from mlxfleet.bench.report.loaded import Loaded
from mlxfleet.bench.report.show import show
from mlxfleet.bench.report.tables import sides_table
from mlxfleet.bench.run_log import RunLog, new_run
from mlxfleet.bench.side_by_side import rotated
from mlxfleet.common.config import SchedulerOptions, WorkerOptions
from mlxfleet.common.errors import ConfigError, ExitCode
from mlxfleet.common.model_files import resolve_model

Border = Callable[[Engine, Sequence[Pair], Ended], Coroutine[Any, Any, None]]

BORDERS: dict[str, Border] = {
    "bare loop": bare,
    "scheduler and worker": node,
    "full path": full_path,
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and how often."""

    model: str | None = None
    """A model folder or a hub id; a small demo model if not given."""

    concurrency: Annotated[tuple[int, ...], Commas] = (1, 8, 32)
    """Streams at once, with commas."""

    requests_per_stream: int = 4
    """Requests that each stream sends, one after the other."""

    prompt_words: int = 64
    """Length of a prompt, in words; a common word is little more than a token."""

    max_tokens: int = 64
    """Tokens to generate for each request."""

    rounds: int = 3
    """How often each border is started and measured, in turns."""

    seed: int = 0
    """Of the prompts."""

    out: Path | None = None
    """File to write: JSON lines, as docs/benchmarking.md describes them."""

    overwrite: Annotated[bool, Parameter(negative=())] = False
    """Write the file anew if it is there."""

    def checked(self) -> Options:
        """ConfigError for what cannot be measured."""
        counts = [*self.concurrency, self.requests_per_stream, self.prompt_words, self.max_tokens]
        if not self.concurrency or min([*counts, self.rounds]) < 1:
            raise ConfigError("concurrency, requests, words, tokens and rounds must be at least 1")
        check_out(self.out, overwrite=self.overwrite)
        return self


def offline(
    *,
    options: Options = Options(),
    scheduler: SchedulerOptions = SchedulerOptions(),  # noqa: B008
    worker: WorkerOptions = WorkerOptions(),  # noqa: B008
) -> None:
    """Measure the engine without HTTP, to see where time goes.

    The same prompts go through a bare loop of the model's work, through scheduler and worker over
    their own sockets, and through all of mlxfleet over HTTP. One is alive at a time, in turns.
    """
    # Children tell how they are; here only what goes wrong matters.
    os.environ.setdefault("MLXFLEET_LOG_LEVEL", "WARNING")
    model_dir, name = resolve_model(options.checked().model)
    engine = Engine(model_dir=model_dir, name=name, scheduler=scheduler, worker=worker)
    engine.checked(max(options.concurrency))
    found, complete = measure(options, engine, Console(stderr=True))
    show(found, map(sides_table, groups_of(found)))
    if not complete:
        sys.exit(ExitCode.FORCED)


def measure(options: Options, engine: Engine, console: Console) -> tuple[Loaded, bool]:
    """Every border in every round, in rotating order; what was found, and whether it is all. Ctrl-C
    or SIGTERM stops what runs and ends the measurement early."""
    workload = Workload(
        engine.model_dir,
        words=options.prompt_words,
        max_tokens=options.max_tokens,
        requests=options.requests_per_stream,
    )
    with Recorder(options.out) as recorder:
        log = RunLog(recorder, options.out)
        for number in range(options.rounds):
            pairs = workload.pairs(options.concurrency, f"{options.seed}/{number}")
            for side in rotated(list(BORDERS), number):
                console.print(f"round {number}: {side}", highlight=False)
                sensed = Sensed()
                ended = noted(options, engine, log, console, side, number, sensed)
                # Children of the supervisor are not started in uvloop; clients are faster in it.
                run = asyncio.run if side == "scheduler and worker" else uvloop.run
                try:
                    run(observed(BORDERS[side](engine, pairs, ended), sensed))
                except asyncio.CancelledError:
                    return log.loaded, False
    return log.loaded, True


async def observed(measurement: Coroutine[Any, Any, None], sensed: Sensed) -> None:
    """Ends when a signal says so, with CancelledError; the machine's sensors are read meanwhile."""
    cancel_on_signals()
    async with watching_machine(sensed.add, run=""):
        await measurement


def noted(
    options: Options,
    engine: Engine,
    log: RunLog,
    console: Console,
    side: str,
    number: int,
    sensed: Sensed,
) -> Ended:
    """What writes down the parts of a border in a round."""

    def ended(part: Part, outcome: Outcome) -> None:
        run = new_run(
            side=side,
            round_number=number,
            concurrency=part.concurrency,
            model=engine.name,
            data={
                "prompt_words": options.prompt_words,
                "max_tokens": options.max_tokens,
                "requests_per_stream": options.requests_per_stream,
            },
            seed=options.seed,
        )
        summary = summarize(run.id, outcome.requests, {}, outcome.client)
        log.write_run(run, outcome.requests, summary)
        for sample in sensed.of_run(run.id, summary.duration_s):
            log.write(sample)
        console.print(
            f"  {part.concurrency} streams at once: {summary.output_tokens_per_s:,.0f} tokens/s,"
            f" errors {summary.errors or 0}",
            highlight=False,
        )

    return ended
