"""Whether a comparison holds on a machine that gets slower meanwhile, for real.

Usage: `python -m mlxfleet.bench.drift --model DIR --out DIR`

Simulated nodes get slower by 30% along a curve while they are measured: one is measured twice, one
time after the other; one is compared with itself; and one is compared with a node that is 5%
faster. Then `bench report` writes a page and a document. Takes about ten minutes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import cyclopts
import uvloop
from rich.console import Console

from mlxfleet.bench.servers import ServerError, mlxfleet_spec, serving

CLI = [sys.executable, "-m", "mlxfleet.common.cli", "bench"]
# The load's own speed and the nodes' are such that a run lasts about as long as the curve.
CURVE = "0:1,50:1,170:1.3"
FASTER = 1.05
STEP_MS, ROW_MS, PREFILL_TOKENS_PER_S = 15.0, 0.5, 2000.0
LOAD = ["--concurrency", "8", "--input-tokens", "32", "--output-tokens", "24"]
EACH_S = "80"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """Where everything is."""

    model: Path
    """An MLX folder, for its tokenizer."""

    out: Path
    """Folder for the records and the report; made if it is not there."""

    page: Path = Path("docs/drift.md")
    """The document to write."""


def drifting(speed: float) -> list[str]:
    """Options of a simulated node that is so many times as fast as the slowest, and throttles."""
    return [
        *("--engine", "sim", "--sim-slowdown", CURVE),
        *("--sim-step-ms", f"{STEP_MS / speed:.4f}", "--sim-row-ms", f"{ROW_MS / speed:.5f}"),
        *("--sim-prefill-tokens-per-s", f"{PREFILL_TOKENS_PER_S * speed:.1f}"),
    ]


async def measure(options: Options) -> None:
    """The three measurements, each on nodes that have just been started, and so are cool."""
    out, load = options.out, ["--tokenizer", str(options.model), *LOAD]
    async with nodes(options, [1.0]) as [only]:
        for side in ("first", "second"):
            limits = ["--requests", "100000", "--max-seconds", EACH_S, "--side", side]
            await run(["serve", only, *load, *limits, *written(out / f"{side}.jsonl")])
    compare = [*load, "--requests", "16", "--cooldown-s", "0.5", "--baseline-s", "0"]
    async with nodes(options, [1.0]) as [only]:
        await run(["compare", only, only, *compare, *written(out / "itself.jsonl")])
    async with nodes(options, [1.0, FASTER]) as [slow, fast]:
        await run(["compare", slow, fast, *compare, *written(out / "faster.jsonl")])
    files = [str(out / f"{name}.jsonl") for name in ("first", "second", "itself", "faster")]
    await run(["report", *files, "--out", str(out / "drift.html"), "--markdown", str(options.page)])


@asynccontextmanager
async def nodes(options: Options, speeds: Sequence[float]) -> AsyncIterator[list[str]]:
    """Servers of these speeds, all started at the same time; their URLs."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        starting = []
        for i, speed in enumerate(speeds):
            spec = mlxfleet_spec(options.model, drifting(speed))
            server = serving(spec, options.out / f"server-{i}.log")
            starting.append(group.create_task(stack.enter_async_context(server)))
        yield [(await one).spec.url for one in starting]


def written(path: Path) -> list[str]:
    """Options that write records to a file."""
    return ["--out", str(path), "--overwrite"]


async def run(arguments: list[str]) -> None:
    """Run a command of `mlxfleet bench`. ServerError if it fails."""
    print(f"mlxfleet bench {' '.join(arguments)}", flush=True)
    process = await asyncio.create_subprocess_exec(*CLI, *arguments)
    if await process.wait():
        raise ServerError(f"mlxfleet bench {arguments[0]} ended with {process.returncode}")


def main(options: Options) -> None:
    """Measure and report."""
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        uvloop.run(measure(options))
    except* ServerError as group:
        for error in group.exceptions:
            Console(stderr=True).print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    cyclopts.run(main)
