"""Whether mlxfleet's processes keep their size over many requests.

Usage: `python -m mlxfleet.bench.flat_memory --model DIR`
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.load import run_load
from mlxfleet.bench.processes import process_tree
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.servers import mlxfleet_spec, serving


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    model: Path
    """MLX model folder."""

    requests: int = 20_000
    """Requests in all."""

    looks: int = 10
    """How often memory is looked at, after equal numbers of requests."""

    concurrency: int = 32
    """Streams at once."""

    prompt_words: int = 8
    """Length of a prompt, in words."""

    max_tokens: int = 4
    """Tokens to generate for each request."""

    prefix_cache_gb: float = 0.05
    """Small, so that it is full soon."""


async def measure(options: Options, console: Console) -> dict[int, dict[str, float]]:
    """Resident memory in MB by process, by how many requests were answered; 0 is before them."""
    log = Path(tempfile.mkdtemp(prefix="mlxfleet-bench-")) / "server.log"
    spec = mlxfleet_spec(options.model, [f"--prefix-cache-gb={options.prefix_cache_gb}"])
    found: dict[int, dict[str, float]] = {}
    async with serving(spec, log) as server:
        each = options.requests // options.looks
        for look in range(options.looks + 1):
            if look:
                load = prompt_load(
                    url=spec.url,
                    prompts=random_prompts(each, options.prompt_words, seed=f"{look}"),
                    concurrency=options.concurrency,
                    max_tokens=options.max_tokens,
                )
                summary = (await run_load(load)).summary
                if summary.errors:
                    raise RuntimeError(f"requests failed: {summary.errors}")
            tree = process_tree(server.pid)
            found[look * each] = {one.name: one.rss_bytes / 1e6 for one in tree}
            total = sum(found[look * each].values())
            console.print(f"{look * each:,} requests: {total:,.0f} MB", highlight=False)
    return found


def main(options: Options) -> None:
    """Measure memory."""
    found = uvloop.run(measure(options, Console(stderr=True)))
    table = Table(title="Resident memory, MB")
    names = list(found[0])
    for heading in ("requests", *names):
        table.add_column(heading, justify="right")
    for requests, sizes in found.items():
        table.add_row(f"{requests:,}", *(f"{sizes.get(name, 0):.0f}" for name in names))
    Console(width=140).print(table)


if __name__ == "__main__":
    cyclopts.run(main)
