"""Rogue nodes beside honest ones: mutated messages and nodes that boast, swallow and lie, while
every stream has to be the same as in an undisturbed run.

Usage: `python -m mlxfleet.bench.rogue --model DIR [--mutations 2000] [--seed 7] [NODE_FLAG ...]`

A router and two honest nodes run as on hosts of their own, with keys, over TCP; the rogues join the
same way. Exit status 1 if a stream went wrong, a rogue was not fenced within 5 s of its first
breach, a front-end process restarted, or its memory grew by more than 400 MB. Linux only, for its
loopback addresses.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cyclopts
import msgspec
from rich.console import Console

from mlxfleet.bench.attack_run import run_attack
from mlxfleet.bench.client import Target, open_session
from mlxfleet.bench.far_fleet import far_fleet
from mlxfleet.bench.rogue.campaign import (
    FENCED_WITHIN_S,
    HONEST,
    MAX_GROWTH_BYTES,
    Campaign,
    Findings,
    model_info,
    readiness,
    samples,
)
from mlxfleet.bench.rogue.mischief import MISCHIEF
from mlxfleet.bench.rogue.streams import Streams
from mlxfleet.common.node_identity import node_info

MEMORY, RESTARTS = "mlxfleet_process_memory_bytes", "mlxfleet_process_restarts_total"
LOOK_S = 0.5


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run and what is done to it."""

    model: Path
    """MLX model folder."""

    mutations: int = 2000
    """Mutated messages."""

    rounds: int = 3
    """How often each kind of mischief is tried."""

    only: tuple[str, ...] = ()
    """Kinds of mischief; all if none is given."""

    at_once: int = 4
    """Rogue nodes at once."""

    streams: int = 12
    """Streams at once."""

    max_tokens: int = 60
    """Tokens of each stream."""

    seed: int | None = None
    """Of the mutations; a random one, which is printed, if not given."""

    logs: Path | None = None
    """Folder for the output of the servers; a temporary one, kept after findings, if not given."""


async def run(
    options: Options, flags: tuple[str, ...], seed: int, folder: Path, console: Console
) -> int:
    """The number of things that went wrong."""
    figures = msgspec.json.decode((options.model / "config.json").read_bytes())
    async with (
        open_session(Target(url="", timeout_s=300.0)) as session,
        far_fleet(options.model, HONEST, folder, node_flags=flags, ask=readiness(session)) as fleet,
    ):
        streams = Streams(fleet.url, streams=options.streams, max_tokens=options.max_tokens)
        await streams.learn(session)
        before = await samples(session, fleet.url)
        peak = dict(before)
        campaign = Campaign(
            session,
            fleet,
            node_info(options.model.name, options.model),
            model_info(figures),
            random.Random(seed),
        )
        over = asyncio.Event()

        async def watch() -> None:
            while not over.is_set():
                for key, value in (await samples(session, fleet.url)).items():
                    peak[key] = max(value, peak.get(key, 0.0))
                await asyncio.sleep(LOOK_S)

        async def attack() -> None:
            for number in range(options.rounds):
                for name in options.only or MISCHIEF:
                    await campaign.misbehave(name)
                    console.print(f"round {number + 1}: {name}; {streams.ended()}")
            await campaign.mutate(options.mutations, options.at_once)
            console.print(f"{options.mutations} mutations; {streams.ended()}")
            over.set()

        with closing(campaign):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watch())
                for stream in range(options.streams):
                    tasks.create_task(streams.run_on(session, stream, over))
                tasks.create_task(attack())
    return report(streams, campaign.findings, before, peak)


def report(
    streams: Streams,
    findings: Findings,
    before: dict[tuple[str, str], float],
    peak: dict[tuple[str, str], float],
) -> int:
    """Print the figures; the number of things that went wrong."""
    print(f"sent: {', '.join(f'{count} {kind}' for kind, count in findings.sent.items())}")
    times = sorted(findings.fenced_s)
    if times:
        print(
            f"{len(times)} of {findings.breaches} breaches fenced, after"
            f" {times[len(times) // 2]:.2f} s in the middle and {times[-1]:.2f} s at worst;"
            f" the limit is {FENCED_WITHIN_S:.0f} s"
        )
    print(streams.ended())
    for what in (*streams.wrong, *findings.late):
        print(what)
    bad = len(streams.wrong) + len(findings.late)
    for (metric, process), value in sorted(peak.items()):
        grown = value - before.get((metric, process), 0.0)
        if metric == MEMORY:
            print(f"{process}: {value / 1e6:.0f} MB at most, {grown / 1e6:.0f} MB more than before")
            bad += grown > MAX_GROWTH_BYTES
        elif metric == RESTARTS and grown:
            print(f"{process}: {grown:.0f} restarts")
            bad += 1
    return bad


def main(
    *flags: Annotated[str, cyclopts.Parameter(allow_leading_hyphen=True)], options: Options
) -> None:
    """Run it; the exit status is 1 if anything went wrong."""
    run_attack("rogue", partial(run, options, flags), seed=options.seed, logs=options.logs)


if __name__ == "__main__":
    cyclopts.run(main)
