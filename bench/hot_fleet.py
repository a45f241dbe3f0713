"""What weights of nodes are worth when Macs are not well: the same load, with weights and without.

Usage: `python -m mlxfleet.bench.hot_fleet --model DIR`

Two fleets of four simulated nodes, which differ in `--node-weights` only, take turns at the same
requests at the same times. After a cool round each, which teaches the nodes what passes take,
node-1 throttles (passes take 1.43 times as long, so it is slower by 30%, and its telemetry says so)
and node-2 swaps: its memory pressure is critical, and every few seconds its passes take six times
as long for a second or two, at moments that are the same for both fleets.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import aiohttp
import cyclopts
import msgspec
import uvloop
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from mlxfleet.bench.arrivals import OpenLoop, gamma_times
from mlxfleet.bench.client import Target
from mlxfleet.bench.conversations import Conversation, Turn
from mlxfleet.bench.figures import percentile
from mlxfleet.bench.load import Load, run_load
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.servers import ServerError, ServerSpec, mlxfleet_spec, serving

NODES = ("node-0", "node-1", "node-2", "node-3")
THROTTLED, SWAPPING = "node-1", "node-2"
THROTTLE = f"{THROTTLED} slow 1.43\n"
STALL = f"{SWAPPING} slow 6\n"
# Mean length of stalls, and of the time between them, in seconds.
STALL_S, BETWEEN_S = 1.5, 4.0
COOL = '{"sensors": {"gpu_temperature_c": 55, "memory_pressure": 0, "thermal_state": 0}}\n'
TROUBLE = (
    COOL
    + f'{{"node": "{THROTTLED}", "sensors": {{"gpu_temperature_c": 99, "thermal_state": 2}}}}\n'
    + f'{{"node": "{SWAPPING}", "sensors": {{"memory_pressure": 2}}}}\n'
)
SIDES = {"on": "--node-weights", "off": "--no-node-weights"}
WANTED = 0.2


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    model: Path
    """MLX model folder, for its tokenizer."""

    rate: float = 9.0
    """Requests a second; the times between them are exponentially distributed."""

    seconds: float = 20.0
    """Length of a round."""

    cool_seconds: float = 10.0
    """Length of the cool round."""

    rounds: int = 3
    """Rounds of each side."""

    prompt_words: int = 64
    """Length of a prompt, in words."""

    max_tokens: int = 64
    """Mean length of an answer; they have from half to one and a half times as many tokens."""

    seed: int = 0
    """Of arrivals, prompts, lengths and stalls."""


class Round(Struct, frozen=True):
    """What a round showed: times from when a request was due to the last token, and each node's
    share of the prompt tokens."""

    durations_s: list[float]
    errors: list[str]
    shares: dict[str, float]

    def quantile_s(self, share: float) -> float:
        """Of the end-to-end times."""
        return percentile(sorted(self.durations_s), share)


class SeenNode(Struct, frozen=True):
    """What is read of a node in /fleet."""

    name: str
    prefilled_tokens: int
    cached_tokens: int


class SeenFleet(Struct, frozen=True):
    """What is read of /fleet."""

    nodes: list[SeenNode]


def plan(options: Options, url: str, number: int, seconds: float) -> Load:
    """The requests of a round: of one number the same for both sides."""
    rng = random.Random(f"{options.seed} {number}")
    expected = int(options.rate * seconds)
    due_s = gamma_times(options.rate, 1.0, expected, rng)
    prompts = random_prompts(expected, options.prompt_words, seed=f"{options.seed} {number}")
    half = options.max_tokens // 2
    turns = [
        Turn(text=prompt, max_tokens=options.max_tokens + rng.randint(-half, half))
        for prompt in prompts
    ]
    return Load(
        target=Target(url=url, timeout_s=120.0),
        conversations=[Conversation((turn,)) for turn in turns],
        arrival=OpenLoop(due_s),
    )


def stalls(rng: random.Random) -> Iterator[tuple[float, float]]:
    """For ever: a pause and the length of the stall after it, in seconds."""
    while True:
        yield rng.uniform(0.5, 1.5) * BETWEEN_S, rng.uniform(0.5, 1.5) * STALL_S


async def swap(make: Callable[[str], object], rng: random.Random) -> None:
    """Have faults made: one node throttles, the other stalls again and again, until cancelled."""
    for pause_s, stall_s in stalls(rng):
        make(THROTTLE)
        await asyncio.sleep(pause_s)
        make(THROTTLE + STALL)
        await asyncio.sleep(stall_s)


async def run_round(session: aiohttp.ClientSession, load: Load) -> Round:
    """Send all of them, wait for all answers. Times count from when a request was due, however late
    this process is."""
    before = await prompt_tokens(session, load.target.url)
    requests = (await run_load(load)).requests
    after = await prompt_tokens(session, load.target.url)
    computed = {node: after[node] - before[node] for node in NODES}
    total = sum(computed.values()) or 1
    return Round(
        [r.sent_s - r.due_s + r.duration_s for r in requests if r.error is None],
        [r.error.message for r in requests if r.error is not None],
        {node: tokens / total for node, tokens in computed.items()},
    )


async def prompt_tokens(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """Prompt tokens that each node has taken so far."""
    async with session.get(f"{url}/fleet") as response:
        fleet = msgspec.json.decode(await response.read(), type=SeenFleet)
    return {node.name: node.prefilled_tokens + node.cached_tokens for node in fleet.nodes}


def spec(options: Options, side: str, faults: Path, telemetry: Path) -> ServerSpec:
    """The fleet of a side."""
    sim = ["--engine", "sim", "--nodes", str(len(NODES)), "--sim-faults", str(faults)]
    shared = ["--sim-nodes-per-process", str(len(NODES)), "--telemetry", str(telemetry)]
    return mlxfleet_spec(options.model, [*sim, *shared, SIDES[side]])


async def run(options: Options, console: Console) -> dict[str, list[Round]]:
    """Start both fleets, run all rounds; each side's first is the cool one."""
    rounds: dict[str, list[Round]] = {side: [] for side in SIDES}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        faults, telemetry = folder / "faults", folder / "telemetry"
        faults.write_text("")
        telemetry.write_text(COOL)
        specs = {side: spec(options, side, faults, telemetry) for side in SIDES}
        for side, server in specs.items():
            await stack.enter_async_context(serving(server, folder / f"{side}.log"))
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        for side, server in specs.items():
            cool = plan(options, server.url, 0, options.cool_seconds)
            rounds[side].append(await run_round(session, cool))
        telemetry.write_text(TROUBLE)
        for number in range(1, options.rounds + 1):
            # Who is first changes from round to round.
            for side in sorted(SIDES, reverse=number % 2 == 0):
                load = plan(options, specs[side].url, number, options.seconds)
                swapping = asyncio.create_task(swap(faults.write_text, random.Random(number)))
                rounds[side].append(await run_round(session, load))
                swapping.cancel()
                console.print(f"round {number} of {options.rounds}, weights {side}: done")
    return rounds


