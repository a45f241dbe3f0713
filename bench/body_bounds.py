"""Whether clients can take the router's memory or time before their requests are admitted.

Usage: `python -m mlxfleet.bench.body_bounds --model DIR`

A simulated node serves streams while another process attacks (`body_attacks`). Reported are the
largest resident memory of the router and of a tokenizer, and the longest gap between two chunks of
any stream, beside what they are without an attack. The exit status is 1 if one is above its limit.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aiohttp
import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.body_attacks import CASES
from mlxfleet.bench.peer_options import Commas
from mlxfleet.bench.processes import process_tree
from mlxfleet.bench.servers import mlxfleet_spec, serving

NOTHING = "nothing"
LOOK_S = 0.02
SETTLE_S = 1.0
QUIET_S = 3.0
SERVER_FLAGS = ("--engine=sim", "--header-timeout-s=5", "--body-timeout-s=5", "--client-stall-s=5")


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and what it may be."""

    model: Path
    """MLX model folder; only its tokenizer is used."""

    cases: Annotated[tuple[str, ...], Commas] = tuple(CASES)
    """Attacks, with commas."""

    streams: int = 4
    """Streams that run beside them."""

    max_rss_mb: float = 300.0
    """Most resident memory that the router may have."""

    max_tokenizer_mb: float = 600.0
    """Most that a tokenizer may have: a large body is in it as text, as tokens and as JSON."""

    max_gap_ms: float = 250.0
    """Longest gap that a stream may have."""


class Streams:
    """Streams that run until they are stopped, and the longest gap in any."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._count = count
        self.worst_gap_s = 0.0

    async def run(self) -> None:
        """Read streams, a new one for each that ends."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._follow(session, number))

    async def _follow(self, session: aiohttp.ClientSession, number: int) -> None:
        body = {"prompt": f"{number}", "max_tokens": 4000, "stream": True, "ignore_eos": True}
        while True:
            async with session.post(f"{self._url}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                last = None
                async for _ in answer.content.iter_any():
                    now = time.perf_counter()
                    if last is not None:
                        self.worst_gap_s = max(self.worst_gap_s, now - last)
                    last = now


@dataclass
class Finding:
    """What a case did."""

    case: str
    answers: str
    router_mb: float
    tokenizer_mb: float
    gap_ms: float

    def beyond(self, options: Options) -> bool:
        """Whether a bound does not hold."""
        return (
            self.router_mb > options.max_rss_mb
            or self.tokenizer_mb > options.max_tokenizer_mb
            or self.gap_ms > options.max_gap_ms
        )


def front_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a fleet's router and of its largest tokenizer."""
    used: dict[str, float] = {"router": 0.0, "tokenizer": 0.0}
    for use in process_tree(pid):
        kind = use.name.split("-")[0]
        if kind in used:
            used[kind] = max(used[kind], use.rss_bytes / 1e6)
    return used["router"], used["tokenizer"]


async def attack(url: str, case: str) -> str:
    """Run a case in a process of its own; what it printed."""
    if case == NOTHING:
        await asyncio.sleep(QUIET_S)
        return ""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mlxfleet.bench.body_attacks", url, case),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the attack {case} ended with {process.returncode}")
    return output.decode().strip()


async def measure_case(url: str, pid: int, case: str, count: int) -> Finding:
    """Attack beside streams."""
    streams = Streams(url, count)
    running = asyncio.create_task(streams.run())
    await asyncio.sleep(SETTLE_S)
    streams.worst_gap_s = 0.0
    attacking = asyncio.create_task(attack(url, case))
    most = (0.0, 0.0)
    while not attacking.done():
        if running.done():
            attacking.cancel()
            await running
        router_mb, tokenizer_mb = await asyncio.to_thread(front_mb, pid)
        most = max(most[0], router_mb), max(most[1], tokenizer_mb)
        await asyncio.sleep(LOOK_S)
    running.cancel()
    await asyncio.wait([running])
    return Finding(case, attacking.result(), *most, streams.worst_gap_s * 1000)


async def measure(options: Options) -> list[Finding]:
    """Every case, on one server."""
    log = Path(tempfile.mkdtemp(prefix="mlxfleet-bench-")) / "server.log"
    spec = mlxfleet_spec(options.model, list(SERVER_FLAGS))
    async with serving(spec, log) as server:
        return [
            await measure_case(spec.url, server.pid, case, options.streams)
            for case in (NOTHING, *options.cases)
        ]


def main(options: Options) -> None:
    """Measure, report, and exit with 1 if a bound does not hold."""
    findings = uvloop.run(measure(options))
    table = Table(title="The front end under attack")
    for heading in ("attack", "answers", "router, MB", "tokenizer, MB", "longest gap, ms"):
        table.add_column(heading)
    for one in findings:
        figures = (one.router_mb, one.tokenizer_mb, one.gap_ms)
        table.add_row(one.case, one.answers, *(f"{figure:.0f}" for figure in figures))
    Console(width=120).print(table)
    sys.exit(any(finding.beyond(options) for finding in findings))


if __name__ == "__main__":
    cyclopts.run(main)
