"""What single requests feel beside a wide one, of another client and of the same.

Usage: `python -m mlxfleet.bench.fairness --model DIR`

Small requests are asked one after the other, first alone and then beside a wide request, as long as
that runs. Reported is the time to their first token, and how many were refused; and the tokens/s of
the wide request alone. The exit status is 1 if one came more than 0.3 s later than alone, or was
refused. With `--url` it measures a server that runs already, for example of an older version.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import cyclopts
import uvloop
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.client import PATHS, Target, ask, open_session
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.records import Request
from mlxfleet.bench.servers import mlxfleet_spec, serving
from mlxfleet.common.errors import MlxfleetError

WIDE_CLIENT = "wide"
SMALL_CLIENTS = ("other", WIDE_CLIENT)
SMALL_TOKENS = 8
PROMPT_WORDS = 8
# Between two small requests, in seconds.
PAUSES = (0.02, 0.15)
# What a small one may find beside: the wide one has to be under way.
HEAD_START_S = 0.1


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    model: Path | None = None
    """MLX model folder, to start a server with."""

    url: str | None = None
    """Address of a server that runs already."""

    cases: tuple[str, ...] = ()
    """Names of the cases; all if not given."""

    alone: int = 30
    """Small requests that are asked with nothing beside them."""

    allowed_s: float = 0.3
    """How much later than alone the first token of a small request may come."""

    seed: int = 0
    """Of prompts and pauses."""


@dataclass(frozen=True)
class Case:
    """A wide request: its prompts and how many answers of how many tokens to each."""

    name: str
    n: int
    max_tokens: int
    prompts: int = 1
    priority: str = "interactive"

    def body(self, seed: str) -> dict[str, Any]:
        """What is sent."""
        prompts = random_prompts(self.prompts, PROMPT_WORDS, seed=seed)
        return {
            "prompt": prompts if self.prompts > 1 else prompts[0],
            "n": self.n,
            "max_tokens": self.max_tokens,
            "priority": self.priority,
            "ignore_eos": True,
        }


CASES = (
    Case("n=32, 300 tokens", 32, 300),
    Case("n=64, 300 tokens", 64, 300),
    Case("n=64, 300 tokens, batch", 64, 300, priority="batch"),
    Case("200 prompts", 1, 100, prompts=200),
    Case("n=64, 2500 tokens", 64, 2500),
)


@dataclass
class Beside:
    """First tokens of small requests in seconds, and why some failed."""

    first_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """A case: small requests alone, and beside the wide one by client; its tokens/s alone."""

    case: Case
    alone: Beside
    beside: dict[str, Beside]
    tokens_per_s: float

    def later_s(self, client: str) -> float:
        """How much later than alone the worst first token of a client's small requests came."""
        return max(self.beside[client].first_s, default=0.0) - median(self.alone.first_s)

    def passes(self, allowed_s: float) -> bool:
        """Whether none came too late and none was refused."""
        late = any(self.later_s(client) > allowed_s for client in self.beside)
        return not late and not any(found.failures for found in self.beside.values())


class Measurement:
    """One server, its clients, and the random numbers of a run."""

    def __init__(self, url: str, sessions: dict[str, aiohttp.ClientSession], seed: int) -> None:
        self._url = url
        self._sessions = sessions
        self._rng = random.Random(seed)
        self._asked = 0

    async def small(self, client: str, found: Beside) -> None:
        """One small request, with a prompt that no other has."""
        self._asked += 1
        target = Target(url=self._url, body={"ignore_eos": True})
        (prompt,) = random_prompts(1, PROMPT_WORDS, seed=f"{self._rng.random()}")
        record = Request(run="", index=self._asked, due_s=0.0, sent_s=0.0)
        body = target.encode({"prompt": prompt}, SMALL_TOKENS)
        await ask(self._sessions[client], target, body, record)
        if record.error is not None:
            found.failures.append(record.error.kind)
        elif record.token_times_s:
            found.first_s.append(record.token_times_s[0])

    async def wide(self, case: Case) -> float:
        """A wide request from its start to its end; its tokens/s."""
        url = self._url + PATHS["completions"]
        began = time.perf_counter()
        body = case.body(f"{self._rng.random()}")
        async with self._sessions[WIDE_CLIENT].post(url, json=body) as response:
            answer = await response.json()
            if response.status != 200:
                raise MlxfleetError(f"the wide request failed: {answer}")
        tokens: int = answer["usage"]["completion_tokens"]
        return tokens / (time.perf_counter() - began)

    async def pause(self) -> None:
        """Between two small requests."""
        await asyncio.sleep(self._rng.uniform(*PAUSES))

    async def case(self, case: Case, alone: int) -> Measured:
        """Everything about a case."""
        tokens_per_s = await self.wide(case)
        nothing = Beside()
        for _ in range(alone):
            await self.small(SMALL_CLIENTS[0], nothing)
            await self.pause()
        beside = {}
        for client in SMALL_CLIENTS:
            beside[client] = Beside()
            wide = asyncio.create_task(self.wide(case))
            await asyncio.sleep(HEAD_START_S)
            while not wide.done():
                await self.small(client, beside[client])
                await self.pause()
            await wide
        return Measured(case, nothing, beside, tokens_per_s)


@contextlib.asynccontextmanager
async def address(options: Options) -> AsyncIterator[str]:
    """The server that is measured."""
    if options.url is not None:
        yield options.url.rstrip("/")
    elif options.model is not None:
        log = Path(tempfile.mkdtemp(prefix="mlxfleet-bench-")) / "server.log"
        async with serving(mlxfleet_spec(options.model), log) as server:
            yield server.spec.url
    else:
        raise MlxfleetError("say --model DIR or --url URL")


async def measure(options: Options, console: Console) -> list[Measured]:
    """All cases on one server."""
    found = []
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(address(options))
        sessions = {
            client: await stack.enter_async_context(
                # Without keys a server takes any, and each is a client of its own.
                open_session(Target(url=url, headers={"Authorization": f"Bearer {client}"}))
            )
            for client in SMALL_CLIENTS
        }
        measurement = Measurement(url, sessions, options.seed)
        await measurement.wide(Case("warm-up", 8, 20))
        for case in CASES:
            if not options.cases or case.name in options.cases:
                console.print(f"measuring {case.name}", highlight=False)
                found.append(await measurement.case(case, options.alone))
    return found


def table_of(found: list[Measured]) -> Table:
    """A row for each case and client."""
    table = Table(title="First token of small requests; ms, and tokens/s of the wide request alone")
    headings = (
        "beside",
        "client",
        "asked",
        "alone",
        "median",
        "worst",
        "later",
        "failed",
        "tokens/s",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    for measured in found:
        for client, beside in measured.beside.items():
            times = beside.first_s or [float("nan")]
            ms = (
                median(measured.alone.first_s),
                median(times),
                max(times),
                measured.later_s(client),
            )
            table.add_row(
                measured.case.name,
                "the same" if client == WIDE_CLIENT else "another",
                str(len(beside.first_s)),
                *(f"{1e3 * seconds:,.0f}" for seconds in ms),
                " ".join(beside.failures) or "-",
                f"{measured.tokens_per_s:,.0f}",
            )
    return table


def main(options: Options | None = None) -> None:
    """Measure fairness."""
    options = options or Options()
    found = uvloop.run(measure(options, Console(stderr=True)))
    Console(width=120).print(table_of(found))
    if not all(measured.passes(options.allowed_s) for measured in found):
        sys.exit(1)


if __name__ == "__main__":
    cyclopts.run(main)
