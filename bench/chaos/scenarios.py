"""Faults that have once doubled tokens, each on its own and again and again."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from rich.console import Console

from mlxfleet.bench.chaos.burners import burning
from mlxfleet.bench.chaos.campaign import Result, Subject, asking, leaks, show_findings
from mlxfleet.bench.chaos.cases import KEYS, Case, sentence
from mlxfleet.bench.chaos.faults import Faults, Journal
from mlxfleet.bench.chaos.fleet import Fleet, running
from mlxfleet.bench.chaos.load import Load
from mlxfleet.bench.chaos.options import Options, Scenario
from mlxfleet.bench.chaos.plan import Fault, Step

# About as long as heartbeats take to give up a link, so that it is lost with messages on their way.
ROUTER_STOP_S = (2.0, 2.7)
BETWEEN_STOPS_S = (1.0, 4.0)
SWING_S = 5.0


@dataclasses.dataclass(frozen=True)
class Play:
    """A scenario: its fleet, its streams, and what is done while they run, so often at `most`."""

    nodes: int
    streams: int
    tokens: int
    disturb: Callable[[Fleet, Faults, random.Random], Awaitable[bool]]
    most: int = 1


async def stop_router(fleet: Fleet, faults: Faults, rng: random.Random) -> bool:
    """The router stands still for a while in the middle of the streams."""
    stop = Fault("stop", "router", rng.uniform(*ROUTER_STOP_S))
    await asyncio.sleep(rng.uniform(*BETWEEN_STOPS_S))
    return await faults.make(Step(0.0, (stop,)))


async def swing_drains(fleet: Fleet, faults: Faults, rng: random.Random) -> bool:
    """Two nodes are drained in turns, so that all streams move several times a second."""
    return await faults.make(Step(0.0, (Fault("swing", fleet.nodes[0], SWING_S),)))


async def restart_nodes(fleet: Fleet, faults: Faults, rng: random.Random) -> bool:
    """Every node is drained and restarted, one after the other."""
    for node in fleet.nodes:
        if not await faults.make(Step(0.0, (Fault("restart", node),))):
            return False
    return True


PLAYS: dict[Scenario, Play] = {
    "router-stop": Play(1, 60, 700, stop_router, most=4),
    "drain-swing": Play(2, 16, 700, swing_drains, most=1_000),
    "rolling-restart": Play(2, 24, 240, restart_nodes),
}


async def play(scenario: Scenario, subject: Subject, options: Options, console: Console) -> Result:
    """All rounds of a scenario on one fleet. ServerError if that does not start, or does not answer
    undisturbed."""
    usual = PLAYS[scenario]
    part = dataclasses.replace(
        usual,
        streams=options.streams or usual.streams,
        tokens=options.longest or usual.tokens,
    )
    rng = random.Random(subject.seed)
    cases = make_streams(rng, part)
    async with (
        running(subject.mode, subject.model, part.nodes, subject.logs, subject.flags) as fleet,
        asking(fleet, options) as client,
        AsyncExitStack() as closing,
    ):
        journal = Journal()
        load = Load(client, cases, journal)
        faults = Faults(fleet, journal)
        console.print(f"{subject.name}, {scenario}: {part.streams} streams undisturbed ...")
        await load.learn(part.streams)
        await closing.enter_async_context(burning(options.burners))
        for number in range(options.rounds):
            before = len(load.tally.findings)
            await one_round(part, fleet, faults, load, rng)
            found = load.tally.findings[before:]
            console.print(
                f"{subject.name}, {scenario}: round {number + 1}/{options.rounds},"
                f" {len(found)} of {part.streams} streams wrong",
                highlight=False,
                soft_wrap=True,
            )
            show_findings(found, console)
        findings = [*load.tally.findings, *await leaks(fleet)]
    return Result(f"{subject.name}, {scenario}", load, journal, findings)


async def one_round(
    part: Play, fleet: Fleet, faults: Faults, load: Load, rng: random.Random
) -> None:
    """Disturb all streams, and wait until the last has ended."""
    streams = asyncio.create_task(load.ask_all())
    try:
        for _ in range(part.most):
            if streams.done() or not await part.disturb(fleet, faults, rng):
                break
        await streams
    finally:
        streams.cancel()


def make_streams(rng: random.Random, part: Play) -> list[Case]:
    """Streams of one length, half of them greedy and half seeded."""
    return [make_stream(rng, index, part) for index in range(part.streams)]


def make_stream(rng: random.Random, index: int, part: Play) -> Case:
    """One of them."""
    body: dict[str, Any] = {
        "prompt": sentence(rng, 1 + 5 * (index % 16)),
        "max_tokens": part.tokens,
        "ignore_eos": True,
        "temperature": 0.9 if index % 2 else 0,
        "seed": index,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if index % 5 == 0:
        body["logprobs"] = 1
    return Case(name=f"stream {index}", endpoint="completions", body=body, key=index % KEYS)
