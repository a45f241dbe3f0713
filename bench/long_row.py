"""What one long row costs short ones that decode beside it, on mlxfleet.

Usage: `python -m mlxfleet.bench.long_row --model DIR`

In turns, on one server: a number of short prompts decode together, then as many of which one is
long. Reported is the median gap of the short streams while all of them decode. The prompts are
sent twice, so that the second time they come out of the prefix cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import cyclopts
import uvloop
from rich.console import Console

from mlxfleet.bench.load import run_load
from mlxfleet.bench.prompt_load import prompt_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import Server, mlxfleet_spec, serving


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    model: Path
    """MLX model folder."""

    rows: int = 16
    """Streams at once, the long one included."""

    short_words: int = 97
    """Length of a short prompt, in words; 97 common words have about 100 tokens."""

    long_words: int = 6900
    """Length of the long prompt, in words; 6,900 common words have about 7,000 tokens."""

    max_tokens: int = 120
    """Tokens to generate for each."""

    rounds: int = 9
    """How often each of the two is measured, in turns."""


async def stream(server: Server, prompts: Sequence[str], tokens: int) -> list[Request]:
    """Send prompts at once; RuntimeError if one fails."""
    load = prompt_load(
        url=server.spec.url,
        prompts=prompts,
        concurrency=len(prompts),
        max_tokens=tokens,
        model=server.spec.model,
        extra={"ignore_eos": True},
    )
    results = (await run_load(load)).requests
    for result in results:
        if result.error is not None:
            raise RuntimeError(f"a request failed: {result.error}")
    return results


async def short_gap_s(server: Server, options: Options, short: Sequence[str], last: str) -> float:
    """Median gap of the short streams while all streams decode, `last` among them."""
    prompts = [*short, last]
    await stream(server, prompts, 1)
    results = await stream(server, prompts, options.max_tokens)
    began = max(result.sent_s + result.token_times_s[0] for result in results)
    ended = min(result.sent_s + result.token_times_s[-1] for result in results)
    gaps = []
    for result in results[: len(short)]:
        times = [result.sent_s + time_s for time_s in result.token_times_s]
        gaps += [later - earlier for earlier, later in pairwise(times) if began < earlier < ended]
    return median(gaps)


async def measure(options: Options, console: Console) -> tuple[list[float], list[float]]:
    """Gaps in seconds, without and with the long row, a pair for each round."""
    log = Path(tempfile.mkdtemp(prefix="mlxfleet-bench-")) / "server.log"
    [long] = random_prompts(1, options.long_words, seed="long")
    alike, beside = [], []
    async with serving(mlxfleet_spec(options.model), log) as server:
        for number in range(options.rounds):
            *short, one = random_prompts(options.rows, options.short_words, seed=f"{number}")
            alike.append(await short_gap_s(server, options, short, one))
            beside.append(await short_gap_s(server, options, short, long))
            console.print(f"round {number}: {alike[-1] * 1e3:.2f} ms, {beside[-1] * 1e3:.2f} ms")
    return alike, beside


def main(options: Options) -> None:
    """Measure what a long row costs."""
    alike, beside = uvloop.run(measure(options, Console(stderr=True)))
    ratio = median(after / before for before, after in zip(alike, beside, strict=True))
    Console(width=120).print(
        f"{options.rows} short rows: {median(alike) * 1e3:.2f} ms between two tokens;"
        f" one of them long: {median(beside) * 1e3:.2f} ms; ratio {ratio:.2f}"
        f" (median of {options.rounds} pairs)"
    )


if __name__ == "__main__":
    cyclopts.run(main)
