"""The limit: a process that does the model's work and nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence

import msgspec

from mlxfleet.bench.offline.engine import Engine
from mlxfleet.bench.offline.wave import BareLoopProcess, Wave
from mlxfleet.bench.offline.work import Ended, Outcome, Pair, Part, make_request
from mlxfleet.bench.records import ClientCost, Request
from mlxfleet.bench.servers import ServerError
from mlxfleet.common import config
from mlxfleet.common.blas import worker_environment
from mlxfleet.common.runtime import runtime_folder

MODULE = "mlxfleet.bench.offline.bare_loop"
# A line has a time for each token of each wave.
LINE_BYTES = 64 * 1024 * 1024
# It takes its own times: there is no client.
NO_CLIENT = ClientCost(cpu_share=0.0, event_lag_p99_ms=0.0, late_sends_p99_ms=0.0, saturated=False)


async def bare(engine: Engine, pairs: Sequence[Pair], ended: Ended) -> None:
    """Run everything in a process of its own; ServerError if it dies."""
    parts = (*(pair.warm_up for pair in pairs), *(pair.measured for pair in pairs))
    orders = BareLoopProcess(name="bare-loop", worker=engine.bare_worker(), parts=parts)
    with runtime_folder() as runtime:
        path = runtime / "bare-loop.json"
        config.save(orders, path)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            MODULE,
            str(path),
            # It ends when this closes.
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, **worker_environment(engine.worker.blas_threads)},
            limit=LINE_BYTES,
        )
        try:
            await read_parts(process, parts, len(pairs), ended)
        finally:
            await stop(process)


async def read_parts(
    process: asyncio.subprocess.Process, parts: Sequence[Part], warm_ups: int, ended: Ended
) -> None:
    """Take what it says of each part."""
    output = process.stdout
    assert output is not None
    for number, part in enumerate(parts):
        if not (line := await output.readline()):
            raise ServerError(f"the bare loop ended with {await process.wait()}")
        waves = msgspec.json.decode(line, type=list[Wave])
        if number >= warm_ups:
            ended(part, Outcome(requests_of(part, waves), NO_CLIENT))


async def stop(process: asyncio.subprocess.Process) -> None:
    """End it if it still runs; it holds nothing that has to be saved."""
    if process.returncode is None:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


def requests_of(part: Part, waves: Sequence[Wave]) -> list[Request]:
    """A record for each row of each wave."""
    found = []
    for number, prompt in enumerate(part.prompts):
        wave = waves[number // part.concurrency]
        found.append(make_request(number, prompt, wave.sent_s, wave.token_times_s))
    return found
