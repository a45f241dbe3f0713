"""Conversations of many turns over nodes whose caches hold half of them: what share of the prompts
is served from cache, beside an endless cache, another policy and another router.

Usage: `python -m mlxfleet.bench.multi_turn --model DIR [--smg PATH]`

The nodes are simulated. `smg` is SGLang's gateway, which stands in front of one server per node. In
each round all sides get the same conversations, in rotating order.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.arrivals import ClosedLoop
from mlxfleet.bench.client import Target
from mlxfleet.bench.conversations import Conversation, Message, Turn
from mlxfleet.bench.load import Load, run_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.records import Distribution, Summary
from mlxfleet.bench.servers import (
    HOST,
    ServerError,
    ServerSpec,
    free_port,
    mlxfleet_spec,
    serving,
)

ENDLESS = "one endless cache"
OURS = "mlxfleet, ttft"
PEER = "smg, cache_aware"


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """The conversations and what serves them."""

    model: Path
    """MLX model folder, for its tokenizer."""

    smg: Path | None = None
    """SGLang's gateway, the command `smg` of the package of that name."""

    nodes: int = 4
    """Simulated nodes."""

    conversations: int = 64
    """Conversations in all."""

    at_once: int = 24
    """Conversations under way at a time; the next begins when one ends."""

    turns: int = 8
    """Questions of each."""

    system_words: int = 128
    """Words that all conversations begin with."""

    question_words: int = 96
    """Words of a question."""

    answer_tokens: int = 48
    """Tokens of an answer."""

    think_s: float = 1.0
    """Mean time between an answer and the next question."""

    cache_share: float = 0.5
    """How much of all conversations the nodes' prefix caches hold together."""

    rounds: int = 3
    """How often each side is started and measured."""


async def converse(options: Options, url: str, seed: str) -> Summary:
    """All conversations, each a turn after the other."""
    load = Load(
        target=Target(url=url, model=options.model.name, timeout_s=300.0),
        conversations=conversations(options, seed),
        arrival=ClosedLoop(options.at_once),
    )
    result = await run_load(load)
    if errors := [request.error.message for request in result.requests if request.error]:
        raise ServerError(errors[0])
    return result.summary


def conversations(options: Options, seed: str) -> list[Conversation]:
    """All of them; they begin alike."""
    [system] = random_prompts(1, options.system_words, seed=f"{seed}-system")
    found = []
    for number in range(options.conversations):
        rng = random.Random(f"{seed}-{number}")
        questions = random_prompts(options.turns, options.question_words, seed=f"{seed}-{number}")
        turns = [
            Turn(
                text=f"\n{question}\n",
                max_tokens=options.answer_tokens,
                think_s=rng.expovariate(1 / options.think_s),
            )
            for question in questions
        ]
        found.append(Conversation(tuple(turns), (Message("system", system),)))
    return found


def cached_share(summary: Summary) -> float:
    """Share of prompt tokens out of a cache."""
    return (summary.cached_tokens or 0) / summary.input_tokens


def ttft_ms(summary: Summary) -> Distribution:
    """Times to the first token; ServerError if there were none."""
    if summary.ttft_ms is None:
        raise ServerError("there were no answers")
    return summary.ttft_ms


Side = Callable[[Path], AbstractAsyncContextManager[str]]


def sides(options: Options) -> dict[str, Side]:
    """Each side's name, and how to run it; the context is its address."""
    words = options.system_words + options.turns * options.question_words
    # A common word is little more than a token; an answer's text is a few more than it had.
    all_tokens = options.conversations * (words + options.turns * options.answer_tokens)
    per_node = int(all_tokens * options.cache_share / options.nodes)
    sim = ["--engine", "sim"]
    fleet = [*sim, "--nodes", str(options.nodes), "--sim-cache-tokens", str(per_node)]
    endless = [*sim, "--sim-cache-tokens", str(100 * all_tokens)]
    found: dict[str, Side] = {
        ENDLESS: lambda logs: one(mlxfleet_spec(options.model, endless), logs),
        OURS: lambda logs: one(mlxfleet_spec(options.model, fleet), logs),
        "mlxfleet, round_robin": lambda logs: one(
            mlxfleet_spec(options.model, [*fleet, "--routing", "round_robin"]), logs
        ),
    }
    if (smg := options.smg) is not None:
        node = [*sim, "--sim-cache-tokens", str(per_node)]
        found[PEER] = lambda logs: behind_smg(smg, options, node, logs)
    return found


@asynccontextmanager
async def one(spec: ServerSpec, logs: Path) -> AsyncIterator[str]:
    """A server."""
    async with serving(spec, logs / f"{free_port()}.log"):
        yield spec.url


@asynccontextmanager
async def behind_smg(
    smg: Path, options: Options, flags: list[str], logs: Path
) -> AsyncIterator[str]:
    """One server per node, and the gateway in front of them."""
    async with AsyncExitStack() as running:
        specs = [mlxfleet_spec(options.model, flags) for _ in range(options.nodes)]
        for spec in specs:
            await running.enter_async_context(one(spec, logs))
        port = free_port()
        command = [str(smg), "launch", "--host", HOST, "--port", str(port)]
        command += ["--policy", "cache_aware", "--prometheus-port", str(free_port())]
        command += ["--worker-urls", *(spec.url for spec in specs)]
        gateway = ServerSpec("smg", command, f"http://{HOST}:{port}", options.model.name)
        await running.enter_async_context(one(gateway, logs))
        yield gateway.url


async def compare(options: Options, console: Console) -> dict[str, list[Summary]]:
    """Run every side in every round."""
    found: dict[str, list[Summary]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            every = list(sides(options).items())
            shift = number % len(every)
            for name, side in every[shift:] + every[:shift]:
                async with side(Path(folder)) as url:
                    summary = await converse(options, url, str(number))
                found.setdefault(name, []).append(summary)
                p99 = ttft_ms(summary).p99
                shown = f"{cached_share(summary):.1%} cached, TTFT p99 {p99:.0f} ms"
                console.print(f"round {number}: {name}: {shown}", highlight=False)
    return found


def table_of(found: dict[str, list[Summary]]) -> Table:
    """Medians over the rounds."""
    table = Table("side", "cached", "of an endless cache", "TTFT p50, ms", "p99, ms")
    table.title = "Prompt tokens out of a cache, medians over the rounds"
    endless = [cached_share(summary) for summary in found[ENDLESS]]
    for name, summaries in found.items():
        shares = [cached_share(summary) for summary in summaries]
        ratios = [share / most for share, most in zip(shares, endless, strict=True)]
        table.add_row(
            name,
            f"{median(shares):.1%}",
            f"{median(ratios):.3f}",
            f"{median(ttft_ms(summary).p50 for summary in summaries):.0f}",
            f"{median(ttft_ms(summary).p99 for summary in summaries):.0f}",
        )
    return table


def main(options: Options) -> None:
    """Run it."""
    try:
        found = uvloop.run(compare(options, Console(stderr=True)))
    except* ServerError as errors:
        Console(stderr=True).print(f"error: {errors.exceptions[0]}", style="bold red", markup=False)
        sys.exit(1)
    Console(width=120).print(table_of(found))


if __name__ == "__main__":
    cyclopts.run(main)
