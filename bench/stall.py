"""What a running stream feels when long prompts arrive, on mlxfleet and on other servers in turns.

Usage: `python -m mlxfleet.bench.stall --peers-script PATH --model DIR`

One stream decodes; then two long prompts are sent at once. Reported are the stream's gaps from
then until both have their first token, its median gap over all, and the time to those first tokens.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.load import Load, run_load
from mlxfleet.bench.peer_options import Commas
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import MLXFLEET, Server, ServerSpec, mlxfleet_spec, peer_spec, serving

STREAM_WORDS = 16
LONG_PROMPT_TOKENS = 8


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    peers_script: Path
    """Script that runs a peer: `bash SCRIPT serve NAME MODEL PORT`."""

    model: Path
    """MLX model folder."""

    peers: Annotated[tuple[str, ...], Commas] = ("mlx-lm", "vllm-mlx", "vllm-mlx-chunked")
    """Names of the peers, with commas."""

    budgets: Annotated[tuple[float, ...], Commas] = (50.0, 20.0)
    """Inter-token budgets of mlxfleet to measure, in ms, with commas."""

    prompt_words: int = 2030
    """Length of each of the two long prompts, in words."""

    stream_tokens: int = 2000
    """Tokens of the stream; it has to outlast the prompts."""

    after_s: float = 0.5
    """When the long prompts are sent, counted from the start of the stream."""

    rounds: int = 3
    """How often every server is started and measured."""


@dataclass(frozen=True)
class Stall:
    """One measurement, in ms: gaps of the stream while the prompts are prefilled, its median gap
    from its start to its end, and the prompts' TTFT."""

    worst_gap: float
    median_gap: float
    whole_stream: float
    ttft: float


async def measure(server: Server, options: Options, seed: str) -> Stall:
    """Run the stream and the prompts on a server."""

    def load(words: int, tokens: int, count: int, name: str) -> Load:
        return prompt_load(
            url=server.spec.url,
            prompts=random_prompts(count, words, seed=f"{seed}/{name}"),
            concurrency=count,
            max_tokens=tokens,
            model=server.spec.model,
            extra={"ignore_eos": True} if server.spec.name.startswith(MLXFLEET) else {},
        )

    await run_load(load(options.prompt_words, LONG_PROMPT_TOKENS, 2, "warm-up"))
    stream = asyncio.create_task(run_load(load(STREAM_WORDS, options.stream_tokens, 1, "stream")))
    await asyncio.sleep(options.after_s)
    long = await run_load(load(options.prompt_words, LONG_PROMPT_TOKENS, 2, "long"))
    streamed = (await stream).requests[0]
    ttfts = [first_token_s(request) for request in long.requests]
    gaps = gaps_after(streamed, options.after_s, options.after_s + max(ttfts))
    whole = gaps_after(streamed, 0.0, streamed.duration_s)
    return Stall(
        worst_gap=max(gaps) * 1e3,
        median_gap=median(gaps) * 1e3,
        whole_stream=median(whole) * 1e3,
        ttft=median(ttfts) * 1e3,
    )


def first_token_s(request: Request) -> float:
    """Time to the first token; ValueError if the request failed."""
    if request.error is not None or not request.token_times_s:
        raise ValueError(f"a request failed: {request.error}")
    return request.token_times_s[0]


def gaps_after(request: Request, start_s: float, end_s: float) -> list[float]:
    """Gaps between a stream's chunks that end in a span of time."""
    times = request.token_times_s
    pairs = pairwise(times)
    gaps = [
        later - earlier for earlier, later in pairs if start_s < later <= end_s + later - earlier
    ]
    if len(gaps) < 3:
        raise ValueError("the stream did not run beside the prompts: raise --stream-tokens")
    return gaps


def specs_of(options: Options) -> list[tuple[str, ServerSpec]]:
    """Every server under the name it has in the table."""
    ours = [
        (f"{MLXFLEET}, {budget:g} ms", mlxfleet_spec(options.model, [f"--itl-budget-ms={budget}"]))
        for budget in options.budgets
    ]
    peers = [(name, peer_spec(options.peers_script, name, options.model)) for name in options.peers]
    return ours + peers


async def compare(options: Options, console: Console) -> dict[str, list[Stall]]:
    """Measure every server in every round, in rotating order."""
    logs = Path(tempfile.mkdtemp(prefix="mlxfleet-bench-"))
    found: dict[str, list[Stall]] = {}
    for number in range(options.rounds):
        specs = specs_of(options)
        shift = number % len(specs)
        for position, (name, spec) in enumerate(specs[shift:] + specs[:shift]):
            async with serving(spec, logs / f"{number}-{position}.log") as server:
                stall = await measure(server, options, str(number))
            found.setdefault(name, []).append(stall)
            console.print(f"round {number}: {name}: {stall}", highlight=False, soft_wrap=True)
    return found


def table_of(found: dict[str, Sequence[Stall]]) -> Table:
    """Medians over the rounds."""
    table = Table(title="One stream while two long prompts arrive, medians over the rounds; ms")
    for heading in ("server", "worst gap", "median gap", "of the whole stream", "their TTFT"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for name, stalls in found.items():
        columns = ("worst_gap", "median_gap", "whole_stream", "ttft")
        figures = [median(getattr(stall, column) for stall in stalls) for column in columns]
        table.add_row(name, *(f"{figure:,.1f}" for figure in figures))
    return table


def main(options: Options) -> None:
    """Measure stalls."""
    found = uvloop.run(compare(options, Console(stderr=True)))
    Console(width=120).print(table_of(dict(found)))


if __name__ == "__main__":
    cyclopts.run(main)
