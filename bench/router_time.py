"""What the router itself takes of a request's time, by its own histograms.

Usage: `python -m mlxfleet.bench.router_time --model DIR`

One request at a time, on a simulated node, so that nothing but the router and a tokenizer works.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.load import run_load
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.scrape import Scrape
from mlxfleet.bench.servers import ServerError, mlxfleet_spec, serving

STAGES = ("validate", "tokenize", "route", "send")


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    model: Path
    """MLX model folder, for its tokenizer."""

    requests: int = 200
    """Requests, one after the other."""

    prompt_words: int = 490
    """Length of a prompt, in words; a common word is little more than a token."""


async def measure(options: Options) -> tuple[Scrape, float]:
    """The metrics after all requests, and the mean number of prompt tokens."""
    spec = mlxfleet_spec(options.model, ["--engine", "sim", "--sim-step-ms", "5"])
    with tempfile.TemporaryDirectory() as folder:
        async with serving(spec, Path(folder) / "log"), aiohttp.ClientSession() as session:
            load = prompt_load(
                url=spec.url,
                prompts=random_prompts(options.requests, options.prompt_words, seed="router"),
                concurrency=1,
                max_tokens=2,
            )
            requests = (await run_load(load)).requests
            async with session.get(f"{spec.url}/metrics") as response:
                scrape = Scrape(await response.text())
    if errors := [request.error.message for request in requests if request.error]:
        raise ServerError(errors[0])
    return scrape, sum(request.input_tokens or 0 for request in requests) / len(requests)


def main(options: Options) -> None:
    """Show the stages."""
    try:
        scrape, tokens = uvloop.run(measure(options))
    except ServerError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    table = Table("stage", "mean, ms", "p50, at most, ms", "p99, at most, ms")
    table.title = f"The router's time per request, prompts of {tokens:.0f} tokens"
    name = "mlxfleet_stage_seconds"
    total_ms = 0.0
    for stage in STAGES:
        count = scrape.value(f"{name}_count", stage=stage)
        mean_ms = scrape.value(f"{name}_sum", stage=stage) / count * 1e3
        p50, p99 = (scrape.quantile_s(name, share, stage=stage) * 1e3 for share in (0.5, 0.99))
        total_ms += p50
        table.add_row(stage, f"{mean_ms:.3f}", f"{p50:g}", f"{p99:g}")
    table.add_row("all", "", f"{total_ms:g}", "", end_section=True)
    Console(width=100).print(table)


if __name__ == "__main__":
    cyclopts.run(main)
