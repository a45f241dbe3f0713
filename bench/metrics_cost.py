"""What recording metrics costs: the same server with and without, in turns.

Usage: `python -m mlxfleet.bench.metrics_cost --model DIR`

Without, every process is started with a `sitecustomize` that makes all recording do nothing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cyclopts
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.load import run_load
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.servers import ServerError, ServerSpec, mlxfleet_spec, serving

RECORD_NOTHING = """
import prometheus_client
from prometheus_client.metrics import MetricWrapperBase
from mlxfleet.common.tally import Tally

children = {}
make_child = MetricWrapperBase.labels

def nothing(self, *_, **__):
    return None

def same_child(self, *values, **named):
    if (child := children.get(id(self))) is None:
        child = children[id(self)] = make_child(self, *values, **named)
    return child

prometheus_client.Counter.inc = nothing
prometheus_client.Gauge.set = nothing
prometheus_client.Histogram.observe = nothing
MetricWrapperBase.labels = same_child
Tally.observe = nothing
"""
WITH, WITHOUT = "recording", "without"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    model: Path
    """MLX model folder; the faster the model, the more recording there is."""

    concurrency: int = 32
    """Streams at once."""

    requests: int = 256
    """Requests per round and side."""

    max_tokens: int = 64
    """Tokens of each answer."""

    rounds: int = 6
    """Times that each side is measured."""


async def measure(options: Options, spec: ServerSpec, folder: Path, number: int) -> float:
    """Output tokens per second of one life of a server."""
    prompts = random_prompts(options.requests, 64, seed=str(number))
    load = prompt_load(
        url=spec.url,
        prompts=prompts,
        concurrency=options.concurrency,
        max_tokens=options.max_tokens,
    )
    first = load.conversations[: options.concurrency]
    warm_up = msgspec.structs.replace(load, conversations=first)
    async with serving(spec, folder / "log"):
        await run_load(warm_up)
        summary = (await run_load(load)).summary
    if summary.errors:
        raise ServerError(f"requests failed: {summary.errors}")
    return summary.output_tokens_per_s


async def all_rounds(options: Options, console: Console) -> dict[str, list[float]]:
    """Both sides in every round, the other one first each time."""
    found: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(RECORD_NOTHING)
        for number in range(options.rounds):
            sides = [WITH, WITHOUT] if number % 2 else [WITHOUT, WITH]
            for side in sides:
                spec = mlxfleet_spec(options.model, ["--memory-gb", "2"])
                if side == WITHOUT:
                    paths = [name, *filter(None, [os.environ.get("PYTHONPATH")])]
                    command = ["env", f"PYTHONPATH={os.pathsep.join(paths)}", *spec.command]
                    spec = msgspec.structs.replace(spec, command=command)
                found[side].append(await measure(options, spec, folder, number))
            speeds = ", ".join(f"{side} {values[-1]:,.0f}" for side, values in found.items())
            console.print(f"round {number}: tokens/s {speeds}", highlight=False)
    return found


def main(options: Options) -> None:
    """Measure and show."""
    console = Console()
    try:
        found = uvloop.run(all_rounds(options, console))
    except ServerError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    table = Table("", "tokens/s, median", title="What recording metrics costs")
    for side, values in found.items():
        table.add_row(side, f"{statistics.median(values):,.0f}")
    pairs = zip(found[WITH], found[WITHOUT], strict=True)
    ratios = [with_it / without for with_it, without in pairs]
    table.add_row("cost, median of the rounds", f"{1 - statistics.median(ratios):.1%}")
    console.print(table)


if __name__ == "__main__":
    cyclopts.run(main)