def table_of(rounds: dict[str, list[Round]]) -> Table:
    """A row for each side when cool, and when two of its nodes are not well."""
    table = Table(
        title="End-to-end times, s; medians over the rounds",
        caption=f"{THROTTLED} throttles by 30%, {SWAPPING} swaps, unless cool",
    )
    table.add_column("fleet")
    for heading in ("p50", "p99", "p99, range", "errors", *NODES):
        table.add_column(heading, justify="right")
    for side, (cool, *troubled) in rounds.items():
        table.add_row(f"weights {side}, cool", *cells([cool]))
        table.add_row(f"weights {side}", *cells(troubled))
    return table


def cells(rounds: list[Round]) -> list[str]:
    """A row's figures."""
    p99s = [one.quantile_s(0.99) for one in rounds]
    return [
        f"{median(one.quantile_s(0.5) for one in rounds):.2f}",
        f"{median(p99s):.2f}",
        f"{min(p99s):.2f}-{max(p99s):.2f}",
        str(sum(len(one.errors) for one in rounds)),
        *(f"{median(one.shares[node] for one in rounds):.0%}" for node in NODES),
    ]


def gain(rounds: dict[str, list[Round]]) -> float:
    """By which part the 99th percentile is better with weights."""
    p99 = {
        side: median(one.quantile_s(0.99) for one in troubled)
        for side, (_, *troubled) in rounds.items()
    }
    return 1 - p99["on"] / p99["off"]


def main(options: Options) -> None:
    """Run it; the exit status is 1 if the gain is too small or a request has failed."""
    console = Console(stderr=True)
    try:
        rounds = uvloop.run(run(options, console))
    except ServerError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(1)
    Console(width=120).print(table_of(rounds))
    better = gain(rounds)
    print(f"p99 with weights is better by {better:.0%}; wanted: {WANTED:.0%}")
    failed = any(one.errors for side in rounds.values() for one in side)
    sys.exit(1 if failed or better < WANTED else 0)


if __name__ == "__main__":
    cyclopts.run(main)
