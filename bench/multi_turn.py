"""Conversations of many turns over nodes whose caches hold half of them: what share of the prompts
is served from cache, beside an endless cache, another policy and another router.

Usage: `python -m mlxfleet.bench.multi_turn --model DIR [--smg PATH]`

The nodes are simulated. `smg` is SGLang's gateway, which stands in front of one server per node. In
each round all sides get the same conversations, in rotating order.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
import cyclopts
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.servers import (
    HOST,
    ServerError,
    ServerSpec,
    free_port,
    mlxfleet_spec,
    serving,
)
from mlxfleet.bench.sse import EventReader

DONE = b"[DONE]"
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


class Details(Struct):
    """Part of `usage`."""

    cached_tokens: int = 0


class Usage(Struct):
    """What is read of the token counts."""

    prompt_tokens: int
    prompt_tokens_details: Details | None = None


class Choice(Struct):
    """What is read of a choice."""

    text: str = ""


class Chunk(Struct):
    """What is read of a stream's event."""

    choices: list[Choice] = []
    usage: Usage | None = None


@dataclass
class Outcome:
    """What all turns of a run added up to."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    ttfts_s: list[float] = field(default_factory=list)

    @property
    def cached(self) -> float:
        """Share of prompt tokens out of a cache."""
        return self.cached_tokens / self.prompt_tokens

    @property
    def p99_s(self) -> float:
        """99 of 100 first tokens come sooner."""
        return sorted(self.ttfts_s)[int(len(self.ttfts_s) * 0.99)]


async def converse(options: Options, url: str, seed: str) -> Outcome:
    """All conversations, each a turn after the other."""
    outcome = Outcome()
    places = asyncio.Semaphore(options.at_once)
    system = random_prompts(1, options.system_words, seed=f"{seed}-system")[0]
    timeout = aiohttp.ClientTimeout(total=300)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):

        async def conversation(number: int) -> None:
            async with places:
                rng = random.Random(f"{seed}-{number}")
                questions = random_prompts(
                    options.turns, options.question_words, seed=f"{seed}-{number}"
                )
                text = system
                for question in questions:
                    await asyncio.sleep(rng.expovariate(1 / options.think_s))
                    text += f"\n{question}\n"
                    text += await turn(session, options, url, text, outcome)

        for number in range(options.conversations):
            tasks.create_task(conversation(number))
    return outcome


async def turn(
    session: aiohttp.ClientSession, options: Options, url: str, text: str, outcome: Outcome
) -> str:
    """One request; its answer."""
    body = {
        "model": options.model.name,
        "prompt": text,
        "max_tokens": options.answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    loop = asyncio.get_running_loop()
    sent, answer, events = loop.time(), "", EventReader()
    usage = None
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise ServerError(f"{response.status}: {await response.text()}")
        async for piece in response.content.iter_any():
            for data in events.feed(piece):
                if data == DONE:
                    continue
                chunk = msgspec.json.decode(data, type=Chunk)
                more = "".join(choice.text for choice in chunk.choices)
                if more and not answer:
                    outcome.ttfts_s.append(loop.time() - sent)
                answer += more
                usage = chunk.usage or usage
    if usage is None:
        raise ServerError("a stream ended without token counts")
    outcome.prompt_tokens += usage.prompt_tokens
    if usage.prompt_tokens_details is not None:
        outcome.cached_tokens += usage.prompt_tokens_details.cached_tokens
    return answer


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


async def compare(options: Options, console: Console) -> dict[str, list[Outcome]]:
    """Run every side in every round."""
    found: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            every = list(sides(options).items())
            shift = number % len(every)
            for name, side in every[shift:] + every[:shift]:
                async with side(Path(folder)) as url:
                    outcome = await converse(options, url, str(number))
                found.setdefault(name, []).append(outcome)
                shown = f"{outcome.cached:.1%} cached, TTFT p99 {outcome.p99_s * 1e3:.0f} ms"
                console.print(f"round {number}: {name}: {shown}", highlight=False)
    return found


def table_of(found: dict[str, list[Outcome]]) -> Table:
    """Medians over the rounds."""
    table = Table("side", "cached", "of an endless cache", "TTFT p50, ms", "p99, ms")
    table.title = "Prompt tokens out of a cache, medians over the rounds"
    for name, outcomes in found.items():
        shares = [o.cached / e.cached for o, e in zip(outcomes, found[ENDLESS], strict=True)]
        table.add_row(
            name,
            f"{median(o.cached for o in outcomes):.1%}",
            f"{median(shares):.3f}",
            f"{median(median(o.ttfts_s) for o in outcomes) * 1e3:.0f}",
            f"{median(o.p99_s for o in outcomes) * 1e3:.0f}",
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
