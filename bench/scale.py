"""Many nodes and streams on one machine: how the router holds up.

Usage: `python -m mlxfleet.bench.scale --model DIR`

The nodes are simulated and share processes. Each round all streams run at once; the router's memory
after each round shows whether it stays flat.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.load import LoadResult, run_load
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.scrape import Scrape
from mlxfleet.bench.servers import ServerError, mlxfleet_spec, serving

ROUTER_MB = 500
ROUTE_P99_S = 0.001
# Growth after the first round that counts as flat.
FLAT = 1.1


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    model: Path
    """MLX model folder, for its tokenizer."""

    nodes: int = 64
    """Simulated nodes."""

    nodes_per_process: int = 32
    """Simulated nodes that share a process."""

    streams: int = 2000
    """Streams at once."""

    rounds: int = 6
    """How often all of them run."""

    max_tokens: int = 32
    """Tokens of each stream."""

    prompt_words: int = 64
    """Length of a prompt, in words."""

    step_ms: float = 400.0
    """A decode step of a simulated node; with 2,000 streams, 5,000 tokens a second in all."""

    cache_index_blocks: int = 20_000
    """Limit of the router's index of cached blocks; small enough to be reached."""


@dataclass(frozen=True)
class Round:
    """What a round showed."""

    result: LoadResult
    router_mb: float
    route_p99_s: float
    index_blocks: float


async def run(options: Options, console: Console) -> list[Round]:
    """Start the fleet and run all rounds."""
    sim = ["--engine", "sim", "--nodes", str(options.nodes)]
    shared = ["--sim-nodes-per-process", str(options.nodes_per_process)]
    speed = ["--sim-step-ms", str(options.step_ms), "--sim-row-ms", "0"]
    limits = [
        "--max-requests",
        str(2 * options.streams),
        "--cache-index-blocks",
        str(options.cache_index_blocks),
    ]
    spec = mlxfleet_spec(options.model, [*sim, *shared, *speed, *limits])
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        async with (
            serving(spec, Path(folder) / "log"),
            aiohttp.ClientSession() as session,
        ):
            for number in range(options.rounds):
                load = prompt_load(
                    url=spec.url,
                    prompts=random_prompts(options.streams, options.prompt_words, seed=str(number)),
                    concurrency=options.streams,
                    max_tokens=options.max_tokens,
                    timeout_s=300.0,
                )
                result = await run_load(load)
                async with session.get(f"{spec.url}/metrics") as response:
                    metrics = Scrape(await response.text())
                rounds.append(
                    Round(
                        result,
                        metrics.value("mlxfleet_process_memory_bytes", process="router") / 1e6,
                        metrics.quantile_s("mlxfleet_stage_seconds", 0.99, stage="route"),
                        metrics.total("mlxfleet_cache_index_blocks"),
                    )
                )
                console.print(f"round {number + 1} of {options.rounds} is over", highlight=False)
    return rounds


def table_of(rounds: list[Round]) -> Table:
    """A row per round."""
    table = Table(title="Many nodes and streams", caption="route p99: upper border of its bucket")
    for heading in ("round", "tokens/s", "TTFT p99, s", "errors", "router, MB", "route p99, ms"):
        table.add_column(heading, justify="right")
    table.add_column("index, blocks", justify="right")
    for number, found in enumerate(rounds, 1):
        summary = found.result.summary
        table.add_row(
            str(number),
            f"{summary.output_tokens_per_s:,.0f}",
            f"{summary.ttft_ms.p99 / 1e3:.2f}" if summary.ttft_ms else "-",
            str(summary.requests - summary.completed),
            f"{found.router_mb:.0f}",
            f"{found.route_p99_s * 1e3:g}",
            f"{found.index_blocks:,.0f}",
        )
    return table


def complaints(rounds: list[Round], limit_blocks: int) -> list[str]:
    """What is not as it should be."""
    found = []
    errors = [r.error for one in rounds for r in one.result.requests if r.error is not None]
    if errors:
        found.append(f"{len(errors)} requests failed, the first with: {errors[0].message}")
    last = rounds[-1]
    if last.router_mb > ROUTER_MB:
        found.append(f"the router takes more than {ROUTER_MB} MB")
    if last.router_mb > FLAT * rounds[min(1, len(rounds) - 1)].router_mb:
        found.append("the router's memory grows")
    if last.route_p99_s > ROUTE_P99_S:
        found.append(f"a routing decision takes more than {ROUTE_P99_S * 1e3:g} ms")
    if last.index_blocks > limit_blocks:
        found.append("the index is larger than its limit")
    return found


def main(options: Options) -> None:
    """Run it; the exit status is 1 if a limit is not kept."""
    console = Console(stderr=True)
    try:
        rounds = uvloop.run(run(options, console))
    except (ServerError, asyncio.CancelledError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    Console(width=120).print(table_of(rounds))
    wrong = complaints(rounds, options.cache_index_blocks)
    for complaint in wrong:
        print(complaint)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    cyclopts.run(main)
