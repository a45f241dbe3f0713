"""Whether `mlxfleet bench serve` measures what guidellm does, on the same server.

Usage: `python -m mlxfleet.bench.agreement --model DIR --guidellm PATH`

PATH is the command `guidellm` of an installation of its own. The two take turns, in another order
each round, on one simulated node without a prefix cache; compared are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cyclopts
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.records import Summary, read_records
from mlxfleet.bench.servers import ServerError, console_script, mlxfleet_spec, serving

TOLERANCE = 0.05
RUN_TIMEOUT_S = 600.0
OURS, THEIRS = "mlxfleet bench", "guidellm"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    model: Path
    """MLX model folder, for its tokenizer."""

    guidellm: Path
    """The command guidellm."""

    rounds: int = 4
    """How often each of the two measures."""

    concurrency: int = 1
    """Streams at once. Of several, the first token depends on how they fall into step, which is
    not the same twice."""

    requests: int = 20
    """Requests of each measurement."""

    input_tokens: int = 256
    """Tokens of a prompt."""

    output_tokens: int = 32
    """Tokens of an answer."""


class Spread(Struct):
    """What is read of one of guidellm's distributions."""

    mean: float
    median: float


class Successful(Struct):
    """That of requests that did not fail."""

    successful: Spread


class Metrics(Struct):
    """What is read of guidellm's metrics. Its inter-token latency is of whole requests, which is
    TPOT here."""

    prompt_token_count: Successful
    output_token_count: Successful
    time_to_first_token_ms: Successful
    inter_token_latency_ms: Successful
    request_latency: Successful


class Benchmark(Struct):
    """A run of guidellm's."""

    metrics: Metrics


class Report(Struct):
    """Its file."""

    benchmarks: list[Benchmark]


Figures = dict[str, float]


async def run_ours(options: Options, url: str, seed: int, out: Path) -> Figures:
    """Measure with `mlxfleet bench serve`."""
    command = [console_script(), "bench", "serve", url, "--tokenizer", str(options.model)]
    command += ["--concurrency", str(options.concurrency), "--requests", str(options.requests)]
    command += ["--input-tokens", str(options.input_tokens)]
    command += ["--output-tokens", str(options.output_tokens), "--seed", str(seed)]
    await run_tool([*command, "--out", str(out), "--overwrite"])
    [summary] = [record for record in read_records(out) if isinstance(record, Summary)]
    if summary.ttft_ms is None or summary.tpot_ms is None or summary.e2e_ms is None:
        raise ServerError(f"requests failed: {summary.errors}")
    itl = summary.itl_ms or summary.tpot_ms
    return {
        "input tokens, mean": summary.input_tokens / summary.completed,
        "output tokens, mean": summary.output_tokens / summary.completed,
        "TTFT, mean": summary.ttft_ms.mean,
        "TTFT, median": summary.ttft_ms.p50,
        "gap, mean": itl.mean,
        "gap, median of requests": summary.tpot_ms.p50,
        "end to end, mean": summary.e2e_ms.mean,
    }


async def run_theirs(options: Options, url: str, seed: int, out: Path) -> Figures:
    """Measure with guidellm."""
    backend = {
        "kind": "openai_http",
        "target": url,
        "request_format": "/v1/completions",
    }
    lengths = f"prompt_tokens={options.input_tokens},output_tokens={options.output_tokens}"
    command = [str(options.guidellm), "run", "--disable-console"]
    command += ["--backend", msgspec.json.encode(backend).decode()]
    command += ["--profile", f"kind=concurrent,streams={options.concurrency}"]
    command += ["--constraint", f"kind=max_requests,count={options.requests}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={options.model}"]
    command += ["--data", f"kind=synthetic_text,{lengths}", "--seed", f"kind=static,value={seed}"]
    await run_tool([*command, "--output", f"kind=json,path={out}"])
    found = read_report(out)
    return {
        "input tokens, mean": found.prompt_token_count.successful.mean,
        "output tokens, mean": found.output_token_count.successful.mean,
        "TTFT, mean": found.time_to_first_token_ms.successful.mean,
        "TTFT, median": found.time_to_first_token_ms.successful.median,
        "gap, mean": found.inter_token_latency_ms.successful.mean,
        "gap, median of requests": found.inter_token_latency_ms.successful.median,
        "end to end, mean": found.request_latency.successful.mean * 1e3,
    }


def read_report(path: Path) -> Metrics:
    """The metrics of guidellm's only run."""
    [benchmark] = msgspec.json.decode(path.read_bytes(), type=Report).benchmarks
    return benchmark.metrics


async def run_tool(command: list[str]) -> None:
    """Run to the end; ServerError with its last words if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ServerError(f"{command[0]} failed:\n{output.decode(errors='replace')[-2000:]}")


async def compare(options: Options, console: Console) -> dict[str, list[Figures]]:
    """Both in every round, the other one first each time."""
    flags = ["--engine", "sim", "--sim-cache-tokens", "0", "--sim-prefill-tokens-per-s", "1000"]
    spec = mlxfleet_spec(options.model, flags)
    found: dict[str, list[Figures]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory(prefix="mlxfleet-bench-") as folder:
        out = Path(folder) / "out.json"
        async with serving(spec, Path(folder) / "log"):
            for number in range(options.rounds):
                for name in [OURS, THEIRS] if number % 2 else [THEIRS, OURS]:
                    tool = run_ours if name == OURS else run_theirs
                    found[name].append(await tool(options, spec.url, number, out))
                    shown = {k: round(v, 1) for k, v in found[name][-1].items()}
                    console.print(f"round {number}: {name}: {shown}", highlight=False)
    return found


def main(options: Options) -> None:
    """Compare; the exit status is 1 if a figure differs by more than 5%."""
    try:
        found = uvloop.run(compare(options, Console(stderr=True)))
    except ServerError as error:
        Console(stderr=True).print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    table = Table("", THEIRS, OURS, "ratio", title="The same load, medians over the rounds; ms")
    apart = 0
    for figure in found[OURS][0]:
        ours, theirs = (median(one[figure] for one in found[name]) for name in (OURS, THEIRS))
        apart += abs(ours / theirs - 1) > TOLERANCE
        table.add_row(figure, f"{theirs:,.2f}", f"{ours:,.2f}", f"{ours / theirs:.3f}")
    Console(width=120).print(table)
    print(f"{apart} of {len(found[OURS][0])} figures differ by more than {TOLERANCE:.0%}")
    sys.exit(1 if apart else 0)


if __name__ == "__main__":
    cyclopts.run(main)
